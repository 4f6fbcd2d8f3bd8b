"""The rules of a promotion's policy, one check each: what was asked, what was found, and in words whether that will do.

A floor or a limit that cannot be judged is not met: what nobody has looked at is no ground to let a model serve.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from models.errors import RecipeError
from models.evaluation import Comparison, Evaluation, Interval, MetricSummary, Subgroup
from models.recipe import Kind, Promote

Rule = Literal[
    "floor",
    "better",
    "margin",
    "class_floors",
    "subgroup_floor",
    "regression",
    "seconds",
    "megabytes",
    "approval",
]

METRICS: Final[Mapping[Kind, tuple[str, ...]]] = {
    "segmentation": ("dice",),
    "classification": ("auc", "average_precision"),
    "detection": ("froc", "average_precision"),
    "synthesis": ("fidelity",),
}
"""What a policy may name as its metric, by kind of model."""


@dataclass(frozen=True, slots=True)
class Check:
    """One rule carried out. `value` is None where there was nothing to judge it by; `limit` where it has none."""

    rule: Rule
    limit: float | None
    value: float | None
    passed: bool
    told: str

    def plain(self) -> dict[str, Any]:
        """For the audit trail."""
        return asdict(self)


def check_policy(promote: Promote, kind: Kind, classes: Sequence[str]) -> None:
    """Raises RecipeError where the policy names a metric or a class that a model of this kind and classes lacks."""
    known = METRICS[kind]
    if promote.metric != "auto" and promote.metric not in known:
        raise RecipeError(
            f"promote.metric: a {kind} model has no {promote.metric!r}",
            hint=f"choose one of: {', '.join(('auto', *known))}",
            reason="no-such-metric",
        )
    if strange := sorted(set(promote.class_floors) - set(classes)):
        raise RecipeError(
            f"promote.class_floors: the model has no class {', '.join(map(repr, strange))}",
            hint=f"its classes are: {', '.join(classes)}",
            reason="no-such-class",
        )


def checks(
    promote: Promote, metric: str, new: Evaluation, old: Evaluation | None = None, comparison: Comparison | None = None
) -> Iterator[Check]:
    """Every rule that the policy sets. Without a champion, `old` and `comparison`, nothing can have fallen."""
    if promote.class_floors:
        yield _class_floors(promote.class_floors, metric, new)
    if promote.subgroup_floor is not None:
        yield _subgroup_floor(promote.subgroup_floor, promote.subgroup_patients, metric, new)
    if promote.regression is not None and old is not None and comparison is not None:
        yield _regression(promote.regression, promote.subgroup_patients, metric, new, old, comparison)
    if promote.seconds is not None:
        taken = None if new.cost is None else new.cost.seconds_median
        device = "" if new.cost is None else f" on {new.cost.device}"
        yield _limited("seconds", promote.seconds, taken, "s", f"the median test case took{device}")
    if promote.megabytes is not None:
        size = None if new.cost is None else new.cost.megabytes
        yield _limited("megabytes", promote.megabytes, size, "MB", "the weights take")


def first_floor(promote: Promote, metric: str, figure: Interval) -> Check:
    """What a first champion must reach."""
    told, passed = f"{metric} {shown(figure)}", figure.value >= promote.floor
    said = (
        f"the first model: {told} reaches the floor of {promote.floor:g}"
        if passed
        else f"the first model must reach {metric} {promote.floor:g}: it has {told}, so none serves yet"
    )
    return Check("floor", promote.floor, figure.value, passed, said)


def against_champion(promote: Promote, difference: Interval) -> Iterator[Check]:
    """The paired difference, challenger − champion: above 0 on average, and its lower end not below −margin."""
    gap = f"difference {shown(difference, signed=True)}"
    if difference.low is None:
        told = "one test patient gives no interval: too few to change the champion"
        yield Check("margin", 0 - promote.margin, None, False, told)
        return
    least = 0 - promote.margin  # and not −0
    better, safe = difference.value > 0, difference.low >= least
    said = f"{'better' if better else 'it is not better'} on average: {gap}"
    yield Check("better", 0.0, difference.value, better, said)
    margin = f"the margin of {least:+g}"
    said = f"not worse within {margin}" if safe else f"it may be worse: {gap}, whose lower end lies below {margin}"
    yield Check("margin", least, difference.low, safe, said)


def shown(interval: Interval, *, signed: bool = False) -> str:
    """A figure with its interval."""
    style = "+.4f" if signed else ".4f"
    if interval.low is None or interval.high is None:
        return f"{interval.value:{style}}"
    return f"{interval.value:{style}} [{interval.low:{style}}, {interval.high:{style}}]"


def difference_of(comparison: Comparison, metric: str, class_name: str | None = None) -> Interval | None:
    """A paired difference, if the comparison holds it."""
    return _found(comparison.differences, metric, class_name)


# -- inside -----------------------------------------------------------------------------------------------------


def _class_floors(floors: Mapping[str, float], metric: str, new: Evaluation) -> Check:
    """The class that is furthest below its floor, or the least above it, stands for all."""
    found = {name: _of_class(new, metric, name) for name in floors}
    if unknown := [name for name, figure in found.items() if figure is None]:
        why = f"{metric} of {', '.join(unknown)} is not defined on these test patients: this floor cannot be judged"
        return Check("class_floors", floors[unknown[0]], None, False, why)
    gaps = {name: figure.value - floors[name] for name, figure in found.items() if figure is not None}
    low = [name for name, gap in gaps.items() if gap < 0]
    worst = min(gaps, key=lambda name: gaps[name])
    told = ", ".join(f"{name} {metric} {floors[name] + gaps[name]:.4f} of {floors[name]:g}" for name in low or gaps)
    said = f"below the floor of its class: {told}" if low else f"every class reaches its floor: {told}"
    return Check("class_floors", floors[worst], floors[worst] + gaps[worst], not low, said)


def _subgroup_floor(floor: float, least: int, metric: str, new: Evaluation) -> Check:
    large = [group for group in new.subgroups if group.n_patients >= least]
    figures = [(group, figure.value) for group in large if (figure := _found(group.metrics, metric))]
    if not figures:
        lacking = f"none of the {len(new.subgroups)} subgroups has {least} test patients and a {metric}"
        why = f"{lacking if new.subgroups else 'no subgroup was told apart'}: this floor cannot be judged"
        return Check("subgroup_floor", floor, None, False, why)
    low = [(group, value) for group, value in figures if value < floor]
    worst = min(value for _, value in figures)
    if low:
        told = ", ".join(f"{_named(group)} {metric} {value:.4f}" for group, value in low)
        return Check("subgroup_floor", floor, worst, False, f"below the floor of {floor:g}: {told}")
    left = len(new.subgroups) - len(figures)
    rest = f"; {left} too small or without a figure" if left else ""
    told = f"all {len(figures)} subgroups of {least} test patients or more reach {metric} {floor:g}{rest}"
    return Check("subgroup_floor", floor, worst, True, told)


def _regression(
    most: float, least: int, metric: str, new: Evaluation, old: Evaluation, comparison: Comparison
) -> Check:
    falls = dict(_differences(metric, least, new, old, comparison))
    known = {what: gap for what, gap in falls.items() if gap is not None}
    if unknown := [what for what, gap in falls.items() if gap is None]:
        why = f"the champion's {metric} is not known for {', '.join(unknown)}: a fall there cannot be judged"
        return Check("regression", 0 - most, None, False, why)
    if not known:
        why = f"{metric} is known for no class and no subgroup of both: a fall cannot be judged"
        return Check("regression", 0 - most, None, False, why)
    worst = min(known, key=lambda what: known[what])
    fallen = ", ".join(f"{what} {gap:+.4f}" for what, gap in known.items() if gap < -most)
    if fallen:
        return Check("regression", 0 - most, known[worst], False, f"{metric} falls by more than {most:g}: {fallen}")
    told = f"no class or subgroup falls by more than {most:g} in {metric}; {worst} has {known[worst]:+.4f}"
    return Check("regression", 0 - most, known[worst], True, told)


def _differences(
    metric: str, least: int, new: Evaluation, old: Evaluation, comparison: Comparison
) -> Iterator[tuple[str, float | None]]:
    """(class or subgroup, mean difference) of what both versions know; None where the champion's is missing."""
    for name in (name for name in new.class_names if name in old.class_names):
        paired = difference_of(comparison, metric, name)
        before, after = _of_class(old, metric, name), _of_class(new, metric, name)
        if paired is not None:
            yield name, paired.value
        elif before is not None and after is not None:  # on the same patients: the same as the paired difference
            yield name, after.value - before.value
    paired_groups, old_groups = _by_name(comparison.subgroups), _by_name(old.subgroups)
    for key, group in _by_name(new.subgroups).items():
        figure = _found(group.metrics, metric)
        if group.n_patients < least or figure is None:
            continue
        paired = _found(paired_groups[key].metrics, metric) if key in paired_groups else None
        before = _found(old_groups[key].metrics, metric) if key in old_groups else None
        gap = paired.value if paired else figure.value - before.value if before else None
        yield f"{_named(group)} ({group.n_patients} patients)", gap


