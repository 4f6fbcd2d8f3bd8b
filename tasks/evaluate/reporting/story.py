"""What was learnt from what and how, what has drifted, what was decided, and what it all rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from models.dataset import SPLITS
from models.evaluation import Cost, Picture
from models.package import ModelPackage
from models.plan import Drift
from models.report import Alert, Check, DataCard, Decision, Figure, Measure, Report, Tally
from tasks.evaluate.reporting.blocks import (
    Block,
    Headline,
    Headlines,
    Notes,
    Prose,
    Section,
    Sheet,
    Shown,
    Verdict,
)
from tasks.evaluate.reporting.metrics import DASH, MINUS, metric_of, span
from tasks.evaluate.reporting.tables import Cell, Column, Mark, Table, facts, numbers, share_bar

_ATTRIBUTES = {"all": "All", "made": "Made images", "class": "Class", "modality": "Modality", "scanner": "Scanner"}
_SPLITS = {"train": "Training", "validation": "Validation", "test": "Test"}
_RULES = {
    "floor": "Floor of the first champion",
    "better": "Better on average",
    "margin": "Not worse: margin on the paired interval",
    "class_floors": "Floors of classes",
    "subgroup_floor": "Floor of subgroups",
    "regression": "No fall in any class or subgroup",
    "seconds": "Time for a case (s)",
    "megabytes": "Size of the weights (MB)",
    "approval": "A person's approval",
}


def summary(report: Report) -> Section:
    """The verdict, the first figures, and what must be known besides."""
    part = report.summary
    gain = f" Against the champion on the same patients, {part.gain}" if part.gain else ""
    blocks: list[Block] = [
        *([Verdict(report.decision)] if report.decision else []),
        Headlines(tuple(_headlines(report))),
        Prose(part.sentence + gain),
    ]
    return Section("summary", "Summary", (*blocks, *([Notes(part.notes)] if part.notes else [])))


def data(report: Report) -> Section:
    """The dataset card."""
    card = report.data
    if card is None:
        return Section("data", "Data", (Prose("The dataset is not at hand."),))
    blocks: list[Block] = [
        Prose(_composition(card)),
        Sheet((composition(card.tallies),)),
        *([Sheet((measures(card.measures),))] if card.measures else []),
        *([Sheet((exclusions(card),))] if card.exclusions else [Prose("Nothing was set aside.", remark=True)]),
    ]
    return Section("data", "Data", tuple(blocks))


def how(report: Report, pictures: Sequence[Picture]) -> Section:
    """Recipe, plan, environment, cost, learning curve."""
    package = report.how
    if package is None:
        return Section("how", "How it was made", (Prose("The package is not at hand."),))
    training, plan = package.training, package.plan
    tables = (
        facts("Plan", ((what, str(value)) for what, value in plan.rows())),
        facts("Training and its cost", _training(package)),
        *([facts("Cost of a case", _cost(cost))] if (cost := report.good.evaluation.cost) else []),
    )
    notes = plan.notes + training.notes
    software = ((what, str(value)) for what, value in package.environment.model_dump().items())
    changed = flat(package.recipe.model_dump(mode="json", exclude_defaults=True))
    curve = tuple(Shown(p, "The best validation is marked: its weights are the package's.") for p in pictures)
    made = (
        facts("Recipe: what differs from the defaults", changed, code=True),
        facts("Environment", software, code=True),
    )
    blocks: list[Block] = [Sheet(tables, curve), *([Notes(notes)] if notes else []), Sheet(made)]
    return Section("how", "How it was made", tuple(blocks))


def drift(report: Report) -> Section:
    """The training cases against those of the champion's plan, and what moved since a version began to serve."""
    part = report.drift
    if part.planned:
        first: Block = Sheet((planned(part.planned),))
    else:
        first = Prose("The data was not compared with an earlier dataset: the plan was made for this one alone.")
    if part.alerts:
        watched: Block = Sheet((alerts(part.alerts),))
    elif part.watched:
        watched = Prose(f"No alert is open; {part.watched:,} predictions of this model are kept for comparison.")
    else:
        watched = Prose("No alert is open: no version of this model has predicted anything yet.")
    return Section("drift", "Drift", (first, watched))


