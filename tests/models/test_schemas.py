"""A table that breaks its schema says which column, which check, and which rows, by pseudonym."""

from __future__ import annotations

import pandas as pd
import pytest

from models.errors import SchemaError
from models.schemas import DATASET, LABELS, check


def dataset_row(patient: str, **changes: object) -> dict[str, object]:
    row: dict[str, object] = dict.fromkeys(("study", "series", "modality", "manufacturer", "model_name"), "x")
    row |= {
        "patient": patient,
        "volume": f"{abs(hash(patient)):032x}"[:32],
        "label": "0" * 32,
        "split": "train",
        "target": -1,
    }
    row |= {f"shape_{a}": 4 for a in "zyx"} | {f"spacing_{a}": 1.0 for a in "zyx"}
    row |= {"channels": (), "classes": (), "clinical": (), "synthetic": False}
    return row | changes


def test_a_good_manifest_passes_unchanged() -> None:
    frame = pd.DataFrame([dataset_row("P-A"), dataset_row("P-B", split="test")])
    assert len(check(frame, DATASET, where="demo")) == 2


def test_column_check_and_at_most_five_rows_are_named() -> None:
    frame = pd.DataFrame([dataset_row(f"P-{i}", spacing_z=-1.0) for i in range(7)])
    with pytest.raises(SchemaError) as caught:
        check(frame, DATASET, where="demo")
    told = str(caught.value)
    assert "'spacing_z'" in told
    assert "greater_than(0)" in told
    assert "7 row(s): P-0, P-1, P-2, P-3, P-4, …" in told


def test_a_patient_on_two_sides_is_refused() -> None:
    frame = pd.DataFrame([dataset_row("P-A"), dataset_row("P-A", volume="f" * 32, split="test")])
    with pytest.raises(SchemaError, match="one_split_per_patient"):
        check(frame, DATASET, where="demo")


def test_a_missing_column_is_named() -> None:
    with pytest.raises(SchemaError, match="value"):
        check(pd.DataFrame({"patient": ["P-A"]}), LABELS, where="labels.csv")
