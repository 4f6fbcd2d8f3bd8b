from __future__ import annotations

import json

import numpy as np
import pytest

from models.geometry import Geometry
from tasks.predict.findings import (
    Finding,
    Occupancy,
    as_mask,
    called_class,
    called_classes,
    classes,
    structures,
    threshold_used,
)
from tests.tasks.imaging.test_predictor import described
from tests.tasks.train.overlapping import corners_world
from tests.tasks.train.samples import pictures

GRID = Geometry.from_spacing((10, 12, 14), (2.0, 1.0, 0.5), (100.0, -50.0, 20.0))


def labels() -> np.ndarray:
    found = np.zeros(GRID.shape, np.uint8)
    found[2:5, 3:7, 4:10] = 1
    found[3, 4:6, 5:7] = 2
    found[3, 4, 5] = 1
    return found


def test_structures_are_measured_where_the_patient_lies() -> None:
    first, second, third = structures(labels(), GRID, ("a", "b", "c"), (0.9, 0.8, 0.0))
    where = np.argwhere(labels() == 1)
    assert first.called
    assert first.voxels == len(where) == 3 * 4 * 6 - 3
    assert first.volume_ml == pytest.approx(len(where) * 1.0 / 1000)
    assert first.centroid_mm == pytest.approx(tuple(GRID.to_world(where.mean(axis=0))))
    # z 2…5, y 3…7, x 4…10, by the voxels' borders
    assert first.bounds_mm == (pytest.approx((101.75, -47.5, 23.0)), pytest.approx((104.75, -43.5, 29.0)))
    assert second.centroid_mm == pytest.approx(tuple(GRID.to_world(np.argwhere(labels() == 2).mean(axis=0))))
    assert third == Finding("c", 0.0, volume_ml=0.0, voxels=0)


def test_a_tilted_grid_is_measured_along_the_patients_axes() -> None:
    matrix = np.array([[0, 0, -1.0, 30], [0, 2.0, 0, 5], [1.5, 0.3, 0, 7], [0, 0, 0, 1]])
    tilted = Geometry(GRID.shape, tuple(map(tuple, matrix)))
    found = structures(labels(), tilted, ("a", "b"), (1, 1))[0]
    where = np.argwhere(labels() == 1)
    assert found.centroid_mm == pytest.approx(tuple(tilted.to_world(where.mean(axis=0))))
    assert found.volume_ml == pytest.approx(len(where) * tilted.voxel_volume / 1000)
    assert found.bounds_mm is not None
    low, high = map(np.array, found.bounds_mm)
    world = tilted.to_world(where)
    assert (low < world.min(axis=0)).all()
    assert (high > world.max(axis=0)).all()


def test_findings_survive_json() -> None:
    for finding in structures(labels(), GRID, ("a", "b", "c"), (0.9, 0.8, 0.0)):
        assert Finding.from_json(json.loads(json.dumps(finding.to_json()))) == finding
    old = {"class_name": "a", "confidence": 0.5, "volume_ml": 1.0, "called": True}
    assert Finding.from_json(old) == Finding("a", 0.5, 1.0, called=True)


def test_the_stored_mask_is_the_label_map_without_a_copy_per_class() -> None:
    found = labels()
    mask = as_mask(found, ("a", "b"), GRID)
    assert isinstance(mask.occupancy, Occupancy)
    assert [(s.number, s.name) for s in mask.segments] == [(1, "a"), (2, "b")]
    whole = np.asarray(mask.occupancy)
    assert whole.shape == (2, *GRID.shape)
    for value in (1, 2):
        np.testing.assert_array_equal(whole[value - 1], np.where(found == value, 255, 0))
    part = mask.occupancy[slice(1, 2), slice(2, 5), slice(0, 6), slice(3, 9)]
    np.testing.assert_array_equal(part, whole[1:2, 2:5, 0:6, 3:9])


class TestCalling:
    def test_two_classes_go_by_the_threshold(self) -> None:
        package = described(pictures(), threshold=0.3)
        assert called_class(np.array([0.65, 0.35]), package) == 1
        assert called_class(np.array([0.75, 0.25]), package) == 0
        recipe = package.recipe.model_copy(
            update={"evaluate": package.recipe.evaluate.model_copy(update={"positive": "plain"})}
        )
        turned = package.model_copy(update={"recipe": recipe})
        assert called_class(np.array([0.35, 0.65]), turned) == 0
        assert called_class(np.array([0.25, 0.75]), turned) == 1

    def test_without_a_threshold_the_likeliest_is_called(self) -> None:
        said = classes(np.array([0.4, 0.6]), described(pictures()))
        assert [(f.class_name, f.called) for f in said] == [("plain", False), ("square", True)]
        assert [f.confidence for f in said] == pytest.approx([0.4, 0.6])
        assert said[0].volume_ml is None


class TestRegions:
    def test_each_is_measured_by_itself(self) -> None:
        regions = np.zeros(GRID.shape, np.uint8)
        regions[2:5, 2:6, 2:6] |= 1
        regions[3:5, 3:5, 3:5] |= 2
        whole, core, none = structures(regions, GRID, ("whole", "core", "none"), (0.9, 0.8, 0.0), regions=True)
        assert (whole.voxels, core.voxels, none.voxels) == (48, 8, 0)
        assert (whole.called, core.called, none.called) == (True, True, False)
        assert core == structures((regions >> 1).astype(np.uint8), GRID, ("core",), (0.8,))[0]
        planes = np.asarray(as_mask(regions, ("whole", "core", "none"), GRID, regions=True).occupancy)
        for bit, plane in enumerate(planes):
            np.testing.assert_array_equal(plane, np.where(regions >> bit & 1, 255, 0))


class TestSeveral:
    @pytest.mark.parametrize(
        ("probabilities", "called"),
        [((0.4, 0.9), (True, True)), ((0.2, 0.1), (False, False)), ((0.4, 0.5), (True, False))],
    )
    def test_each_class_is_called_from_its_own_threshold(
        self, probabilities: tuple[float, ...], called: tuple[bool, ...]
    ) -> None:
        package = described(corners_world(), thresholds=(0.3, 0.6))
        said = classes(np.array(probabilities), package)
        assert tuple(f.called for f in said) == called
        assert threshold_used(package) is None

    def test_without_thresholds_one_half_is_enough(self) -> None:
        assert called_classes(np.array([0.5, 0.49]), described(corners_world())) == frozenset({0})
