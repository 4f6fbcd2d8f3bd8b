from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from tasks.evaluate.reporting.cases import outcomes, uncertain, worst
from tests.tasks.evaluate.reporting.samples import a_segmentation


def test_the_worst_case_comes_first_and_says_what_was_missed() -> None:
    judged = a_segmentation()
    assert judged.cases is not None
    first, second = worst(judged.cases, "segmentation", count=2)
    assert (first.case, second.case) == ("c3", "c2")
    assert first.told == "missed cyst"
    mine = judged.cases[judged.cases["case"] == "c3"]
    assert first.figures["dice"] == pytest.approx(mine["dice"].mean())
    counted = {
        o.class_name: (o.found, o.missed, o.invented, o.absent) for o in outcomes(judged.cases, judged.evaluation)
    }
    assert counted["liver"] == (4, 0, 0, 0)
    assert counted["cyst"][1] >= 1


def test_the_least_certain_are_those_that_the_table_says() -> None:
    judged = a_segmentation()
    assert judged.cases is not None
    assert uncertain(judged.cases, "segmentation") == ()
    table = judged.cases.assign(uncertainty=judged.cases["case"].map({"c0": 0.1, "c1": 0.9, "c2": np.nan, "c3": 0.3}))
    assert [(n.case, n.figures["uncertainty"]) for n in uncertain(table, "segmentation")] == [
        ("c1", pytest.approx(0.9)),
        ("c3", pytest.approx(0.3)),
        ("c0", pytest.approx(0.1)),
    ]


def test_a_made_image_beside_a_training_image_is_named() -> None:
    table = pd.DataFrame(
        {"patient": ["p", "q"], "case": ["a", "b"], "class_name": ["x", "x"], "nearest_training": [0.5, 0.1],
         "copied": [False, True]}
    )  # fmt: skip
    first, second = worst(table, "synthesis")
    assert (first.case, first.told, second.told) == ("b", "a copy", "")
