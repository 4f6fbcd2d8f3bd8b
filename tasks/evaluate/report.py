"""The report: one HTML file that a reader can keep, print and send; it fetches nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import jinja2
import pandas as pd

from models.dataset import Dataset
from models.evaluation import Comparison, Evaluation, Picture
from models.package import ModelPackage
from tasks.evaluate import pictures, tables
from tasks.evaluate.tables import Column, Metric, Table

TEMPLATE = "report.html.j2"
_WIDE = ("overlays", "distributions")
_HEADLINES = {
    "segmentation": ("surface_dice", "hd95_mm", "volume_absolute_error_ml"),
    "classification": ("sensitivity", "specificity", "brier"),
    "detection": ("average_precision", "sensitivity", "false_positives"),
    "synthesis": ("distance", "copied"),
}


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of the version, and why, in a sentence or two."""

    verdict: Literal["promoted", "kept", "waiting", "refused"]
    reason: str

    @property
    def headline(self) -> str:
        """For the top of the page."""
        return {
            "promoted": "Promoted: this version serves",
            "kept": "The champion stays",
            "waiting": "Waiting for approval",
            "refused": "Refused",
        }[self.verdict]


@dataclass(frozen=True, slots=True)
class Exclusion:
    """How many of something (`subject`: series, studies, labels) were set aside for one machine-readable reason."""

    subject: str
    reason: str
    count: int
    meaning: str = ""


