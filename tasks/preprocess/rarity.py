"""How much each class weighs in the loss, by how rare it is in the training split."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from models.errors import RecipeError
from models.plan import Fingerprint
from models.recipe import Recipe
from models.recipe.losses import misfitting_weights

MOST = 100.0
"""No weight is above it: otherwise a few voxels, or a single case, would decide whole steps."""


def class_weights(recipe: Recipe, fingerprint: Fingerprint, classes: Sequence[str]) -> tuple[tuple[float, ...], str]:
    """The weights and how they came about; none where the recipe wants none.

    "auto": median-frequency balancing (Eigen and Fergus 2015), a class's frequency being its share of the voxels of
    the images that show it, or of the cases; for classes that do not exclude each other, negatives per positive.
    Raises RecipeError where the given ones do not fit the dataset's classes.
    """
    asked = recipe.train.class_weights
    if isinstance(asked, tuple):
        if why := misfitting_weights(recipe, asked, len(classes)):
            raise RecipeError(why, where=recipe.name, hint=f"the classes are {', '.join(classes)}")
        return asked, "classes weighed as given" if asked else ""
    alone = recipe.labels.regions or recipe.labels.several
    counts = voxels(fingerprint, len(classes)) if recipe.learns_masks else cases(fingerprint, len(classes))
    if alone:
        found = [(whole - there) / there if there else 1.0 for there, whole in counts]
        told = "positives weigh as many times more as they are rarer than negatives"
    else:
        if recipe.learns_masks:
            counts = [background(fingerprint), *counts]
        found = balanced(counts)
        told = "classes weigh the median frequency over their own"
    weights = tuple(float(f"{min(MOST, max(1 / MOST, weight)):.4g}") for weight in found)
    return weights, f"{told}: {', '.join(f'{w:g}' for w in weights)}"


def balanced(counts: Sequence[tuple[float, float]]) -> list[float]:
    """Median frequency / frequency, of (there, out of how many); 1 for what is nowhere."""
    frequencies = [there / whole if there else math.nan for there, whole in counts]
    middle = float(np.nanmedian(frequencies)) if not all(map(math.isnan, frequencies)) else 1.0
    return [1.0 if math.isnan(f) else middle / f for f in frequencies]


def voxels(fingerprint: Fingerprint, classes: int) -> list[tuple[float, float]]:
    """Per class its voxels, and all voxels of the images that show it."""
    found = []
    for index in range(classes):
        showing = [c for c in fingerprint.cases if len(c.class_voxels) > index and c.class_voxels[index]]
        there = sum(c.class_voxels[index] for c in showing)
        found.append((float(there), float(sum(math.prod(c.cropped_shape) for c in showing))))
    return found


def background(fingerprint: Fingerprint) -> tuple[float, float]:
    """Voxels of no class, and all voxels."""
    whole = sum(math.prod(c.cropped_shape) for c in fingerprint.cases)
    return float(max(0, whole - sum(sum(c.class_voxels) for c in fingerprint.cases))), float(whole)


def cases(fingerprint: Fingerprint, classes: int) -> list[tuple[float, float]]:
    """Per class the cases that show it, and all cases."""
    counts = (*fingerprint.class_counts, *(0,) * classes)[:classes]
    return [(float(n), float(len(fingerprint.cases))) for n in counts]
