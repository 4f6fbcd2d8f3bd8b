"""Volumes and masks in Zarr v3, each an OME-Zarr 0.5 image with our geometry beside it.

One shard of small chunks a volume (blosc-lz4 with bitshuffle, CRC-32C on each chunk and on the index): two files
on disk, patches readable alone. Older volumes are zstd's: their metadata says so. Published whole; the catalog row is
written by the caller afterwards.
zarr-python's own codec pipeline does the reading: the Rust one (zarrs 0.2.3) is twice as fast but skips the inner
checksums when it decodes part of a shard, and so returns damaged voxels without a word.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec

from models.errors import IntegrityError
from models.geometry import Geometry
from models.volume import Mask, MaskSource, Segment, Unit, Volume
from tasks.stores.places import Place, open_place
from tasks.stores.shards import COMPRESSOR, LEVEL, check_shard, index_bytes, write_shards

INNER = (32, 64, 64)
SHARD_SLICES = 128
_ATTRIBUTES = "nocturne"


class VolumeStore:
    """Volumes and masks by content key, in a folder or an object store."""

    def __init__(self, url: str, *, scratch: Path | None = None) -> None:
        self.place: Place = open_place(url, scratch=scratch)

    def write(self, key: str, volume: Volume) -> None:
        """Publish `volume` under `key`; one that is there already is kept."""
        about = {
            "geometry": volume.geometry.to_json(),
            "modality": volume.modality,
            "unit": volume.unit,
            "attributes": dict(volume.attributes),
            "instances": list(volume.instances),
            "notes": list(volume.notes),
        }
        self._publish(key, volume.array, volume.geometry, about)

    def write_mask(self, key: str, mask: Mask) -> None:
        """Publish `mask` under `key`; one that is there already is kept."""
        about = {
            "geometry": mask.geometry.to_json(),
            "segments": [{"number": s.number, "name": s.name, "code": s.code} for s in mask.segments],
            "source": mask.source,
            "notes": list(mask.notes),
        }
        self._publish(key, mask.occupancy, mask.geometry, about)

    def exists(self, key: str) -> bool:
        """Whether a volume or mask is there."""
        return self.place.exists(key)

    def verify(self, key: str) -> None:
        """That a volume or mask is whole, by its checksums. Raises NotFoundError, IntegrityError."""
        _, array, _ = self._open(key, "geometry")
        with _told(key):
            chunks = _chunks_in_a_shard(array)
            for path in _shard_files(self.place.local(key)):
                if path.is_file() and not check_shard(path, chunks):
                    raise ValueError("a checksum does not hold")

    def open(self, key: str) -> StoredVolume:
        """A handle on a volume; reads nothing but its attributes. Raises NotFoundError, IntegrityError."""
        return StoredVolume(*self._open(key, "modality"))

    def open_mask(self, key: str) -> StoredMask:
        """A handle on a mask. Raises NotFoundError, IntegrityError."""
        return StoredMask(*self._open(key, "segments"))

    def _publish(self, key: str, array: NDArray[Any], geometry: Geometry, about: dict[str, Any]) -> None:
        if self.place.exists(key):
            return
        with self.place.staging() as folder:
            group = zarr.create_group(folder, attributes={"ome": _ome(array.ndim, geometry), _ATTRIBUTES: about})
            chunks = _chunks(array.shape)
            shards = _shards(array.shape, chunks)
            group.create_array(
                "0",
                shape=array.shape,
                dtype=array.dtype,
                chunks=chunks,
                shards=shards,
                compressors=(_blosc(array.dtype), Crc32cCodec()),
                filters=None,
                dimension_names=_axes(array.ndim),
            )
            write_shards(folder / "0", array, chunks, shards)
            self.place.publish(folder, key)

    def _open(self, key: str, must_have: str) -> tuple[str, zarr.Array, dict[str, Any]]:
        folder = self.place.local(key)
        with _told(key):
            group = zarr.open_group(folder, mode="r")
            array, about = cast("zarr.Array", group["0"]), cast("dict[str, Any]", group.attrs[_ATTRIBUTES])
            if must_have not in about:
                raise KeyError(must_have)
            # A shard that is missing, or too short for its index, would be read as zeros.
            expected = math.prod(-(-n // shard) for n, shard in zip(array.shape, array.shards or (), strict=True))
            least = index_bytes(_chunks_in_a_shard(array))
            if sum(path.is_file() and path.stat().st_size >= least for path in _shard_files(folder)) != expected:
                raise ValueError("shards are missing or empty")
            return key, array, about


@dataclass(frozen=True, slots=True)
class _Stored:
    key: str
    _array: zarr.Array
    about: dict[str, Any]

    @property
    def geometry(self) -> Geometry:
        """The grid."""
        return Geometry.from_json(self.about["geometry"])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the array, channels or segments included."""
        return tuple(self._array.shape)

    def _values(self, *index: slice | int) -> NDArray[Any]:
        with _told(self.key):
            return np.asarray(self._array[(..., *index) if index else ...])


