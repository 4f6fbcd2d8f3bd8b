"""Tables of the report: typed, already in words and rounded, so that the template only lays them out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import pandas as pd

from models.dataset import SPLITS, Dataset
from models.evaluation import Comparison, Evaluation, Interval
from models.plan import Drift
from models.recipe import Kind

_MINUS, _DASH = "\u2212", "\u2013"


@dataclass(frozen=True, slots=True)
class Metric:
    """How a metric is told. `better`: which way is good, if either. `share`: lies in [0, 1]."""

    label: str
    unit: str = ""
    digits: int = 3
    better: Literal["higher", "lower", ""] = "higher"
    share: bool = True

    def format(self, value: float, *, sign: bool = False) -> str:
        """`value`, rounded, with a real minus; with a plus as well if `sign`."""
        scale = 100 if self.unit == "%" else 1
        text = f"{value * scale:{'+' if sign else ''}.{self.digits}f}"
        # −0.000 is 0.000.
        return text.lstrip("-+") if float(text) == 0 else text.replace("-", _MINUS)

    @property
    def heading(self) -> str:
        """Label and unit."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


METRICS: Final[dict[str, Metric]] = {
    "dice": Metric("Dice"),
    "iou": Metric("IoU"),
    "surface_dice": Metric("Surface Dice"),
    "pixel_accuracy": Metric("Pixel accuracy"),
    "hd95_mm": Metric("HD95", "mm", 1, "lower", False),
    "volume_absolute_error_ml": Metric("Volume error, absolute", "mL", 2, "lower", False),
    "volume_error_ml": Metric("Volume error, signed", "mL", 2, "", False),
    "volume_error_relative": Metric("Volume error, relative", "%", 1, "", False),
    "volume_truth_ml": Metric("Volume, truth", "mL", 2, "", False),
    "volume_prediction_ml": Metric("Volume, prediction", "mL", 2, "", False),
    "auc": Metric("AUC"),
    "froc": Metric("FROC"),
    "average_precision": Metric("Average precision"),
    "balanced_accuracy": Metric("Balanced accuracy"),
    "accuracy": Metric("Accuracy"),
    "sensitivity": Metric("Sensitivity"),
    "specificity": Metric("Specificity"),
    "precision": Metric("Precision"),
    "false_positives": Metric("False positives an image", "", 2, "lower", False),
    "sensitivity_small": Metric("Sensitivity, small lesions"),
    "sensitivity_medium": Metric("Sensitivity, medium lesions"),
    "sensitivity_large": Metric("Sensitivity, large lesions"),
    **{
        f"sensitivity_at_{rate:g}": Metric(f"Sensitivity at {rate:g} false positives an image")
        for rate in (0.125, 0.25, 0.5, 1, 2, 4, 8)
    },
    "fidelity": Metric("Fidelity"),
    "distance": Metric("Fréchet distance", better="lower", share=False),
    "copied": Metric("Copies of training images", "%", 1, "lower"),
    "f1": Metric("F1"),
    "brier": Metric("Brier score", better="lower", share=False),
}
_BY_CLASS: Final[dict[Kind, tuple[str, ...]]] = {
    "segmentation": ("dice", "surface_dice", "hd95_mm", "volume_absolute_error_ml"),
    "classification": ("auc", "average_precision", "sensitivity", "specificity", "precision", "f1"),
    "detection": ("froc", "average_precision", "sensitivity", "precision", "false_positives"),
    "synthesis": ("fidelity", "distance", "copied"),
}


@dataclass(frozen=True, slots=True)
class Bar:
    """An interval to draw, in percent of the cell's width; `zero` marks where nothing would change."""

    low: float
    value: float
    high: float
    zero: float | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, and how the cells below it are set."""

    label: str
    kind: Literal["text", "number", "bar", "code"] = "text"


@dataclass(frozen=True, slots=True)
class Table:
    """The first cell of a row heads it. A cell of a bar column is a Bar or None. `plain`: needs no visible headings."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str | Bar | None, ...], ...]
    plain: bool = False


def metric_of(name: str) -> Metric:
    """How to tell `name`; a metric unknown here goes by its own name."""
    return METRICS.get(name) or Metric(name.replace("_", " ").capitalize(), better="", share=False)


def span(interval: Interval, metric: Metric, *, sign: bool = False) -> str:
    """The interval's ends in words."""
    if interval.low is None or interval.high is None:
        return "one patient only"
    joint = " to " if sign or interval.low < 0 else _DASH
    return joint.join(metric.format(end, sign=sign) for end in (interval.low, interval.high))


def overall(evaluation: Evaluation) -> Table:
    """Every metric over all classes (or of the positive class), in the order of METRICS."""
    found = {m.metric: m.interval for m in evaluation.metrics if m.class_name is None}
    names = [n for n in METRICS if n in found] + [n for n in found if n not in METRICS]
    rows = []
    for name in names:
        metric, interval = metric_of(name), found[name]
        heading = metric.heading
        if name == "surface_dice" and evaluation.surface_tolerance_mm:
            heading += f" at {evaluation.surface_tolerance_mm:g} mm"
        bar = _share_bar(interval) if metric.share else None
        rows.append((heading, metric.format(interval.value), span(interval, metric), bar, str(interval.n)))
    whom = f"Class {evaluation.positive}" if evaluation.positive else "Mean over all classes"
    columns = (
        Column("Metric"),
        Column("Value", "number"),
        Column("95 % interval", "number"),
        Column("0 to 1", "bar"),
        Column("Patients", "number"),
    )
    return Table(whom, columns, tuple(rows))


