"""What the volume store promises, in a folder and in an object store."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.errors import IntegrityError, NotFoundError
from models.geometry import Geometry
from models.volume import Mask, Segment, Volume
from tasks.stores.volumes import VolumeStore
from tests.objects import place_url

KEY = "ab" + "0" * 30
TILTED = np.array([[0, 0.1, 0.7, -120.5], [0.2, 0.69, 0, 33.25], [2.5, 0, 0, -900.125], [0, 0, 0, 1]])


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> VolumeStore:
    return VolumeStore(place_url(request, tmp_path), scratch=tmp_path / "scratch")


def a_volume(shape: tuple[int, ...] = (5, 40, 30), dtype: str = "int16", seed: int = 0) -> Volume:
    generator = np.random.default_rng(seed)
    array = generator.integers(0, 200, shape).astype(dtype)
    z, y, x = shape[-3:]
    geometry = Geometry((z, y, x), tuple(map(tuple, TILTED)), "2.25.77")  # type: ignore[arg-type]
    return Volume(
        array=array,
        geometry=geometry,
        modality="CT",
        unit="HU",
        attributes={"00080060": {"vr": "CS", "Value": ["CT"]}},
        instances=tuple(f"2.25.{i}" for i in range(z)),
        notes=("gantry tilt 8°",),
    )


def test_a_volume_comes_back_with_everything(store: VolumeStore) -> None:
    volume = a_volume()
    store.write(KEY, volume)
    stored = store.open(KEY)
    back = stored.read()
    np.testing.assert_array_equal(back.array, volume.array)
    assert back.geometry == volume.geometry == stored.geometry
    assert stored.shape == volume.array.shape
    for part in ("modality", "unit", "attributes", "instances", "notes"):
        assert getattr(back, part) == getattr(volume, part)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "int32", "uint32", "float32", "float64", ">i2"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 300, 200), (130, 9, 7), (3, 4, 33, 65)])
def test_every_type_and_shape_survives(store: VolumeStore, dtype: str, shape: tuple[int, ...]) -> None:
    volume = a_volume(shape, dtype)
    store.write(KEY, volume)
    back = store.open(KEY).read().array
    np.testing.assert_array_equal(back, volume.array)
    assert back.dtype == volume.array.dtype.newbyteorder("=")


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    shape=st.lists(st.integers(1, 70), min_size=3, max_size=3),
    channels=st.integers(0, 3),
    seed=st.integers(0, 2**16),
    filled=st.booleans(),
)
def test_any_grid_survives(store: VolumeStore, shape: list[int], channels: int, seed: int, filled: bool) -> None:
    key = f"k{uuid.uuid4().hex}"
    volume = a_volume((*([channels] if channels else []), *shape), seed=seed)
    if not filled:
        volume.array[volume.array < 180] = 0
    store.write(key, volume)
    stored = store.open(key)
    np.testing.assert_array_equal(stored.read().array, volume.array)
    start, stop = shape[0] // 3, shape[0] // 3 + 1 + shape[0] // 2
    np.testing.assert_array_equal(stored.read_slab(start, stop), volume.array[..., start:stop, :, :])


def test_views_and_transposed_arrays_are_written_as_they_look(store: VolumeStore) -> None:
    volume = a_volume((40, 50, 60))
    turned = volume.array[::-1, :, ::2]
    assert not turned.flags.c_contiguous
    geometry = Geometry.from_spacing(turned.shape, (1, 1, 2))
    store.write(KEY, Volume(turned, geometry, "CT"))
    np.testing.assert_array_equal(store.open(KEY).read().array, turned)


def test_not_a_number_survives(store: VolumeStore) -> None:
    array: NDArray[np.float32] = np.array([[[np.nan, -np.inf, 0.0, 1e-40]]], np.float32)
    store.write(KEY, Volume(array, Geometry.from_spacing((1, 1, 4), (1, 1, 1)), "PT"))
    np.testing.assert_array_equal(store.open(KEY).read().array, array)


def test_slabs_are_the_slices_of_the_whole(store: VolumeStore) -> None:
    volume = a_volume((3, 150, 20, 20))
    store.write(KEY, volume)
    stored = store.open(KEY)
    for start, stop in ((0, 1), (31, 33), (120, 140), (149, 150), (0, 150)):
        np.testing.assert_array_equal(stored.read_slab(start, stop), volume.array[:, start:stop])


def test_a_mask_comes_back_with_its_segments(store: VolumeStore) -> None:
    segments = (Segment(1, "liver", "SCT:10200004"), Segment(7, "tumour"))
    occupancy = np.random.default_rng(0).choice(np.array([0, 128, 255], np.uint8), (2, 6, 20, 30))
    mask = Mask(occupancy, segments, Geometry.from_spacing((6, 20, 30), (2, 1, 1)), "SEG", ("overlaps",))
    store.write_mask(KEY, mask)
    stored = store.open_mask(KEY)
    assert stored.segments == segments
    back = stored.read()
    np.testing.assert_array_equal(back.occupancy, occupancy)
    assert (back.segments, back.geometry, back.source, back.notes) == (
        segments,
        mask.geometry,
        mask.source,
        mask.notes,
    )


def test_the_first_of_two_writes_stays(store: VolumeStore) -> None:
    store.write(KEY, a_volume(seed=1))
    store.write(KEY, a_volume(seed=2))
    np.testing.assert_array_equal(store.open(KEY).read().array, a_volume(seed=1).array)


def test_a_writer_that_fails_leaves_nothing(store: VolumeStore) -> None:
    volume = Volume(np.zeros((1, 2, 2), object), Geometry.from_spacing((1, 2, 2), (1, 1, 1)), "CT")
    with pytest.raises(Exception):  # noqa: B017, PT011 — whichever layer refuses it
        store.write(KEY, volume)
    assert not store.place.exists(KEY)
    assert list(store.place.keys()) == []


def test_what_was_never_written_is_not_found(store: VolumeStore) -> None:
    with pytest.raises(NotFoundError) as caught:
        store.open(KEY)
    assert caught.value.where == KEY


@pytest.mark.parametrize("shape", [(4, 20, 30), (3, 4, 20, 30)])
def test_other_readers_find_an_ome_zarr_image(store: VolumeStore, shape: tuple[int, ...]) -> None:
    volume = a_volume(shape)
    store.write(KEY, volume)
    folder = store.place.local(KEY)
    group = json.loads((folder / "zarr.json").read_text())
    assert (group["zarr_format"], group["node_type"]) == (3, "group")
    ome = group["attributes"]["ome"]
    assert ome["version"] == "0.5"
    (image,) = ome["multiscales"]
    names = [axis["name"] for axis in image["axes"]]
    assert names == ["c", "z", "y", "x"][-len(shape) :]
    assert [axis["type"] for axis in image["axes"]] == ["channel", "space", "space", "space"][-len(shape) :]
    assert all(axis["unit"] == "millimeter" for axis in image["axes"] if axis["type"] == "space")
    (level,) = image["datasets"]
    (scale,) = level["coordinateTransformations"]
    assert scale["type"] == "scale"
    assert scale["scale"][-3:] == pytest.approx(volume.geometry.spacing)
    assert len(scale["scale"]) == len(shape)
    array = json.loads((folder / level["path"] / "zarr.json").read_text())
    assert array["dimension_names"] == names
    np.testing.assert_array_equal(zarr.open_array(folder / level["path"], mode="r")[...], volume.array)


def stored_shards(store: VolumeStore) -> list[Path]:
    return [p for p in store.place.local(KEY).rglob("*") if p.is_file() and p.name != "zarr.json"]


@pytest.mark.parametrize("where", [0.0, 0.3, 0.6, 0.999])
def test_one_changed_byte_is_found_and_the_object_is_named(store: VolumeStore, where: float) -> None:
    store.write(KEY, a_volume((20, 90, 90)))
    (shard,) = stored_shards(store)
    content = bytearray(shard.read_bytes())
    content[int(where * len(content))] ^= 0x40
    shard.write_bytes(content)
    with pytest.raises(IntegrityError) as caught:
        store.open(KEY).read()
    assert caught.value.where == KEY
    assert KEY in str(caught.value)


def test_a_cut_shard_is_found(store: VolumeStore) -> None:
    store.write(KEY, a_volume((20, 90, 90)))
    (shard,) = stored_shards(store)
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(IntegrityError):
        store.open(KEY).read()


@pytest.mark.fault("stores/corrupt")
def test_a_lost_shard_is_found(store: VolumeStore) -> None:
    store.write(KEY, a_volume((20, 90, 90)))
    (shard,) = stored_shards(store)
    shard.unlink()
    with pytest.raises(IntegrityError):
        store.open(KEY).read()


@pytest.mark.fault("stores/corrupt")
@pytest.mark.parametrize("content", ["", "{}", "not json", '{"zarr_format": 3, "node_type": "group"}'])
def test_damaged_metadata_is_found(store: VolumeStore, content: str) -> None:
    store.write(KEY, a_volume())
    (store.place.local(KEY) / "zarr.json").write_text(content)
    with pytest.raises(IntegrityError) as caught:
        store.open(KEY)
    assert caught.value.where == KEY


def test_a_mask_is_not_a_volume(store: VolumeStore) -> None:
    store.write(KEY, a_volume())
    with pytest.raises(IntegrityError):
        store.open_mask(KEY).read()


@pytest.mark.fault("models/pickle")
def test_codecs_that_would_run_code_are_refused(store: VolumeStore) -> None:
    store.write(KEY, a_volume())
    path = store.place.local(KEY) / "0" / "zarr.json"
    described = json.loads(path.read_text())
    described["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    path.write_text(json.dumps(described))
    with pytest.raises(IntegrityError):
        store.open(KEY).read()
