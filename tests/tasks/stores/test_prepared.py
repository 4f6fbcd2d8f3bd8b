from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from models.errors import IntegrityError, NotFoundError
from models.geometry import Geometry
from models.plan import Normalisation, PreparePlan
from models.recipe import LabelClass
from tasks.stores.prepared import About, PreparedStore, class_locations, prepared_key

KEY = "0123456789abcdef0123456789abcdef"


def about(shape: tuple[int, int, int], target: int = -1) -> About:
    original = Geometry.from_spacing((9, 20, 20), (3.0, 1.0, 1.0), (1, 2, 3), "1.2.3")
    geometry = original.cropped((slice(1, 8), slice(2, 19), slice(0, 20))).resized(shape)
    return About("a" * 32, geometry, original, ((1, 8), (2, 19), (0, 20)), target)


def case(shape: tuple[int, int, int] = (6, 12, 10)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.normal(size=(2, *shape)).astype(np.float32)
    mask = rng.integers(0, 3, shape).astype(np.uint8)
    return image, mask


@pytest.fixture
def store(tmp_path: Path) -> PreparedStore:
    return PreparedStore(tmp_path / "prepared")


def test_what_is_written_comes_back_mapped(store: PreparedStore) -> None:
    image, mask = case()
    store.write(KEY, image, mask, about(mask.shape, 4))
    got = store.open(KEY)
    assert isinstance(got.image.base, np.memmap)
    assert got.image.dtype == np.float16
    np.testing.assert_array_equal(got.image, image.astype(np.float16))
    np.testing.assert_array_equal(got.mask, mask)
    assert got.about == about(mask.shape, 4)
    with pytest.raises(ValueError, match="read-only"):
        got.image[0, 0, 0, 0] = 1


def test_an_open_case_holds_two_file_descriptors(store: PreparedStore) -> None:
    image, mask = case()
    store.write(KEY, image, mask, about(mask.shape))
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("this system does not list a process's open files")
    before = len(list(descriptors.iterdir()))
    opened = [store.open(KEY) for _ in range(20)]
    assert len(list(descriptors.iterdir())) <= before + 2 * len(opened)


def test_zarr_reads_the_same(store: PreparedStore) -> None:
    image, mask = case()
    store.write(KEY, image, mask, about(mask.shape))
    group = zarr.open_group(store._place.local(KEY), mode="r")
    np.testing.assert_array_equal(group["image"][...], store.open(KEY).image)
    np.testing.assert_array_equal(group["mask"][...], mask)
    assert group["image"].chunks == image.shape


def test_empty_images_and_masks_have_their_files_too(store: PreparedStore) -> None:
    shape = (3, 4, 5)
    store.write(KEY, np.zeros((1, *shape), np.float32), np.zeros(shape, np.uint8), about(shape))
    got = store.open(KEY)
    assert not got.image.any()
    assert got.mask is not None
    assert not got.mask.any()
    assert dict(got.locations) == {}


def test_a_classified_image_has_no_mask(store: PreparedStore) -> None:
    image, mask = case()
    store.write(KEY, image, None, about(mask.shape, 1))
    got = store.open(KEY)
    assert got.mask is None
    assert got.about.target == 1


def test_values_beyond_float16_stay_finite(store: PreparedStore) -> None:
    image, mask = case()
    image[0, 0, 0, 0] = 1.7e6
    store.write(KEY, image, mask, about(mask.shape))
    got = store.open(KEY).image
    assert got.dtype == np.float32
    assert got[0, 0, 0, 0] == np.float32(1.7e6)


def test_the_first_writing_stays(store: PreparedStore) -> None:
    image, mask = case()
    store.write(KEY, image, mask, about(mask.shape))
    store.write(KEY, image * 0, mask, about(mask.shape))
    assert store.open(KEY).image.any()


@pytest.mark.parametrize("array", ["image", "mask", "locations/1"])
def test_a_short_file_is_told(store: PreparedStore, array: str) -> None:
    image, mask = case()
    store.write(KEY, image, mask, about(mask.shape))
    file = next(p for p in (store._place.local(KEY) / array / "c").rglob("0") if p.is_file())
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(IntegrityError, match="bytes instead of"):
        store.open(KEY)


@pytest.mark.fault("stores/corrupt")
def test_lost_and_scrambled_metadata_is_told(store: PreparedStore) -> None:
    image, mask = case()
    store.write(KEY, image, mask, about(mask.shape))
    (store._place.local(KEY) / "mask" / "zarr.json").write_text("{")
    with pytest.raises(IntegrityError):
        store.open(KEY)
    (store._place.local(KEY) / "zarr.json").unlink()
    with pytest.raises(IntegrityError):
        store.open(KEY)


def test_absent_removed_and_swept(store: PreparedStore) -> None:
    image, mask = case()
    with pytest.raises(NotFoundError):
        store.open(KEY)
    other = "f" * 32
    for key in (KEY, other):
        store.write(key, image, mask, about(mask.shape))
    mapped = store.open(KEY).image
    assert store.sweep({other}, older_than_seconds=-1) == [KEY]
    assert not store.exists(KEY)
    assert store.exists(other)
    np.testing.assert_array_equal(mapped, image.astype(np.float16))
    store.remove(other)
    assert not store.exists(other)


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.01, 1), most=st.integers(1, 400))
def test_locations_are_of_their_class_and_drawn_alike(share: float, most: int) -> None:
    rng = np.random.default_rng(int(share * 1e6))
    mask = (rng.random((5, 11, 9)) < share).astype(np.uint8) * rng.integers(1, 4, (5, 11, 9)).astype(np.uint8)
    places = class_locations(mask, KEY, most)
    again = class_locations(mask, KEY, most)
    assert sorted(places) == sorted(set(np.unique(mask)) - {0})
    for value, found in places.items():
        assert len(found) == min(most, (mask == value).sum())
        assert (mask[tuple(found.T)] == value).all()
        assert len(np.unique(found, axis=0)) == len(found)
        np.testing.assert_array_equal(found, again[value])