def by_class(evaluation: Evaluation) -> Table | None:
    """The main metrics of each class with their intervals; None for a single class."""
    found = {(m.class_name, m.metric): m.interval for m in evaluation.metrics if m.class_name is not None}
    names = [n for n in _BY_CLASS[evaluation.kind] if any(key[1] == n for key in found)]
    if len({key[0] for key in found}) < 2:
        return None

    def cell(class_name: str, name: str) -> str:
        interval, metric = found.get((class_name, name)), metric_of(name)
        return f"{metric.format(interval.value)} ({span(interval, metric)})" if interval else _DASH

    rows = tuple((c, *(cell(c, n) for n in names)) for c in evaluation.class_names)
    return Table("By class", (Column("Class"), *(Column(metric_of(n).heading, "number") for n in names)), rows)


def differences(comparison: Comparison, caption: str = "Challenger minus champion") -> Table:
    """Challenger − champion per metric, each drawn on its own scale around 0."""
    rows = []
    for summary in comparison.differences:
        metric, interval = metric_of(summary.metric), summary.interval
        name = metric.heading + (f", {summary.class_name}" if summary.class_name else "")
        better = f"{metric.better} is better" if metric.better else ""
        rows.append(
            (
                name,
                metric.format(interval.value, sign=True),
                span(interval, metric, sign=True),
                _zero_bar(interval),
                better,
            )
        )
    columns = (
        Column("Metric"),
        Column("Difference", "number"),
        Column("95 % interval", "number"),
        Column("Around 0", "bar"),
        Column(""),
    )
    return Table(caption, columns, tuple(rows))


def counts(dataset: Dataset) -> Table:
    """Patients and cases by split, modality and vendor."""
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for row in dataset.rows:
        groups[row.split, row.modality, "made" if row.synthetic else row.manufacturer or "not told"].append(row.patient)
    order = sorted(groups, key=lambda g: (SPLITS.index(g[0]), g[1:]))  # type: ignore[arg-type]
    rows = [(*group, str(len(set(groups[group]))), str(len(groups[group]))) for group in order]
    total = ("all", "", "", str(len({r.patient for r in dataset.rows})), str(len(dataset.rows)))
    columns = (
        Column("Split"),
        Column("Modality"),
        Column("Vendor"),
        Column("Patients", "number"),
        Column("Cases", "number"),
    )
    return Table("Cases by split, modality and vendor", columns, (*rows, total))


def outcomes(cases: pd.DataFrame) -> Table:
    """Segmentation: in how many cases each class was found, missed, invented or rightly absent."""
    kinds = ("found", "missed", "invented", "absent")
    table = pd.crosstab(cases["class_name"], cases["outcome"]).reindex(columns=list(kinds), fill_value=0)
    rows = tuple(
        (name, *(str(table.loc[name, k]) for k in kinds)) for name in dict.fromkeys(cases["class_name"].astype(str))
    )
    columns = (Column("Class"), *(Column(k.capitalize(), "number") for k in kinds))
    return Table("Cases in which a class was found, missed, invented or rightly absent", columns, rows)


def lesions(cases: pd.DataFrame, threshold: float) -> Table:
    """Detection: what became of each class's lesions, and of the marks from `threshold` on."""
    table = _readings(cases, threshold)
    counts = table.groupby("class_name", sort=False)[["real", "found", "missed", "invented"]].sum()
    rows = tuple((str(name), *(str(n) for n in row)) for name, *row in counts.itertuples())
    heads = ("Class", "Lesions", "Found", "Missed", "False positives")
    columns = (Column(heads[0]), *(Column(head, "number") for head in heads[1:]))
    return Table(f"Lesions, and marks with a confidence of {threshold:.3f} or more", columns, rows)


def worst(cases: pd.DataFrame, kind: Kind, threshold: float | None = None, count: int = 8) -> Table:
    """The cases furthest from the truth, by pseudonym: least mean Dice, least probability of the true class, most
    lesions missed and invented from `threshold` on, or made images that lie nearest to a training image.
    """
    if kind == "detection":
        return _worst_detections(cases, threshold or 0.0, count)
    if kind == "synthesis":
        return _nearest_copies(cases, count)
    return _worst_segmentations(cases, count) if kind == "segmentation" else _worst_classifications(cases, count)


