"""How good it is, against the champion, and where it fails: the document's figures as tables and words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from models.evaluation import Comparison, Evaluation, Interval, MetricSummary, PairedTest, Picture, Subgroup
from models.report import CaseNote, Fails, Good, Report
from tasks.evaluate.reporting.blocks import PLACES, Block, Gallery, Heading, Prose, Section, Sheet, Shown, place_of
from tasks.evaluate.reporting.metrics import BY_CLASS, DASH, in_order, metric_of, span, told, whole
from tasks.evaluate.reporting.tables import Cell, Column, Mark, Table, numbers, share_bar, zero_bar

_SURE = 0.05
_INTERVAL = "95 % interval"


def good(report: Report, pictures: Sequence[Picture]) -> Section:
    """Metrics with intervals, by class, agreement, and pictures by place; of unknown names at the end."""
    part, evaluation = report.good, report.good.evaluation
    blocks: list[Block] = [Sheet((overall(evaluation),))]
    if classes := by_class(evaluation):
        blocks.append(Sheet((classes,)))
    if part.outcomes:
        blocks.append(Sheet((outcomes(part),)))
    blocks.append(Prose(_definitions(evaluation), remark=True))
    tables = {"Agreement of volumes": agreement(evaluation)} if evaluation.agreement else {}
    blocks += _pictured(pictures, tables)
    if part.without:
        blocks += [
            Heading("With and without made images"),
            Prose(
                "The same recipe learnt once more from real images alone; both were judged on the same "
                f"{part.without.n_cases} real cases."
            ),
            Sheet((differences(part.without, "With made images minus without"),)),
        ]
    return Section("good", "How good it is", tuple(blocks))


def champion(report: Report) -> Section:
    """Paired differences, tests, and differences in subgroups."""
    title, comparison = "Against the champion", report.champion
    if comparison is None:
        return Section("champion", title, (Prose("There was no champion to compare it with."),))
    left = f"; {comparison.n_unmatched} cases that only one of them was judged on are left out"
    same = f"Both were judged on the same {comparison.n_cases} cases of {comparison.n_patients} patients"
    blocks: list[Block] = [
        Prose(f"{report.summary.gain} {same}{left if comparison.n_unmatched else ''}."),
        Sheet((differences(comparison),)),
    ]
    if comparison.tests:
        blocks += [
            Sheet((paired_tests(comparison.tests),)),
            Prose(
                "Two-sided tests on the same patients: Wilcoxon's signed ranks, and the paired bootstrap. The smaller "
                "p value is adjusted by Holm's method over the classes.",
                remark=True,
            ),
        ]
    if comparison.subgroups:
        blocks.append(Sheet((subgroups(comparison.subgroups, comparison.primary, report.fails.few, paired=True),)))
    return Section("champion", title, tuple(blocks))


def fails(report: Report) -> Section:
    """Worst cases, subgroups with their size, and the cases that it was least sure of."""
    part, evaluation = report.fails, report.good.evaluation
    blocks: list[Block] = []
    if part.worst:
        blocks.append(Sheet((notes(part.worst, _WORST[evaluation.kind]),)))
    if evaluation.subgroups:
        overall_figure = whole(evaluation).get(evaluation.primary)
        table = subgroups(evaluation.subgroups, evaluation.primary, part.few, whole=overall_figure)
        blocks += [Sheet((table,)), Prose(_small(part), remark=True)]
    else:
        blocks.append(Prose("No subgroup was told apart: nothing is recorded that would divide these test patients."))
    if part.uncertain:
        blocks.append(Sheet((notes(part.uncertain, "Cases that it was least sure of"),)))
    blocks.append(Prose("Patients and cases go by pseudonym; the vault knows whose they are.", remark=True))
    return Section("fails", "Where it fails", tuple(blocks))


# -- tables -----------------------------------------------------------------------------------------------------


def overall(evaluation: Evaluation) -> Table:
    """Every metric over all classes (or of the positive class)."""
    found, rows = whole(evaluation), []
    for name in in_order(found):
        metric, interval = metric_of(name), found[name]
        heading = metric.heading
        if name == "surface_dice" and evaluation.surface_tolerance_mm:
            heading += f" at {evaluation.surface_tolerance_mm:g} mm"
        bar = share_bar(interval) if metric.share else None
        rows.append((heading, metric.format(interval.value), span(interval, metric), bar, str(interval.n)))
    whom = f"Class {evaluation.positive}" if evaluation.positive else "Mean over all classes"
    columns = (Column("Metric"), *numbers("Value", _INTERVAL), Column("0 to 1", "bar"), *numbers("Patients"))
    return Table(whom, columns, tuple(rows))


def by_class(evaluation: Evaluation) -> Table | None:
    """The main metrics of each class with their intervals; None for a single class."""
    found = {(m.class_name, m.metric): m.interval for m in evaluation.metrics if m.class_name is not None}
    names = [n for n in BY_CLASS[evaluation.kind] if any(key[1] == n for key in found)]
    if len({key[0] for key in found}) < 2:
        return None

    def cell(class_name: str, name: str) -> str:
        interval = found.get((class_name, name))
        return told(interval, metric_of(name)) if interval else DASH

    rows = tuple((c, *(cell(c, n) for n in names)) for c in evaluation.class_names)
    return Table("By class", (Column("Class"), *numbers(*(metric_of(n).heading for n in names))), rows)


def outcomes(part: Good) -> Table:
    """In how many cases a class, or how many lesions, were found, missed or invented."""
    rows, kinds = part.outcomes, ("found", "missed", "invented", "absent")
    if part.evaluation.kind == "detection":
        told = tuple(
            (o.class_name, *map(str, (o.found + o.missed, o.found, o.missed, o.invented))) for o in part.outcomes
        )
        caption = f"Lesions, and marks with a confidence of {part.evaluation.threshold or 0.0:.3f} or more"
        return Table(caption, (Column("Class"), *numbers("Lesions", "Found", "Missed", "False positives")), told)
    told = tuple((o.class_name, *(str(getattr(o, kind)) for kind in kinds)) for o in rows)
    caption = "Cases in which a class was found, missed, invented or rightly absent"
    return Table(caption, (Column("Class"), *numbers(*(kind.capitalize() for kind in kinds))), told)


def agreement(evaluation: Evaluation) -> Table:
    """Bland and Altman's bias and limits, in mL."""
    metric = metric_of("volume_error_ml")
    rows = tuple(
        (a.class_name, *(told(i, metric, sign=True) for i in (a.bias, a.lower, a.upper)), str(len(a.points)))
        for a in evaluation.agreement
    )
    heads = numbers("Bias (mL)", "Lower limit (mL)", "Upper limit (mL)", "Cases")
    return Table("Predicted minus true volume", (Column("Class"), *heads), rows)


