"""Stored pixels of stacks: read once, hashed and decoded.

Uncompressed frames go from their place in the file straight into their slot of the array (`preadv`: no copies);
compressed ones are kept as they are until somebody wants them decoded. Reading, hashing and decoding release the
GIL, so threads share the work.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.errors import BadInputError, MemoryExhaustedError, NotFoundError, PixelError
from models.series import DEFLATED_LITTLE, EXPLICIT_BIG, InstanceHeader, Source
from tasks.ingest import codecs
from tasks.ingest.headers import plain
from tasks.ingest.sources import reaching, read_source
from tasks.ingest.stack import Slice, Stack

MAX_VOLUME_BYTES: Final = 32 << 30
_BUFFERS: Final = 512

Array = NDArray[Any]


@dataclass(slots=True)
class Slots:
    """One stack's stored pixels, (slices, …frame), and each slice's range once it is there."""

    stack: Stack
    stored: Array | None = None
    low: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    high: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))


class Intake:
    """All instances of one series, on the way from files to arrays."""

    def __init__(self, headers: Sequence[InstanceHeader], stacks: Sequence[Stack], pool: ThreadPoolExecutor) -> None:
        self.headers, self._pool = headers, pool
        self.slots = [Slots(stack) for stack in stacks]
        self.digests: dict[Source, str] = {}
        self.errors: dict[int, BadInputError] = {}
        self._raw: dict[Source, bytes] = {}
        self._wanted: dict[Source, list[tuple[int, int, int]]] = {}
        for number, slots in enumerate(self.slots):
            for index, s in enumerate(slots.stack.slices):
                self._wanted.setdefault(s.header.source, []).append((number, index, s.plane.frame))

    def read(self) -> None:
        """Read and hash every instance; `digests` are complete afterwards, native pixels in their slots.

        Raises NotFoundError where an instance is gone or was changed, ServiceUnavailableError, MemoryExhaustedError.
        """
        for number, slots in enumerate(self.slots):
            try:
                check_supported(slots.stack)
                if not slots.stack.slices[0].header.encapsulated:
                    self._allocate(slots)
            except BadInputError as error:
                self.errors[number] = error
        self.each(self.headers, self._read_one)

    def decode(self, number: int) -> None:
        """Decode what stack `number` still lacks. Raises PixelError."""
        if number in self.errors:
            raise self.errors[number]
        slots = self.slots[number]
        sources = dict.fromkeys(s.header.source for s in slots.stack.slices)
        headers = {s.header.source: s.header for s in slots.stack.slices}
        packed = [headers[source] for source in sources if headers[source].encapsulated]
        if not packed:
            return
        frames = {header.source: codecs.frames_of(self._raw[header.source], header) for header in packed}
        jobs = []
        for index, s in enumerate(slots.stack.slices):
            if s.header.source in frames and not (s.header.mosaic and s.plane.frame):
                stream = frames[s.header.source][0 if s.header.mosaic else s.plane.frame]
                jobs.append((index, s, stream, codecs.check_claim(stream, s.header)))
        self._allocate(slots)
        threads = self._workers if len(jobs) == 1 else 1
        self.each(jobs, lambda job: self._decode_one(slots, *job, threads=threads))

    def release(self) -> None:
        """Forget the compressed bytes."""
        self._raw.clear()

    # -- reading ------------------------------------------------------------------------------------------------

    def _read_one(self, header: InstanceHeader) -> None:
        direct = not header.encapsulated and not header.mosaic and header.source.member is None
        if direct and header.transfer_syntax != DEFLATED_LITTLE and self._native_wanted(header):
            self._read_native(header)
            return
        if header.source not in self._wanted and header.source.member is None:
            with reaching(), Path(header.source.path).open("rb") as file:
                self.digests[header.source] = hashlib.file_digest(file, "sha256").hexdigest()
            return
        data = read_source(header.source)
        self.digests[header.source] = hashlib.sha256(data).hexdigest()
        if len(data) != header.size:
            raise _changed()
        if header.encapsulated:
            if header.source in self._wanted:
                self._raw[header.source] = data
            return
        if self._native_wanted(header):
            self._place(header, plain(data, header.transfer_syntax))

    def _native_wanted(self, header: InstanceHeader) -> list[tuple[int, int, int]]:
        wanted = self._wanted.get(header.source, [])
        return [w for w in wanted if self.slots[w[0]].stored is not None]

    def _read_native(self, header: InstanceHeader) -> None:
        """One file: its head, each frame into its slot, its tail; hashed in that order."""
        size = header.frame_bytes
        wanted = self._native_wanted(header)
        places = {frame: self._slot(number, index) for number, index, frame in wanted}
        spare = bytearray(size) if len(places) < header.frames else bytearray()
        buffers: list[Any] = [bytearray(header.pixel_offset)]
        buffers += [places[n].data.cast("B") if n in places else spare for n in range(header.frames)]
        buffers.append(bytearray(header.size - header.pixel_offset - size * header.frames))
        digest = hashlib.sha256()
        with reaching():
            descriptor = os.open(header.source.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if os.fstat(descriptor).st_size != header.size:
                    raise _changed()
                if len(buffers) > 3 and spare:
                    # The spare buffer is used again and again: hash it before the next frame overwrites it.
                    for buffer in buffers:
                        _fill(descriptor, [buffer], digest)
                else:
                    for start in range(0, len(buffers), _BUFFERS):
                        _fill(descriptor, buffers[start : start + _BUFFERS], digest)
            finally:
                os.close(descriptor)
        self.digests[header.source] = digest.hexdigest()
        for number, index, _ in wanted:
            self._settle(self.slots[number], index, header, header.bits_stored)

    def _place(self, header: InstanceHeader, data: bytes) -> None:
        """Native frames out of memory: members of archives, inflated data, mosaics."""
        size = header.frame_bytes
        for number, index, frame in self._native_wanted(header):
            slots = self.slots[number]
            target = self._slot(number, index)
            offset = header.pixel_offset + (0 if header.mosaic else frame * size)
            whole = np.frombuffer(data, target.dtype, size // target.itemsize, offset)
            shape = (header.rows, header.columns) if header.mosaic else target.shape
            np.copyto(target, _tile(whole.reshape(shape), header, frame))
            self._settle(slots, index, header, header.bits_stored)

    # -- decoding -----------------------------------------------------------------------------------------------

    def _decode_one(
        self, slots: Slots, index: int, s: Slice, stream: codecs.Buffer, bits: int, *, threads: int
    ) -> None:
        frame = codecs.decode(stream, s.header, threads=threads)
        assert slots.stored is not None  # noqa: S101 - allocated just before
        chosen = [index]
        if s.header.mosaic:
            chosen = [n for n, other in enumerate(slots.stack.slices) if other.header is s.header]
        for n in chosen:
            target = slots.stored[n]
            # Modular: the bits are what counts, whichever sign the decoder gave them.
            part = _tile(frame, s.header, slots.stack.slices[n].plane.frame)
            np.copyto(target.view(f"u{target.itemsize}"), part, casting="unsafe")
            self._settle(slots, n, s.header, min(bits, s.header.bits_stored), decoded=True)

    # -- common -------------------------------------------------------------------------------------------------

    @property
    def _workers(self) -> int:
        return self._pool._max_workers

    def each(self, items: Sequence[Any], work: Callable[[Any], None]) -> None:
        """Do `work` on every item in a few chunks; the first error is raised when all have ended."""
        count = min(len(items), 4 * self._workers)
        chunks = [items[n::count] for n in range(count)]
        futures = [self._pool.submit(_run, work, chunk) for chunk in chunks]
        errors = [error for future in futures if (error := future.exception()) is not None]
        for error in errors:
            raise MemoryExhaustedError("too little memory to decode a series") if type(error) is MemoryError else error

    def _slot(self, number: int, index: int) -> Array:
        stored = self.slots[number].stored
        assert stored is not None  # noqa: S101 - callers asked `_native_wanted`
        return np.asarray(stored[index])

    def _allocate(self, slots: Slots) -> None:
        header, count = slots.stack.slices[0].header, len(slots.stack.slices)
        shape, dtype = _frame_shape(header), _stored_type(header)
        if (total := count * int(np.prod(shape)) * dtype.itemsize) > MAX_VOLUME_BYTES:
            raise PixelError(f"a volume of {total >> 30} GiB", reason="implausible-size")
        try:
            slots.stored = np.empty((count, *shape), dtype)
        except MemoryError:
            raise MemoryExhaustedError("too little memory for one volume") from None
        slots.low, slots.high = np.zeros(count, np.int64), np.zeros(count, np.int64)

    def _settle(self, slots: Slots, index: int, header: InstanceHeader, bits: int, *, decoded: bool = False) -> None:
        """Make a slot hold its stored values: byte order, unused high bits (overlays), sign; note its range."""
        assert slots.stored is not None  # noqa: S101 - just filled
        pixels = slots.stored[index]
        if header.transfer_syntax == EXPLICIT_BIG:
            # 8-bit pixels in OW words are swapped in pairs (PS3.5 8.1.1).
            words = pixels.reshape(-1) if pixels.itemsize > 1 else _pairs(pixels, header)
            if words is not None:
                words.byteswap(inplace=True)
        _keep_bits(pixels, bits, 0 if decoded else header.high_bit + 1 - header.bits_stored)
        slots.low[index], slots.high[index] = int(pixels.min()), int(pixels.max())


def check_supported(stack: Stack) -> None:
    """Raise PixelError for a stack whose slices are stored in ways that do not go together or are not read."""
    first = stack.slices[0].header
    alike = {
        (h.bits_allocated, h.pixel_representation, h.encapsulated, h.planar_configuration) for h in headers_of(stack)
    }
    if len(alike) > 1:
        raise PixelError("slices are stored in different ways", reason="mixed-pixels")
    if first.bits_allocated == 1:
        raise PixelError("an image of single bits", reason="unsupported-pixels")
    if first.samples_per_pixel == 3 and first.photometric == "YBR_FULL_422" and not first.encapsulated:
        raise PixelError("uncompressed YBR_FULL_422", reason="unsupported-pixels")


# -- small steps --------------------------------------------------------------------------------------------------


def headers_of(stack: Stack) -> list[InstanceHeader]:
    return [s.header for s in stack.slices]


def _run(work: Callable[[Any], None], items: Iterable[Any]) -> None:
    for item in items:
        work(item)


def _fill(descriptor: int, buffers: list[Any], digest: Any) -> None:
    """Read on from the file's position into `buffers`, and hash what was read. Raises NotFoundError where it ends."""
    views = [memoryview(b) for b in buffers]
    expected = sum(len(v) for v in views)
    done = os.readv(descriptor, views)
    while done < expected:
        # A single call returns at most 2 GiB, and a network share less.
        rest, skip = [], done
        for view in views:
            if skip < len(view):
                rest.append(view[skip:])
            skip = max(0, skip - len(view))
        more = os.readv(descriptor, rest)
        if more == 0:
            raise _changed()
        done += more
    for view in views:
        digest.update(view)