def _nearest_copies(cases: pd.DataFrame, count: int) -> Table:
    """Made images that lie nearest to a training image."""
    near = cases.sort_values("nearest_training", kind="stable").head(count)
    names, classes = near["case"].astype(str), near["class_name"].astype(str)
    gaps, copies = near["nearest_training"].map("{:.4f}".format), near["copied"].map({True: "yes", False: "no"})
    rows = tuple(zip(names, classes, gaps, copies, strict=True))
    columns = (Column("Beside", "code"), Column("Class"), Column("To the nearest", "number"), Column("A copy"))
    return Table("Made images nearest to a training image", columns, rows)


def drift(measures: Sequence[Drift]) -> Table:
    """How far the training cases have moved from those that the champion's plan was made for."""
    columns = (
        Column("Measure"),
        Column("Distance", "number"),
        Column("Limit", "number"),
        Column("Verdict"),
        Column("Training cases"),
    )
    rows = (
        (m.measure, f"{m.value:.2f}", f"{m.threshold:.2f}", "drifted" if m.drifted else "as before", m.told)
        for m in sorted(measures, key=lambda m: -m.value / m.threshold)
    )
    return Table("Drift from what the champion's plan was made for", columns, tuple(rows))


def facts(caption: str, rows: Iterable[tuple[str, str]], *, code: bool = False) -> Table:
    """Two columns: what, and its value; `code` sets the values in a fixed pitch."""
    return Table(caption, (Column("What"), Column("Value", "code" if code else "text")), tuple(rows), True)


def _worst_segmentations(cases: pd.DataFrame, count: int) -> Table:
    names = ("dice", "surface_dice", "hd95_mm", "volume_error_ml")
    means = cases.groupby(["patient", "case"])[list(names)].mean().sort_values("dice").head(count)
    wrong = cases[cases["outcome"].isin(["missed", "invented"])]
    rows = []
    for index, row in means.iterrows():
        patient, case = index if isinstance(index, tuple) else (str(index), "")
        mine = wrong[(wrong["patient"] == patient) & (wrong["case"] == case)]
        told = ", ".join(f"{o} {c}" for o, c in zip(mine["outcome"], mine["class_name"], strict=True))
        rows.append((patient, case, *(metric_of(n).format(row[n]) for n in names), told))
    heads = (Column(metric_of(n).heading, "number") for n in names)
    columns = (Column("Patient"), Column("Case", "code"), *heads, Column("Remark"))
    return Table("Cases with the least mean Dice", columns, tuple(rows))


def _readings(cases: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """A lesion table with what each row comes to from `threshold` on: real, found, missed, invented (0 or 1)."""
    sure, real = cases["confidence"] >= threshold, cases["diameter_mm"].notna()
    found = (cases["outcome"] == "found") & sure
    columns = {"real": real, "found": found, "missed": real & ~found, "invented": ~real & sure}
    return cases.assign(**{name: column.astype(int) for name, column in columns.items()})


def _worst_detections(cases: pd.DataFrame, threshold: float, count: int) -> Table:
    table = _readings(cases, threshold)
    sums = table.groupby(["patient", "case"])[["real", "found", "missed", "invented"]].sum()
    sums = sums.assign(wrong=sums["missed"] + sums["invented"])
    sums = sums[sums["wrong"] > 0].sort_values("wrong", ascending=False, kind="stable").head(count)
    rows = []
    for index, row in sums.iterrows():
        patient, case = index if isinstance(index, tuple) else (str(index), "")
        rows.append((patient, case, *(str(row[name]) for name in ("real", "found", "missed", "invented"))))
    heads = ("Lesions", "Found", "Missed", "False positives")
    columns = (Column("Patient"), Column("Case", "code"), *(Column(head, "number") for head in heads))
    return Table("Cases with the most lesions missed or invented", columns, tuple(rows))


def _worst_classifications(cases: pd.DataFrame, count: int) -> Table:
    called = cases[cases["predicted"]].groupby(["patient", "case"])["class_name"].agg(", ".join).reset_index()
    real = cases[cases["truth"]].sort_values("probability", kind="stable").head(count)
    both = real.merge(called, how="left", on=["patient", "case"], suffixes=("", "_called"))
    both["class_name_called"] = both["class_name_called"].fillna("none")
    texts = (both[name].astype(str) for name in ("patient", "case", "class_name", "class_name_called"))
    rows = tuple((*names, f"{p:.3f}") for *names, p in zip(*texts, both["probability"], strict=True))
    heads = map(Column, ("Truth", "Called"))
    columns = (Column("Patient"), Column("Case", "code"), *heads, Column("Probability of truth", "number"))
    return Table("Cases whose true class got the least probability", columns, rows)


def _share_bar(interval: Interval) -> Bar:
    value = _percent(interval.value)
    ends = (interval.low, interval.high)
    low, high = (value if end is None else _percent(end) for end in ends)
    return Bar(low, value, high)


def _zero_bar(interval: Interval) -> Bar:
    known = [interval.value, *(end for end in (interval.low, interval.high) if end is not None)]
    reach = max(map(abs, known)) * 1.15 or 1.0
    low, value, high = (_percent(0.5 + v / reach / 2) for v in (min(known), interval.value, max(known)))
    return Bar(low, value, high, 50.0)


def _percent(share: float) -> float:
    return round(100 * min(max(share, 0.0), 1.0), 1)
