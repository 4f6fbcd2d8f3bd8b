"""Several series become one image: on the reference's grid, each value where it belongs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from models.errors import BadInputError, GeometryError, PixelError
from models.geometry import Geometry
from models.plan import Normalisation, PreparePlan
from models.volume import Volume
from tasks.imaging.compose import compose, missing_channels, read_case
from tasks.imaging.facts import NOTHING, channel_levels
from tasks.imaging.prepare import prepare_image
from tasks.imaging.streamed import prepared_planes
from tests.tasks.imaging.test_registration import CT, MR, seen, turned

FRAME = "2.25.9"
PET = Geometry.from_spacing((10, 20, 18), (4.0, 4.0, 4.0), (-34.0, -38.0, 0.0), FRAME)
FINE = Geometry.from_spacing((30, 60, 60), (2.0, 1.0, 1.0), (-30.0, -30.0, 3.0), FRAME)


def ramp(geometry: Geometry, modality: str = "PT") -> Volume:
    """x + 2y + 3z in mm: the same number at the same place, on every grid."""
    index = np.moveaxis(np.indices(geometry.shape), 0, -1)
    values = geometry.to_world(index) @ np.array([1.0, 2.0, 3.0])
    return Volume(values.astype(np.float32), geometry, modality)


@dataclass
class Shelf:
    """Stands for the volume store and for what is remembered."""

    volumes: dict[str, Volume] = field(default_factory=dict)
    kept: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: int = 0

    def open(self, key: str) -> Shelf:
        return replace(self, volumes={"": self.volumes[key]})

    def read(self) -> Volume:
        return self.volumes[""]

    def get(self, key: str) -> dict[str, Any] | None:
        return self.kept.get(key)

    def put(self, key: str, value: dict[str, Any]) -> None:
        self.kept[key] = value
        self.asked += 1


def test_a_partner_lies_on_the_references_grid_and_is_dark_beyond_its_field() -> None:
    reference, partner = ramp(PET), ramp(FINE, "CT")
    both = compose(reference, [partner])
    assert both.array.shape == (2, *PET.shape)
    assert both.array.dtype == np.float32
    assert (both.geometry, both.modality) == (PET, "PT")
    assert np.array_equal(both.array[0], reference.array)
    index = FINE.to_index(PET.to_world(np.moveaxis(np.indices(PET.shape), 0, -1)))
    inside = ((index > 3) & (index < np.asarray(FINE.shape) - 4)).all(-1)
    beyond = ((index < -1) | (index > np.asarray(FINE.shape))).any(-1)
    assert inside.sum() > 500
    assert np.allclose(both.array[1][inside], reference.array[inside], atol=0.5)
    assert (both.array[1][beyond] == partner.array.min()).all()


def test_a_finer_partner_is_smoothed_before_it_is_thinned_out() -> None:
    noisy = Volume(np.random.default_rng(0).normal(0, 100, FINE.shape).astype(np.float32), FINE, "CT")
    seen_there = compose(ramp(PET), [noisy]).array[1, 3:8, 6:12, 6:12]
    assert seen_there.std() < 25  # by every fourth voxel alone it would stay at 100


def test_a_missing_channel_is_told_and_becomes_zeros() -> None:
    lacking = compose(ramp(PET), [None, ramp(FINE)])
    assert missing_channels(lacking.array) == (1,)
    assert channel_levels(lacking.array)[1] == NOTHING
    how = Normalisation(scheme="ct", low=-500, high=500, mean=300, std=10)
    plan = PreparePlan(dimensions=3, spacing=(3.0, 4.0, 4.0), channels=3, normalisation=(how,) * 3, crop="nonzero")
    prepared = prepare_image(lacking.array, PET, plan).array
    assert (prepared[1] == 0).all()
    assert prepared[0].any()
    assert prepared[2].any()
    planes, layout = prepared_planes(lacking.array, PET, plan, whole_bytes=0)
    assert np.allclose(planes.planes(0, layout.target.shape[0]).numpy(), prepared, atol=1e-3)


def test_what_cannot_be_a_channel_is_refused_with_its_reason() -> None:
    far = Geometry(PET.shape, PET.padded((400, 0, 0), (0, 0, 0)).affine, FRAME)
    with pytest.raises(GeometryError) as apart:
        compose(ramp(PET), [ramp(far)])
    assert apart.value.reason == "channels-apart"
    broken = ramp(FINE)
    broken.array[0, 0, 0] = np.nan
    with pytest.raises(PixelError) as spoilt:
        compose(ramp(PET), [broken])
    assert spoilt.value.reason == "non-finite-pixels"
    # NaN in the only or the first channel is no missing channel, but a spoilt image.
    plan = PreparePlan(dimensions=3, spacing=None, channels=2, normalisation=(Normalisation(scheme="zscore"),) * 2)
    with pytest.raises(PixelError):
        prepare_image(np.full((2, 4, 5, 6), np.nan, np.float32), Geometry.from_spacing((4, 5, 6), (1, 1, 1)), plan)


def test_a_registered_pair_is_searched_once_and_lies_right() -> None:
    truth = turned(6.0, (9.0, -6.0, 5.0))
    shelf = Shelf({"mr": seen(MR), "ct": seen(CT, truth, as_ct=True)})
    first = read_case(shelf, "mr", ("ct",), "rigid", shelf)
    again = read_case(shelf, "mr", ("ct",), "rigid", shelf)
    assert shelf.asked == 1
    assert np.array_equal(first.array, again.array)
    unmoved = Geometry(CT.shape, CT.affine, MR.frame_of_reference)
    wanted = compose(seen(MR), [seen(unmoved, as_ct=True)]).array[1]
    astray = compose(seen(MR), [replace(seen(CT, truth, as_ct=True), geometry=unmoved)]).array[1]
    middle = (slice(4, -4), slice(10, -10), slice(8, -8))
    assert np.abs(first.array[1] - wanted)[middle].mean() < 0.5 * np.abs(astray - wanted)[middle].mean()


def test_a_refused_registration_is_remembered_as_refused() -> None:
    shelf = Shelf({"mr": seen(MR), "ct": seen(CT, turned(45.0, (0, 0, 0)), as_ct=True)})
    for _ in range(2):
        with pytest.raises(BadInputError) as refused:
            read_case(shelf, "mr", ("ct",), "rigid", shelf)
        assert refused.value.reason == "registration-implausible"
    assert shelf.asked == 1


def test_in_one_frame_of_reference_what_lies_right_stays() -> None:
    shelf = Shelf({"mr": seen(MR), "ct": seen(Geometry(CT.shape, CT.affine, MR.frame_of_reference), as_ct=True)})
    found = read_case(shelf, "mr", ("ct",), "rigid", shelf)
    plain = read_case(shelf, "mr", ("ct",), "none", shelf)
    middle = (slice(4, -4), slice(10, -10), slice(8, -8))
    assert np.abs(found.array - plain.array)[(1, *middle)].mean() < 20
