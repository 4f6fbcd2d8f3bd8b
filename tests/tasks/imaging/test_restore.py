"""Probabilities in, slice by slice; labels on the image's own grid out."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from scipy import ndimage

from models.geometry import Geometry
from models.plan import Normalisation, PreparePlan
from tasks.imaging.boundaries import likeliest
from tasks.imaging.crop import whole_box
from tasks.imaging.prepare import lay_out, prepare_image, prepare_mask
from tasks.imaging.resample import resample_to_grid
from tasks.imaging.restore import EachAlone, Likeliest, Restorer

GRID = Geometry.from_spacing((24, 60, 50), (2.5, 0.9, 0.9), (12.0, -7.0, 300.0), "1.2.3")


def plan(**changes: object) -> PreparePlan:
    given: dict = {"dimensions": 3, "spacing": (1.5, 1.5, 1.5), "normalisation": (Normalisation(scheme="none"),)}
    return PreparePlan(**{**given, **changes})


def bordered(shape: tuple[int, int, int] = GRID.shape) -> np.ndarray:
    image = np.ones(shape, np.float32)
    image[:1], image[:, :4], image[:, :, -5:] = 0, 0, 0
    return image


def chances(shape: tuple[int, int, int], classes: int = 3) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = np.stack([ndimage.gaussian_filter(rng.normal(size=shape), 2) for _ in range(classes)])
    values = np.exp(40 * values)
    return (values / values.sum(0)).astype(np.float32)


def restored(probabilities: np.ndarray, grid: Geometry, how: PreparePlan, portion: int, slab_bytes: int) -> Restorer:
    layout = lay_out(bordered(grid.shape), grid, how)
    restorer = Restorer(layout.target, layout.crop, grid, slab_bytes=slab_bytes)
    lent = np.empty_like(probabilities[:, :portion])
    for first in range(0, probabilities.shape[1], portion):
        part = probabilities[:, first : first + portion]
        lent[:, : part.shape[1]] = part
        restorer.take(first, lent[:, : part.shape[1]])
        lent[...] = np.nan  # what was lent is overwritten
    return restorer


@pytest.mark.parametrize("slab_bytes", [1, 60_000, 1 << 30])
@pytest.mark.parametrize("portion", [1, 7, 100])
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (5.0, 0.9, 2.0), (1.0, 0.6, 0.9)])
def test_portions_do_not_change_the_labels(spacing: tuple[float, float, float], portion: int, slab_bytes: int) -> None:
    how = plan(spacing=spacing, crop="nonzero")
    layout = lay_out(bordered(), GRID, how)
    probabilities = chances(layout.target.shape)
    whole = np.stack([resample_to_grid(p, layout.target, GRID, order=1) for p in probabilities])
    truth = whole.argmax(0)
    found = restored(probabilities, GRID, how, portion, slab_bytes)
    ranked = np.sort(whole, axis=0)
    assert (found.labels == truth)[ranked[-1] - ranked[-2] > 1e-5].all()
    assert (found.labels == truth).mean() > 0.9999
    given = [float(whole[v][found.labels == v].mean()) for v in (1, 2)]
    assert found.confidence(2) == pytest.approx(given, abs=1e-5)


def test_equal_grids_are_an_argmax_alone() -> None:
    probabilities = chances(GRID.shape, 4)
    found = restored(probabilities, GRID, plan(spacing=None), 5, 1)
    np.testing.assert_array_equal(found.labels, probabilities.argmax(0))
    given = [float(probabilities[v][found.labels == v].mean()) for v in (1, 2, 3)]
    assert found.confidence(3) == pytest.approx(given, abs=1e-6)


def test_outside_the_crop_is_background_without_confidence() -> None:
    how = plan(crop="nonzero")
    shape = lay_out(bordered(), GRID, how).target.shape
    sure = np.stack([np.zeros(shape, np.float32), np.ones(shape, np.float32)])
    found = restored(sure, GRID, how, 4, 1 << 20)
    np.testing.assert_array_equal(found.labels, bordered().astype(np.uint8))
    assert found.confidence(2) == (pytest.approx(1.0), 0.0)


def test_the_first_of_equals_is_taken() -> None:
    half = np.full((1, 1, 2), 0.5, np.float32)
    more = half + np.array([[[0, 1]]])
    labels, best = likeliest(iter([half, half, more]))
    assert labels.tolist() == [[[0, 2]]]
    assert best.tolist() == [[[0.5, 1.5]]]


def test_a_real_hippocampus_survives_the_round_trip(shared_data: Path) -> None:
    label = sorted((shared_data / "hippocampus").glob("labels/*.nii.gz"))[0]
    stored = nibabel.load(label)
    labels = np.asarray(stored.dataobj).T.astype(np.uint8)
    grid, how = Geometry.from_nifti(stored.affine, stored.shape), plan(spacing=(0.8, 0.8, 0.8))
    prepared = prepare_image(np.ones(grid.shape, np.float32), grid, how)
    mask = prepare_mask(labels, grid, how, prepared)
    restorer = Restorer(prepared.geometry, prepared.crop, grid)
    restorer.take(0, np.stack([(mask == v) for v in range(3)]).astype(np.float32))
    for value in (1, 2):
        a, b = restorer.labels == value, labels == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.97


def test_each_class_alone_is_decided_by_its_own_probability() -> None:
    decision = EachAlone()
    first = np.array([0.5, 0.9, 0.1, 0.7], np.float32).reshape(1, 1, 4)
    second = np.array([0.2, 0.6, 0.9, 0.4], np.float32).reshape(1, 1, 4)
    assert decision.take(iter([first, second])).ravel().tolist() == [1, 3, 2, 1]
    assert decision.confidence(3) == pytest.approx((0.7, 0.75, 0.0))


@pytest.mark.parametrize("temperature", [1.0, 1.7])
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (2.5, 0.5, 1.4), (6.0, 1.3, 0.9), (2.5, 0.9, 2.0)])
@pytest.mark.parametrize("sharpness", [1.0, 40.0])
def test_what_is_left_out_between_agreeing_voxels_changes_nothing(
    sharpness: float, spacing: tuple[float, float, float], temperature: float
) -> None:
    grid = Geometry.from_spacing((13, 30, 26), (2.5, 0.9, 0.9))
    sizes = zip(grid.shape, grid.spacing, spacing, strict=True)
    prepared = grid.resized([max(1, round(n * a / b)) for n, a, b in sizes])
    probabilities = chances(prepared.shape, 5) ** (sharpness / 40)
    probabilities /= probabilities.sum(0)
    whole = np.stack([resample_to_grid(p, prepared, grid, order=1) for p in probabilities])
    truth = Likeliest(temperature)
    labels = truth.take(iter(whole))
    decision = Likeliest(temperature)
    restorer = Restorer(prepared, whole_box(grid.shape), grid, decision=decision, slab_bytes=50_000)
    for first in range(0, prepared.shape[0], 3):
        restorer.take(first, probabilities[:, first : first + 3])
    ranked = np.sort(whole, axis=0)
    assert (restorer.labels == labels)[ranked[-1] - ranked[-2] > 1e-6].all()
    assert len(np.unique(labels)) > 3
    assert decision.confidence(4) == pytest.approx(truth.confidence(4), abs=1e-5)
    assert decision.nearest == pytest.approx(truth.nearest, abs=1e-5)


def test_a_class_that_is_nowhere_the_likeliest_may_be_so_in_between() -> None:
    ends = np.array([[[[0.55], [0.0]]], [[[0.0], [0.55]]], [[[0.45], [0.45]]]], np.float32)  # (k, 1, 2, 1)
    prepared = Geometry.from_spacing((1, 2, 1), (1.0, 3.0, 1.0))
    restorer = Restorer(prepared, whole_box((1, 6, 1)), prepared.resized((1, 6, 1)))
    restorer.take(0, ends)
    assert restorer.labels.ravel().tolist() == [0, 0, 2, 2, 1, 1]
    assert restorer.confidence(2) == pytest.approx((0.55, 0.45))


def test_voxels_that_the_network_did_not_see_are_background() -> None:
    prepared = Geometry.from_spacing((4, 4, 4), (2.0, 2.0, 2.0))
    larger = Geometry.from_spacing((12, 8, 8), (1.0, 1.0, 1.0), (-0.5, -0.5, -0.5))
    restorer = Restorer(prepared, whole_box(larger.shape), larger)
    restorer.take(0, np.stack([np.zeros(prepared.shape, np.float32), np.ones(prepared.shape, np.float32)]))
    assert (restorer.labels[:8] == 1).all()
    assert not restorer.labels[8:].any()


@pytest.mark.parametrize("order", [(0, 2, 1), (2, 1, 0)])
def test_exchanged_axes_are_interpolated_everywhere(order: tuple[int, int, int]) -> None:
    prepared = Geometry.from_spacing((6, 8, 7), (2.0, 1.5, 1.5))
    affine = prepared.respaced((1.0, 1.0, 1.0)).matrix[:, [*order, 3]]
    turned = Geometry(affine=affine, shape=(9, 9, 9))
    probabilities = chances(prepared.shape)
    whole = np.stack([resample_to_grid(p, prepared, turned, order=1) for p in probabilities])
    restorer = Restorer(prepared, whole_box(turned.shape), turned)
    restorer.take(0, probabilities)
    np.testing.assert_array_equal(restorer.labels, whole.argmax(0))