def differences(comparison: Comparison, caption: str = "Challenger minus champion") -> Table:
    """Challenger − champion per metric, each drawn on its own scale around 0."""
    rows = []
    for summary in comparison.differences:
        metric, interval = metric_of(summary.metric), summary.interval
        name = metric.heading + (f", {summary.class_name}" if summary.class_name else "")
        better = f"{metric.better} is better" if metric.better else ""
        value, ends = metric.format(interval.value, sign=True), span(interval, metric, sign=True)
        rows.append((name, value, ends, zero_bar(interval), _direction(summary) or better))
    columns = (Column("Metric"), *numbers("Difference", _INTERVAL), Column("Around 0", "bar"), Column(""))
    return Table(caption, columns, tuple(rows))


def paired_tests(tests: Sequence[PairedTest]) -> Table:
    """p values, and whether they leave room for chance."""
    rows = tuple(
        (
            metric_of(test.metric).label,
            test.class_name or "all",
            DASH if test.wilcoxon is None else p_value(test.wilcoxon),
            p_value(test.bootstrap),
            p_value(test.adjusted),
            Mark("they differ", "good") if test.adjusted < _SURE else Mark("may be chance", "muted"),
        )
        for test in tests
    )
    heads = numbers("p, Wilcoxon", "p, bootstrap", "p, Holm")
    return Table("Do the two differ?", (Column("Metric"), Column("Class"), *heads, Column("At 5 %")), rows)


def subgroups(
    groups: Sequence[Subgroup], primary: str, few: int, *, whole: Interval | None = None, paired: bool = False
) -> Table:
    """Each subgroup with its size. Small ones are marked as such; so are those that lie below the `whole`, or that
    have lost (`paired`), with their whole interval.
    """
    names = in_order(m.metric for g in groups for m in g.metrics if m.class_name is None)
    names = [primary, *(n for n in names if n != primary)] if primary in names else names
    rows: list[tuple[Cell, ...]] = []
    for attribute, members in groupby(groups, key=lambda g: g.attribute):
        for index, group in enumerate(members):
            found = {m.metric: m for m in group.metrics if m.class_name is None}
            cells = [told(found[n].interval, metric_of(n), sign=paired) if n in found else DASH for n in names]
            first = found.get(primary)
            lead = attribute.replace("_", " ").capitalize() if index == 0 else ""
            size = (str(group.n_patients), str(group.n_cases))
            rows.append((lead, group.group, *size, *cells, _bar(first, paired), _remark(group, first, few, whole)))
    scale = "Around 0" if paired else "0 to 1"
    heads = numbers("Patients", "Cases", *(metric_of(n).heading for n in names))
    columns = (Column("By"), Column("Subgroup"), *heads, Column(scale, "bar"), Column("Remark"))
    return Table("Challenger minus champion, by subgroup" if paired else "Subgroups", columns, tuple(rows))