def decision(report: Report) -> Section:
    """The policy's rules one by one, the reasons, and who decided."""
    title, part = "Decision", report.decision
    if part is None:
        return Section("decision", title, (Prose("Nothing was decided: the version was judged, not registered."),))
    blocks: list[Block] = [Verdict(part)]
    if part.checks:
        blocks.append(Sheet((checks(part.checks),)))
    blocks.append(Sheet((facts("The record", _record(part, report)),)))
    return Section("decision", title, tuple(blocks))


def provenance(report: Report) -> Section:
    """Keys of all that it rests on, and the files beside the page."""
    table = facts("What this page rests on", report.provenance.items(), code=True)
    beside = Prose(
        "The same figures lie beside this page in report.json, and every test case in cases.parquet.", remark=True
    )
    return Section("provenance", "Provenance", (Sheet((table,)), beside))


# -- tables -----------------------------------------------------------------------------------------------------


def composition(tallies: Sequence[Tally]) -> Table:
    """Patients and cases by split, and by what they share."""
    rows: list[tuple[Cell, ...]] = []
    for attribute, members in groupby(tallies, key=lambda t: t.attribute):
        lead = _ATTRIBUTES.get(attribute, attribute.capitalize())
        for index, tally in enumerate(members):
            counts = [(tally.patients.get(split, 0), tally.cases.get(split, 0)) for split in SPLITS]
            # A patient is in one split alone, so patients add up.
            counts.append((sum(p for p, _ in counts), sum(c for _, c in counts)))
            named = "" if attribute in ("all", "made") else tally.value
            rows.append((lead if index == 0 else "", named, *(f"{p} / {c}" if c else DASH for p, c in counts)))
    columns = (Column("By"), Column(""), *numbers(*_SPLITS.values(), "All"))
    return Table("Patients / cases by split", columns, tuple(rows))


def measures(found: Sequence[Measure]) -> Table:
    """Median, and from least to most."""

    def cell(measure: Measure, split: Any) -> str:
        spread = measure.splits.get(split)
        if spread is None:
            return DASH
        middle = f"{spread.median:.3g}"
        return middle if spread.low == spread.high else f"{middle} ({spread.low:.3g}{DASH}{spread.high:.3g})"

    rows = tuple((f"{m.what} ({m.unit})", *(cell(m, split) for split in SPLITS)) for m in found)
    return Table("Median (least–most) by split", (Column("Measure"), *numbers(*_SPLITS.values())), rows)


def exclusions(card: DataCard) -> Table:
    """What was set aside, and why."""
    columns = (Column("What"), Column("Reason", "code"), Column("Count", "number"), Column("Meaning"))
    rows = tuple((e.subject, e.reason, str(e.count), e.meaning) for e in card.exclusions)
    return Table("Set aside or left out", columns, rows)


def planned(found: Sequence[Drift]) -> Table:
    """How far the training cases have moved from those that the champion's plan was made for."""
    rows = tuple(
        (
            m.measure,
            f"{m.value:.2f}",
            f"{m.threshold:.2f}",
            Mark("drifted", "warn") if m.drifted else Mark("as before", "muted"),
            m.told,
        )
        for m in sorted(found, key=lambda m: -m.value / m.threshold)
    )
    columns = (Column("Measure"), *numbers("Distance", "Limit"), Column("Verdict"), Column("Training cases"))
    return Table("Drift from what the champion's plan was made for", columns, rows)


