"""A model package, warm: give it images, get masks or class probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.geometry import Geometry
from models.package import ModelPackage
from models.plan import Plan, clinical_numbers
from tasks.imaging.calibration import tempered
from tasks.imaging.components import keep_largest, keep_largest_regions
from tasks.imaging.crop import Box, whole_box
from tasks.imaging.device import Precision, choose_device, memory_told
from tasks.imaging.ensemble import Part, averaged, load_parts, nowhere
from tasks.imaging.prepare import Layout, prepare_image
from tasks.imaging.restore import Decision, EachAlone, Likeliest, Restorer, restored, slab_ranges
from tasks.imaging.sliding import class_probabilities, sliding_bands
from tasks.imaging.streamed import WHOLE_BYTES, prepared_planes
from tasks.imaging.told import Beside, told_map

Bands = Iterator[tuple[int, NDArray[np.float32]]]
"""(first slice, probabilities (k, n, y, x)), in order and without gaps."""


@dataclass(frozen=True, slots=True)
class Segmentation:
    """`labels` (z, y, x) uint8 on the image's own grid: 0 background, i + 1 the plan's i-th class; bits, of regions.

    `confidence` holds, per class, the mean probability of the voxels that were given to it; 0 where there are none.
    `nearest` is the highest probability of being something that a voxel of the background has.
    """

    labels: NDArray[np.uint8]
    confidence: tuple[float, ...]
    nearest: float = 0.0


class Predictor:
    """Build once, use for many images. Raises PackageError where the weights do not fit the plan's network.

    A package's members are applied together: `parts` are those that see the same prepared image, as one network each.

    Images whose prepared form takes more than `whole_bytes` are prepared a few slices at a time.
    """

    def __init__(
        self,
        package: ModelPackage,
        weights: Mapping[str, Tensor],
        device: Literal["auto", "cpu", "cuda"] = "auto",
        *,
        precision: Precision = "auto",
        whole_bytes: int = WHOLE_BYTES,
    ) -> None:
        self.package, self.precision, self.whole_bytes = package, precision, whole_bytes
        self.device = choose_device(device)
        self.parts = load_parts(package, weights, self.device)

    @property
    def network(self) -> nn.Module:
        """The first part's; it may be replaced."""
        return self.parts[0].network

    @network.setter
    def network(self, network: nn.Module) -> None:
        self.parts[0].network = network

    def segment(self, array: NDArray[Any], geometry: Geometry) -> Segmentation:
        """The mask of an image ([c,] z, y, x). Raises PixelError where the image does not fit the plan.

        Probabilities become labels on the image's own grid while the tiles go on: beside the image and the mask there
        is never more than a band of slices, so the memory that a scan takes does not grow with its length.
        """
        plan, temperature = self.package.plan, self.package.temperature
        decision = EachAlone(temperature=temperature) if plan.regions else Likeliest(temperature)
        labels, _ = self.decide(array, geometry, decision)
        kept = [i for i, name in enumerate(plan.classes) if name in self.package.keep_largest]
        if kept:
            labels = keep_largest_regions(labels, kept) if plan.regions else keep_largest(labels, [i + 1 for i in kept])
        return Segmentation(labels, decision.confidence(len(plan.classes)), decision.nearest)

    def decide(self, array: NDArray[Any], geometry: Geometry, decision: Decision) -> tuple[NDArray[np.uint8], Box]:
        """What `decision` makes of the probabilities (z, y, x), and the part of the image that it was shown."""
        with memory_told(self.package.key):
            if len(self.parts) == 1:
                bands, layout = self.bands(self.parts[0], array, geometry)
                grid, crop = layout.target, layout.crop
            else:
                bands, grid, crop = self._averaged(array, geometry), geometry, whole_box(geometry.shape)
            restorer = Restorer(grid, crop, geometry, decision=decision)
            for first, probabilities in bands:
                restorer.take(first, probabilities)
        return restorer.labels, crop

    def classify(self, array: NDArray[Any], geometry: Geometry, clinical: Sequence[str] = ()) -> NDArray[np.float32]:
        """Probabilities (n classes) of an image ([c,] z, y, x). Raises PixelError where it does not fit the plan.

        `clinical` are the values of the plan's variables, as text; what is not told is missing.
        """
        with memory_told(self.package.key):
            return self._said([self._prepared(part, array, geometry) for part in self.parts], clinical)

    def classify_many(
        self, images: Iterable[tuple[NDArray[Any], Geometry]], clinical: Sequence[str] = ()
    ) -> NDArray[np.float32]:
        """As `classify`, of several images that are one case: a patient's series, in any order."""
        with memory_told(self.package.key):
            # One after the other: a patient may have more scans than fit into memory as they are.
            prepared = [[self._prepared(part, *image) for part in self.parts] for image in images]
            return self._said([torch.stack(series) for series in zip(*prepared, strict=True)], clinical)

    def _said(self, prepared: Sequence[Tensor], clinical: Sequence[str]) -> NDArray[np.float32]:
        """Of the case as each part sees it."""
        pairs = zip(self.parts, prepared, strict=True)
        said = [part.share * self._classified(part, one, clinical) for part, one in pairs]
        independent = self.package.plan.activation == "sigmoid"
        return tempered(sum(said[1:], said[0]), self.package.temperature, independent=independent)

    @staticmethod
    def _prepared(part: Part, array: NDArray[Any], geometry: Geometry) -> Tensor:
        return torch.from_numpy(prepare_image(array, geometry, part.plan.prepare).array)

    def _classified(self, part: Part, prepared: Tensor, clinical: Sequence[str]) -> NDArray[np.float32]:
        """Of a prepared image, or several stacked."""
        plan = part.plan
        images = prepared[None].to(self.device)
        if plan.network.dimensions == 2:
            images = images[..., 0, :, :]
        axes = plan.infer.mirror_axes
        beside = self.numbers(plan, clinical)
        found = class_probabilities(
            part.network, images, axes, self.precision, activation=plan.activation, clinical=beside
        )
        return found[0].cpu().numpy()

    def numbers(self, plan: Plan, clinical: Sequence[str]) -> Tensor | None:
        """What a part is told, (1, v): its variables by their names among the package's."""
        if not plan.variables:
            return None
        told = dict(zip((variable.name for variable in self.package.plan.variables), clinical, strict=False))
        texts = [told.get(variable.name, "") for variable in plan.variables]
        return torch.tensor([clinical_numbers(plan.variables, texts)], dtype=torch.float32, device=self.device)

    def bands(self, part: Part, array: NDArray[Any], geometry: Geometry) -> tuple[Bands, Layout]:
        """One part's probabilities on its own grid, and where that lies."""
        plan = part.plan
        prepared, layout = prepared_planes(array, geometry, plan.prepare, whole_bytes=self.whole_bytes)
        if part.low is not None:
            coarse, source = self.bands(part.low, array, geometry)
            prepared = Beside(prepared, told_map(coarse, source.target, layout.target, regions=plan.regions))
        bands = sliding_bands(
            part.network,
            prepared,
            plan.infer.tile,
            plan.infer.overlap,
            mirror_axes=plan.infer.mirror_axes,
            activation=plan.activation,
            precision=self.precision,
            device=self.device,
        )
        return ((first, probabilities.numpy()) for first, probabilities in bands), layout

    def _averaged(self, array: NDArray[Any], geometry: Geometry) -> Bands:
        """All parts' probabilities on the image's own grid."""
        ranges = slab_ranges(geometry.shape, self.package.plan.network.out_channels)
        streams = []
        for part in self.parts:
            bands, layout = self.bands(part, array, geometry)
            streams.append(restored(bands, layout.target, layout.crop, geometry, ranges, nowhere(part.plan)))
        means = averaged(streams, [part.share for part in self.parts])
        return ((low, mean) for (low, _), mean in zip(ranges, means, strict=True))