def notes(cases: Sequence[CaseNote], caption: str) -> Table:
    """Cases worth a look, with the figures that say why."""
    names = list(dict.fromkeys(name for case in cases for name in case.figures))
    classes, remarks = any(case.class_name for case in cases), any(case.told for case in cases)

    def cell(case: CaseNote, name: str) -> str:
        return metric_of(name).format(case.figures[name]) if name in case.figures else DASH

    rows = tuple(
        (
            case.patient,
            case.case,
            *([case.class_name] if classes else []),
            *(cell(case, name) for name in names),
            *([case.told] if remarks else []),
        )
        for case in cases
    )
    columns = (
        Column("Patient", "code"),
        Column("Case", "code"),
        *([Column("Class")] if classes else []),
        *numbers(*(metric_of(name).heading for name in names)),
        *([Column("Remark")] if remarks else []),
    )
    return Table(caption, columns, rows)


def p_value(p: float) -> str:
    """As papers print it."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


# -- parts ------------------------------------------------------------------------------------------------------

_WORST = {
    "segmentation": "Cases with the least mean Dice",
    "classification": "Cases whose true class got the least probability",
    "detection": "Cases with the most lesions missed or invented",
    "synthesis": "Made images nearest to a training image",
}


def _pictured(pictures: Sequence[Picture], tables: dict[str, Table]) -> Iterator[Block]:
    """Pictures under the headings of their places, each part's table before its pictures."""
    for part, places in groupby(PLACES, key=lambda place: place.part):
        shown = [(place, [p for p in pictures if place_of(p) == place]) for place in places]
        if part in tables or any(mine for _, mine in shown):
            yield Heading(part)
        if part in tables:
            yield Sheet((tables[part],))
        # What is true of several is said once, above them.
        yield from (Prose(place.caption, remark=True) for place, mine in shown if len(mine) > 1)
        row = [Shown(p, place.caption if len(mine) == 1 else "", place.width) for place, mine in shown for p in mine]
        if row:
            yield Gallery(tuple(row))
    if others := tuple(Shown(p) for p in pictures if place_of(p) is None):
        yield from (Heading("Further pictures"), Gallery(others))


def _bar(first: MetricSummary | None, paired: bool) -> Cell:
    if first is None:
        return None
    if paired:
        return zero_bar(first.interval)
    return share_bar(first.interval) if metric_of(first.metric).share else None


def _remark(group: Subgroup, first: MetricSummary | None, few: int, whole: Interval | None) -> Cell:
    if group.n_patients < few:
        return Mark(f"small: fewer than {few}", "muted")
    if whole is None:
        return _direction(first) if first else ""
    if first and first.interval.high is not None and first.interval.high < whole.value:
        return Mark("below the whole", "bad")
    return ""


def _direction(summary: MetricSummary) -> Mark | None:
    """Whether a paired difference is on one side of 0 with its whole interval."""
    interval, better = summary.interval, metric_of(summary.metric).better
    if interval.low is None or interval.high is None or not better or interval.low <= 0 <= interval.high:
        return None
    return Mark("better", "good") if (interval.low > 0) == (better == "higher") else Mark("worse", "bad")


def _small(part: Fails) -> str:
    return (
        f"A subgroup of fewer than {part.few} patients is shown, but its figures say little. One that lies below the "
        "whole has its whole interval below the figure of all test patients."
    )


def _definitions(evaluation: Evaluation) -> str:
    if evaluation.kind == "segmentation":
        return (
            "A class that is missed or invented counts with a Dice of 0 and with the grid's diagonal as distance; one "
            "that is rightly absent counts with a Dice of 1. Distances are between surfaces, error is prediction minus "
            "truth."
        )
    if evaluation.kind == "detection":
        return (
            "FROC is the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives an image. Sensitivity, "
            "precision and false positives are those of marks with a confidence of "
            f"{evaluation.threshold or 0.0:.3f} or more. A lesion is found once: a second mark on it is a false "
            "positive. Small lesions have a diameter below 10 mm, large ones from 30 mm on, as balls of their volume."
        )
    if evaluation.kind == "synthesis":
        return (
            "Fidelity is the distance of training images from test images, as a share of the made images' distance "
            "from them: 1 is as alike as real images are. A copy lies nearer to a training image than 99 % of the test "
            "images do."
        )
    if evaluation.thresholds:
        called = zip(evaluation.class_names, evaluation.thresholds, strict=True)
        return (
            "An image may show several classes, or none. They are called from these probabilities on: "
            f"{', '.join(f'{name} {threshold:.3f}' for name, threshold in called)}. Accuracy is the share of images of "
            "which every class is told rightly."
        )
    if evaluation.threshold is not None:
        return (
            f"{evaluation.positive} is called from a probability of {evaluation.threshold:.3f} on; the threshold was "
            "chosen on validation patients, or given."
        )
    return "An image is called the class with the greatest probability."
