"""The images that a recipe means and that nobody has labelled: what pretraining learns from besides."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select

from models.assembly import assemble, current
from models.dataset import Dataset
from models.plan import Plan
from models.recipe import Recipe
from tasks.stores.catalog import Catalog, in_parts
from tasks.stores.meant import meant_volumes
from tasks.stores.prepared import prepared_key
from tasks.stores.tables import SplitRow

Volumes = tuple[str, ...]
"""One case's, the reference first; "" where a channel is missing."""


def unlabelled_cases(catalog: Catalog, recipe: Recipe, dataset: Dataset) -> tuple[Volumes, ...]:
    """Cases of the catalog that are not in the dataset, by volume. Patients of validation and test are left out."""
    used = {volume for row in dataset.rows for volume in (row.volume, *row.channels) if volume}
    with catalog.reading() as session:
        held = set(in_parts(session, select(SplitRow.patient).where(SplitRow.split != "train")))
        rows = current(meant_volumes(session, recipe.images), used)
    free = [row for row in rows if row.patient not in held]
    cases, _ = assemble(recipe.images, free)
    return tuple(sorted((c.reference.volume, *c.channels) for c in cases if c.reference.volume not in used))


def unlabelled_keys(recipe: Recipe, plan: Plan) -> Sequence[str]:
    """The prepared keys of the plan's unlabelled cases."""
    return [
        prepared_key(
            volume, None, plan.prepare, (), 0.0, -1, channels=channels, registration=recipe.images.registration
        )
        for volume, *channels in plan.unlabelled
    ]
