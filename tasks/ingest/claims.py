"""What a header claims of its pixels, held against limits and the file before anybody allocates by it."""

from __future__ import annotations

from typing import Final

from models.errors import HeaderError
from models.series import InstanceHeader

MAX_SIDE: Final = 65535
MAX_FRAMES: Final = 100_000
MAX_INSTANCE_BYTES: Final = 16 << 30
MAX_EXPANSION: Final = 1000
"""Decoded bytes for one compressed byte, above FREE_EXPANSION_BYTES: an empty scout compresses well, a bomb better."""
FREE_EXPANSION_BYTES: Final = 64 << 20


def check_pixels(header: InstanceHeader, size: int) -> None:
    """Hold what the header claims of its pixels against limits and the stream's `size`. Raises HeaderError."""
    if not (1 <= header.rows <= MAX_SIDE and 1 <= header.columns <= MAX_SIDE):
        raise HeaderError(f"{header.rows} rows and {header.columns} columns", reason="bad-dimensions")
    if not 1 <= header.frames <= MAX_FRAMES:
        raise HeaderError(f"{header.frames} frames", reason="bad-dimensions")
    if header.bits_allocated not in (1, 8, 16, 32) or header.samples_per_pixel not in (1, 3):
        claim = f"{header.samples_per_pixel} samples of {header.bits_allocated} bits"
        raise HeaderError(f"pixels of {claim} are not supported", reason="unsupported-pixels")
    if not header.bits_stored <= header.high_bit + 1 <= header.bits_allocated:
        raise HeaderError("Bits Stored, High Bit and Bits Allocated contradict each other", reason="bad-bits")
    claimed = -(-header.rows * header.columns * header.samples_per_pixel * header.bits_allocated // 8) * header.frames
    if claimed > MAX_INSTANCE_BYTES:
        raise HeaderError(f"claims {claimed} bytes of pixels", reason="implausible-size")
    if header.encapsulated:
        _check_encapsulated(header, claimed, size)
    else:
        _check_native(header, size)


def _check_encapsulated(header: InstanceHeader, claimed: int, size: int) -> None:
    if header.pixel_length is not None:
        raise HeaderError("compressed pixels of defined length", reason="bad-pixel-length")
    if claimed > FREE_EXPANSION_BYTES and claimed > MAX_EXPANSION * (size - header.pixel_offset):
        raise HeaderError(f"claims {claimed} bytes of pixels in {size} bytes", reason="implausible-size")


def _check_native(header: InstanceHeader, size: int) -> None:
    if header.pixel_length is None:
        raise HeaderError("uncompressed pixels of undefined length", reason="bad-pixel-length")
    bits = header.frame_bytes * 8 if header.bits_allocated > 1 else header.rows * header.columns
    expected = -(-bits * header.frames // 8)
    if header.pixel_offset + min(header.pixel_length, expected) > size or header.pixel_length < expected:
        have = min(header.pixel_length, size - header.pixel_offset)
        raise HeaderError(f"{have} of {expected} bytes of pixels", reason="truncated-pixels")
    if header.pixel_length > expected + expected % 2:
        raise HeaderError(
            f"{header.pixel_length} bytes of pixels instead of {expected}", reason="pixel-length-mismatch"
        )
