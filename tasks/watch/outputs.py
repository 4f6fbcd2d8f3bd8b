"""What a model says now beside what it said when it was judged, or at first; and how good that was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from models.package import ModelPackage
from models.recipe import Kind
from tasks.watch.seen import Predicted
from tasks.watch.shifts import LEAST_KNOWN, Numbers

if TYPE_CHECKING:
    import pandas as pd

MATTERS: Final = 0.05
"""Differences of a structure's volume below this share of the usual are none …"""
PROBABILITY_MATTERS: Final = 0.02
"""… and of a probability below this."""

Said = Mapping[str, tuple[float, str]]
"""What was said of one case: (value, unit) by measure."""


def outputs(
    package: ModelPackage, judged: Sequence[Said], first: Sequence[Predicted], last: Sequence[Predicted]
) -> Iterator[Numbers]:
    """Every measure of the `last` predictions beside the `judged` test cases; or, of what those do not tell, beside the
    `first` predictions, without the patients among these.
    """
    met = {case.patient for case in first}
    now = [said_of(case, package) for case in last]
    later = [said for said, case in zip(now, last, strict=True) if case.patient not in met]
    before = [said_of(case, package) for case in first]
    for name, unit in dict.fromkeys((name, unit) for one in now for name, (_, unit) in one.items()):
        judged_so = _of(judged, name)
        on_test = len(judged_so) >= LEAST_KNOWN
        known = judged_so if on_test else _of(before, name)
        since = "on the test patients" if on_test else "at first"
        slack = MATTERS * float(np.median(known)) if unit and known else PROBABILITY_MATTERS
        yield Numbers("output", name, known, _of(now if on_test else later, name), since, unit, slack)


def said_of(case: Predicted, package: ModelPackage) -> dict[str, tuple[float, str]]:
    """What was said of an image, by measure."""
    said = _SAID[package.plan.kind](case.findings, package)
    return said if case.uncertainty is None else said | {"uncertainty": (case.uncertainty, "")}


def judged_cases(table: pd.DataFrame, package: ModelPackage, threshold: float | None) -> list[Said]:
    """What an evaluation's case table tells of the same measures, one case a patient.

    `threshold` is the confidence from which on lesions are told.
    """
    cases: list[Said] = []
    for _, patient in table.groupby("patient", sort=False):
        rows = patient[patient["case"] == patient["case"].iloc[0]]
        findings = [_finding(row, threshold) for row in rows.to_dict("records")]
        said = _SAID[package.plan.kind]([f for f in findings if f is not None], package)
        if "uncertainty" in rows:
            said["uncertainty"] = (float(rows["uncertainty"].iloc[0]), "")
        cases.append(said)
    return cases


def case_values(table: pd.DataFrame, kind: Kind) -> list[float]:
    """The metric of each test case by which a correction is scored: Dice, or whether the call was right."""
    column = {"segmentation": "dice", "detection": "dice"}.get(kind)
    if kind == "classification":
        right = (table["truth"] == table["predicted"]).groupby([table["patient"], table["case"]], sort=False).all()
        return [float(value) for value in right]
    if column is None or column not in table:
        return []
    return [float(v) for v in table.groupby(["patient", "case"], sort=False)[column].mean()]


def _of(cases: Sequence[Said], name: str) -> tuple[float, ...]:
    return tuple(value for case in cases if name in case and np.isfinite(value := case[name][0]))


def _finding(row: Mapping[Any, Any], threshold: float | None) -> dict[str, Any] | None:
    """A row of a case table as a prediction keeps it; None for a lesion that is not told."""
    confidence = row.get("confidence", row.get("probability"))
    if "number" in row and not (confidence is not None and confidence >= (threshold or 0.0)):
        return None
    return {
        "class_name": row["class_name"],
        "confidence": confidence,
        "volume_ml": row.get("volume_prediction_ml"),
        "number": row.get("number"),
    }


def _segmented(findings: Sequence[Mapping[str, Any]], package: ModelPackage) -> dict[str, tuple[float, str]]:
    said: dict[str, tuple[float, str]] = {}
    for finding in findings:
        if finding.get("volume_ml") is not None:
            said[f"volume of {finding['class_name']}"] = (float(finding["volume_ml"]), "ml")
        # Of a structure that was not found there is no confidence to speak of.
        if finding.get("confidence"):
            said[f"confidence in {finding['class_name']}"] = (float(finding["confidence"]), "")
    return said


def _classified(findings: Sequence[Mapping[str, Any]], package: ModelPackage) -> dict[str, tuple[float, str]]:
    names = package.plan.classes
    # Of two classes one tells all.
    told = names[1:] if len(names) == 2 and not package.plan.several else names
    return {
        f"probability of {f['class_name']}": (float(f["confidence"]), "") for f in findings if f["class_name"] in told
    }


def _detected(findings: Sequence[Mapping[str, Any]], package: ModelPackage) -> dict[str, tuple[float, str]]:
    sure = [float(f["confidence"]) for f in findings if f.get("number") is not None]
    return {"lesions": (float(len(sure)), ""), "surest lesion": (max(sure, default=0.0), "")}


def _nothing(findings: Sequence[Mapping[str, Any]], package: ModelPackage) -> dict[str, tuple[float, str]]:
    return {}


_SAID: Final = {
    "segmentation": _segmented,
    "classification": _classified,
    "detection": _detected,
    "synthesis": _nothing,
}
