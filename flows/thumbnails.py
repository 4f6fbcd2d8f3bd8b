"""Small pictures that a page can hold without a file server: of what a prediction found, and of an evaluation."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence

import numpy as np

from models.evaluation import Picture
from tasks.imaging.montage import montage, spread
from tasks.stores.house import Stores
from tasks.stores.tables import PredictionRow

_INSIDE = 127
_SLICES = 4
_ALIKE = 2  # the best and the median case, say: further ones are in the report
_LARGEST, _ALL = 400_000, 1_500_000  # bytes: the page is sent whole, and kept in the server's database


def thumbnail(stores: Stores, prediction: str) -> str | None:
    """Slices with outlines as a data URI; None where nothing was drawn: a class, or no structure found."""
    row = stores.catalog.get(PredictionRow, prediction)
    if row is None or not stores.volumes.exists(prediction):
        return None
    mask, volume = stores.volumes.open_mask(prediction).read(), stores.volumes.open(row.volume)
    marked = np.flatnonzero((mask.occupancy > _INSIDE).any(axis=(0, 2, 3)))
    if not marked.size:
        return None
    chosen = [int(z) for z in spread(marked, _SLICES)]
    slices = [volume.read_slab(z, z + 1) for z in chosen]
    structures = [[plane[z] > _INSIDE for plane in mask.occupancy] for z in chosen]
    picture = io.BytesIO()
    sheet = montage(slices, structures, mask.geometry.spacing[1:], str(volume.about["unit"]))
    sheet.save(picture, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(picture.getvalue()).decode()


def chosen(pictures: Sequence[Picture]) -> tuple[Picture, ...]:
    """Those of an evaluation that a page can hold: two of a kind (`overlays-…`) at most, none very large."""
    alike: Counter[str] = Counter()
    taken, size = [], 0
    for picture in pictures:
        kind, length = picture.name.partition("-")[0], len(picture.data)
        if length <= _LARGEST and size + length <= _ALL and alike[kind] < _ALIKE:
            alike[kind] += 1
            taken.append(picture)
            size += length
    return tuple(taken)
