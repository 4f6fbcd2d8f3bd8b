"""Prepared arrays: a local cache that training maps into memory, and that can be made again.

One folder a case, each a Zarr v3 group: `image` (c, z, y, x) float16 (float32 where values leave float16's range),
`mask` (z, y, x) uint8 (a label map, or a region map: `tasks.imaging.masks`), `locations/<class>` (n, 3) voxel indices.
Every array is one uncompressed chunk, so its chunk file is the array, and a patch costs the pages that it touches.
Reading needs numpy alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import resource
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.dataset import Dataset
from models.errors import IntegrityError
from models.geometry import Geometry
from models.hashing import content_key
from models.plan import PreparePlan
from models.recipe import LabelClass, Recipe
from models.volume import inside
from tasks.stores.places import LocalPlace

MOST_LOCATIONS = 10_000
FORMAT = 1
COMPOSED = 1
"""Rises whenever the same series would make another image of many channels."""

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

_ATTRIBUTES = "nocturne"
_CHECKSUMS = "checksums"
_BLOCK = 1 << 20
_HALF_MOST = float(np.finfo(np.float16).max)
_HINT = "remove it and prepare the dataset again"


@dataclass(frozen=True, slots=True)
class About:
    """What lies beside the arrays.

    `geometry` is the prepared grid, `original` the volume's, `crop` the part of it that is shown ([start, stop) along
    z, y, x), `target` the class index of a classified image (−1: a mask, or several classes), `source` the volume's
    key. `regions`: the mask is a region map (`tasks.imaging.masks`).
    """

    source: str
    geometry: Geometry
    original: Geometry
    crop: Box
    target: int = -1
    regions: bool = False


@dataclass(frozen=True, slots=True)
class PreparedCase:
    """One case, mapped: `image` (c, z, y, x), `mask` (z, y, x) or None, `locations` class → (n, 3) indices."""

    key: str
    image: NDArray[Any]
    mask: NDArray[Any] | None
    about: About
    locations: Mapping[int, NDArray[np.int32]] = field(default_factory=dict)


def prepared_key(
    volume: str,
    label: str | None,
    plan: PreparePlan,
    classes: Collection[LabelClass],
    fraction: float,
    target: int,
    *,
    regions: bool = False,
    channels: Sequence[str] = (),
    registration: str = "none",
) -> str:
    """The content key of one case under one plan; `classes` and `fraction` are how its label is read.

    `channels` are the volumes beside it, `registration` how they are brought to it.
    """
    reading: list[object] = [c.model_dump(mode="json") for c in classes] if label else []
    reading += ["regions"] if label and regions else []
    beside = [[COMPOSED, registration, *channels]] if channels else []
    return content_key(
        "prepared", FORMAT, volume, label or "", plan.key, reading, fraction if label else 0, target, *beside
    )


def prepared_keys(dataset: Dataset, recipe: Recipe, plan: PreparePlan) -> dict[tuple[str, str], str]:
    """(volume, label) → key, of every case of a dataset."""
    classes, fraction = recipe.labels.meaning(dataset.classes), recipe.labels.fraction
    regions = recipe.labels.regions
    return {
        (row.volume, row.label): prepared_key(
            row.volume,
            row.label,
            plan,
            classes,
            fraction,
            row.target,
            regions=regions,
            channels=row.channels,
            registration=recipe.images.registration,
        )
        for row in dataset.rows
    }


class PreparedStore:
    """Prepared cases by content key, in one local folder."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._place = LocalPlace(self.root)

    def write(self, key: str, image: NDArray[Any], mask: NDArray[np.uint8] | None, about: About) -> None:
        """Publish a case whole; one that is there already is kept. `image` (c, z, y, x), `mask` (z, y, x)."""
        # Here, so that training, which only reads, needs no Zarr.
        import zarr

        if self.exists(key):
            return
        with self._place.staging() as folder:
            group = zarr.create_group(folder)
            _put(group, "image", image.astype(_fitting_type(image), copy=False), ("c", "z", "y", "x"))
            if mask is not None:
                _put(group, "mask", np.asarray(mask, np.uint8), ("z", "y", "x"))
                for value, places in class_locations(mask, key, regions=about.regions).items():
                    _put(group, f"locations/{value}", places, ("voxel", "axis"))
            group.attrs[_ATTRIBUTES] = {**_to_json(about), _CHECKSUMS: _checksums(folder)}
            self._place.publish(folder, key)

    def open(self, key: str) -> PreparedCase:
        """Map a case. Raises NotFoundError, IntegrityError (a file that is short or cannot be read)."""
        folder = self._place.local(key)
        _allow_many_files()
        try:
            about = _from_json(_metadata(folder)["attributes"][_ATTRIBUTES])
            image = _map(folder / "image")
            mask = _map(folder / "mask") if (folder / "mask").is_dir() else None
            # Read, not mapped: every mapping holds a file descriptor, and a cohort has more cases than there are.
            locations = {int(p.name): np.array(_map(p)) for p in _arrays(folder / "locations")}
        except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
            raise IntegrityError(f"its prepared arrays are damaged: {error}", where=key, hint=_HINT) from error
        if image.shape[1:] != about.geometry.shape or (mask is not None and mask.shape != about.geometry.shape):
            raise IntegrityError("its arrays do not lie on its grid", where=key, hint=_HINT)
        return PreparedCase(key, image, mask, about, locations)

    def verify(self, key: str) -> None:
        """As `open`, and that every array's checksum holds: reads the whole case. Raises NotFoundError, IntegrityError.

        Of cases from before there were checksums, the files' lengths are compared alone.
        """
        self.open(key)
        folder = self._place.local(key)
        known = _metadata(folder)["attributes"][_ATTRIBUTES].get(_CHECKSUMS)
        if known is not None and known != _checksums(folder):
            raise IntegrityError("its prepared arrays are not what was written", where=key, hint=_HINT)

    def exists(self, key: str) -> bool:
        """Whether the case is published."""
        return self._place.exists(key)

    def remove(self, key: str) -> None:
        """Delete the case if it is there. Arrays mapped before stay readable (the files go when they are closed)."""
        self._place.remove(key)

    def keys(self) -> Iterator[str]:
        """All published cases."""
        return self._place.keys()

    def sweep(self, keep: Collection[str], *, older_than_seconds: float = 24 * 3600) -> list[str]:
        """Remove the cases that are not to be kept and what killed writers left; returns what went."""
        return self._place.sweep(frozenset(keep), older_than_seconds=older_than_seconds)


