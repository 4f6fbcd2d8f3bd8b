from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tasks.evaluate.agreement import agreements


def _cases(truth: np.ndarray, guess: np.ndarray, patients: list[str] | None = None, **more: object) -> pd.DataFrame:
    patients = patients or [f"P{number}" for number in range(len(truth))]
    return pd.DataFrame(
        {
            "patient": patients,
            "case": [f"c{number}" for number in range(len(truth))],
            "class_name": "a",
            "outcome": "found",
            "volume_truth_ml": truth,
            "volume_prediction_ml": guess,
        }
        | more
    )


def test_bias_and_limits_follow_bland_and_altman() -> None:
    # PEFR of Bland & Altman, Lancet 1986, table 1: first readings, litres a minute.
    wright = np.array([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427.0])
    mini = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451.0])
    (found,) = agreements(_cases(mini, wright), ("a",))
    assert found.bias.value == pytest.approx(-2.1, abs=0.05)
    assert found.lower.value == pytest.approx(-78.1, abs=0.9)  # the paper takes 2 standard deviations of 38.8
    assert found.upper.value == pytest.approx(73.9, abs=0.9)
    assert found.bias.low < found.bias.value < found.bias.high
    assert found.lower.low < found.lower.value < found.lower.high < found.upper.low
    assert found.points[0] == (503.0, -18.0)
    assert found.bias.n == 17


def test_intervals_are_by_patient_and_classes_apart() -> None:
    generator = np.random.default_rng(0)
    truth = generator.uniform(5, 50, 60)
    error = np.repeat(generator.normal(1, 2, 20), 3)
    one = _cases(truth, truth + error, [f"P{number // 3}" for number in range(60)])
    other = one.assign(class_name="b", volume_prediction_ml=truth, patient=[f"P{number}" for number in range(60)])
    a, b = agreements(pd.concat([one, other]), ("a", "b", "never"))
    alone = agreements(one.assign(patient=other["patient"]), ("a",))[0]
    assert a.bias.high - a.bias.low > 1.4 * (alone.bias.high - alone.bias.low)
    assert (a.bias.n, b.bias.n) == (20, 60)
    assert (b.bias.value, b.lower.value, b.upper.value) == (0, 0, 0)


def test_what_is_nowhere_agrees_about_nothing() -> None:
    truth, guess = np.array([10.0, 20, 0, 0]), np.array([12.0, 20, 0, 5])
    cases = _cases(truth, guess, outcome=["found", "found", "absent", "invented"])
    (found,) = agreements(cases, ("a",))
    assert [difference for _, difference in found.points] == [2, 0, 5]
    assert agreements(cases.iloc[:1], ("a",)) == ()
    (single,) = agreements(cases.iloc[:2].assign(patient="P0"), ("a",))
    assert (single.bias.value, single.bias.low, single.bias.n) == (1, None, 1)
