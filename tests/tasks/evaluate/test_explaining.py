"""Pictures of what a model saw: which cases have them, and what they tell of themselves."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest

from models.errors import MemoryExhaustedError
from models.volume import Volume
from tasks.evaluate import explaining
from tasks.evaluate.explaining import Doubtful, Images, chosen, saliency_pictures, uncertainty_picture
from tasks.imaging.predictor import Predictor
from tests.tasks.evaluate.test_pictures import _texts as texts
from tests.tasks.imaging.test_ensemble import weights_of
from tests.tasks.imaging.test_explainer import GRID, Edges, learnt, sequence_world, shown
from tests.tasks.imaging.test_predictor import described
from tests.tasks.imaging.test_uncertainty import GRID as SCENE_GRID
from tests.tasks.imaging.test_uncertainty import Soft, predictor_of, scene
from tests.tasks.train.samples import balls, pictures

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("plain", "square")
CASES = ((0.95, 1), (0.9, 0), (0.55, 1), (0.52, 0), (0.02, 0), (0.3, 0), (0.4, 1))
"""Of each case, the probability of a square and whether there is one; a square is called from 0.5 on."""


def table(cases: Sequence[tuple[float, int]] = CASES) -> pd.DataFrame:
    rows = []
    for number, (chance, truth) in enumerate(cases):
        for k, probability in enumerate((1 - chance, chance)):
            rows.append(
                {
                    "patient": f"P-{number}",
                    "case": f"c{number}",
                    "class_name": NAMES[k],
                    "truth": truth == k,
                    "predicted": (chance >= 0.5) == bool(k),
                    "probability": probability,
                }
            )
    return pd.DataFrame(rows)


def test_the_surest_errors_the_least_sure_and_the_surest_right_are_taken_in_turn() -> None:
    found = chosen(table(), pictures().plan, NAMES, 6)
    told = [(c.rank, c.number, c.place) for c in found]
    assert told == [
        ("wrong", 1, 1),
        ("wrong", 2, 6),
        ("unsure", 1, 3),
        ("unsure", 2, 2),
        ("right", 1, 4),
        ("right", 2, 0),
    ]
    first = found[0]
    assert (first.called, first.truth, first.target) == ("square", "plain", 1)
    assert first.probability == pytest.approx(0.9)
    assert len({c.place for c in found}) == 6


def test_as_many_are_taken_as_there_are_and_as_are_wanted() -> None:
    plan = pictures().plan
    assert chosen(table(), plan, NAMES, 0) == []
    assert len(chosen(table(), plan, NAMES, 100)) == len(CASES)
    perfect = chosen(table(((0.9, 1), (0.1, 0), (0.2, 0))), plan, NAMES, 3)
    assert {c.rank for c in perfect} == {"right", "unsure"}
    assert len(perfect) == 3
    assert [c.place for c in chosen(table(), plan, NAMES, 1)] == [1], "the surest error comes first"


def test_of_several_classes_none_may_be_called() -> None:
    frame = table(((0.3, 1),))
    frame["truth"], frame["predicted"] = [True, True], [False, False]
    plan = pictures().plan.model_copy(update={"several": True})
    (only,) = chosen(frame, plan, NAMES, 3)
    assert (only.called, only.truth) == ("none", "plain, square")
    assert only.target == 0, "the likeliest is explained"


def images(place: int) -> tuple[Images, Sequence[str]]:
    return [(shown(seed=500 + place)[0], GRID)], ()


def test_pictures_tell_what_was_called_and_whether_to_trust_the_map() -> None:
    made = saliency_pictures(learnt(), chosen(table(), pictures().plan, NAMES, 3), images)
    assert [p.name for p in made] == ["saliency-wrong-1", "saliency-unsure-1", "saliency-right-1"]
    told = texts(made[0])
    for part in ("Wrong: called square (90%), truth plain", "P-1", "Grad-CAM", "Guided Grad-CAM", "Occlusion"):
        assert part in told
    assert "With shuffled weights the map changes" in made[0].alt
    assert "of probability is lost" in made[0].alt
    assert "P-1" not in made[0].title
    again = saliency_pictures(learnt(), chosen(table(), pictures().plan, NAMES, 3), images)
    assert [p.data for p in made] == [p.data for p in again]


def test_a_map_that_shows_the_image_alone_is_not_to_be_trusted() -> None:
    package = described(pictures())
    predictor = Predictor(package, weights_of(package.plans), "cpu", precision="fp32")
    predictor.network = Edges()
    (made,) = saliency_pictures(predictor, chosen(table(), package.plan, NAMES, 1), images)
    assert "Do not trust it" in made.alt
    assert "Do not trust it" in texts(made)


def test_a_network_without_grad_cam_says_why() -> None:
    package = described(sequence_world())
    predictor = Predictor(package, weights_of(package.plans), "cpu", precision="fp32")
    (made,) = saliency_pictures(predictor, chosen(table(), package.plan, NAMES, 1), images)
    assert "There is no Grad-CAM: of this network, slices are summed up one by one" in made.alt


def test_too_little_memory_for_a_map_is_no_reason_to_have_no_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise MemoryExhaustedError("full")

    monkeypatch.setattr(explaining, "_explained", full)
    monkeypatch.setattr(explaining, "uncertainty_map", full)
    assert saliency_pictures(learnt(), chosen(table(), pictures().plan, NAMES, 2), images) == []
    assert uncertainty_picture(predictor_of(balls(), Soft()), doubtful(), ("ball", "core")) == ()


def doubtful() -> Doubtful:
    truth = (scene() > 0.5).astype(np.uint8)
    return Doubtful("P-7", Volume(scene(), SCENE_GRID, "MR"), truth, truth, 0.31)


def test_the_most_uncertain_case_has_a_map() -> None:
    (made,) = uncertainty_picture(predictor_of(balls(flip_axes=("x",)), Soft()), doubtful(), ("ball", "core"))
    assert made.name == "uncertainty"
    for part in ("Entropy", "Disagreement", "P-7", "truth", "0 sure, 1 unsure"):
        assert part in texts(made)
    assert "uncertainty 0.31" in made.alt
    assert "2 voices" in made.alt
