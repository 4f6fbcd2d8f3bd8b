"""The champion on a study: which series, what it says, once."""

from __future__ import annotations

import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from models.errors import MemoryExhaustedError, NotFoundError, NothingToDoError, PixelError
from models.geometry import Geometry
from models.plan import CaseFacts
from models.refs import AnalysisRef, PackageRef, StudyVersionRef, VolumeRef
from tasks.imaging.predictor import Predictor
from tasks.predict import door
from tasks.predict.run import (
    analyse,
    checks,
    choose_volumes,
    export,
    findings,
    predict_volumes,
    prediction_key,
)
from tasks.predict.warm import WARM, predictor_for
from tasks.preprocess.fingerprint import look_at_case
from tasks.stores.house import Stores
from tasks.stores.tables import AnalysisRow, PredictionRow, QuarantineRow
from tests.tasks.predict.samples import ORIGIN, Levels, a_package, a_study, a_volume, scene, seen
from tests.tasks.train.samples import balls, pictures

GRID = Geometry.from_spacing(scene().shape, (1.0, 1.0, 1.0), ORIGIN)


def reading(stores: Stores, **changes: object) -> tuple[PackageRef, Levels]:
    """A package whose network reads the class off the value, loaded."""
    package = a_package(stores, balls(), **changes)  # type: ignore[arg-type]
    network = Levels()
    predictor_for(stores, package)[1].network = network
    return package, network


def told(stores: Stores, ref: AnalysisRef) -> AnalysisRow:
    row = stores.catalog.get(AnalysisRow, ref.key)
    assert row is not None
    return row


def result(stores: Stores, package: PackageRef, volume: VolumeRef) -> PredictionRow:
    row = stores.catalog.get(PredictionRow, prediction_key(package.key, volume.key))
    assert row is not None
    return row


class TestChoosing:
    def test_by_the_packages_own_rules(self, stores: Stores) -> None:
        package = a_package(stores, balls())
        fitting = [a_volume(stores, scene(), series=name) for name in ("t1", "t2")]
        other = a_volume(stores, scene(), series="scout", modality="CT")
        colour = a_volume(stores, np.zeros((3, 2, 4, 4), np.uint8), series="colour")
        assert choose_volumes(stores, package, [other, *fitting, colour]) == tuple(fitting)

    def test_nothing_that_fits_is_told(self, stores: Stores) -> None:
        package = a_package(stores, balls())
        with pytest.raises(NothingToDoError, match="wants MR, these are CT"):
            choose_volumes(stores, package, [a_volume(stores, scene(), modality="CT")])


