from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec

from models.errors import IntegrityError
from models.geometry import Geometry
from models.volume import Volume
from tasks.stores.shards import write_shards
from tasks.stores.volumes import VolumeStore


def created(folder: Path, array: np.ndarray, chunks: Any, shards: Any) -> zarr.Array:
    blosc = BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle", typesize=array.dtype.itemsize)
    return zarr.create_array(
        folder,
        shape=array.shape,
        dtype=array.dtype,
        chunks=chunks,
        shards=shards,
        compressors=(blosc, Crc32cCodec()),
        filters=None,
    )


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 14), min_size=3, max_size=4),
    chunk=st.lists(st.integers(1, 12), min_size=4, max_size=4),
    counts=st.lists(st.integers(1, 4), min_size=4, max_size=4),
    kind=st.sampled_from(["u1", "i2", "u2", "f2", "f4", ">i2", "f8"]),
    seed=st.integers(0, 99),
)
def test_zarr_reads_what_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    shape: list[int],
    chunk: list[int],
    counts: list[int],
    kind: str,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    array = (rng.normal(0, 40, shape) * (rng.random(shape) < 0.3)).astype(kind)
    array[..., : shape[-1] // 2] = 0
    chunks = chunk[: len(shape)]
    shards = [c * n for c, n in zip(chunks, counts, strict=False)]
    ours, theirs = (tmp_path_factory.mktemp("shards") / name for name in ("ours", "theirs"))
    stored = created(ours, array, chunks, shards)
    write_shards(ours, array, chunks, shards)
    np.testing.assert_array_equal(stored[...], array)
    np.testing.assert_array_equal(zarr.open_array(ours, mode="r")[0], array[0])
    created(theirs, array, chunks, shards)[...] = array
    size = sum(p.stat().st_size for p in theirs.rglob("c/**/*") if p.is_file())
    # zarr leaves out a shard of nothing but zeros; here it is an index of absent chunks.
    assert size * 0.5 < sum(p.stat().st_size for p in ours.rglob("c/**/*") if p.is_file()) or size == 0


def test_every_damaged_byte_of_a_chunk_is_noticed(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 4000, (40, 70, 70)).astype(np.int16)
    store = VolumeStore(str(tmp_path))
    store.write("key", Volume(array, Geometry.from_spacing(array.shape, (1, 1, 1)), "CT"))
    np.testing.assert_array_equal(store.open("key").read().array, array)
    (path,) = [p for p in tmp_path.rglob("*") if p.is_file() and p.name == "0" and "c" in p.parts]
    whole = path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 25).astype(int):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with pytest.raises(IntegrityError):
            store.open("key").read()


def test_a_volume_of_before_is_read(tmp_path: Path) -> None:
    """Its chunks are of zstd; the metadata says so."""
    array = np.random.default_rng(0).integers(-1000, 3000, (40, 70, 70)).astype(np.int16)
    store = VolumeStore(str(tmp_path))
    store.write("key", Volume(array, Geometry.from_spacing(array.shape, (1, 1, 1)), "CT"))
    place = Path(store.place.location("key")) / "0"
    about = json.loads((place / "zarr.json").read_text())
    (sharding,) = about["codecs"]
    (blosc,) = (codec for codec in sharding["configuration"]["codecs"] if codec["name"] == "blosc")
    assert blosc["configuration"]["cname"] == "lz4"
    blosc["configuration"]["cname"] = "zstd"
    shutil.rmtree(place)
    place.mkdir()
    (place / "zarr.json").write_text(json.dumps(about))
    zarr.open_array(place)[...] = array
    np.testing.assert_array_equal(store.open("key").read().array, array)
    np.testing.assert_array_equal(store.open("key").read_slab(3, 35), array[3:35])
