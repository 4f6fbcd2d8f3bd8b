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
from tasks.imaging.components import keep_largest
from tasks.imaging.device import Precision, choose_device, memory_told
from tasks.imaging.prepare import prepare_image, restore_probabilities
from tasks.imaging.sliding import class_probabilities, sliding_window


@dataclass(frozen=True, slots=True)
class Segmentation:
    """`labels` (z, y, x) uint8 on the image's own grid: 0 background, i + 1 the plan's i-th class.

    `confidence` holds, per class, the mean probability of the voxels that were given to it; 0 where there are none.
    """

    labels: NDArray[np.uint8]
    confidence: tuple[float, ...]


class Predictor:
    """Build once, use for many images. Raises PackageError where the weights do not fit the plan's network."""

    def __init__(
        self,
        package: ModelPackage,
        weights: Mapping[str, Tensor],
        device: Literal["auto", "cpu", "cuda"] = "auto",
        *,
        precision: Precision = "auto",
    ) -> None:
        self.package, self.precision = package, precision
        self.device = choose_device(device)
        network = build(package.plan.network)
        try:
            network.load_state_dict(dict(weights))
        except RuntimeError as error:
            raise PackageError(f"the weights do not fit the network: {error}", where=package.key) from None
        self.network: nn.Module = network.to(self.device).eval()

    def segment(self, array: NDArray[Any], geometry: Geometry) -> Segmentation:
        """The mask of an image ([c,] z, y, x). Raises PixelError where the image does not fit the plan."""
        plan = self.package.plan
        prepared = prepare_image(array, geometry, plan.prepare)
        with memory_told(self.package.key):
            probabilities = sliding_window(
                self.network,
                torch.from_numpy(prepared.array),
                plan.infer.tile,
                plan.infer.overlap,
                mirror_axes=plan.infer.mirror_axes,
                precision=self.precision,
                device=self.device,
            ).numpy()
        labels = restore_probabilities(probabilities, prepared, geometry)
        kept = [i + 1 for i, name in enumerate(plan.classes) if name in self.package.keep_largest]
        return Segmentation(keep_largest(labels, kept) if kept else labels, _confidence(probabilities))

    def classify(self, array: NDArray[Any], geometry: Geometry) -> NDArray[np.float32]:
        """Probabilities (n classes) of an image ([c,] z, y, x). Raises PixelError where it does not fit the plan."""
        plan = self.package.plan
        prepared = prepare_image(array, geometry, plan.prepare)
        images = torch.from_numpy(prepared.array)[None].to(self.device)
        if plan.network.dimensions == 2:
            images = images[:, :, 0]
        with memory_told(self.package.key):
            return class_probabilities(self.network, images, plan.infer.mirror_axes, self.precision)[0].cpu().numpy()


def _confidence(probabilities: NDArray[np.float32]) -> tuple[float, ...]:
    winner = probabilities.argmax(axis=0)
    chosen = (probability[winner == value] for value, probability in enumerate(probabilities) if value > 0)
    return tuple(float(part.mean()) if part.size else 0.0 for part in chosen)
