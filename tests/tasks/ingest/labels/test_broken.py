"""Whatever bytes come in, a label is read or refused: no parser's error gets out, and none quotes the file."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from models.errors import BadInputError
from models.geometry import Geometry
from models.pseudonyms import Pseudonymizer
from tasks.ingest.labels.rtstruct import read_rtstruct
from tasks.ingest.labels.seg import read_seg
from tests.tasks.ingest.labels.conftest import content, ct_series, segmentation, structure_set
from tests.tasks.ingest.labels.test_polygons import circle
from tests.tasks.ingest.labels.test_rtstruct import on_planes

GRID = Geometry.from_spacing((4, 24, 26), (3.0, 1.0, 1.0), (-25.0, -20.0, 100.0))


def seg_of(slices: list[Dataset]) -> Dataset:
    return segmentation(slices, np.ones(GRID.shape, np.uint8))


def rtstruct_of(slices: list[Dataset]) -> Dataset:
    return structure_set(slices[0], {"GTV": on_planes(GRID, circle(12, 12, 7), [1, 2])})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("make", "read"), [(seg_of, read_seg), (rtstruct_of, read_rtstruct)])
def test_damaged_bytes(
    make: Callable[[list[Dataset]], Dataset],
    read: Callable[[bytes, Pseudonymizer], Any],
    tmp_path: Path,
    pseudonymizer: Pseudonymizer,
) -> None:
    slices = ct_series(GRID, patient="SECRETNAME")
    whole = content(make(slices), tmp_path)
    geometry = replace(GRID, frame_of_reference=pseudonymizer.uid(slices[0].FrameOfReferenceUID))
    chance = random.Random(7)
    seen: Counter[str] = Counter()
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(chance.choice([1, 3, 10])):
            damaged[chance.randrange(132, len(damaged))] = chance.randrange(256)
        if chance.random() < 0.2:
            del damaged[chance.randrange(len(damaged)) :]
        try:
            label = read(bytes(damaged), pseudonymizer)
            label.fit(geometry)
            label.mask(geometry)
            seen["read"] += 1
        except BadInputError as error:
            seen[error.reason] += 1
            told = f"{error} {error.__cause__}"
            assert "SECRET" not in told
            assert slices[0].StudyInstanceUID not in told
    assert seen["read"]
    assert len(seen) > 2
