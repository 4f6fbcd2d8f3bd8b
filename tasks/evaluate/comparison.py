"""Challenger against champion, case by case on the same patients, from their per-case tables."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import pandas as pd

from models.errors import LabelError, NothingToDoError
from models.evaluation import PRIMARY, Comparison, Evaluation
from models.recipe import Kind
from tasks.evaluate import classification, detection, segmentation
from tasks.evaluate.figures import Figures, summaries
from tasks.evaluate.intervals import SAMPLES
from tasks.evaluate.significance import paired_tests

_COMPARED: Final[dict[Kind, Collection[str]]] = {
    "segmentation": ("dice", "iou", "surface_dice", "hd95_mm", "assd_mm", "volume_absolute_error_ml"),
    "classification": (*classification.PER_CLASS, *classification.OVERALL),
    "detection": [m for m in detection.METRICS if not m.startswith("sensitivity_at")],
}


def compare_segmentation(
    champion: pd.DataFrame,
    challenger: pd.DataFrame,
    *,
    dataset: str,
    champion_key: str,
    challenger_key: str,
    bootstrap: int = SAMPLES,
    seed: int = 0,
) -> Comparison:
    """Paired differences of two `segmentation.cases_frame` tables, over the classes that both know."""
    before, after = matched(champion, challenger)
    names = list(dict.fromkeys(before["class_name"]))
    return _compared(
        "segmentation",
        segmentation.figures(before, names),
        segmentation.figures(after, names),
        keys=(dataset, champion_key, challenger_key),
        cases=(champion, challenger),
        bootstrap=bootstrap,
        seed=seed,
    )


def compare_classification(
    champion: pd.DataFrame,
    challenger: pd.DataFrame,
    *,
    dataset: str,
    champion_key: str,
    challenger_key: str,
    positive: str | None = None,
    several: bool = False,
    bootstrap: int = SAMPLES,
    seed: int = 0,
) -> Comparison:
    """Paired differences of two `classification.cases_frame` tables.

    `positive` is the positive one of two classes (the last by default). Raises LabelError unless both know the same
    classes.
    """
    if set(champion["class_name"]) != set(challenger["class_name"]):
        raise LabelError("champion and challenger know different classes, so their probabilities do not compare")
    before, after = matched(champion, challenger)
    # In the champion's order of classes, by which the positive class goes where none is named.
    names = list(dict.fromkeys(champion["class_name"]))
    chosen = positive or names[-1]
    return _compared(
        "classification",
        *(
            classification.figures(
                side.sort_values("class_name", key=lambda column: column.map(names.index), kind="stable"),
                chosen,
                several=several,
            )
            for side in (before, after)
        ),
        keys=(dataset, champion_key, challenger_key),
        cases=(champion, challenger),
        bootstrap=bootstrap,
        seed=seed,
    )


def compare_detection(
    champion: pd.DataFrame,
    challenger: pd.DataFrame,
    old: Evaluation,
    new: Evaluation,
    *,
    bootstrap: int = SAMPLES,
    seed: int = 0,
) -> Comparison:
    """Paired differences of two `detection.lesions_frame` tables over the classes that both know.

    Each is believed from its own evaluation's threshold on.
    """
    before, after = matched(champion, challenger)
    names = [name for name in old.class_names if name in new.class_names]
    return _compared(
        "detection",
        detection.figures(before, names, old.threshold or 0.0),
        detection.figures(after, names, new.threshold or 0.0),
        keys=(new.dataset, old.package, new.package),
        cases=(champion, challenger),
        bootstrap=bootstrap,
        seed=seed,
    )


def matched(champion: pd.DataFrame, challenger: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows of the cases and classes that both were judged on. Raises NothingToDoError where there is none."""
    tables = [champion, challenger]
    for column in ("case", "class_name"):
        common = set(champion[column]) & set(challenger[column])
        tables = [table[table[column].isin(common)] for table in tables]
    if any(table.empty for table in tables):
        raise NothingToDoError("champion and challenger were not judged on a single common case")
    return tables[0], tables[1]


def _compared(
    kind: Kind,
    before: Figures,
    after: Figures,
    *,
    keys: tuple[str, str, str],
    cases: tuple[pd.DataFrame, pd.DataFrame],
    bootstrap: int,
    seed: int,
) -> Comparison:
    """`keys`: of dataset, champion and challenger; `cases`: the whole tables of both."""
    metrics = _COMPARED[kind]
    differences = after.only(metrics).since(before.only(metrics))
    drawn = differences.drawn(samples=bootstrap, seed=seed)
    dataset, champion, challenger = keys
    old, new = (set(table["case"]) for table in cases)
    return Comparison(
        kind=kind,
        dataset=dataset,
        champion=champion,
        challenger=challenger,
        primary=PRIMARY[kind],
        differences=summaries(differences.labels, drawn.intervals()),
        tests=paired_tests(differences, drawn),
        n_patients=drawn.patients,
        n_cases=len(differences.patients),
        n_unmatched=len(old ^ new),
    )
