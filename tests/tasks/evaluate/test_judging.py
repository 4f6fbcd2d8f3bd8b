"""From training to figures and findings where classes do not exclude each other."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from models.dataset import Dataset, DatasetRow
from models.geometry import Geometry
from models.hashing import content_key
from models.volume import Mask, Segment, Volume
from tasks.evaluate.judging import comparison_for, judge_for
from tasks.imaging.predictor import Predictor
from tasks.predict.applied import APPLIED
from tasks.predict.run import export
from tasks.progress import stage
from tasks.stores.house import Stores
from tasks.stores.packages import read_package
from tasks.stores.tables import DatasetRecord, PackageRow, PredictionRow
from tasks.train.run import train
from tests.tasks.predict.samples import a_volume, stores_at
from tests.tasks.train.overlapping import corners, corners_world, crossing, regions_world, shown
from tests.tasks.train.samples import World


@pytest.fixture(autouse=True)
def steady(one_thread: None) -> None:
    """Every test here computes in one thread."""


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return stores_at(tmp_path / "home")


def learnt(world: World, folder: Path) -> Predictor:
    staged = folder / "package"
    train(world.plan, world.recipe, world.dataset, world.store, world.keys, folder, staged=staged, key="k")
    return Predictor(*read_package(staged), "cpu")


def row(number: int, volume: str, label: str, shape: tuple[int, ...], *classes: int) -> DatasetRow:
    place = (*shape, 1.0, 1.0, 1.0)
    patient = f"P-{number}"
    return DatasetRow(patient, "s", "s", volume, label, "test", -1, "MR", "", "", *place, classes=classes)  # type: ignore[arg-type]


def test_regions_that_overlap_are_learnt_judged_and_told_each_by_itself(stores: Stores, tmp_path: Path) -> None:
    predictor = learnt(regions_world(epochs=30, ema=0.9, validations=1, flip_axes=()), tmp_path)
    package, rows = predictor.package, []
    for number in range(3):
        image, there = crossing(100 + number)
        geometry = Geometry.from_spacing(image.shape, (1, 1, 1))
        one, two, both = there[0] & ~there[1], there[1] & ~there[0], there.all(0)
        segments = (Segment(1, "one"), Segment(2, "two"), Segment(3, "both"))
        label = content_key("label", number)
        stores.volumes.write_mask(
            label, Mask(np.stack([one, two, both]).astype(np.uint8) * np.uint8(255), segments, geometry, "SEG")
        )
        volume = a_volume(stores, image, geometry, series=f"series{number}", patient=f"P-{number}")
        rows.append(row(number, volume.key, label, image.shape))
    dataset = Dataset("balls", "segmentation", ("left", "right"), tuple(rows))
    with stage("evaluate", 3, "cases") as running:
        judged = judge_for("segmentation")(stores, package, predictor, dataset, dataset.rows, running)
    assert judged.evaluation.of("dice", "left").value > 0.8
    assert judged.evaluation.of("dice", "right").value > 0.8
    names = {picture.name for picture in judged.pictures}
    assert {"overlays-uncertain", "uncertainty", "bland-altman-left", "bland-altman-right"} <= names
    same = comparison_for("segmentation")(judged.cases, judged.cases, judged.evaluation, judged.evaluation)
    assert same.primary_difference.value == 0

    told = APPLIED["segmentation"](stores, predictor, stores.volumes.open(rows[0].volume).read(), "prediction").findings
    _, there = crossing(100)
    assert [finding.class_name for finding in told] == ["left", "right"]
    for finding, truth in zip(told, there, strict=True):
        assert finding.called
        assert finding.voxels == pytest.approx(truth.sum(), rel=0.3)
        assert finding.confidence > 0.6
    mask = stores.volumes.open_mask("prediction").read()
    assert (mask.occupancy > 127).all(0).any(), "the regions overlap in the stored mask"
    stores.catalog.add(
        DatasetRecord(dataset="d", name="balls", kind="segmentation", classes=[], counts={}),
        PackageRow(package="p", name="balls", dataset="d", weights_sha256="0"),
        PredictionRow(prediction="prediction", package="p", volume=rows[0].volume, result={"regions": True}),
    )
    drawn = np.asanyarray(nib.load(export(stores, "prediction", tmp_path)).dataobj)  # type: ignore[attr-defined]
    assert np.array_equal(drawn.transpose(3, 2, 1, 0), mask.occupancy > 127)


def test_images_that_show_several_classes_are_learnt_judged_and_called(stores: Stores, tmp_path: Path) -> None:
    predictor = learnt(corners_world(epochs=20, ema=0.8, validations=2), tmp_path)
    package, rows = predictor.package, []
    assert len(package.thresholds) == 2
    assert package.threshold is None
    for number in range(8):
        key = content_key("volume", number)
        image = corners(500 + number, shown(number))
        geometry = Geometry.from_spacing(image.shape, (1, 1, 1))
        stores.volumes.write(key, Volume(image, geometry, "CR"))
        rows.append(row(number, key, content_key("label", number), image.shape, *shown(number)))
    dataset = Dataset("corners", "classification", ("top", "bottom"), tuple(rows))
    with stage("evaluate", 8, "cases") as running:
        judged = judge_for("classification")(stores, package, predictor, dataset, dataset.rows, running)
    found = judged.evaluation
    assert found.of("auc").value > 0.95
    assert found.of("auc", "top").value > 0.95
    assert found.thresholds == pytest.approx(package.thresholds)
    assert (found.confusion, found.threshold, found.positive) == (None, None, None)
    names = [picture.name for picture in judged.pictures]
    assert "distributions" in names
    assert sum(name.startswith("saliency-") for name in names) == package.recipe.evaluate.explained
    assert len(set(names)) == len(names)
    same = comparison_for("classification")(judged.cases, judged.cases, found, found)
    assert same.primary_difference.value == 0

    right = 0
    for number in range(8):
        volume = stores.volumes.open(content_key("volume", number)).read()
        told = APPLIED["classification"](stores, predictor, volume, f"prediction{number}").findings
        right += tuple(int(finding.called) for finding in told) == shown(number)
    assert right >= 7, "none, either, or both are called"
