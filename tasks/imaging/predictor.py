"""A model package, warm: give it images, get masks or class probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.errors import PackageError
from models.geometry import Geometry
from models.networks import build
from models.package import ModelPackage
from tasks.imaging.components import keep_largest, keep_largest_regions
from tasks.imaging.device import Precision, choose_device, memory_told
from tasks.imaging.prepare import prepare_image
from tasks.imaging.restore import EachAlone, Likeliest, Restorer
from tasks.imaging.sliding import class_probabilities, sliding_bands
from tasks.imaging.streamed import WHOLE_BYTES, prepared_planes


@dataclass(frozen=True, slots=True)
class Segmentation:
    """`labels` (z, y, x) uint8 on the image's own grid: 0 background, i + 1 the plan's i-th class; bits, of regions.

    `confidence` holds, per class, the mean probability of the voxels that were given to it; 0 where there are none.
    """

    labels: NDArray[np.uint8]
    confidence: tuple[float, ...]


class Predictor:
    """Build once, use for many images. Raises PackageError where the weights do not fit the plan's network.

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
        network = build(package.plan.network)
        try:
            network.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise PackageError(f"the weights do not fit the network: {error}", where=package.key) from None
        self.network: nn.Module = network.to(self.device).eval()

    def segment(self, array: NDArray[Any], geometry: Geometry) -> Segmentation:
        """The mask of an image ([c,] z, y, x). Raises PixelError where the image does not fit the plan.

        Probabilities become labels on the image's own grid while the tiles go on: beside the image and the mask there
        is never more than a band of slices, so the memory that a scan takes does not grow with its length.
        """
        plan = self.package.plan
        with memory_told(self.package.key):
            prepared, layout = prepared_planes(array, geometry, plan.prepare, whole_bytes=self.whole_bytes)
            decision = EachAlone() if plan.regions else Likeliest()
            restorer = Restorer(layout.target, layout.crop, geometry, decision=decision)
            for first, probabilities in sliding_bands(
                self.network,
                prepared,
                plan.infer.tile,
                plan.infer.overlap,
                mirror_axes=plan.infer.mirror_axes,
                activation=plan.activation,
                precision=self.precision,
                device=self.device,
            ):
                restorer.take(first, probabilities.numpy())
        kept = [i for i, name in enumerate(plan.classes) if name in self.package.keep_largest]
        labels = restorer.labels
        if kept:
            labels = keep_largest_regions(labels, kept) if plan.regions else keep_largest(labels, [i + 1 for i in kept])
        return Segmentation(labels, restorer.confidence(len(plan.classes)))

    def classify(self, array: NDArray[Any], geometry: Geometry) -> NDArray[np.float32]:
        """Probabilities (n classes) of an image ([c,] z, y, x). Raises PixelError where it does not fit the plan."""
        plan = self.package.plan
        prepared = prepare_image(array, geometry, plan.prepare)
        images = torch.from_numpy(prepared.array)[None].to(self.device)
        if plan.network.dimensions == 2:
            images = images[:, :, 0]
        with memory_told(self.package.key):
            found = class_probabilities(
                self.network, images, plan.infer.mirror_axes, self.precision, activation=plan.activation
            )
            return found[0].cpu().numpy()
