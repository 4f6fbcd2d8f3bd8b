"""Compressed frames: where they lie in an encapsulated stream (PS3.5 A.4), and what their pixels are.

Decoders are imagecodecs' (they release the GIL); where one fails pydicom's plugins try. A code stream states its own
size: it is read and held against the header before any decoder allocates by it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from models.errors import PixelError
from models.series import InstanceHeader

JPEG_BASELINE, JPEG_EXTENDED = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS, JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_LS_NEAR = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS, JPEG_2000 = "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91"
HTJ2K: Final = frozenset(f"1.2.840.10008.1.2.4.20{n}" for n in (1, 2, 3))
RLE = "1.2.840.10008.1.2.5"
_WAVELETS: Final = HTJ2K | {JPEG_2000_LOSSLESS, JPEG_2000}
_ITEM, _SEQUENCE_END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_END_OF_IMAGE = b"\xff\xd9"
_START_OF_FRAME: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC} | {0xF7}

Buffer = memoryview


@dataclass(frozen=True, slots=True)
class Claim:
    """What a code stream says of itself."""

    rows: int
    columns: int
    samples: int
    bits: int
    signed: bool = False


# -- encapsulation ------------------------------------------------------------------------------------------------


def frames_of(data: bytes, header: InstanceHeader) -> list[Buffer]:
    """The code stream of each frame. Raises PixelError where fragments end early or cannot be told apart."""
    offsets, fragments = _fragments(memoryview(data), header.pixel_offset)
    if header.frames == 1:
        return [_joined([view for _, view in fragments])]
    if len(fragments) == header.frames:
        return [view for _, view in fragments]
    if len(offsets) == header.frames:
        return _by_offsets(offsets, fragments)
    frames = _by_ends([view for _, view in fragments])
    if len(frames) != header.frames:
        raise PixelError(
            f"{len(fragments)} fragments cannot be told apart as {header.frames} frames", reason="ambiguous-fragments"
        )
    return frames


def _fragments(data: Buffer, position: int) -> tuple[list[int], list[tuple[int, Buffer]]]:
    """The basic offset table and the fragments with their offsets in its terms."""
    items: list[tuple[int, Buffer]] = []
    while True:
        head = data[position : position + 8]
        if len(head) < 8:
            raise PixelError("the pixels end inside a fragment", reason="truncated-pixels")
        tag, length = bytes(head[:4]), struct.unpack("<I", head[4:])[0]
        if tag == _SEQUENCE_END:
            break
        if tag != _ITEM or length == 0xFFFFFFFF:
            raise PixelError("the pixels hold something that is no fragment", reason="bad-fragments")
        if position + 8 + length > len(data):
            raise PixelError("the pixels end inside a fragment", reason="truncated-pixels")
        items.append((position, data[position + 8 : position + 8 + length]))
        position += 8 + length
    if len(items) < 2:
        raise PixelError("no compressed frame", reason="truncated-pixels")
    table = items[0][1]
    offsets = list(struct.unpack(f"<{len(table) // 4}I", table[: len(table) // 4 * 4]))
    start = items[1][0]
    return offsets, [(place - start, view) for place, view in items[1:]]


def _by_offsets(offsets: list[int], fragments: list[tuple[int, Buffer]]) -> list[Buffer]:
    starts = [*offsets, fragments[-1][0] + 1]
    if starts != sorted(set(starts)) or not set(offsets) <= {place for place, _ in fragments}:
        raise PixelError("the offset table does not match the fragments", reason="bad-fragments")
    return [_joined([view for place, view in fragments if start <= place < stop]) for start, stop in pairwise(starts)]


def _by_ends(fragments: list[Buffer]) -> list[Buffer]:
    """Frames that end where a fragment ends with an end-of-image marker."""
    frames, parts = [], []
    for view in fragments:
        parts.append(view)
        if bytes(view[-16:]).rstrip(b"\0").endswith(_END_OF_IMAGE):
            frames.append(_joined(parts))
            parts = []
    return frames


def _joined(parts: list[Buffer]) -> Buffer:
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


# -- what a stream claims -----------------------------------------------------------------------------------------


def check_claim(stream: Buffer, header: InstanceHeader) -> int:
    """Hold a code stream's own header against the instance's; returns its bits per sample.

    Raises PixelError where they differ, where the stream was cut off, and for a transfer syntax without decoder.
    """
    if header.transfer_syntax not in _DECODERS:
        raise PixelError(
            "no decoder for this transfer syntax",
            reason="unsupported-transfer-syntax",
            hint="have the sender convert it to a lossless syntax",
        )
    if header.transfer_syntax == RLE:
        return _check_rle(stream, header)
    claim = _wavelet_claim(stream) if header.transfer_syntax in _WAVELETS else _jpeg_claim(stream)
    if (claim.rows, claim.columns, claim.samples) != (header.rows, header.columns, header.samples_per_pixel):
        raise PixelError(
            f"the code stream is {claim.rows}×{claim.columns}×{claim.samples}, "
            f"the header says {header.rows}×{header.columns}×{header.samples_per_pixel}",
            reason="lying-codestream",
        )
    if claim.bits > header.bits_allocated:
        raise PixelError(f"{claim.bits} bits in {header.bits_allocated}", reason="lying-codestream")
    if not bytes(stream[-64:]).rstrip(b"\0").endswith(_END_OF_IMAGE):
        raise PixelError("a compressed frame is cut off", reason="truncated-pixels")
    return claim.bits


def _check_rle(stream: Buffer, header: InstanceHeader) -> int:
    """PS3.5 annex G: a header of 16 words, then one segment for each byte of each sample."""
    expected = header.samples_per_pixel * header.bits_allocated // 8
    if len(stream) < 64:
        raise PixelError("a compressed frame is cut off", reason="truncated-pixels")
    count, *offsets = struct.unpack("<16I", stream[:64])
    if count != expected:
        raise PixelError(f"{count} RLE segments instead of {expected}", reason="lying-codestream")
    used = offsets[:count]
    if used != sorted(used) or used[0] < 64 or used[-1] >= len(stream):
        raise PixelError("RLE segments lie outside their frame", reason="truncated-pixels")
    return header.bits_stored


def _jpeg_claim(stream: Buffer) -> Claim:
    """From the start-of-frame marker (ITU T.81 B.2.2, T.87 C.2.2)."""
    data, position = bytes(stream[: 1 << 20]), 2
    if data[:2] != b"\xff\xd8":
        raise PixelError("no JPEG code stream", reason="bad-codestream")
    while position + 10 <= len(data):
        if data[position] != 0xFF:
            break
        marker = data[position + 1]
        if marker == 0xFF:
            position += 1
            continue
        if marker in _START_OF_FRAME:
            bits, rows, columns, samples = struct.unpack_from(">BHHB", data, position + 4)
            return Claim(rows, columns, samples, bits)
        position += 2 + struct.unpack_from(">H", data, position + 2)[0]
    raise PixelError("a JPEG code stream without start of frame", reason="bad-codestream")


def _wavelet_claim(stream: Buffer) -> Claim:
    """From the SIZ marker (ITU T.800 A.5.1), in a raw code stream or a JP2 file."""
    data = bytes(stream[: 1 << 16])
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or start + 44 > len(data):
        raise PixelError("no JPEG 2000 code stream", reason="bad-codestream")
    right, bottom, left, top = struct.unpack_from(">4I", data, start + 8)
    tile_width, tile_height = struct.unpack_from(">2I", data, start + 24)
    (samples,) = struct.unpack_from(">H", data, start + 40)
    depth, step_x, step_y = data[start + 42 : start + 45]
    if not (tile_width and tile_height) or (step_x, step_y) != (1, 1):
        raise PixelError("an implausible JPEG 2000 header", reason="lying-codestream")
    tiles = -(-max(0, right - left) // tile_width) * -(-max(0, bottom - top) // tile_height)
    if tiles > 65535:
        raise PixelError(f"{tiles} JPEG 2000 tiles", reason="lying-codestream")
    return Claim(bottom - top, right - left, samples, (depth & 0x7F) + 1, bool(depth & 0x80))


# -- decoding -----------------------------------------------------------------------------------------------------


def decode(stream: Buffer, header: InstanceHeader, *, threads: int = 1) -> NDArray[Any]:
    """One frame, (rows, columns) or (rows, columns, samples), of whatever integer type the decoder gives.

    Raises PixelError. Call `check_claim` first.
    """
    shape = (header.rows, header.columns, header.samples_per_pixel)[: 2 if header.samples_per_pixel == 1 else 3]
    frame = _by_imagecodecs(stream, header, threads)
    if frame is not None and frame.shape == shape:
        return frame
    frame = _by_pydicom(stream, header)
    if frame.shape != shape:
        raise PixelError(f"decodes to {frame.shape} instead of {shape}", reason="lying-codestream")
    return frame


def _by_imagecodecs(stream: Buffer, header: InstanceHeader, threads: int) -> NDArray[Any] | None:
    """The quick decoder's frame; None where it gives up, for the slower ones to try. Raises PixelError."""
    try:
        return _DECODERS[header.transfer_syntax](stream, header, threads)
    except PixelError:
        raise
    except Exception:  # noqa: BLE001 - each codec raises types of its own
        return None