def _limited(rule: Rule, limit: float, value: float | None, unit: str, what: str) -> Check:
    if value is None:
        return Check(rule, limit, None, False, f"{rule} were not measured: this limit cannot be judged")
    passed = value <= limit
    told = f"{what} {value:.4g} {unit}, {'within' if passed else 'more than'} the limit of {limit:g}"
    return Check(rule, limit, value, passed, told)


def _of_class(evaluation: Evaluation, metric: str, name: str) -> Interval | None:
    """A class's figure. Of an only class, and of two classes' positive one, it is the figure as a whole; the area
    under the curve is the same for both of two classes."""
    if (own := _found(evaluation.metrics, metric, name)) is not None:
        return own
    two = evaluation.positive is not None
    if evaluation.class_names == (name,) or (two and (name == evaluation.positive or metric == "auc")):
        return _found(evaluation.metrics, metric)
    return None


def _found(metrics: Sequence[MetricSummary], metric: str, class_name: str | None = None) -> Interval | None:
    return next((m.interval for m in metrics if m.metric == metric and m.class_name == class_name), None)


def _by_name(groups: Sequence[Subgroup]) -> dict[tuple[str, str], Subgroup]:
    return {(group.attribute, group.group): group for group in groups}


def _named(group: Subgroup) -> str:
    return f"{group.attribute.replace('_', ' ')} {group.group}"