@dataclass(frozen=True, slots=True)
class ReportData:
    """All that a report may tell. Only the evaluation is needed; what is absent leaves its part out.

    `cases` is the per-case table of the evaluation. `without` compares with the same recipe without made images.
    `notes` are remarks for the summary, `provenance` further (what, value) rows for the last section. Pictures appear
    in the order given; the learning curve is drawn from the package's history, with the `champion`'s beside it.
    """

    evaluation: Evaluation
    created_at: datetime
    package: ModelPackage | None = None
    champion: ModelPackage | None = None
    dataset: Dataset | None = None
    decision: Decision | None = None
    comparison: Comparison | None = None
    without: Comparison | None = None
    cases: pd.DataFrame | None = None
    exclusions: tuple[Exclusion, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Of the model: the recipe's, or the dataset's."""
        if self.package:
            return self.package.recipe.name
        return self.dataset.name if self.dataset else self.evaluation.kind


@dataclass(frozen=True, slots=True)
class _Headline:
    label: str
    value: str
    unit: str
    interval: str


def render(data: ReportData) -> str:
    """The page, as one self-contained HTML text."""
    evaluation = data.evaluation
    shown = (*data.pictures, *_learning_curve(data))
    return _template().render(
        data=data,
        when=f"{data.created_at.day} {data.created_at:%B %Y, %H:%M %Z}".strip(),
        evaluation=evaluation,
        headlines=list(_headlines(evaluation)),
        sentence=_sentence(evaluation),
        data_tables=list(_data_tables(data)),
        how_tables=list(_how_tables(data.package)) if data.package else [],
        good_tables=list(_good_tables(data)),
        differences=tables.differences(data.comparison) if data.comparison else None,
        gain=_gain(data.comparison) if data.comparison else "",
        added=tables.differences(data.without, "With made images minus without") if data.without else None,
        worst=(
            tables.worst(data.cases, evaluation.kind, evaluation.threshold)
            if data.cases is not None and len(data.cases)
            else None
        ),
        provenance=tables.facts("What this page rests on", _provenance(data), code=True),
        pictures=[p for p in shown if p.name != "learning-curve"],
        training_pictures=[p for p in shown if p.name == "learning-curve"],
        wide=_WIDE,
    )


def _headlines(evaluation: Evaluation) -> Iterator[_Headline]:
    """The primary metric, then the few that a reader asks for next."""
    known = {m.metric: m.interval for m in evaluation.metrics if m.class_name is None}
    for name in (evaluation.primary, *_HEADLINES[evaluation.kind]):
        if name in known:
            metric, interval = tables.metric_of(name), known[name]
            ends = tables.span(interval, metric) + (" (95 %)" if interval.low is not None else "")
            yield _Headline(metric.label, metric.format(interval.value), metric.unit, ends)


def _sentence(evaluation: Evaluation) -> str:
    metric, interval = tables.metric_of(evaluation.primary), evaluation.primary_interval
    cases = f"{evaluation.n_cases} case{'s' * (evaluation.n_cases != 1)}"
    patients = f"{evaluation.n_patients} test patient{'s' * (evaluation.n_patients != 1)}"
    ends = f" (95 % interval {tables.span(interval, metric)})" if interval.low is not None else ""
    what = f"{metric.label} of {evaluation.positive}" if evaluation.positive else f"Mean {metric.label}"
    return f"{what} {metric.format(interval.value)}{ends} in {cases} of {patients}."


def _gain(comparison: Comparison) -> str:
    """What the paired difference of the primary metric says, in words."""
    metric, interval = tables.metric_of(comparison.primary), comparison.primary_difference
    told = f"{metric.label} changes by {metric.format(interval.value, sign=True)}"
    if interval.low is None or interval.high is None:
        return f"{told}; with a single patient there is no interval."
    worse, better = interval.high < 0, interval.low > 0
    verdict = "the challenger is better" if better else "the challenger is worse" if worse else "which may be chance"
    return f"{told} (95 % interval {tables.span(interval, metric, sign=True)}): {verdict}."


def _data_tables(data: ReportData) -> Iterator[Table]:
    if data.dataset:
        yield tables.counts(data.dataset)
    if data.exclusions:
        columns = (Column("What"), Column("Reason", "code"), Column("Count", "number"), Column("Meaning"))
        rows = tuple((e.subject, e.reason, str(e.count), e.meaning) for e in data.exclusions)
        yield Table("Set aside", columns, rows)
    if data.package and data.package.plan.drift:
        yield tables.drift(data.package.plan.drift)


def _how_tables(package: ModelPackage) -> Iterator[Table]:
    training = package.training
    yield tables.facts("Plan", ((what, str(value)) for what, value in package.plan.rows()))
    yield tables.facts(
        "Training and its cost",
        (
            ("time", _duration(training.seconds)),
            ("steps", f"{training.steps:,} in {training.epochs:,} epochs of batch {training.batch_size}"),
            ("ended by", training.stopped_by),
            ("device", f"{training.device}, {training.precision}"),
            ("parameters", f"{training.parameters:,}"),
            ("best validation", f"{training.best_metric:.4f} at step {training.best_step:,}"),
        ),
    )
    software = package.environment.model_dump()
    yield tables.facts("Environment", ((what, str(value)) for what, value in software.items()), code=True)
    changed = _flat(package.recipe.model_dump(mode="json", exclude_defaults=True))
    yield tables.facts("Recipe: what differs from the defaults", changed, code=True)


def _good_tables(data: ReportData) -> Iterator[Table]:
    yield tables.overall(data.evaluation)
    classes = tables.by_class(data.evaluation)
    if classes:
        yield classes
    if data.evaluation.kind == "segmentation" and data.cases is not None and len(data.cases):
        yield tables.outcomes(data.cases)
    if data.evaluation.kind == "detection" and data.cases is not None:
        yield tables.lesions(data.cases, data.evaluation.threshold or 0.0)


def _learning_curve(data: ReportData) -> Iterator[Picture]:
    told = {p.name for p in data.pictures}
    if data.package and data.package.training.history and "learning-curve" not in told:
        # A segmentation whose components are lesions was judged as a segmentation while it learnt.
        by_voxels = data.evaluation.kind == "detection" and data.package.plan.segments
        metric: Metric = tables.metric_of("dice" if by_voxels else data.evaluation.primary)
        before = data.champion.training.history if data.champion else ()
        yield pictures.learning_curve(data.package.training.history, metric.label, before)


def _provenance(data: ReportData) -> Iterator[tuple[str, str]]:
    yield "package", data.evaluation.package
    yield "dataset", data.evaluation.dataset
    yield "evaluation", data.evaluation.digest
    if data.comparison:
        yield "champion", data.comparison.champion
    if data.package:
        yield "recipe", data.package.recipe.key
        yield "plan", data.package.plan.key
        yield "weights (SHA-256)", data.package.weights_sha256
        yield "code", data.package.environment.code
        yield "seed", str(data.package.plan.seed)
        if data.package.started_from:
            yield "started from", data.package.started_from
    yield from data.provenance


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """`labels.source: SEG` from nested mappings."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{place}[{index}]")
    else:
        yield place, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


@cache
def _template() -> jinja2.Template:
    place = jinja2.FileSystemLoader(Path(__file__).parent)
    surroundings = jinja2.Environment(
        loader=place, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return surroundings.get_template(TEMPLATE)
