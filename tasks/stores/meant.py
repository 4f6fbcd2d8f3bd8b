"""The volumes that a recipe may mean, one after another: a catalog may hold more of them than fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session, defer

from models.recipe import Images
from tasks.stores.catalog import in_parts
from tasks.stores.tables import VolumeRow

_LONG: Final = (VolumeRow.geometry, VolumeRow.notes)
"""Documents that no rule asks for: most of a row."""


def meant_volumes(
    session: Session, images: Images, *where: ColumnElement[bool], headers: bool = False
) -> Iterator[VolumeRow]:
    """The rows of the recipe's modalities without their geometry and notes, and without `characteristics` unless
    `headers` are asked for. They are the session's."""
    left = _LONG if headers else (*_LONG, VolumeRow.characteristics)
    query = select(VolumeRow).where(VolumeRow.modality.in_(images.modalities), *where)
    return in_parts(session, query.options(*(defer(column, raiseload=True) for column in left)))