class StoredVolume(_Stored):
    """A volume on disk."""

    def read(self) -> Volume:
        """The whole volume. Raises IntegrityError where a checksum fails."""
        return Volume(
            array=self._values(),
            geometry=self.geometry,
            modality=self.about["modality"],
            unit=cast("Unit", self.about["unit"]),
            attributes=self.about["attributes"],
            instances=tuple(self.about["instances"]),
            notes=tuple(self.about["notes"]),
        )

    def read_slab(self, start: int, stop: int) -> NDArray[Any]:
        """Slices [start, stop): ([c,] stop − start, y, x)."""
        return self._values(slice(start, stop), slice(None), slice(None))


class StoredMask(_Stored):
    """A mask on disk."""

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What the mask's planes mean, in order."""
        return tuple(Segment(s["number"], s["name"], s["code"]) for s in self.about["segments"])

    def read(self) -> Mask:
        """The whole mask. Raises IntegrityError where a checksum fails."""
        source = cast("MaskSource", self.about["source"])
        return Mask(self._values(), self.segments, self.geometry, source, tuple(self.about["notes"]))

    def read_segment(self, place: int) -> NDArray[np.uint8]:
        """One structure's occupancy (z, y, x), by its place in `segments`."""
        whole = slice(None)
        found: NDArray[np.uint8] = self._values(slice(place, place + 1), whole, whole, whole)[0]
        return found


@contextmanager
def _told(key: str) -> Iterator[None]:
    """Broken bytes come up as many types, depending on the codec that meets them: name the object instead."""
    try:
        yield
    except (KeyError, ValueError, RuntimeError, zarr.errors.BaseZarrError) as error:
        raise IntegrityError(
            f"its stored bytes are damaged ({type(error).__name__})",
            where=key,
            hint="it is taken anew from its source if that is still there; else ingest its study again",
        ) from error


def _shard_files(folder: Path) -> Iterator[Path]:
    return (folder / "0" / "c").rglob("*")


def _chunks_in_a_shard(array: zarr.Array) -> int:
    return math.prod(s // c for s, c in zip(array.shards or array.chunks, array.chunks, strict=True))


def _blosc(dtype: np.dtype[Any]) -> BloscCodec:
    return BloscCodec(cname=COMPRESSOR, clevel=LEVEL, shuffle="bitshuffle", typesize=dtype.itemsize)


def _axes(ndim: int) -> tuple[str, ...]:
    return ("c", "z", "y", "x")[-ndim:]


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...]:
    spatial = tuple(min(n, inner) for n, inner in zip(shape[-3:], INNER, strict=True))
    return (*(1,) * (len(shape) - 3), *spatial)


def _shards(shape: tuple[int, ...], chunks: tuple[int, ...]) -> tuple[int, ...]:
    whole = [-(-n // c) * c for n, c in zip(shape, chunks, strict=True)]
    # Whole slabs of 128 slices: a shard is encoded in memory, and a long scan must not need it all at once.
    whole[-3] = min(whole[-3], -(-SHARD_SLICES // chunks[-3]) * chunks[-3])
    return tuple(whole)


def _ome(ndim: int, geometry: Geometry) -> dict[str, Any]:
    """OME-Zarr 0.5 `multiscales`: axes, scale in mm; rotation is in our own geometry alone."""
    space = [{"name": name, "type": "space", "unit": "millimeter"} for name in "zyx"]
    lead = [{"name": "c", "type": "channel"}] * (ndim - 3)
    transform = [{"type": "scale", "scale": [1.0] * (ndim - 3) + list(geometry.spacing)}]
    dataset = {"path": "0", "coordinateTransformations": transform}
    return {"version": "0.5", "multiscales": [{"axes": lead + space, "datasets": [dataset]}]}
