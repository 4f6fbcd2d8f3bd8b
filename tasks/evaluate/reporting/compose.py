"""From what was judged to the document: figures in order, words on them, and which cases to look at."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import pandas as pd

from models.dataset import Dataset
from models.evaluation import Comparison, Evaluation, MetricSummary, Picture
from models.package import ModelPackage
from models.report import (
    Alert,
    DataCard,
    Decision,
    Drifted,
    Exclusion,
    Fails,
    Good,
    PictureNote,
    Report,
    Summary,
)
from tasks.evaluate import pictures
from tasks.evaluate.reporting.card import Characteristics, card
from tasks.evaluate.reporting.cases import outcomes, uncertain, worst
from tasks.evaluate.reporting.metrics import HEADLINES, Metric, metric_of, span

CURVE = "learning-curve"


@dataclass(frozen=True, slots=True)
class Judged:
    """All that a report may tell. Only the evaluation is needed; of what is absent the report says so.

    `cases` is the per-case table of the evaluation. `without` compares with the same recipe without made images.
    `notes` are remarks for the summary, `provenance` further (what, value) rows for the last section. The learning
    curve is drawn from the package's history, with the `champion`'s beside it.
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
    characteristics: Characteristics | None = None
    exclusions: tuple[Exclusion, ...] = ()
    alerts: tuple[Alert, ...] = ()
    watched: int = 0
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()
    provenance: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Of the model: the recipe's, or the dataset's."""
        if self.package:
            return self.package.recipe.name
        return self.dataset.name if self.dataset else self.evaluation.kind

    @property
    def table(self) -> pd.DataFrame | None:
        """The per-case table, if it has a row."""
        return self.cases if self.cases is not None and len(self.cases) else None


def compose(judged: Judged) -> tuple[Report, tuple[Picture, ...]]:
    """The document, and the pictures of its page: those given and the learning curve."""
    shown = (*judged.pictures, *_learning_curve(judged))
    package = judged.package
    report = Report(
        name=judged.name,
        created_at=judged.created_at,
        summary=_summary(judged),
        data=_card(judged),
        how=package.model_copy(update={"fingerprint": {}}) if package else None,
        good=_good(judged, shown),
        champion=judged.comparison,
        fails=_fails(judged),
        drift=Drifted(planned=package.plan.drift if package else (), alerts=judged.alerts, watched=judged.watched),
        decision=judged.decision,
        provenance=dict(_provenance(judged)),
    )
    return report, shown


def _summary(judged: Judged) -> Summary:
    return Summary(
        headlines=tuple(_headlines(judged.evaluation)),
        sentence=_sentence(judged.evaluation),
        gain=_gain(judged.comparison) if judged.comparison else "",
        notes=judged.notes,
    )


def _headlines(evaluation: Evaluation) -> Iterator[MetricSummary]:
    """The primary metric, then the few that a reader asks for next."""
    known = {m.metric: m for m in evaluation.metrics if m.class_name is None}
    yield from (known[name] for name in (evaluation.primary, *HEADLINES[evaluation.kind]) if name in known)


def _sentence(evaluation: Evaluation) -> str:
    metric, interval = metric_of(evaluation.primary), evaluation.primary_interval
    cases = f"{evaluation.n_cases} case{'s' * (evaluation.n_cases != 1)}"
    patients = f"{evaluation.n_patients} test patient{'s' * (evaluation.n_patients != 1)}"
    ends = f" (95 % interval {span(interval, metric)})" if interval.low is not None else ""
    what = f"{metric.label} of {evaluation.positive}" if evaluation.positive else f"Mean {metric.label}"
    return f"{what} {metric.format(interval.value)}{ends} in {cases} of {patients}."


def _gain(comparison: Comparison) -> str:
    """What the paired difference of the primary metric says, in words."""
    metric, interval = metric_of(comparison.primary), comparison.primary_difference
    told = f"{metric.label} changes by {metric.format(interval.value, sign=True)}"
    if interval.low is None or interval.high is None:
        return f"{told}; with a single patient there is no interval."
    worse, better = interval.high < 0, interval.low > 0
    verdict = "the challenger is better" if better else "the challenger is worse" if worse else "which may be chance"
    return f"{told} (95 % interval {span(interval, metric, sign=True)}): {verdict}."


def _card(judged: Judged) -> DataCard | None:
    if judged.dataset is None:
        return None
    return card(judged.dataset, judged.package, judged.table, judged.characteristics, judged.exclusions)


def _good(judged: Judged, shown: tuple[Picture, ...]) -> Good:
    table = judged.table
    return Good(
        evaluation=judged.evaluation,
        outcomes=outcomes(table, judged.evaluation) if table is not None else (),
        without=judged.without,
        pictures=tuple(PictureNote(name=p.name, title=p.title, alt=p.alt) for p in shown),
    )


def _fails(judged: Judged) -> Fails:
    few = judged.package.recipe.promote.subgroup_patients if judged.package else Fails().few
    table, kind = judged.table, judged.evaluation.kind
    if table is None:
        return Fails(few=few)
    return Fails(worst=worst(table, kind, judged.evaluation.threshold), uncertain=uncertain(table, kind), few=few)


def _learning_curve(judged: Judged) -> Iterator[Picture]:
    package = judged.package
    if package and package.training.history and CURVE not in {p.name for p in judged.pictures}:
        # A segmentation whose components are lesions was judged as a segmentation while it learnt.
        by_voxels = judged.evaluation.kind == "detection" and package.plan.segments
        metric: Metric = metric_of("dice" if by_voxels else judged.evaluation.primary)
        before = judged.champion.training.history if judged.champion else ()
        yield pictures.learning_curve(package.training.history, metric.label, before)


def _provenance(judged: Judged) -> Iterator[tuple[str, str]]:
    yield "package", judged.evaluation.package
    yield "dataset", judged.evaluation.dataset
    yield "evaluation", judged.evaluation.digest
    if judged.comparison:
        yield "champion", judged.comparison.champion
    if package := judged.package:
        yield "recipe", package.recipe.key
        yield "plan", package.plan.key
        yield "weights (SHA-256)", package.weights_sha256
        yield "code", package.environment.code
        yield "seed", str(package.plan.seed)
        if package.started_from:
            yield "started from", package.started_from
        yield from ((f"member {member.name}", member.package) for member in package.members if member.package)
    yield from judged.provenance
