"""The instances' table: what plain Python lets pass, the schema does too."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import HeaderError
from models.schemas import INSTANCES
from models.series import Source
from tasks.ingest.table import check_instances, ordinary

GOOD: dict[str, list[Any]] = {
    "instance": ["2.25.1", "2.25.2"],
    "rows": [512, 512],
    "columns": [512, 512],
    "frames": [1, 1],
    "bits_allocated": [16, 16],
    "samples_per_pixel": [1, 1],
    "photometric": ["MONOCHROME2", "MONOCHROME2"],
    "slope": [1.0, 1.0],
    "intercept": [-1024.0, -1024.0],
    "digest": ["a" * 64, "b" * 64],
}
ODD: dict[str, list[Any]] = {
    "instance": ["2.25.1\n", "", "2..1", "x", "1" * 65, "1" * 64, "\u0661.2"],
    "rows": [0, 1, -1, 65535, 65536],
    "columns": [0, 1, -1, 65535, 65536],
    "frames": [0, 1, -3, 65535, 65536, 10**6],
    "bits_allocated": [0, 1, 8, 32, 64, 12],
    "samples_per_pixel": [0, 1, 2, 3, 4],
    "photometric": ["", "RGB", "rgb", "RGB\n", "YBR_FULL_422", "\u0661"],
    "slope": [0.0, -0.0, 2.0, -1.5, math.inf, math.nan],
    "intercept": [0.0, 3.5, math.inf, math.nan],
    "digest": ["", "b" * 64, "a" * 63, "A" * 64, "g" * 64, "a" * 64 + "\n"],
}


def passes(columns: dict[str, list[Any]]) -> bool:
    """By Pandera itself."""
    try:
        INSTANCES.validate(pd.DataFrame(columns), lazy=True)
    except Exception:  # noqa: BLE001 - it raises whatever a value leads to
        return False
    return True


@settings(max_examples=120, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(ODD)), st.integers(0, 99), min_size=1, max_size=3))
def test_what_is_ordinary_passes_the_schema(odd: dict[str, int]) -> None:
    columns = {name: list(values) for name, values in GOOD.items()}
    for name, which in odd.items():
        columns[name][0] = ODD[name][which % len(ODD[name])]
    assert not ordinary(columns) or passes(columns)


def test_what_every_scanner_sends_is_ordinary() -> None:
    assert ordinary(GOOD)
    assert passes(GOOD)


@dataclass(frozen=True)
class Plane:
    slope: float
    intercept: float = 0.0


@dataclass(frozen=True)
class Header:
    """As much of an instance as the table has."""

    sop_uid: str
    source: Source
    planes: tuple[Plane, ...]
    rows: int = 4
    columns: int = 4
    frames: int = 1
    bits_allocated: int = 16
    samples_per_pixel: int = 1
    photometric: str = "MONOCHROME2"


@pytest.mark.parametrize(("slope", "digests"), [(0.0, "ab"), (math.nan, "ab"), (1.0, "aa")])
def test_what_is_not_is_refused_with_its_column(slope: float, digests: str) -> None:
    headers: Any = [Header(f"1.{n}", Source(f"{n}"), (Plane(slope),)) for n in range(2)]
    hashed = {header.source: digit * 64 for header, digit in zip(headers, digests, strict=True)}
    names = {header.sop_uid: f"2.25.{n}" for n, header in enumerate(headers)}
    with pytest.raises(HeaderError, match="digest" if slope == 1 else "slope") as caught:
        check_instances(headers, names, hashed, where="2.25.9")
    assert "1.0" not in str(caught.value)
    check_instances(headers[:1] if digests == "aa" else (), names, hashed, where="2.25.9")
