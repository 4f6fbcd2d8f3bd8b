"""The promotion gate: may the new model serve? Pure; every answer comes with its reasons and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from models.errors import NotFoundError, RecipeError
from models.evaluation import Comparison, Evaluation, Interval
from models.recipe import Promote

Action = Literal["promoted", "kept"]


@dataclass(frozen=True, slots=True)
class Decision:
    """`promoted`: the challenger serves from now on. `kept`: the champion, if any, goes on serving."""

    action: Action
    reasons: tuple[str, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)


def decide(
    promote: Promote,
    *,
    challenger: Evaluation,
    champion_package: str | None = None,
    champion: Evaluation | None = None,
    comparison: Comparison | None = None,
) -> Decision:
    """Judge the challenger.

    Without a champion the metric must reach the recipe's floor. Against one, on the same test patients, the paired
    95 % interval of challenger − champion must not reach below −margin, and the mean difference must be above 0.
    `champion_package` is the key of the serving package; `champion` and `comparison` are None until it was judged on
    this dataset. Raises RecipeError for a metric that the evaluation does not hold.
    """
    metric = challenger.primary if promote.metric == "auto" else promote.metric
    figure = _figure(challenger, metric)
    rule = {"metric": metric, "floor": promote.floor, "margin": promote.margin}
    figures: dict[str, Any] = {"rule": rule, "dataset": challenger.dataset, "challenger": _plain(figure)}
    if champion_package is None:
        return _first(promote, metric, figure, figures)
    if champion_package == challenger.package:
        return Decision("kept", ("this very package serves already: there is nothing to do",), figures)
    if (why := _not_comparable(challenger, champion_package, champion, comparison)) is not None:
        return Decision("kept", (why,), figures)
    if champion is None or comparison is None:  # said above; here for the type checker
        raise AssertionError
    figures["champion"] = _plain(_figure(champion, metric))
    difference = _difference(comparison, metric)
    if difference is None:
        return Decision("kept", (f"the comparison holds no difference of {metric}",), figures)
    figures["difference"] = _plain(difference)
    return _against(promote, metric, figure, _figure(champion, metric), difference, figures)


def _first(promote: Promote, metric: str, figure: Interval, figures: dict[str, Any]) -> Decision:
    told = f"{metric} {_shown(figure)}"
    if figure.value >= promote.floor:
        return Decision("promoted", (f"the first model: {told} reaches the floor of {promote.floor:g}",), figures)
    return Decision(
        "kept", (f"the first model must reach {metric} {promote.floor:g}: it has {told}, so none serves yet",), figures
    )


def _against(
    promote: Promote, metric: str, new: Interval, old: Interval, difference: Interval, figures: dict[str, Any]
) -> Decision:
    both = f"{metric} {new.value:.4f} against the champion's {old.value:.4f} on the same {difference.n} test patients"
    gap = f"difference {_shown(difference, signed=True)}"
    if difference.low is None:
        return Decision("kept", (both, "one test patient gives no interval: too few to change the champion"), figures)
    refused = []
    if difference.value <= 0:
        refused.append(f"it is not better on average: {gap}")
    if difference.low < -promote.margin:
        refused.append(f"it may be worse: {gap}, whose lower end lies below the margin of {-promote.margin:+g}")
    if refused:
        return Decision("kept", (both, *refused), figures)
    return Decision("promoted", (both, f"better on average and not worse within the margin: {gap}"), figures)


def _not_comparable(
    challenger: Evaluation, champion_package: str, champion: Evaluation | None, comparison: Comparison | None
) -> str | None:
    """Why the two cannot be compared yet, or None."""
    first = "judge the champion again first"
    if champion is None or champion.package != champion_package:
        return f"the serving champion has not been judged on this dataset's test patients: {first}"
    if champion.dataset != challenger.dataset:
        return (
            f"the champion was judged on dataset {champion.dataset[:8]}, the challenger on {challenger.dataset[:8]}, "
            f"with other test patients: {first}"
        )
    if comparison is None:
        return "champion and challenger have not been compared patient by patient: compare them first"
    compared = (comparison.champion, comparison.challenger, comparison.dataset)
    if compared != (champion_package, challenger.package, challenger.dataset):
        return "the comparison at hand is of other packages or another dataset: compare these two first"
    if comparison.n_unmatched:
        return f"{comparison.n_unmatched} test case(s) were judged for one of the two only: {first}"
    return None


def _figure(evaluation: Evaluation, metric: str) -> Interval:
    try:
        return evaluation.of(metric)
    except NotFoundError:
        known = ", ".join(dict.fromkeys(m.metric for m in evaluation.metrics if m.class_name is None))
        raise RecipeError(
            f"promote.metric: a {evaluation.kind} model has no {metric!r}",
            hint=f"choose one of: {known}",
            reason="no-such-metric",
        ) from None


def _difference(comparison: Comparison, metric: str) -> Interval | None:
    for summary in comparison.differences:
        if summary.metric == metric and summary.class_name is None:
            return summary.interval
    return None


def _plain(interval: Interval) -> dict[str, Any]:
    return interval.model_dump(mode="json")


def _shown(interval: Interval, *, signed: bool = False) -> str:
    style = "+.4f" if signed else ".4f"
    if interval.low is None or interval.high is None:
        return f"{interval.value:{style}}"
    return f"{interval.value:{style}} [{interval.low:{style}}, {interval.high:{style}}]"
