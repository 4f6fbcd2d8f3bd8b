from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import RecipeError
from models.evaluation import Comparison, Cost, Evaluation, MetricSummary, Subgroup
from models.recipe import Promote
from tasks.register.gate import Decision, decide
from tasks.register.rules import check_policy
from tests.tasks.register.samples import a_comparison, an_evaluation, an_interval

ANY_GAIN = Promote()
OLD, NEW = an_evaluation("old", 0.80), an_evaluation("new", 0.82)


def against(
    low: float | None, value: float, high: float | None, *, promote: Promote = ANY_GAIN, new: Evaluation = NEW
) -> Decision:
    comparison = a_comparison(OLD, new, low, value, high)
    return decide(promote, challenger=new, champion_package="old", champion=OLD, comparison=comparison)


def test_the_first_model_serves_once_it_reaches_the_floor() -> None:
    decision = decide(Promote(floor=0.8), challenger=an_evaluation("new", 0.8))
    assert decision.action == "promoted"
    assert "0.8000" in decision.reasons[0]
    assert decision.figures["challenger"] == {
        "value": 0.8,
        "low": pytest.approx(0.78),
        "high": pytest.approx(0.82),
        "n": 40,
    }


def test_a_first_model_below_the_floor_waits_and_the_reason_names_both_numbers() -> None:
    decision = decide(Promote(floor=0.85), challenger=an_evaluation("new", 0.8))
    assert decision.action == "kept"
    assert "0.85" in decision.reasons[0]
    assert "0.8000" in decision.reasons[0]


@pytest.mark.parametrize(
    ("low", "value", "high", "margin", "action", "told"),
    [
        (0.01, 0.02, 0.03, 0.0, "promoted", "better on average"),
        (0.0, 0.02, 0.03, 0.0, "promoted", "better on average"),
        (-0.01, 0.02, 0.05, 0.0, "kept", "may be worse"),
        (-0.01, 0.02, 0.05, 0.01, "promoted", "better on average"),
        (-0.011, 0.02, 0.05, 0.01, "kept", "-0.0110"),
        (-0.005, 0.0, 0.005, 0.01, "kept", "not better on average"),
        (0.0, 0.0, 0.0, 0.0, "kept", "not better on average"),
        (-0.1, -0.05, -0.01, 0.0, "kept", "-0.0500"),
        (None, 0.3, None, 0.0, "kept", "one test patient"),
    ],
)
def test_the_paired_interval_decides(
    low: float | None, value: float, high: float | None, margin: float, action: str, told: str
) -> None:
    decision = against(low, value, high, promote=Promote(margin=margin))
    assert decision.action == action
    assert told in " ".join(decision.reasons)
    assert "0.8200 against the champion's 0.8000 on the same 40 test patients" in decision.reasons[0]


def test_the_floor_is_for_the_first_champion_only() -> None:
    assert against(0.01, 0.02, 0.03, promote=Promote(floor=0.99)).action == "promoted"


def test_the_serving_package_itself_changes_nothing() -> None:
    decision = decide(Promote(), challenger=OLD, champion_package="old", champion=OLD)
    assert decision.action == "kept"
    assert "serves already" in decision.reasons[0]


COMPARED = a_comparison(OLD, NEW, 0.01, 0.02, 0.03)


@pytest.mark.parametrize(
    ("champion", "comparison", "told"),
    [
        (None, None, "judge the champion again first"),
        (an_evaluation("older", 0.7), COMPARED, "judge the champion again first"),
        (an_evaluation("old", 0.8, dataset="f" * 32), COMPARED, "ffffffff"),
        (OLD, None, "compare them first"),
        (OLD, a_comparison(OLD, an_evaluation("third"), 0.01, 0.02, 0.03), "other packages"),
        (OLD, COMPARED.model_copy(update={"n_unmatched": 3}), "3 test case(s)"),
    ],
)
def test_what_was_not_judged_on_the_same_patients_is_not_compared(
    champion: Evaluation | None, comparison: Comparison | None, told: str
) -> None:
    decision = decide(Promote(), challenger=NEW, champion_package="old", champion=champion, comparison=comparison)
    assert decision.action == "kept"
    assert told in decision.reasons[0]


def test_a_metric_that_the_model_does_not_have_is_the_recipes_fault() -> None:
    with pytest.raises(RecipeError, match=r"no 'auc'.*dice") as caught:
        decide(Promote(metric="auc"), challenger=NEW)
    assert caught.value.reason == "no-such-metric"


