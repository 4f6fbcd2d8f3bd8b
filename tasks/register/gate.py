"""The promotion gate: may the new model serve? Pure; every answer comes with its reasons, numbers and inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from models.errors import NotFoundError, RecipeError
from models.evaluation import Comparison, Evaluation, Interval
from models.hashing import content_key
from models.recipe import Promote
from tasks.register.rules import Check, against_champion, check_policy, checks, difference_of, first_floor

Action = Literal["promoted", "kept"]


@dataclass(frozen=True, slots=True)
class Decision:
    """`promoted`: the challenger serves from now on. `kept`: the champion, if any, goes on serving.

    `figures` is plain data for the audit trail: `policy` and `metric`, `inputs` (what was judged, by key and digest),
    `challenger`, `champion` and `difference` (intervals of the metric), and `checks`, one per rule of the policy.
    """

    action: Action
    reasons: tuple[str, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)

    def with_check(self, check: Check, reason: str) -> Decision:
        """The decision after one more rule, whose `reason` comes first."""
        action: Action = "promoted" if self.action == "promoted" and check.passed else "kept"
        told = {**self.figures, "checks": [*self.figures.get("checks", ()), check.plain()]}
        return Decision(action, (reason, *self.reasons), told)


def decide(
    promote: Promote,
    *,
    challenger: Evaluation,
    champion_package: str | None = None,
    champion: Evaluation | None = None,
    comparison: Comparison | None = None,
) -> Decision:
    """Judge the challenger by every rule of the policy but `approval`, which is a person's to give.

    Without a champion the metric must reach the recipe's floor. Against one, on the same test patients, the paired
    95 % interval of challenger − champion must not reach below −margin, the mean difference must be above 0, and no
    class or subgroup may fall further than the policy allows. Floors and limits hold for every version.
    `champion_package` is the key of the serving package; `champion` and `comparison` are None until it was judged on
    this dataset. Raises RecipeError for a metric or a class that the model does not have.
    """
    check_policy(promote, challenger.kind, challenger.class_names)
    metric = challenger.primary if promote.metric == "auto" else promote.metric
    figure = _figure(challenger, metric)
    figures: dict[str, Any] = {
        "policy": promote.model_dump(mode="json"),
        "metric": metric,
        "inputs": _inputs(challenger, champion_package, champion, comparison),
        "challenger": _plain(figure),
    }
    if champion_package is None:
        return _decided([first_floor(promote, metric, figure), *checks(promote, metric, challenger)], (), figures)
    if champion_package == challenger.package:
        return Decision("kept", ("this very package serves already: there is nothing to do",), figures)
    if (why := _not_comparable(challenger, champion_package, champion, comparison)) is not None:
        return _decided([Check("margin", 0 - promote.margin, None, False, why)], (), figures)
    if champion is None or comparison is None:  # said above; here for the type checker
        raise AssertionError
    before = _figure(champion, metric)
    figures["champion"] = _plain(before)
    difference = difference_of(comparison, metric)
    if difference is None:
        why = f"the comparison holds no difference of {metric}"
        return _decided([Check("margin", 0 - promote.margin, None, False, why)], (), figures)
    figures["difference"] = _plain(difference)
    both = (
        f"{metric} {figure.value:.4f} against the champion's {before.value:.4f} "
        f"on the same {difference.n} test patients"
    )
    rules = [*against_champion(promote, difference), *checks(promote, metric, challenger, champion, comparison)]
    return _decided(rules, (both,), figures)


def _decided(found: Iterable[Check], lead: tuple[str, ...], figures: dict[str, Any]) -> Decision:
    """Promoted where every check is passed; the reasons are those that decide."""
    every = list(found)
    failed = [check.told for check in every if not check.passed]
    figures["checks"] = [check.plain() for check in every]
    if failed:
        return Decision("kept", (*lead, *failed), figures)
    return Decision("promoted", (*lead, *(check.told for check in every)), figures)


def _inputs(
    challenger: Evaluation, champion_package: str | None, champion: Evaluation | None, comparison: Comparison | None
) -> dict[str, str | None]:
    """What the decision was made from; who has the stores can make it again."""
    compared = content_key("comparison", comparison.model_dump(mode="json")) if comparison else None
    return {
        "dataset": challenger.dataset,
        "package": challenger.package,
        "evaluation": challenger.digest,
        "champion": champion_package,
        "champion_evaluation": champion.digest if champion else None,
        "comparison": compared,
    }


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


def _plain(interval: Interval) -> dict[str, Any]:
    return interval.model_dump(mode="json")
