"""What is chosen on cases that were not learnt from: temperature, and which components stay."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.plan import Plan
from models.recipe import Recipe
from tasks.imaging.calibration import best_temperature, calibration_error, tempered
from tasks.imaging.components import keep_largest, keep_largest_regions
from tasks.train.validate import LEAST_TO_CHOOSE, class_means, dice, labels_of

VOXELS_OF_A_CASE = 2000
"""Voxels of one case that the temperature is chosen by."""
VOXELS_THAT_TELL = 20
"""Of one case: its voxels err together, and so tell far less than as many images would."""
_AROUND = 3  # voxels round the foreground that are looked at too: the rest is background and certain of it


def choose_temperature(
    recipe: Recipe, probabilities: NDArray[Any], targets: NDArray[Any], cases: int
) -> tuple[float, tuple[str, ...]]:
    """The temperature for (n, classes) of `cases` cases, and a note of what it does.

    1 where there are too few, and where the calibration error would not fall. `targets` as `best_temperature` takes
    them.
    """
    if not recipe.infer.calibrate:
        return 1.0, ()
    if cases < LEAST_TO_CHOOSE or not len(targets):
        return 1.0, (f"not calibrated: {cases} cases to choose a temperature by, at least {LEAST_TO_CHOOSE} needed",)
    temperature = best_temperature(probabilities, targets, min(len(targets), VOXELS_THAT_TELL * cases))
    before = _error(probabilities, targets)
    after = _error(tempered(probabilities, temperature, axis=1, independent=targets.ndim == 2), targets)
    told = f"temperature {temperature:g}: expected calibration error {before:.3f} → {after:.3f} on {cases} cases"
    # The likeliest temperature makes for less surprise on the whole, which need not be an honest confidence.
    return (temperature, (told,)) if after < before else (1.0, (f"not calibrated: {told}",))


def _error(probabilities: NDArray[Any], targets: NDArray[Any]) -> float:
    if targets.ndim == 2:
        return calibration_error(probabilities.ravel(), targets.ravel() > 0)
    return calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == targets)


class MaskTrial:
    """Takes what was predicted for one case after another; keeps scores, and some voxels of each."""

    def __init__(self, plan: Plan, *, components: bool, voxels: bool) -> None:
        self.plan, self.cases = plan, 0
        self._components, self._voxels = components, voxels
        self._before: list[NDArray[np.float64]] = []
        self._after: list[NDArray[np.float64]] = []
        self._said: list[NDArray[np.float32]] = []
        self._true: list[NDArray[Any]] = []

    @property
    def needed(self) -> bool:
        """Whether anything is to be chosen."""
        return self._components or self._voxels

    def take(self, probabilities: NDArray[np.float32], mask: NDArray[np.uint8]) -> None:
        """Of one case: (k, z, y, x), and the truth (z, y, x)."""
        self.cases += 1
        classes, regions = len(self.plan.classes), self.plan.regions
        labels = labels_of(probabilities, regions=regions)
        if self._components:
            every = range(classes)
            largest = keep_largest_regions(labels, every) if regions else keep_largest(labels, [i + 1 for i in every])
            self._before.append(dice(labels, mask, classes, regions=regions))
            self._after.append(dice(largest, mask, classes, regions=regions))
        if self._voxels:
            z, y, x = self._places((labels > 0) | (mask > 0))
            self._said.append(probabilities[:, z, y, x].T)
            true = mask[z, y, x].astype(np.intp)
            self._true.append(true[:, None] >> np.arange(classes) & 1 if regions else true)

    @property
    def probabilities(self) -> NDArray[np.float32]:
        """(voxels, k)."""
        return np.concatenate(self._said) if self._said else np.empty((0, self.plan.network.out_channels), np.float32)

    @property
    def targets(self) -> NDArray[Any]:
        """(voxels,) classes with the background; (voxels, k) of 0 and 1 for regions."""
        return np.concatenate(self._true) if self._true else np.empty(0, np.intp)

    @property
    def keep_largest(self) -> tuple[str, ...]:
        """The classes whose mean Dice rises when only their largest component is kept.

        Keeping one class's largest component cannot change another's Dice, so each class is decided alone.
        """
        if not self._before:
            return ()
        rises = class_means(self._after) > class_means(self._before)
        return tuple(name for name, better in zip(self.plan.classes, rises, strict=True) if better)

    def _places(self, foreground: NDArray[np.bool_]) -> tuple[NDArray[np.intp], ...]:
        """Voxels in and near the foreground, drawn evenly; the same ones for the same plan and case."""
        box = ndimage.find_objects(foreground.astype(np.uint8))
        if not box:
            return tuple(np.empty(0, np.intp) for _ in range(3))
        wide = tuple(slice(max(0, s.start - _AROUND), s.stop + _AROUND) for s in box[0])
        near = ndimage.binary_dilation(foreground[wide], iterations=_AROUND)
        places = np.flatnonzero(near)
        if len(places) > VOXELS_OF_A_CASE:
            rng = np.random.default_rng((self.plan.seed, self.cases))
            places = np.sort(rng.choice(places, VOXELS_OF_A_CASE, replace=False))
        found = np.unravel_index(places, near.shape)
        return tuple(at + s.start for at, s in zip(found, wide, strict=True))