def alerts(found: Sequence[Alert]) -> Table:
    """What has moved since a version of this model began to serve."""
    rows = tuple(
        (
            a.kind,
            a.measure,
            f"{a.how} {a.value:.3g}",
            f"{a.threshold:.3g}",
            str(a.cases),
            f"{a.since:%Y-%m-%d}",
            a.told,
            a.package[:12],
        )
        for a in found
    )
    columns = (
        Column("Of"),
        Column("Measure"),
        *numbers("Value", "Limit", "Cases"),
        Column("Since"),
        Column("What"),
        Column("Package", "code"),
    )
    return Table("Open alerts of what is watched", columns, rows)


def checks(found: Sequence[Check]) -> Table:
    """Each rule of the policy with what was found."""
    words: dict[bool | None, Mark] = {
        True: Mark("kept", "good"),
        False: Mark("broken", "bad"),
        None: Mark("not judged", "warn"),
    }
    rows = tuple(
        (_RULES.get(c.rule, c.rule.replace("_", " ")), _figure(c.limit), _figure(c.value), words[c.passed], c.told)
        for c in found
    )
    columns = (Column("Rule"), *numbers("Limit", "Found"), Column("Verdict"), Column("Reason"))
    return Table("The policy's rules", columns, rows)


def flat(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """`labels.source: SEG` from nested mappings."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flat(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list) and value and isinstance(value[0], Mapping):
        for index, inner in enumerate(value):
            yield from flat(inner, f"{place}[{index}]")
    else:
        yield place, ", ".join(map(str, value)) if isinstance(value, list) else str(value)


# -- parts ------------------------------------------------------------------------------------------------------


def _headlines(report: Report) -> Iterator[Headline]:
    for summary in report.summary.headlines:
        metric, interval = metric_of(summary.metric), summary.interval
        ends = span(interval, metric) + (" (95 %)" if interval.low is not None else "")
        bar = share_bar(interval) if metric.share else None
        yield Headline(metric.label, metric.format(interval.value), metric.unit, ends, bar)


def _composition(card: DataCard) -> str:
    whole = card.tallies[0]
    patients, cases = sum(whole.patients.values()), sum(whole.cases.values())
    return (
        f"{card.name}: {patients:,} patients with {cases:,} cases; classes: {', '.join(card.classes)}. A patient is in "
        "one split for good, whatever arrives later; the test patients were never learnt from."
    )


def _training(package: ModelPackage) -> Iterator[tuple[str, str]]:
    training = package.training
    yield "time", duration(training.seconds)
    yield "steps", f"{training.steps:,} in {training.epochs:,} epochs of batch {training.batch_size}"
    yield "ended by", training.stopped_by
    yield "device", f"{training.device}, {training.precision}"
    yield "parameters", f"{training.parameters:,}"
    yield "best validation", f"{training.best_metric:.4f} at step {training.best_step:,}"
    if training.folds:
        yield "folds", str(len(training.folds))
    if package.members:
        yield "networks applied together", str(len(package.members))


def _cost(cost: Cost) -> Iterator[tuple[str, str]]:
    yield "median time", f"{cost.seconds_median:.3g} s"
    yield "longest time", f"{cost.seconds_longest:.3g} s"
    yield "device", cost.device
    yield "weights", f"{cost.megabytes:.3g} MB"


def _record(part: Decision, report: Report) -> Iterator[tuple[str, str]]:
    yield from (("because", reason) for reason in part.reasons)
    if part.who:
        yield "decided by", "the policy alone" if part.who == "nocturne" else part.who
    if part.decided_at:
        yield "decided at", f"{part.decided_at:%Y-%m-%d %H:%M %Z}".strip()
    if part.number is not None:
        yield "number in the audit trail", str(part.number)
    if report.how:
        policy = flat(report.how.recipe.promote.model_dump(mode="json", exclude_defaults=True))
        yield "policy", "; ".join(f"{what} {value}" for what, value in policy) or "the defaults"


def _figure(figure: Figure) -> str:
    if figure is None:
        return DASH
    if isinstance(figure, bool):
        return "yes" if figure else "no"
    return f"{figure:.4g}".replace("-", MINUS) if isinstance(figure, int | float) else figure


def duration(seconds: float) -> str:
    """In the two largest units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