@given(
    low=st.floats(-0.5, 0.5),
    up=st.floats(0, 0.5),
    wide=st.floats(0, 0.5),
    margin=st.floats(0, 0.5),
    more=st.floats(0, 1),
)
def test_never_worse_and_monotone_in_the_margin(low: float, up: float, wide: float, margin: float, more: float) -> None:
    value, high = low + up, low + up + wide
    decision = against(low, value, high, promote=Promote(margin=margin))
    if decision.action == "promoted":
        assert value > 0
        assert low >= -margin
        assert against(low, value, high, promote=Promote(margin=margin + more)).action == "promoted"


def group(site: str, dice: float, n: int) -> Subgroup:
    told = MetricSummary(metric="dice", interval=an_interval(dice, 0.05, n))
    return Subgroup(attribute="site", group=site, n_patients=n, n_cases=n, metrics=(told,))


def rule(decision: Decision, name: str) -> dict[str, object]:
    (found,) = [check for check in decision.figures["checks"] if check["rule"] == name]
    return dict(found)


def better(policy: Promote, new: Evaluation = NEW, old: Evaluation = OLD, **told: object) -> Decision:
    """A challenger that is surely better on average."""
    comparison = a_comparison(old, new, 0.01, 0.02, 0.03).model_copy(update=told)
    return decide(policy, challenger=new, champion_package="old", champion=old, comparison=comparison)


SITES = NEW.model_copy(update={"subgroups": (group("A", 0.85, 25), group("B", 0.60, 12), group("C", 0.10, 3))})


class TestFloors:
    def test_a_class_below_its_own_floor_holds_a_better_model_back_and_the_first_too(self) -> None:
        policy = Promote(class_floors={"spleen": 0.75, "liver": 0.5})
        for decision in (better(policy), decide(policy, challenger=NEW)):
            assert decision.action == "kept"
            assert "spleen dice 0.7200 of 0.75" in decision.reasons[-1]
            assert "liver" not in decision.reasons[-1]
            assert rule(decision, "class_floors") | {"told": ""} == {
                "rule": "class_floors",
                "limit": 0.75,
                "value": pytest.approx(0.72),
                "passed": False,
                "told": "",
            }
        assert better(Promote(class_floors={"spleen": 0.7, "liver": 0.5})).action == "promoted"

    def test_an_only_class_and_the_positive_one_of_two_have_the_figure_as_a_whole(self) -> None:
        alone = NEW.model_copy(update={"class_names": ("liver",), "metrics": NEW.metrics[:1]})
        assert decide(Promote(class_floors={"liver": 0.9}), challenger=alone).action == "kept"
        assert decide(Promote(class_floors={"liver": 0.8}), challenger=alone).action == "promoted"
        auc = (MetricSummary(metric="auc", interval=an_interval(0.9, 0.02, 40)),)
        two = {"kind": "classification", "primary": "auc", "metrics": auc, "class_names": ("well", "ill")}
        pair = NEW.model_copy(update={**two, "positive": "ill"})
        assert decide(Promote(class_floors={"ill": 0.95}), challenger=pair).action == "kept"
        assert decide(Promote(class_floors={"well": 0.85, "ill": 0.85}), challenger=pair).action == "promoted"

    def test_a_class_without_a_figure_cannot_be_judged_and_holds_it_back(self) -> None:
        without = NEW.model_copy(update={"metrics": NEW.metrics[:2]})
        decision = decide(Promote(class_floors={"spleen": 0.0}), challenger=without)
        assert decision.action == "kept"
        assert "cannot be judged" in decision.reasons[-1]
        assert rule(decision, "class_floors")["value"] is None

    def test_a_subgroup_below_the_floor_holds_it_back_and_a_small_one_is_not_judged(self) -> None:
        decision = better(Promote(subgroup_floor=0.7), SITES)
        assert decision.action == "kept"
        assert "site B dice 0.6000" in decision.reasons[-1]
        assert "site C" not in decision.reasons[-1]
        passed = better(Promote(subgroup_floor=0.6), SITES)
        assert passed.action == "promoted"
        assert "1 too small" in passed.reasons[-1]
        assert better(Promote(subgroup_floor=0.6, subgroup_patients=3), SITES).action == "kept"

    @pytest.mark.parametrize(("new", "told"), [(NEW, "no subgroup was told apart"), (SITES, "none of the 3 subgroups")])
    def test_where_no_subgroup_can_be_judged_the_floor_is_not_reached(self, new: Evaluation, told: str) -> None:
        decision = better(Promote(subgroup_floor=0.1, subgroup_patients=30), new)
        assert decision.action == "kept"
        assert told in decision.reasons[-1]


