"""Pandera schemas of every table that crosses a door. A failure names the column, the check and the rows."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd
import pandera.pandas as pa
from pandera.errors import SchemaErrors

from models.dataset import SPLITS
from models.errors import SchemaError

_UID = r"^[0-9]+(\.[0-9]+)*$"
_KEY = r"^[0-9a-f]{32}$"
_PATIENT = r"^[A-Za-z0-9-]{1,64}$"
_positive = pa.Check.gt(0)
_share = pa.Check.in_range(0, 1)


def _keys_or_none(values: Iterable[str]) -> bool:
    return all(not value or re.match(_KEY, value) for value in values)


INSTANCES = pa.DataFrameSchema(
    {
        "instance": pa.Column(str, [pa.Check.str_matches(_UID), pa.Check.str_length(max_value=64)]),
        "rows": pa.Column(int, pa.Check.in_range(1, 65535), coerce=True),
        "columns": pa.Column(int, pa.Check.in_range(1, 65535), coerce=True),
        "frames": pa.Column(int, _positive, coerce=True),
        "bits_allocated": pa.Column(int, pa.Check.isin([1, 8, 16, 32, 64]), coerce=True),
        "samples_per_pixel": pa.Column(int, pa.Check.isin([1, 3, 4]), coerce=True),
        "photometric": pa.Column(str, pa.Check.str_matches(r"^[A-Z0-9_ ]+$")),
        "slope": pa.Column(float, pa.Check(lambda s: s != 0, name="not_zero"), coerce=True),
        "intercept": pa.Column(float, coerce=True),
        "digest": pa.Column(str, pa.Check.str_matches(r"^[0-9a-f]{32,64}$")),
    },
    unique=["digest"],
    name="instance headers",
)
"""One row per instance of a series, by pseudonymous UID."""

SERIES = pa.DataFrameSchema(
    {
        "series": pa.Column(str, pa.Check.str_matches(_KEY), unique=True),
        "patient": pa.Column(str, pa.Check.str_matches(_PATIENT)),
        "modality": pa.Column(str, pa.Check.str_matches(r"^[A-Z0-9_]{1,16}$")),
        "instances": pa.Column(int, _positive, coerce=True),
        "shape_z": pa.Column(int, _positive, coerce=True),
        "shape_y": pa.Column(int, _positive, coerce=True),
        "shape_x": pa.Column(int, _positive, coerce=True),
        "spacing_z": pa.Column(float, _positive, coerce=True),
        "spacing_y": pa.Column(float, _positive, coerce=True),
        "spacing_x": pa.Column(float, _positive, coerce=True),
    },
    name="series",
)
"""One row per series that became a volume."""

LABELS = pa.DataFrameSchema(
    {
        "patient": pa.Column(str, pa.Check.str_matches(_PATIENT)),
        "value": pa.Column(str, pa.Check.str_length(1, 64)),
    },
    name="labels",
)
"""A CSV of class labels, once its identifiers are pseudonyms."""

DATASET = pa.DataFrameSchema(
    {
        "patient": pa.Column(str, pa.Check.str_matches(_PATIENT)),
        "study": pa.Column(str),
        "series": pa.Column(str),
        "volume": pa.Column(str, pa.Check.str_matches(_KEY)),
        "label": pa.Column(str, pa.Check.str_matches(_KEY)),
        "split": pa.Column(str, pa.Check.isin(SPLITS)),
        "target": pa.Column(int, pa.Check.ge(-1), coerce=True),
        "modality": pa.Column(str),
        "manufacturer": pa.Column(str),
        "model_name": pa.Column(str),
        **{f"shape_{a}": pa.Column(int, _positive, coerce=True) for a in "zyx"},
        **{f"spacing_{a}": pa.Column(float, _positive, coerce=True) for a in "zyx"},
        "channels": pa.Column(object, pa.Check(lambda s: s.map(_keys_or_none), name="keys_or_none")),
        "classes": pa.Column(object, pa.Check(lambda s: s.map(lambda v: set(v) <= {0, 1}), name="zeros_and_ones")),
        "clinical": pa.Column(object),
        "synthetic": pa.Column(bool),
    },
    checks=pa.Check(
        lambda table: table.groupby("patient")["split"].transform("nunique") == 1, name="one_split_per_patient"
    ),
    unique=["volume", "label"],
    strict=True,
    name="dataset",
)
"""A dataset manifest."""

_CASE = {
    "patient": pa.Column(str, pa.Check.str_matches(_PATIENT)),
    "case": pa.Column(str, pa.Check.str_length(1, 128)),
    "class_name": pa.Column(str, pa.Check.str_length(1, 64)),
}
_ONE_ROW = ["patient", "case", "class_name"]
_not_negative = pa.Check.ge(0)

CASE_METRICS_SEGMENTATION = pa.DataFrameSchema(
    {
        **_CASE,
        "outcome": pa.Column(str, pa.Check.isin(["found", "missed", "invented", "absent"])),
        **{name: pa.Column(float, _share) for name in ("dice", "iou", "pixel_accuracy", "surface_dice")},
        "hd95_mm": pa.Column(float, _not_negative),
        "assd_mm": pa.Column(float, _not_negative),
        "volume_truth_ml": pa.Column(float, _not_negative),
        "volume_prediction_ml": pa.Column(float, _not_negative),
        "volume_error_ml": pa.Column(float),
        "volume_absolute_error_ml": pa.Column(float, _not_negative),
        "volume_error_relative": pa.Column(float, pa.Check.ge(-1), nullable=True),
    },
    unique=_ONE_ROW,
    strict=True,
    name="segmentation metrics",
)
"""One row per test case and class; `tasks.imaging.scores.score_case` defines the columns."""

CASE_METRICS_CLASSIFICATION = pa.DataFrameSchema(
    {
        **_CASE,
        "truth": pa.Column(bool),
        "predicted": pa.Column(bool),
        "probability": pa.Column(float, _share),
        "brier": pa.Column(float, _share),
    },
    unique=_ONE_ROW,
    strict=True,
    name="classification metrics",
)
"""One row per test case and class: whether it is, and was called, this class; its probability and squared error."""

CASE_METRICS_DETECTION = pa.DataFrameSchema(
    {
        **_CASE,
        "number": pa.Column(int, _not_negative, coerce=True),
        "outcome": pa.Column(str, pa.Check.isin(["found", "missed", "invented", "absent"])),
        "confidence": pa.Column(float, _share, nullable=True),
        **{
            name: pa.Column(float, _not_negative, nullable=True)
            for name in ("volume_truth_ml", "volume_prediction_ml", "diameter_mm", "distance_mm")
        },
        "box_iou": pa.Column(float, _share, nullable=True),
    },
    unique=[*_ONE_ROW, "number"],
    strict=True,
    name="detection metrics",
)
"""One row per lesion, true or marked, and one where a case has none of a class; `models.evaluation.LesionScore`."""

CASE_METRICS_SYNTHESIS = pa.DataFrameSchema(
    {**_CASE, "nearest_training": pa.Column(float, _not_negative), "copied": pa.Column(bool)},
    unique=_ONE_ROW,
    strict=True,
    name="synthesis metrics",
)
"""One row per made image, by the test image of its class that it stands beside: how near a training image it lies."""


def check(frame: pd.DataFrame, schema: pa.DataFrameSchema, *, where: str, subject: str = "patient") -> pd.DataFrame:
    """`frame`, validated. Raises SchemaError naming column, check and up to five rows by their `subject` column."""
    try:
        return schema.validate(frame, lazy=True)
    except SchemaErrors as error:
        failures = error.failure_cases
    missing = failures.loc[failures["check"] == "column_in_dataframe", "failure_case"]
    told = [f"column {name!r} is missing" for name in missing]
    failures = failures.drop(missing.index)
    for (column, name), rows in failures.groupby(["column", "check"], dropna=False, sort=False):
        index = [i for i in rows["index"].dropna().unique() if i in frame.index]
        subjects = (
            [str(frame.loc[i, subject]) for i in index[:5]] if subject in frame.columns else [str(i) for i in index[:5]]
        )
        place = f"column {column!r}" if isinstance(column, str) else "table"
        named = ", ".join(subjects) + (", …" if len(index) > 5 else "")
        told.append(f"{place} fails {name}" + (f" in {len(index)} row(s): {named}" if index else ""))
    raise SchemaError(f"{schema.name}: " + "; ".join(told), where=where, hint="correct these rows and run it again")