def _bytes(stream: Buffer) -> bytes:
    # Decoders read any buffer; their type stubs know bytes alone.
    return cast("bytes", stream)


def _jpeg(stream: Buffer, header: InstanceHeader, threads: int) -> NDArray[Any]:
    import imagecodecs

    return np.asarray(imagecodecs.jpeg8_decode(_bytes(stream)))


def _jpeg_lossless(stream: Buffer, header: InstanceHeader, threads: int) -> NDArray[Any]:
    import imagecodecs

    return np.asarray(imagecodecs.ljpeg_decode(_bytes(stream)))


def _jpeg_ls(stream: Buffer, header: InstanceHeader, threads: int) -> NDArray[Any]:
    import imagecodecs

    return np.asarray(imagecodecs.jpegls_decode(_bytes(stream)))


def _jpeg_2000(stream: Buffer, header: InstanceHeader, threads: int) -> NDArray[Any]:
    import imagecodecs

    return np.asarray(imagecodecs.jpeg2k_decode(_bytes(stream), numthreads=threads))


def _rle(stream: Buffer, header: InstanceHeader, threads: int) -> NDArray[Any]:
    """Byte planes, most significant first, sample by sample."""
    import imagecodecs

    count, *offsets = struct.unpack("<16I", stream[:64])
    bounds = [*offsets[:count], len(stream)]
    size, width = header.rows * header.columns, header.bits_allocated // 8
    pixels = np.empty((header.rows, header.columns, header.samples_per_pixel), f"<u{width}")
    places = pixels.view(np.uint8).reshape(size, -1)
    for n, (start, stop) in enumerate(pairwise(bounds)):
        segment = np.frombuffer(imagecodecs.packbits_decode(_bytes(stream[start:stop])), np.uint8)
        # One byte of padding makes a segment's length even, and its decoding may show.
        if not size <= segment.size <= size + 2:
            raise PixelError(f"an RLE segment of {segment.size} bytes instead of {size}", reason="truncated-pixels")
        places[:, (n // width + 1) * width - 1 - n % width] = segment[:size]
    return pixels[..., 0] if header.samples_per_pixel == 1 else pixels


def _by_pydicom(stream: Buffer, header: InstanceHeader) -> NDArray[Any]:
    """The same frame by whichever plugin of pydicom reads it."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(header.transfer_syntax)
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = header.rows, header.columns, header.samples_per_pixel
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = (
        header.bits_allocated,
        header.bits_stored,
        header.high_bit,
    )
    dataset.PixelRepresentation, dataset.PhotometricInterpretation = header.pixel_representation, header.photometric
    if header.samples_per_pixel > 1:
        dataset.PlanarConfiguration = header.planar_configuration
    dataset.PixelData = encapsulate([bytes(stream)])
    dataset["PixelData"].VR = "OB"
    try:
        frame, _ = get_decoder(header.transfer_syntax).as_array(dataset, raw=True, index=0)
    except Exception as error:  # noqa: BLE001 - see below
        # pydicom and its plugins raise whatever a broken stream leads to; the text may quote the header.
        raise PixelError(
            f"no decoder reads a compressed frame ({type(error).__name__})", reason="undecodable-pixels"
        ) from None
    return np.asarray(frame)


_DECODERS: Final[dict[str, Callable[[Buffer, InstanceHeader, int], NDArray[Any]]]] = {
    JPEG_BASELINE: _jpeg,
    JPEG_EXTENDED: _jpeg,
    JPEG_LOSSLESS: _jpeg_lossless,
    JPEG_LOSSLESS_SV1: _jpeg_lossless,
    JPEG_LS: _jpeg_ls,
    JPEG_LS_NEAR: _jpeg_ls,
    JPEG_2000_LOSSLESS: _jpeg_2000,
    JPEG_2000: _jpeg_2000,
    **dict.fromkeys(sorted(HTJ2K), _jpeg_2000),
    RLE: _rle,
}
