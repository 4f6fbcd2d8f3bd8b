from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import RecipeError
from models.evaluation import Comparison, Evaluation
from models.recipe import Promote
from tasks.register.gate import Decision, decide
from tests.tasks.register.samples import a_comparison, an_evaluation

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
