"""The phantom is an abdomen: what a radiologist would take for granted holds."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from tasks.cohort.phantom import LESION, LIVER, Phantom, make_phantom


@pytest.fixture(scope="module", params=[0, 1, 2, 3], ids=lambda n: f"patient-{n}")
def phantom(request: pytest.FixtureRequest) -> Phantom:
    return make_phantom(np.random.default_rng([7, request.param]), oblique=bool(request.param % 2))


def test_the_sizes_are_a_persons(phantom: Phantom) -> None:
    assert 450 < phantom.volume_ml(LIVER) < 1700
    assert 2 < phantom.volume_ml(LESION) < 300
    slices, rows, columns = phantom.geometry.shape
    assert 24 <= slices <= 32
    assert rows == columns
    assert 64 <= rows <= 80
    assert 250 < phantom.geometry.extent[1] < 400


def test_ct_numbers_are_of_their_tissues(phantom: Phantom) -> None:
    liver, lesion = (phantom.hu[phantom.truth == k].astype(float) for k in (LIVER, LESION))
    assert 70 < np.median(liver) < 140
    assert 15 < np.median(liver) - np.median(lesion) < 90
    assert np.median(phantom.hu[:, :3, :3]) < -950, "air outside"
    assert phantom.hu.max() > 350, "bone"
    assert (np.abs(phantom.hu + 100) < 25).sum() > 2000, "fat"
    assert phantom.hu.min() >= -1024
    assert phantom.hu.max() <= 3071


def test_lesions_lie_in_the_liver(phantom: Phantom) -> None:
    around = ndimage.binary_dilation(phantom.truth == LESION) & (phantom.truth != LESION)
    assert (phantom.truth[around] == LIVER).mean() > 0.5


def test_the_liver_is_on_the_patients_right(phantom: Phantom) -> None:
    middle = phantom.geometry.to_world((np.array(phantom.geometry.shape) - 1) / 2)
    liver = phantom.geometry.to_world(np.argwhere(phantom.truth == LIVER)).mean(axis=0)
    assert liver[0] < middle[0] - 20, "LPS: x grows to the patient's left"


def test_oblique_slices_show_the_same_kind_of_patient_on_a_turned_grid() -> None:
    straight, turned = (make_phantom(np.random.default_rng(3), oblique=flag).geometry for flag in (False, True))
    assert np.allclose(straight.normal, (0, 0, 1))
    assert 1 < np.degrees(np.arccos(turned.normal[2])) < 10
    assert turned.tilt_degrees < 1e-3, "turned, not sheared"


def test_the_seed_decides() -> None:
    first, again, other = (make_phantom(np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.hu, again.hu)
    assert np.array_equal(first.truth, again.truth)
    assert first.geometry == again.geometry
    assert first.hu.shape != other.hu.shape or not np.array_equal(first.hu, other.hu)