class TestRegression:
    def test_a_class_that_falls_too_far_holds_it_back(self) -> None:
        falls = tuple(
            MetricSummary(metric="dice", class_name=name, interval=an_interval(gap, 0.01, 40))
            for name, gap in ((None, 0.02), ("liver", 0.09), ("spleen", -0.05))
        )
        decision = better(Promote(regression=0.04), differences=falls)
        assert decision.action == "kept"
        assert "falls by more than 0.04: spleen -0.0500" in decision.reasons[-1]
        assert (rule(decision, "regression")["limit"], rule(decision, "regression")["value"]) == (-0.04, -0.05)
        assert better(Promote(regression=0.05), differences=falls).action == "promoted"

    def test_without_paired_differences_of_classes_their_figures_on_the_same_patients_do(self) -> None:
        assert better(Promote(regression=0.0)).action == "promoted"
        worse = OLD.metrics[2].model_copy(update={"interval": an_interval(0.9, 0.02, 40)})
        old = OLD.model_copy(update={"metrics": (*OLD.metrics[:2], worse)})
        decision = better(Promote(regression=0.1), old=old)
        assert decision.action == "kept"
        assert "spleen -0.1800" in decision.reasons[-1]

    def test_a_large_subgroup_that_falls_holds_it_back_and_a_small_one_does_not(self) -> None:
        told = (group("A", 0.03, 25), group("B", -0.08, 12), group("C", -0.5, 3))
        decision = better(Promote(regression=0.05), SITES, subgroups=told)
        assert decision.action == "kept"
        assert "site B (12 patients) -0.0800" in decision.reasons[-1]
        assert "site C" not in decision.reasons[-1]
        assert better(Promote(regression=0.1), SITES, subgroups=told).action == "promoted"

    def test_a_subgroup_that_the_champion_was_not_judged_on_cannot_be_judged(self) -> None:
        decision = better(Promote(regression=0.5), SITES)
        assert decision.action == "kept"
        assert "cannot be judged" in decision.reasons[-1]
        old = OLD.model_copy(update={"subgroups": (group("A", 0.8, 25), group("B", 0.7, 12))})
        assert better(Promote(regression=0.2), SITES, old).action == "promoted"
        assert better(Promote(regression=0.05), SITES, old).action == "kept"

    def test_a_first_model_has_nothing_to_fall_from(self) -> None:
        assert decide(Promote(regression=0.0), challenger=SITES).action == "promoted"


class TestLimits:
    COST = Cost(seconds_median=2.5, seconds_longest=9.0, megabytes=120.0, device="cpu")

    @pytest.mark.parametrize(
        ("policy", "action"),
        [
            (Promote(seconds=2.5), "promoted"),
            (Promote(seconds=2.4), "kept"),
            (Promote(megabytes=120), "promoted"),
            (Promote(megabytes=100), "kept"),
            (Promote(seconds=3, megabytes=100), "kept"),
        ],
    )
    def test_time_and_size_are_limited(self, policy: Promote, action: str) -> None:
        decision = better(policy, NEW.model_copy(update={"cost": self.COST}))
        assert decision.action == action
        assert decision.figures["policy"]["seconds"] == policy.seconds

    def test_what_was_not_measured_is_not_within_a_limit(self) -> None:
        decision = better(Promote(seconds=100.0, megabytes=1000.0))
        assert decision.action == "kept"
        assert [check["passed"] for check in decision.figures["checks"]] == [True, True, False, False]
        assert all("not measured" in reason for reason in decision.reasons[1:])


@pytest.mark.parametrize(
    ("policy", "reason", "told"),
    [
        (Promote(class_floors={"live": 0.5}), "no-such-class", "liver, spleen"),
        (Promote(metric="froc"), "no-such-metric", "auto, dice"),
    ],
)
def test_a_policy_that_does_not_fit_is_known_before_training(policy: Promote, reason: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check_policy(policy, "segmentation", ("liver", "spleen"))
    assert caught.value.reason == reason
    assert told in str(caught.value)
    with pytest.raises(RecipeError):
        decide(policy, challenger=NEW)


def test_the_record_holds_what_was_decided_from_and_by_which_policy() -> None:
    policy = Promote(margin=0.01, class_floors={"liver": 0.5})
    decision = better(policy)
    assert decision.figures["policy"] == policy.model_dump(mode="json")
    inputs = decision.figures["inputs"]
    assert (inputs["evaluation"], inputs["champion_evaluation"]) == (NEW.digest, OLD.digest)
    assert (inputs["package"], inputs["champion"], inputs["dataset"]) == ("new", "old", NEW.dataset)
    assert inputs["comparison"] != better(policy, n_cases=7).figures["inputs"]["comparison"]
    assert [check["rule"] for check in decision.figures["checks"]] == ["better", "margin", "class_floors"]
    assert json.loads(json.dumps(decision.figures)) == decision.figures
