"""A patient's studies as one case: what is known by then, what is no good, and where the finding is kept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from models.errors import PixelError
from models.geometry import Geometry
from models.refs import PackageRef, VolumeRef
from tasks.predict.run import analyse, checks, findings, predict_each, predict_volumes
from tasks.predict.warm import predictor_for
from tasks.stores.house import Stores
from tasks.stores.tables import AnalysisRow, PredictionRow, QuarantineRow, VolumeRow
from tests.tasks.predict.samples import a_package, a_study, a_volume, seen
from tests.tasks.train.test_patients import SIDE, patients

GRID = Geometry.from_spacing((1, SIDE, SIDE), (1.0, 1.0, 1.0))


class Heard(torch.nn.Module):
    """Class 1 where any series is bright; remembers how many series it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.given.append(x.shape[1])
        bright = x.flatten(2).mean(2).amax(1)
        return torch.stack((torch.zeros(len(x)), 10 * (bright - 0.5)), 1)


@pytest.fixture
def model(stores: Stores) -> tuple[PackageRef, Heard]:
    package = a_package(stores, patients(), threshold=0.5)
    network = Heard()
    predictor_for(stores, package)[1].network = network
    return package, network


def flat(value: float) -> NDArray[np.float32]:
    return np.full((1, SIDE, SIDE), value, np.float32)


def series(stores: Stores, value: float, *, study: int, name: str, **where: Any) -> VolumeRef:
    where = {"patient": "P-1", "modality": "CR"} | where
    return a_volume(stores, flat(value), GRID, study=f"2.25.{study}", series=name, **where)


def row_of(stores: Stores, key: str) -> PredictionRow:
    row = stores.catalog.get(PredictionRow, key)
    assert row is not None
    return row


def called(stores: Stores, key: str) -> str:
    return next(finding.class_name for finding in findings(stores, key) if finding.called)


def test_a_study_is_one_finding_at_its_first_volume(stores: Stores, model: tuple[PackageRef, Heard]) -> None:
    package, network = model
    volumes = [series(stores, value, study=1, name=f"s{value}") for value in (0.0, 1.0, 0.0001)]
    (key,) = predict_volumes(stores, package, volumes)
    row = row_of(stores, key)
    assert row.volume == (row.facts or {})["volume"] == volumes[0].key
    assert 0 <= (row.uncertainty or 0) < 0.1
    assert called(stores, key) == "square"
    assert network.given == [3]
    assert predict_volumes(stores, package, volumes) == (key,)
    assert network.given == [3]


def test_earlier_studies_count_and_later_ones_ask_anew(stores: Stores, model: tuple[PackageRef, Heard]) -> None:
    package, network = model
    first = series(stores, 1.0, study=1, name="a")
    series(stores, 1.0, study=7, name="of another patient", patient="P-2")
    series(stores, 1.0, study=1, name="of another kind", modality="CT")
    (before,) = predict_volumes(stores, package, [first])
    second = series(stores, 0.0, study=2, name="b")
    (after,) = predict_volumes(stores, package, [second])
    assert network.given == [1, 2]
    assert (row_of(stores, after).volume, called(stores, after)) == (second.key, "square")
    (anew,) = predict_volumes(stores, package, [first])
    assert anew != before
    assert network.given == [1, 2, 2]


def test_two_studies_are_two_findings(stores: Stores, model: tuple[PackageRef, Heard]) -> None:
    package, network = model
    volumes = [series(stores, float(n), study=n, name=f"n{n}") for n in range(2)]
    keys = predict_volumes(stores, package, volumes)
    assert [row_of(stores, key).volume for key in keys] == [volume.key for volume in volumes]
    assert network.given == [2, 2]


def test_a_series_received_again_is_no_second_opinion(stores: Stores, model: tuple[PackageRef, Heard]) -> None:
    package, network = model
    series(stores, 0.0, study=1, name="a")
    stale = series(stores, 1.0, study=3, name="stale")
    old = stores.catalog.get(VolumeRow, stale.key)
    assert old is not None
    renewed = series(stores, 0.0, study=4, name="renewed")
    stores.catalog.change(VolumeRow, VolumeRow.volume == renewed.key, series_uid=old.series_uid)
    (key,) = predict_volumes(stores, package, [series(stores, 0.0, study=5, name="new")])
    assert network.given == [3]
    assert called(stores, key) == "plain"


class TestWhatIsNoGood:
    def test_of_the_study_it_is_set_aside_and_the_rest_speaks(
        self, stores: Stores, model: tuple[PackageRef, Heard]
    ) -> None:
        package, network = model
        bad = series(stores, np.nan, study=1, name="bad")
        good = series(stores, 1.0, study=1, name="good")
        ref = analyse(stores, a_study(stores), package, (bad, good), name="sets", model_version="1")
        told = stores.catalog.get(AnalysisRow, ref.key)
        assert told is not None
        assert (told.outcome, len(told.predictions)) == ("predicted", 1)
        assert told.detail == "1 of 2 series set aside: the image holds NaN or infinite values"
        assert row_of(stores, told.predictions[0]).volume == good.key
        assert network.given[-1] == 1
        assert [entry.subject for entry in stores.catalog.find(QuarantineRow)] == [bad.key]

    def test_of_another_study_it_is_left_out(self, stores: Stores, model: tuple[PackageRef, Heard]) -> None:
        package, network = model
        bad = series(stores, np.inf, study=1, name="bad")
        predicted = predict_each(stores, package, [series(stores, 1.0, study=2, name="good")])
        assert predicted.refused == ()
        assert called(stores, predicted.keys[0]) == "square"
        assert network.given[-1] == 1
        assert [entry.subject for entry in stores.catalog.find(QuarantineRow)] == [bad.key]

    def test_without_a_good_series_of_its_own_a_study_says_nothing(
        self, stores: Stores, model: tuple[PackageRef, Heard]
    ) -> None:
        package, _ = model
        series(stores, 1.0, study=1, name="good")
        bad = series(stores, np.nan, study=2, name="bad")
        predicted = predict_each(stores, package, [bad])
        assert (predicted.keys, [ref for ref, _ in predicted.refused]) == ((), [bad])
        with pytest.raises(PixelError):
            predict_volumes(stores, package, [bad])


def test_every_series_is_compared_with_what_training_saw(stores: Stores) -> None:
    known = [(flat(float(n)), GRID) for n in range(3)]
    package = a_package(stores, patients(), fingerprint=seen(known, "CR").model_dump(mode="json"))
    predictor_for(stores, package)[1].network = Heard()
    usual, strange = series(stores, 1.0, study=1, name="usual"), series(stores, 400.0, study=1, name="strange")
    (key,) = predict_volumes(stores, package, [usual, strange])
    assert row_of(stores, key).result["familiar"] is False
    assert any(check.passed for check in checks(stores, key) if "intensities" in check.name)
    assert any(not check.passed for check in checks(stores, key) if "intensities" in check.name)