def _checksums(folder: Path) -> dict[str, int]:
    """CRC-32 of each array's chunk file, by the array's path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json")
    return {path.relative_to(folder).as_posix(): _crc(path) for path in files}


def _crc(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found = zlib.crc32(block, found)
    return found


def class_locations(
    mask: NDArray[np.uint8], key: str, most: int = MOST_LOCATIONS, *, regions: bool = False
) -> dict[int, NDArray[np.int32]]:
    """Up to `most` voxels (n, 3) of each class ≥ 1 that occurs, drawn evenly and the same for the same key.

    Class i + 1 is the value i + 1 of a label map, and the bit i of a region map.
    """
    rng = np.random.default_rng(int(content_key("locations", key)[:16], 16))
    flat = mask.ravel()
    foreground = np.flatnonzero(flat != 0)  # of booleans it is seven times as fast
    values = flat[foreground]
    places = {}
    numbers = range(1, int(values.max(initial=0)).bit_length() + 1) if regions else np.unique(values).tolist()
    for number in numbers:
        found = foreground[inside(values, number - 1, regions=regions)]
        if not len(found):
            continue
        if len(found) > most:
            found = np.sort(rng.choice(found, most, replace=False))
        places[number] = np.stack(np.unravel_index(found, mask.shape), axis=1).astype(np.int32)
    return places


@cache
def _allow_many_files() -> None:
    """Let this process map as many files as the system allows it: often 1,024 by habit, half a million by right."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # a system may name no limit and yet refuse it
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _fitting_type(image: NDArray[Any]) -> type[np.floating[Any]]:
    """float16 rounds to 3 digits, which normalised values bear; beyond its range it would be infinite."""
    most = max(abs(float(image.max())), abs(float(image.min())))
    return np.float16 if most <= _HALF_MOST else np.float32


def _put(group: Any, name: str, array: NDArray[Any], axes: tuple[str, ...]) -> None:
    stored = group.create_array(
        name,
        shape=array.shape,
        dtype=array.dtype.newbyteorder("<"),
        chunks=array.shape,
        compressors=None,
        filters=None,
        dimension_names=axes,
        config={"write_empty_chunks": True},  # else an all-zero array has no file to map
    )
    stored[...] = array


def _metadata(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "zarr.json").read_text())
    return content


def _arrays(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir()] if folder.is_dir() else []


def _map(folder: Path) -> NDArray[Any]:
    """The single chunk of a Zarr v3 array. Raises ValueError where its layout or its length is another."""
    about = _metadata(folder)
    shape = tuple(int(n) for n in about["shape"])
    chunk = tuple(about["chunk_grid"]["configuration"]["chunk_shape"])
    if chunk != shape or [c["name"] for c in about["codecs"]] != ["bytes"]:
        raise ValueError(f"{folder.name} is not one uncompressed chunk")
    dtype = np.dtype(about["data_type"]).newbyteorder("<")
    file = folder.joinpath("c", *("0" for _ in shape))
    expected, found = math.prod(shape) * dtype.itemsize, file.stat().st_size
    if found != expected:
        raise ValueError(f"{folder.name} has {found} bytes instead of {expected}")
    # As a plain array over the mapped file: `memmap` itself takes microseconds more each time it is cut.
    return np.memmap(file, dtype=dtype, mode="r", shape=shape).view(np.ndarray)


def _to_json(about: About) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "source": about.source,
        "geometry": about.geometry.to_json(),
        "original": about.original.to_json(),
        "crop": [list(r) for r in about.crop],
        "target": about.target,
        "regions": about.regions,
    }


def _from_json(data: Mapping[str, Any]) -> About:
    z, y, x = ((int(low), int(high)) for low, high in data["crop"])
    return About(
        source=str(data["source"]),
        geometry=Geometry.from_json(data["geometry"]),
        original=Geometry.from_json(data["original"]),
        crop=(z, y, x),
        target=int(data["target"]),
        regions=bool(data.get("regions", False)),
    )
