"""A serving model that is looked at, through real predictions on real radiographs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sqlalchemy import update

from models.evaluation import Evaluation, Interval, MetricSummary
from models.hashing import content_key
from models.plan import CaseFacts
from models.recipe import Recipe
from models.recipe.applying import Watch
from models.refs import PackageRef
from models.registration import Serving
from models.watching import Watched
from tasks.predict.warm import WARM
from tasks.stores.alerts import open_alerts
from tasks.stores.house import Stores
from tasks.stores.outbox import Outbox
from tasks.stores.tables import Base, CorrectionRow, EvaluationRow, LabelRow, PackageRow, PredictionRow, now
from tasks.watch.run import look, watch
from tests.tasks.predict.samples import a_package, stores_at
from tests.tasks.watch.installation import STEP, WORLD, facts_of, radiographs, recorded, shown, trained_on

POOL = 48


@pytest.fixture(scope="module")
def images(shared_data: Path) -> NDArray[np.float32]:
    return radiographs(shared_data, 2 * POOL)


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory, images: NDArray[np.float32]) -> Iterator[Stores]:
    """An installation whose first version was shown forty-eight radiographs; nothing here changes them."""
    WARM.forget()
    stores = stores_at(tmp_path_factory.mktemp("hospital"))
    shown(stores, a_package(stores, WORLD, "before"), images[:POOL])
    yield stores
    stores.catalog.close()
    WARM.forget()


def kept(stores: Stores) -> list[CaseFacts]:
    """The facts of all that was predicted."""
    rows = stores.catalog.find(PredictionRow, order_by=PredictionRow.prediction)
    return [CaseFacts.model_validate(row.facts) for row in rows]


def watching(**rule: int) -> Recipe:
    """The recipe with another rule of watching."""
    return WORLD.recipe.model_copy(update={"watch": Watch.model_validate(rule)})


def moved(watched: Watched) -> set[str]:
    return {shift.measure for shift in watched.alerts}


def scaled(facts: CaseFacts, factor: float) -> CaseFacts:
    levels = tuple(
        level.model_copy(update={name: factor * getattr(level, name) for name in ("p05", "median", "p95")})
        for level in facts.levels
    )
    return facts.model_copy(update={"levels": levels, "volume": content_key(facts.volume)})


def test_the_same_distribution_raises_no_alert_in_twenty_resamplings(hospital: Stores) -> None:
    """Half of the radiographs were learnt from, the other half is what came."""
    facts = kept(hospital)
    for seed in range(20):
        chosen = np.random.default_rng(seed).choice(POOL, POOL // 2, replace=False)
        found = look(hospital, trained_on(hospital, [facts[i] for i in chosen], f"resampled {seed}"))
        assert found.cases == POOL // 2, "what it learnt from is not what it was shown"
        assert len(found.shifts) >= 12
        assert not found.alerts, [shift.told for shift in found.alerts]


@pytest.mark.parametrize(
    ("name", "change", "measure"),
    [
        ("spacing", {"spacing": (1.0, STEP / 2, STEP / 2)}, "spacing x"),
        ("intensities", {}, "median of intensities"),
        ("vendor", {}, "manufacturer"),
    ],
)
def test_what_comes_is_unlike_what_was_learnt_from(
    hospital: Stores, images: NDArray[np.float32], name: str, change: dict[str, Any], measure: str
) -> None:
    """The spacing is twice that of training, the intensities are, or the manufacturer is another."""
    learnt = [case.model_copy(update=change) for case in facts_of(images[POOL:])]
    if name == "intensities":
        learnt = [scaled(case, 0.5) for case in learnt]
    found = look(hospital, trained_on(hospital, learnt, name, maker="B" if name == "vendor" else "A"))
    assert measure in moved(found)
    if name == "vendor":
        assert moved(found) == {"manufacturer", "scanner"}
    else:
        assert not {"manufacturer", "scanner"} & moved(found)


def test_shifted_images_raise_one_alert_each_through_predictions(stores: Stores, images: NDArray[np.float32]) -> None:
    recipe = watching(window=15, least=10)
    model = trained_on(stores, facts_of(images[:POOL]), "serving", recipe=recipe)
    assert "0 of the 10 patients" in watch(stores, model).note
    shown(stores, model.package, images[POOL : POOL + 10])
    assert watch(stores, model).alerts == ()
    assert open_alerts(stores.catalog) == ()
    # As many as the window holds: it is theirs alone.
    shown(stores, model.package, 3 * images[POOL - 15 : POOL], maker="B", step=2 * STEP)
    found = watch(stores, model)
    expected = {"spacing y", "spacing x", "median of intensities", "manufacturer", "scanner"}
    assert found.cases == 15
    assert expected <= moved(found)
    raised = {row.measure for row in open_alerts(stores.catalog)}
    assert raised == moved(found)
    assert watch(stores, model) == found
    assert Outbox(stores.catalog).waiting("event") == len(raised)


def test_a_package_that_does_not_tell_says_so(stores: Stores) -> None:
    package = a_package(stores, WORLD, "mute")
    found = look(stores, Serving(name=WORLD.recipe.name, version="1", package=package))
    assert (found.shifts, found.cases) == ((), 0)
    assert "does not tell" in found.note


class TestWhatItSays:
    """Predictions as rows alone: what a model says is made up here."""

    def said(self, stores: Stores, keys: list[str], probabilities: list[float]) -> None:
        """Let the predictions tell these probabilities, in this order of time."""
        with stores.catalog.transaction() as session:
            for number, (key, p) in enumerate(zip(keys, probabilities, strict=True)):
                told = [{"class_name": c, "confidence": q} for c, q in (("plain", 1 - p), ("square", p))]
                moment = now() + timedelta(seconds=number)
                values = {"result": {"findings": told}, "uncertainty": 1 - abs(2 * p - 1), "created_at": moment}
                session.execute(update(PredictionRow).where(PredictionRow.prediction == key).values(**values))

    @pytest.fixture
    def model(self, stores: Stores, images: NDArray[np.float32]) -> tuple[Serving, list[str]]:
        serving = trained_on(stores, facts_of(images[:POOL]), "said", recipe=watching(window=20, least=10))
        return serving, recorded(stores, serving.package, images[POOL : POOL + 40])

    def judged(self, stores: Stores, package: PackageRef, probabilities: list[float], right: float = 1.0) -> None:
        """An evaluation whose test cases were told these probabilities."""
        table = pd.DataFrame(
            [
                {
                    "patient": f"E{n}",
                    "case": f"e{n}",
                    "class_name": name,
                    "truth": name == "square",
                    "predicted": (name == "square") == (n < right * len(probabilities)),
                    "probability": q,
                    "brier": 0.1,
                }
                for n, p in enumerate(probabilities)
                for name, q in (("plain", 1 - p), ("square", p))
            ]
        )
        figure = Interval(value=0.9, low=0.8, high=1.0, n=len(probabilities))
        evaluation = Evaluation(
            kind="classification",
            package=package.key,
            dataset="d",
            class_names=("plain", "square"),
            primary="auc",
            metrics=(MetricSummary(metric="auc", interval=figure),),
            n_patients=len(probabilities),
            n_cases=len(probabilities),
        )
        stores.evaluations.write("e" * 32, evaluation, table, [])
        row = stores.catalog.get(PackageRow, package.key)
        assert row is not None
        stores.catalog.add(
            EvaluationRow(
                evaluation="e" * 32,
                package=package.key,
                dataset=row.dataset,
                metric="auc",
                value=0.9,
                low=None,
                high=None,
            )
        )

    def test_other_probabilities_than_of_the_test_patients_are_a_shift(
        self, stores: Stores, model: tuple[Serving, list[str]]
    ) -> None:
        serving, refs = model
        rng = np.random.default_rng(0)
        self.judged(stores, serving.package, list(rng.uniform(0, 0.6, 30)))
        self.said(stores, refs, list(rng.uniform(0, 0.6, 40)))
        found = look(stores, serving)
        assert not found.alerts
        assert {"probability of square", "uncertainty"} <= {s.measure for s in found.shifts if s.kind == "output"}
        self.said(stores, refs, list(rng.uniform(0.7, 1, 40)))
        told = next(s for s in look(stores, serving).alerts if s.measure == "probability of square")
        assert "on the test patients" in told.told

    def test_without_an_evaluation_the_first_predictions_are_what_was_known(
        self, stores: Stores, model: tuple[Serving, list[str]]
    ) -> None:
        serving, refs = model
        rng = np.random.default_rng(1)
        self.said(stores, refs, list(rng.uniform(0, 0.6, 40)))
        assert not look(stores, serving).alerts
        self.said(stores, refs, [*rng.uniform(0, 0.4, 20), *rng.uniform(0.7, 1, 20)])
        told = next(s for s in look(stores, serving).alerts if s.measure == "probability of square")
        assert "at first" in told.told
        assert told.cases == 20

    def test_corrections_that_show_worse_than_the_test_patients_are_told(
        self, stores: Stores, model: tuple[Serving, list[str]]
    ) -> None:
        serving, _ = model
        self.judged(stores, serving.package, [0.5] * 30, right=0.9)
        assert not [s for s in look(stores, serving).shifts if s.kind == "quality"], "nobody has corrected anything"
        rows = stores.catalog.find(PredictionRow, limit=30)
        corrections: list[Base] = []
        for number, row in enumerate(rows):
            label = content_key("label", number)
            corrections += [
                LabelRow(label=label, patient="P", source="CSV"),
                CorrectionRow(
                    correction=content_key("correction", number),
                    prediction=row.prediction,
                    label=label,
                    package=row.package,
                    how="same-image",
                    value=float(number % 3 == 0),
                    created_at=now() + timedelta(seconds=number),
                ),
            ]
        stores.catalog.add(*corrections)
        (fall,) = [s for s in look(stores, serving).alerts if s.kind == "quality"]
        assert (fall.measure, fall.how, fall.cases) == ("right calls", "fall", 20)
        assert fall.value == pytest.approx(0.9 - 0.3)
