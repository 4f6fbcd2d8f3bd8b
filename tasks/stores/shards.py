"""Writes a whole array into a sharded Zarr v3 array (the `sharding_indexed` codec) with threads of our own.

zarr-python encodes the chunks of a shard one after another in its event loop; here each thread takes a run of chunks,
blosc releases the GIL, and a run is written while the next ones are compressed: half the time, and the same format.
The caller creates the array (its metadata is zarr's own) with exactly these codecs: little-endian bytes, blosc
lz4-1 with bitshuffle (`COMPRESSOR`), CRC-32C; the index, with its CRC-32C, at the end. Of CT, lz4 makes a tenth more
bytes than zstd-1, in a third of the time, and unpacks them in a third; a blosc chunk says itself which of them it is.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

import google_crc32c
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from tasks.stores.durable import begin_writing

COMPRESSOR: Final = "lz4"
LEVEL: Final = 1
_ABSENT: Final = 2**64 - 1
_BITSHUFFLE: Final = 2
_CHECKSUM: Final = 4
_RUNS_PER_THREAD: Final = 4


def write_shards(folder: Path, array: NDArray[Any], chunks: Sequence[int], shards: Sequence[int]) -> None:
    """Fill the empty Zarr array in `folder`, of `array`'s shape and type and fill value 0, with `array`."""
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    grid = [-(-size // shard) for size, shard in zip(array.shape, shards, strict=True)]
    with ThreadPoolExecutor(min(8, len(os.sched_getaffinity(0)))) as pool:
        for place in itertools.product(*map(range, grid)):
            corner = [p * shard for p, shard in zip(place, shards, strict=True)]
            inside = tuple(slice(c, c + shard) for c, shard in zip(corner, shards, strict=True))
            path = folder.joinpath("c", *map(str, place))
            path.parent.mkdir(parents=True, exist_ok=True)
            counts = [shard // chunk for shard, chunk in zip(shards, chunks, strict=True)]
            _write_shard(path, array[inside], chunks, counts, pool)


def index_bytes(number: int) -> int:
    """Of the index of a shard of `number` chunks, its checksum included: no shard is shorter."""
    return 16 * number + _CHECKSUM


def check_shard(path: Path, number: int) -> bool:
    """Whether the checksums hold of a shard's index and of its `number` chunks; nothing is unpacked."""
    content = path.read_bytes()
    length = index_bytes(number)
    if len(content) < length or not _holds(content[-length:]):
        return False
    index = np.frombuffer(content[-length:-_CHECKSUM], "<u8").reshape(-1, 2)
    view, end = memoryview(content), len(content) - length
    for offset, size in ((int(o), int(n)) for o, n in index if (o, n) != (_ABSENT, _ABSENT)):
        if size < _CHECKSUM or offset + size > end or not _holds(bytes(view[offset : offset + size])):
            return False
    return True


def _holds(content: bytes) -> bool:
    """Whether a part is followed by its own checksum."""
    return _checksum(content[:-_CHECKSUM]) == content[-_CHECKSUM:]


def _write_shard(
    path: Path, array: NDArray[Any], chunks: Sequence[int], counts: Sequence[int], pool: ThreadPoolExecutor
) -> None:
    places = list(itertools.product(*map(range, counts)))
    step = -(-len(places) // (_RUNS_PER_THREAD * pool._max_workers))
    runs = [places[n : n + step] for n in range(0, len(places), step)]
    index = np.full((len(places), 2), _ABSENT, "<u8")
    offset = number = 0
    with path.open("wb") as file:
        for encoded in pool.map(lambda run: [_encode(array, chunks, place) for place in run], runs):
            begun = offset
            for content in encoded:
                if content:
                    size = len(content) + _CHECKSUM
                    index[number] = offset, size
                    offset += size
                number += 1
            file.writelines(part for content in encoded if content for part in (content, _checksum(content)))
            file.flush()
            begin_writing(file.fileno(), begun, offset - begun)
        file.write(index.tobytes())
        file.write(_checksum(index.tobytes()))


def _encode(array: NDArray[Any], chunks: Sequence[int], place: Sequence[int]) -> bytes:
    """One chunk, padded with zeros where it reaches beyond the array; b"" for a chunk of nothing but zeros."""
    part = array[tuple(slice(n * size, n * size + size) for n, size in zip(place, chunks, strict=True))]
    if not part.size or (not part.item(0) and not part.any()):  # its first value mostly tells, at no cost
        return b""
    if part.shape != tuple(chunks):
        whole = np.zeros(chunks, array.dtype)
        whole[tuple(map(slice, part.shape))] = part
        part = whole
    return bytes(
        imagecodecs.blosc_encode(
            cast("bytes", np.ascontiguousarray(part)),  # its stubs know bytes alone
            level=LEVEL,
            compressor=COMPRESSOR,
            shuffle=_BITSHUFFLE,
            typesize=array.dtype.itemsize,
            numthreads=1,
        )
    )


def _checksum(content: bytes) -> bytes:
    return struct.pack("<I", google_crc32c.value(content))