class TestSegmenting:
    def test_the_result_tells_what_a_report_needs(self, stores: Stores) -> None:
        package, _ = reading(stores)
        volume = a_volume(stores, scene())
        (key,) = predict_volumes(stores, package, [volume])
        body, core = findings(stores, key)
        where = np.argwhere(scene() == 1)
        assert (body.class_name, body.called, body.voxels) == ("ball", True, len(where))
        assert body.volume_ml == pytest.approx(len(where) / 1000)
        assert body.centroid_mm == pytest.approx(tuple(GRID.to_world(where.mean(axis=0))))
        assert core.centroid_mm == pytest.approx(tuple(GRID.to_world([7.5, 11.5, 8.5])))
        assert 0.9 < body.confidence <= 1
        assert result(stores, package, volume).seconds > 0

    def test_the_mask_is_stored_on_the_volumes_grid(self, stores: Stores, tmp_path: Path) -> None:
        package, _ = reading(stores)
        (key,) = predict_volumes(stores, package, [a_volume(stores, scene())])
        mask = stores.volumes.open_mask(key).read()
        assert mask.geometry.same_grid(GRID)
        assert [(s.number, s.name) for s in mask.segments] == [(1, "ball"), (2, "core")]
        for value in (1, 2):
            np.testing.assert_array_equal(mask.occupancy[value - 1], np.where(scene() == value, 255, 0))
        written = nib.load(export(stores, key, tmp_path / "out"))
        np.testing.assert_array_equal(np.asarray(written.dataobj).T, scene())

    def test_again_finds_it_done(self, stores: Stores) -> None:
        package, network = reading(stores)
        volume = a_volume(stores, scene())
        keys = predict_volumes(stores, package, [volume])
        asked = network.asked
        assert predict_volumes(stores, package, [volume]) == keys
        assert network.asked == asked

    def test_two_threads_predict_an_image_once(self, stores: Stores) -> None:
        package, network = reading(stores)
        volumes = [a_volume(stores, scene(), series=name) for name in ("a", "b")]
        predict_volumes(stores, package, volumes[:1])
        once, said = network.asked, []
        threads = [
            threading.Thread(target=lambda: said.append(predict_volumes(stores, package, volumes))) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(600)
        assert len(set(said)) == 1
        assert len(said) == 4
        assert network.asked == 2 * once

    def test_the_same_weights_say_the_same(self, stores: Stores) -> None:
        package, volume = a_package(stores, balls()), a_volume(stores, scene(seed=1))
        (key,) = predict_volumes(stores, package, [volume])
        mask, said = stores.volumes.open_mask(key).read(), findings(stores, key)
        described, weights = predictor_for(stores, package)[0], predictor_for(stores, package)[1].network.state_dict()
        anew = Predictor(described, weights).segment(scene(seed=1), GRID)
        for value in (1, 2):
            np.testing.assert_array_equal(mask.occupancy[value - 1] == 255, anew.labels == value)
        assert [f.confidence for f in said] == list(anew.confidence)
        assert sum(f.voxels or 0 for f in said) > 0

    def test_too_little_memory_may_be_tried_again(self, stores: Stores) -> None:
        class Large(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

        package, network = reading(stores)
        predictor, volume = predictor_for(stores, package)[1], a_volume(stores, scene())
        predictor.network = Large()
        with pytest.raises(MemoryExhaustedError, match="does not fit into memory"):
            predict_volumes(stores, package, [volume])
        predictor.network = network
        assert predict_volumes(stores, package, [volume])

    def test_what_is_unlike_training_is_told(self, stores: Stores) -> None:
        fine = [(scene(n), GRID.resized(scene().shape)) for n in range(4)]
        package, _ = reading(stores, fingerprint=seen(fine).model_dump(mode="json"))
        known = a_volume(stores, scene(9), series="known")
        coarse = Geometry.from_spacing(scene().shape, (5.0, 1.0, 1.0), ORIGIN)
        strange = a_volume(stores, 4 * scene(9), coarse, series="strange")
        predict_volumes(stores, package, [known, strange])
        assert result(stores, package, known).result["familiar"] is True
        assert result(stores, package, known).result["compared"] is True
        row = result(stores, package, strange)
        assert row.result["familiar"] is False
        words = [check["told"] for check in row.result["checks"] if not check["passed"]]
        assert "spacing z 5 mm, trained on 1 mm" in words
        assert any("intensities" in line for line in words)
        assert [check.told for check in checks(stores, row.prediction) if not check.passed] == words

    def test_a_package_without_a_fingerprint_compares_nothing(self, stores: Stores) -> None:
        package, _ = reading(stores)
        volume = a_volume(stores, scene())
        predict_volumes(stores, package, [volume])
        assert result(stores, package, volume).result["compared"] is False


class TestClassifying:
    def test_probabilities_and_the_threshold_used(self, stores: Stores) -> None:
        package = a_package(stores, pictures(), threshold=0.25)
        image = np.random.default_rng(0).normal(size=(1, 40, 30)).astype(np.float32)
        volume = a_volume(stores, image, Geometry.from_spacing((1, 40, 30), (1.0, 0.2, 0.2)), modality="CR")
        (key,) = predict_volumes(stores, package, [volume])
        said = findings(stores, key)
        assert sum(f.confidence for f in said) == pytest.approx(1, abs=1e-5)
        assert [f.called for f in said] == [said[1].confidence < 0.25, said[1].confidence >= 0.25]
        assert all(f.volume_ml is None and f.voxels is None for f in said)
        stored = result(stores, package, volume).result
        assert (stored["threshold"], stored["kind"]) == (0.25, "classification")


class TestWhatIsKeptForWatching:
    def test_the_images_facts_are_those_that_training_keeps(self, stores: Stores) -> None:
        package, _ = reading(stores)
        volume = a_volume(stores, scene(seed=4))
        predict_volumes(stores, package, [volume])
        kept = CaseFacts.model_validate(result(stores, package, volume).facts)
        trained = look_at_case(volume.key, scene(seed=4), GRID).facts
        assert kept.model_copy(update={"median": 0, "iqr": 0}) == trained.model_copy(update={"median": 0, "iqr": 0})
        assert (kept.median, kept.iqr) == pytest.approx((trained.median, trained.iqr), abs=0.05)

    def test_an_unsure_answer_is_told_from_a_sure_one(self, stores: Stores) -> None:
        package, network = reading(stores)
        sure, unsure = a_volume(stores, scene(), series="sure"), a_volume(stores, scene(), series="unsure")
        predict_volumes(stores, package, [sure])
        network.sharpness = 0.5
        predict_volumes(stores, package, [unsure])
        first, second = (result(stores, package, volume).uncertainty for volume in (sure, unsure))
        assert first is not None
        assert second is not None
        assert 0 <= first < 0.05 < second <= 1

    def test_a_classifiers_is_the_entropy_of_its_probabilities(self, stores: Stores) -> None:
        package = a_package(stores, pictures())
        image = np.random.default_rng(0).normal(size=(1, 40, 30)).astype(np.float32)
        volume = a_volume(stores, image, Geometry.from_spacing((1, 40, 30), (1.0, 0.2, 0.2)), modality="CR")
        (key,) = predict_volumes(stores, package, [volume])
        said = np.array([f.confidence for f in findings(stores, key)])
        assert result(stores, package, volume).uncertainty == pytest.approx(-(said * np.log2(said)).sum(), abs=1e-5)


class TestAnalysing:
    def run(
        self,
        stores: Stores,
        package: PackageRef,
        version: StudyVersionRef,
        *volumes: VolumeRef,
        role: str = "champion",
        model_version: str = "3",
    ) -> AnalysisRef:
        return analyse(stores, version, package, volumes, name="balls", model_version=model_version, role=role)

    def test_every_series_that_fits_is_predicted(self, stores: Stores) -> None:
        (package, _), version = reading(stores), a_study(stores)
        volumes = [a_volume(stores, scene(), series=name) for name in ("t1", "t2")]
        other = a_volume(stores, scene(), series="scout", modality="CT")
        row = told(stores, self.run(stores, package, version, *volumes, other))
        assert row.predictions == [prediction_key(package.key, v.key) for v in volumes]
        assert (row.outcome, row.detail, row.role, row.study) == ("predicted", "", "champion", "2.25.1")
        assert (row.name, row.model_version, row.package, row.version) == ("balls", "3", package.key, version.key)
        assert row.seconds > 0

    def test_again_finds_it_done(self, stores: Stores) -> None:
        (package, network), version = reading(stores), a_study(stores)
        volume = a_volume(stores, scene())
        first = self.run(stores, package, version, volume)
        asked = network.asked
        assert self.run(stores, package, version, volume, model_version="4") == first
        assert network.asked == asked
        assert told(stores, first).model_version == "3"
        assert stores.catalog.count(AnalysisRow) == 1

    def test_nothing_that_fits_is_an_answer(self, stores: Stores) -> None:
        package, version = a_package(stores, balls()), a_study(stores)
        row = told(stores, self.run(stores, package, version, a_volume(stores, scene(), modality="CT")))
        assert (row.outcome, row.predictions) == ("nothing-fits", [])
        assert "wants MR, these are CT" in row.detail

    def test_a_shadow_that_was_promoted_since_becomes_the_champions(self, stores: Stores) -> None:
        (package, network), version = reading(stores), a_study(stores)
        volume = a_volume(stores, scene())
        ref = self.run(stores, package, version, volume, role="shadow")
        assert told(stores, ref).role == "shadow"
        asked = network.asked
        self.run(stores, package, version, volume)
        assert told(stores, ref).role == "champion"
        self.run(stores, package, version, volume, role="shadow")
        assert told(stores, ref).role == "champion"
        assert network.asked == asked

    def test_one_bad_series_is_set_aside_and_the_rest_goes_on(self, stores: Stores) -> None:
        (package, _), version = reading(stores), a_study(stores)
        broken = scene()
        broken[3, 3, 3] = np.nan
        good, bad = a_volume(stores, scene(), series="good"), a_volume(stores, broken, series="bad")
        row = told(stores, self.run(stores, package, version, bad, good))
        assert row.predictions == [prediction_key(package.key, good.key)]
        assert row.detail == "1 of 2 series set aside: the image holds NaN or infinite values"
        (entry,) = stores.catalog.find(QuarantineRow)
        assert (entry.stage, entry.subject, entry.reason) == ("predict", bad.key, "non-finite-pixels")
        with pytest.raises(PixelError):
            predict_volumes(stores, package, [bad])
        assert stores.catalog.count(QuarantineRow) == 1

    def test_a_damaged_series_is_set_aside_too(self, stores: Stores) -> None:
        (package, _), version = reading(stores), a_study(stores)
        good, bad = a_volume(stores, scene(), series="good"), a_volume(stores, scene(3), series="bad")
        shard = next(p for p in (stores.volumes.place.local(bad.key) / "0" / "c").rglob("*") if p.is_file())
        content = bytearray(shard.read_bytes())
        content[20] ^= 0xFF
        shard.write_bytes(content)
        row = told(stores, self.run(stores, package, version, bad, good))
        assert row.predictions == [prediction_key(package.key, good.key)]
        assert "1 of 2 series set aside: its stored bytes are damaged" in row.detail

    def test_only_bad_series_say_why(self, stores: Stores) -> None:
        (package, _), version = reading(stores), a_study(stores)
        row = told(stores, self.run(stores, package, version, a_volume(stores, np.full((4, 8, 8), np.inf, np.float32))))
        assert (row.outcome, row.predictions) == ("set-aside", [])
        assert "NaN or infinite" in row.detail

    def test_an_unknown_version(self, stores: Stores) -> None:
        with pytest.raises(NotFoundError):
            self.run(stores, a_package(stores, balls()), StudyVersionRef.to("none"))

    def test_through_the_door(self, stores: Stores) -> None:
        (package, _), version = reading(stores), a_study(stores)
        volume = a_volume(stores, scene())
        ref = door.analyse.fn(stores, version, package, (volume,), "balls", "3", "shadow")
        assert told(stores, ref).role == "shadow"
        assert door.predict.fn(stores, package, (volume,)) == tuple(told(stores, ref).predictions)
        assert WARM.predictor_for(stores, package)
