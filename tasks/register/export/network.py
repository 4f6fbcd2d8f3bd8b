"""What of a package is exported: from a prepared patch to what the model says of it, and a patch to check it on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.errors import PackageError
from models.package import ModelPackage
from tasks.imaging.calibration import tempered
from tasks.imaging.ensemble import Part
from tasks.imaging.predictor import Predictor
from tasks.imaging.sliding import class_probabilities
from tasks.stores.packages import read_package

TOLERANCE: Final = 1e-4
"""The largest difference of a probability that is still the same model."""
_SEED = 20260101
_BATCH = 2


class Said(nn.Module):
    """(b, c, …) prepared patches → (b, k, …) probabilities, at the temperature that was chosen on validation."""

    def __init__(self, network: nn.Module, temperature: float, *, independent: bool) -> None:
        super().__init__()
        self.network, self.temperature, self.independent = network, temperature, independent

    def forward(self, image: Tensor, clinical: Tensor | None = None) -> Tensor:
        """`clinical` (b, v) are the variables of a network that takes some."""
        beside = () if clinical is None else (clinical,)
        logits: Tensor = self.network(image, *beside).float() / self.temperature
        return logits.sigmoid() if self.independent else logits.softmax(1)


@dataclass(frozen=True)
class Exportable:
    """A package's network on the CPU with a patch, and what the package itself says of that patch."""

    package: ModelPackage
    network: Said
    sample: tuple[Tensor, ...]
    expected: NDArray[np.float32]

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of what it takes."""
        return ("image", "clinical")[: len(self.sample)]


def exportable(folder: Path) -> Exportable:
    """The package in `folder`. Raises PackageError where it is not one network that gives probabilities."""
    package, weights = read_package(folder)
    plan = package.plan
    if plan.kind == "synthesis" or (plan.kind == "detection" and not plan.segments):
        raise PackageError(
            f"a {plan.kind} by {plan.network.name} gives no probabilities of places or images, which is what is "
            "exported",
            where=package.recipe.name,
        )
    if plan.of == "patient":
        raise PackageError("a model of patients takes any number of images: it cannot be exported", where=package.key)
    parts = Predictor(package, weights, "cpu", precision="fp32").parts
    if len(parts) != 1 or parts[0].low is not None:
        raise PackageError(
            "networks with different grids, or one after the other, are no single network",
            where=package.recipe.name,
            hint="export the models that it was made of",
        )
    return _with_sample(package, parts[0])


def _with_sample(package: ModelPackage, part: Part) -> Exportable:
    plan = part.plan
    shape = plan.infer.tile[-plan.network.dimensions :]
    drawn = torch.Generator().manual_seed(_SEED)
    image = torch.randn((_BATCH, plan.network.in_channels, *shape), generator=drawn)
    numbers = plan.network.variables
    beside = (torch.randn((_BATCH, numbers), generator=drawn),) if numbers else ()
    independent = package.plan.activation == "sigmoid"
    with torch.inference_mode():
        # By the functions that serve, not by the module that is exported.
        said = class_probabilities(
            part.network,
            image,
            precision="fp32",
            activation=package.plan.activation,
            clinical=beside[0] if beside else None,
        ).numpy()
    expected = tempered(said, package.temperature, axis=1, independent=independent)
    network = Said(part.network, package.temperature, independent=independent).eval()
    return Exportable(package, network, (image, *beside), expected)


def difference(model: Exportable, found: NDArray[np.floating], tolerance: float, what: str) -> float:
    """The largest difference from the package's own output. Raises PackageError above `tolerance`."""
    if found.shape != model.expected.shape:
        raise PackageError(f"the {what} gives {found.shape}, the package {model.expected.shape}", where=what)
    largest = float(np.abs(found.astype(np.float64) - model.expected).max())
    if not largest <= tolerance:  # also where it is NaN
        raise PackageError(
            f"the {what} differs from the package by up to {largest:.3g}, more than {tolerance:g}: it is not written",
            where=model.package.recipe.name,
            reason="export-differs",
        )
    return largest