def _changed() -> NotFoundError:
    return NotFoundError("an instance changed since it was scanned", hint="scan again")


def _frame_shape(header: InstanceHeader) -> tuple[int, ...]:
    if header.samples_per_pixel == 1:
        return header.plane_rows, header.plane_columns
    if header.planar_configuration == 1 and not header.encapsulated:
        return header.samples_per_pixel, header.rows, header.columns
    return header.rows, header.columns, header.samples_per_pixel


def _stored_type(header: InstanceHeader) -> np.dtype[Any]:
    return np.dtype(f"{'i' if header.pixel_representation else 'u'}{header.bits_allocated // 8}")


def _tile(frame: Array, header: InstanceHeader, number: int) -> Array:
    """Tile `number` of a mosaic; the frame itself otherwise."""
    if not header.mosaic:
        return frame
    row, column = divmod(number, header.tiles)
    top, left = row * header.plane_rows, column * header.plane_columns
    return frame[top : top + header.plane_rows, left : left + header.plane_columns]


def _pairs(pixels: Array, header: InstanceHeader) -> Array | None:
    flat = pixels.reshape(-1)
    return flat.view(np.uint16) if header.pixel_vr == "OW" and flat.size % 2 == 0 else None


def _keep_bits(pixels: Array, bits: int, right: int) -> None:
    """Keep `bits` bits, `right` places up from the lowest, in place; the highest of them is the sign if signed."""
    width = 8 * pixels.itemsize
    if bits == width and not right:
        return
    if pixels.dtype.kind == "i" or right:
        pixels <<= width - bits - right
        pixels >>= width - bits
    else:
        np.bitwise_and(pixels, (1 << bits) - 1, out=pixels)