def test_locations_come_from_the_whole_structure() -> None:
    mask = np.ones((40, 40, 40), np.uint8)
    found = class_locations(mask, KEY, 2000)[1]
    np.testing.assert_allclose(found.mean(axis=0), 19.5, atol=1.5)


def test_keys_follow_what_the_arrays_depend_on() -> None:
    plan = PreparePlan(dimensions=3, spacing=(1, 1, 1), normalisation=(Normalisation(scheme="zscore"),))
    classes = (LabelClass(name="liver"),)
    base = prepared_key("v", "l", plan, classes, 0.5, -1)
    assert base == prepared_key("v", "l", plan.model_copy(), list(classes), 0.5, -1)
    others = {
        prepared_key("w", "l", plan, classes, 0.5, -1),
        prepared_key("v", "m", plan, classes, 0.5, -1),
        prepared_key("v", "l", plan.model_copy(update={"spacing": (2.0, 1.0, 1.0)}), classes, 0.5, -1),
        prepared_key("v", "l", plan, (LabelClass(name="spleen"),), 0.5, -1),
        prepared_key("v", "l", plan, classes, 0.6, -1),
        prepared_key("v", "l", plan, classes, 0.5, 2),
    }
    assert len(others | {base}) == 7


MANY = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from tasks.stores.prepared import PreparedStore
store = PreparedStore(Path(sys.argv[1]))
print(len([store.open(sys.argv[2]) for _ in range(100)]))
"""


def test_more_cases_may_be_open_than_files_by_habit(store: PreparedStore) -> None:
    image, mask = case()
    store.write(KEY, image, mask, about(mask.shape))
    told = subprocess.run(
        [sys.executable, "-c", MANY, str(store.root), KEY], capture_output=True, text=True, check=True
    )
    assert told.stdout.strip() == "100"


WRITER = """
import sys, numpy as np
from pathlib import Path
from models.geometry import Geometry
from tasks.stores.prepared import About, PreparedStore
store = PreparedStore(Path(sys.argv[1]))
grid = Geometry.from_spacing((16, 64, 64), (1, 1, 1))
image, mask = np.ones((1, 16, 64, 64), np.float32), np.ones((16, 64, 64), np.uint8)
for i in range(100000):
    store.write(f"{i:032x}", image, mask, About("a", grid, grid, ((0, 16), (0, 64), (0, 64))))
    print(i, flush=True)
"""


@pytest.mark.fault("stores/killed")
def test_a_killed_writer_leaves_only_whole_cases(tmp_path: Path) -> None:
    root = tmp_path / "prepared"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(root)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        deadline = time.monotonic() + 300
        for line in writer.stdout:
            if int(line) >= 5 or time.monotonic() > deadline:
                break
        writer.send_signal(signal.SIGKILL)
    store = PreparedStore(root)
    keys = list(store._place.keys())
    assert len(keys) >= 6
    for key in keys:
        assert store.open(key).image.min() == 1
    store.sweep(keys, older_than_seconds=-1)
    assert not list((root / ".staging").iterdir())


def test_voxels_of_a_region_are_found_although_others_lie_over_it() -> None:
    regions = np.zeros((3, 8, 8), np.uint8)
    regions[:, 1:7, 1:7] |= 1
    regions[1, 3:5, 3:5] |= 4
    places = class_locations(regions, "key", regions=True)
    assert sorted(places) == [1, 3]
    for number, voxels in places.items():
        assert np.array_equal(voxels, np.argwhere(regions >> (number - 1) & 1))
    few = class_locations(regions, "key", 10, regions=True)
    assert [len(voxels) for voxels in few.values()] == [10, 4]
    assert class_locations(np.zeros((2, 2, 2), np.uint8), "key", regions=True) == {}
