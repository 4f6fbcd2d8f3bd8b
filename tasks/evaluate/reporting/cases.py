"""What the per-case table tells of single cases: what became of each class, which cases are worst or least certain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import pandas as pd

from models.evaluation import Evaluation
from models.recipe import Kind
from models.report import CaseNote, Outcomes

_OUTCOMES = ("found", "missed", "invented", "absent")
_SEGMENTED = ("dice", "surface_dice", "hd95_mm", "volume_error_ml")
COUNT: Final = 8


def outcomes(cases: pd.DataFrame, evaluation: Evaluation) -> tuple[Outcomes, ...]:
    """Segmentation: by case; detection: by lesion, and marks from the threshold on. Others have none."""
    if evaluation.kind == "detection":
        sums = _readings(cases, evaluation.threshold or 0.0)
        sums = sums.groupby("class_name", sort=False)[["found", "missed", "invented"]].sum()
    elif evaluation.kind == "segmentation":
        sums = pd.crosstab(cases["class_name"], cases["outcome"]).reindex(columns=list(_OUTCOMES), fill_value=0)
        sums = sums.loc[list(dict.fromkeys(cases["class_name"]))]
    else:
        return ()
    return tuple(
        Outcomes(class_name=str(name), **{what: int(row[what]) for what in sums.columns})
        for name, row in sums.iterrows()
    )


def worst(cases: pd.DataFrame, kind: Kind, threshold: float | None = None, count: int = COUNT) -> tuple[CaseNote, ...]:
    """The cases furthest from the truth: least mean Dice, least probability of the true class, most lesions missed and
    invented from `threshold` on, or made images that lie nearest to a training image.
    """
    return tuple(_WORST[kind](cases, threshold or 0.0, count))


def uncertain(cases: pd.DataFrame, kind: Kind, count: int = COUNT) -> tuple[CaseNote, ...]:
    """The cases that the model was least sure of, by `uncertainty` where the table has it.

    A classifier's is the mean over its classes of the entropy in bits of yes against no: 0 sure, 1 as unsure as can be.
    """
    if "uncertainty" in cases:
        means = cases.dropna(subset=["uncertainty"]).groupby(["patient", "case"], sort=False)["uncertainty"].mean()
    elif kind == "classification":
        means = _entropy(cases)
    else:
        return ()
    first = means.sort_values(ascending=False, kind="stable").head(count)
    return tuple(_note(place, {"uncertainty": value}) for place, value in first.items())


def _segmented(cases: pd.DataFrame, threshold: float, count: int) -> Iterator[CaseNote]:
    means = cases.groupby(["patient", "case"])[list(_SEGMENTED)].mean().sort_values("dice", kind="stable").head(count)
    wrong = cases[cases["outcome"].isin(["missed", "invented"])]
    for place, row in means.iterrows():
        mine = wrong[(wrong["patient"] == place[0]) & (wrong["case"] == place[1])]  # type: ignore[index]
        told = ", ".join(f"{o} {c}" for o, c in zip(mine["outcome"], mine["class_name"], strict=True))
        yield _note(place, {name: row[name] for name in _SEGMENTED}, told=told)


def _classified(cases: pd.DataFrame, threshold: float, count: int) -> Iterator[CaseNote]:
    called = cases[cases["predicted"]].groupby(["patient", "case"])["class_name"].agg(", ".join).to_dict()
    real = cases[cases["truth"]].sort_values("probability", kind="stable").head(count)
    for row in real.itertuples():
        place = (row.patient, row.case)
        told = f"called {called.get(place, 'none')}"
        yield _note(place, {"probability": row.probability}, str(row.class_name), told)


def _detected(cases: pd.DataFrame, threshold: float, count: int) -> Iterator[CaseNote]:
    sums = _readings(cases, threshold).groupby(["patient", "case"])[["lesions", "found", "missed", "invented"]].sum()
    sums = sums.assign(wrong=sums["missed"] + sums["invented"])
    sums = sums[sums["wrong"] > 0].sort_values("wrong", ascending=False, kind="stable").head(count)
    for place, row in sums.iterrows():
        yield _note(place, {name: row[name] for name in ("lesions", "found", "missed", "invented")})


def _copied(cases: pd.DataFrame, threshold: float, count: int) -> Iterator[CaseNote]:
    near = cases.sort_values("nearest_training", kind="stable").head(count)
    for row in near.itertuples():
        told = "a copy" if row.copied else ""
        yield _note((row.patient, row.case), {"nearest_training": row.nearest_training}, str(row.class_name), told)


_WORST: Final[dict[Kind, Callable[[pd.DataFrame, float, int], Iterator[CaseNote]]]] = {
    "segmentation": _segmented,
    "classification": _classified,
    "detection": _detected,
    "synthesis": _copied,
}


def _readings(cases: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """A lesion table with what each row comes to from `threshold` on: a lesion, found, missed, invented (0 or 1)."""
    sure, real = cases["confidence"] >= threshold, cases["diameter_mm"].notna()
    found = (cases["outcome"] == "found") & sure
    columns = {"lesions": real, "found": found, "missed": real & ~found, "invented": ~real & sure}
    return cases.assign(**{name: column.astype(int) for name, column in columns.items()})


def _entropy(cases: pd.DataFrame) -> pd.Series[float]:
    import numpy as np

    table = cases.pivot(index=["patient", "case"], columns="class_name", values="probability")
    shares = table.to_numpy(float).clip(1e-12, 1)
    alone = -(shares * np.log2(shares) + (1 - shares) * np.log2((1 - shares).clip(1e-12)))
    return pd.Series(alone.mean(axis=1).clip(0, 1), index=table.index)


def _note(place: Any, figures: dict[str, Any], class_name: str = "", told: str = "") -> CaseNote:
    patient, case = place
    known = {name: float(value) for name, value in figures.items() if pd.notna(value)}
    return CaseNote(patient=str(patient), case=str(case), class_name=class_name, figures=known, told=told)
