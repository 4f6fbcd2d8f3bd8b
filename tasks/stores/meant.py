"""The volumes that a recipe may mean, one after another: a catalog may hold more of them than fit into memory.

Of a hospital's series most have another description than the recipe's: those are told by their keys alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session, defer

from models.recipe import Images, Selection
from tasks.stores.catalog import by_parts, distinct, in_parts
from tasks.stores.tables import VolumeRow

OTHERWISE: Final = "other-description"
"""Why `Images.refusal` refuses those of `described_otherwise`."""
_LONG: Final = (VolumeRow.geometry, VolumeRow.notes)
"""Documents that no rule asks for: most of a row."""


def meant_volumes(
    session: Session, images: Images, *where: ColumnElement[bool], headers: bool = False
) -> Iterator[VolumeRow]:
    """The rows of the recipe's modalities and descriptions, without geometry and notes, and without `characteristics`
    unless `headers` are asked for. They are the session's."""
    left = _LONG if headers else (*_LONG, VolumeRow.characteristics)
    query = select(VolumeRow).where(*where).options(*(defer(column, raiseload=True) for column in left))
    for modality in images.modalities:
        of_it = query.where(VolumeRow.modality == modality)
        if (fitting := _descriptions(session, images, modality, fitting=True)) is None:
            yield from in_parts(session, of_it)
        else:
            for part in by_parts(fitting):
                yield from in_parts(session, of_it.where(VolumeRow.description.in_(part)))


def described_otherwise(session: Session, images: Images, *where: ColumnElement[bool]) -> Iterator[str]:
    """The keys of the volumes of the recipe's modalities whose description none of its rules means."""
    for modality in images.modalities:
        for part in by_parts(_descriptions(session, images, modality, fitting=False) or ()):
            query = select(VolumeRow.volume).where(VolumeRow.modality == modality, VolumeRow.description.in_(part))
            yield from in_parts(session, query.where(*where))


def _descriptions(session: Session, images: Images, modality: str, *, fitting: bool) -> list[str] | None:
    """Those of the modality that a rule means, or that none does; None where a rule means every description."""
    parts: tuple[Selection, ...] = images.channels or (images,)
    rules = [part.description for part in parts if modality in part.modality]
    if not all(rules):
        return None
    told = distinct(session, VolumeRow.description, VolumeRow.modality == modality)
    return [one for one in told if any(re.search(str(r), one, re.IGNORECASE) for r in rules) is fitting]
