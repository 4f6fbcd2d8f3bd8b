"""From stored pixels to values in their unit: rescaling, lookup tables, colour, PET."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from models.errors import PixelError
from models.series import InstanceHeader
from models.volume import Unit
from tasks.ingest import codecs
from tasks.ingest.pixels import Array, Intake, Slots, headers_of
from tasks.ingest.stack import Stack
from tasks.ingest.suv import pet_scale

_SEGMENTED: Final = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"})


@dataclass(frozen=True, slots=True)
class Values:
    """A stack's voxels: (z, y, x), or (3, z, y, x) for colour."""

    array: Array
    unit: Unit
    notes: tuple[str, ...] = ()


def values_of(intake: Intake, number: int, dataset: Any, *, colour: bool = False) -> Values:
    """The voxels of a decoded stack, in their unit; `dataset` is the header of one of its instances.

    Integers stay int16 where that is exact and become float32 otherwise. MONOCHROME1 is inverted after rescaling: a
    value v becomes max + min − v over the range that the stored bits can hold. The stored array is used up.
    Raises PixelError.
    """
    slots = intake.slots[number]
    first = slots.stack.slices[0].header
    if first.photometric not in ("MONOCHROME1", "MONOCHROME2"):
        return _coloured(slots, dataset, allowed=colour)
    if first.samples_per_pixel != 1:
        raise PixelError("a grey image of 3 samples", reason="unsupported-pixels")
    if any(h.modality_lut for h in headers_of(slots.stack)):
        return _by_lookup_table(slots, dataset)
    slopes, intercepts = _scales(slots.stack)
    unit, notes = _unit(first), cast("tuple[str, ...]", ())
    if first.modality == "PT":
        scale = pet_scale(dataset, min(h.acquired for h in headers_of(slots.stack)))
        slopes, intercepts = slopes * scale.factor, intercepts * scale.factor
        unit, notes = scale.unit, scale.notes
    return Values(_rescaled(intake, slots, slopes, intercepts), unit, notes)


def _scales(stack: Stack) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each slice's slope and intercept, with MONOCHROME1's inversion in them."""
    slopes = np.array([s.plane.slope for s in stack.slices])
    intercepts = np.array([s.plane.intercept for s in stack.slices])
    for n, s in enumerate(stack.slices):
        if s.header.photometric == "MONOCHROME1":
            both = -1 if s.header.pixel_representation else (1 << s.header.bits_stored) - 1
            slopes[n], intercepts[n] = -slopes[n], intercepts[n] + slopes[n] * both
    return slopes, intercepts


def _unit(header: InstanceHeader) -> Unit:
    if header.modality == "CT":
        return "HU" if header.rescale_type in ("", "HU") else "stored"
    return "arbitrary"


def _rescaled(intake: Intake, slots: Slots, slopes: NDArray[np.float64], intercepts: NDArray[np.float64]) -> Array:
    stored = slots.stored
    assert stored is not None  # noqa: S101 - filled before
    whole = bool((slopes == np.round(slopes)).all() and (intercepts == np.round(intercepts)).all())
    ends = np.stack([slopes * slots.low + intercepts, slopes * slots.high + intercepts])
    if not (np.abs(ends) <= np.finfo(np.float32).max).all():
        raise PixelError(
            "Rescale Slope and Intercept take the values beyond what a voxel can hold", reason="rescale-overflow"
        )
    fits = whole and ends.min() >= -32768 and ends.max() <= 32767
    in_place = fits and stored.itemsize == 2
    result = stored.view(np.int16) if in_place else np.empty(stored.shape, np.int16 if fits else np.float32)

    def rescale(n: int) -> None:
        if not fits:
            np.copyto(result[n], stored[n] * float(slopes[n]) + float(intercepts[n]), casting="same_kind")
            return
        if not in_place:
            np.copyto(result[n], stored[n], casting="unsafe")
        # Modular 16-bit arithmetic is exact where the result fits, whatever lies between.
        if slopes[n] != 1:
            result[n] *= _modular(slopes[n])
        if intercepts[n] != 0:
            result[n] += _modular(intercepts[n])

    intake.each(range(len(result)), rescale)
    return result


def _modular(value: float) -> np.int16:
    return np.uint16(int(value) & 0xFFFF).view(np.int16)


def _by_lookup_table(slots: Slots, dataset: Any) -> Values:
    """Modality LUT Sequence (PS3.3 C.11.1.1), for one image: the table replaces slope and intercept."""
    from pydicom.pixels import apply_modality_lut

    if len(slots.stack.slices) > 1:
        raise PixelError("a Modality LUT in a series of slices", reason="unsupported-lut")
    try:
        item = dataset.ModalityLUTSequence[0]
        mapped = np.asarray(apply_modality_lut(np.asarray(slots.stored), dataset))
        table = np.asarray(item.LUTData if not isinstance(item.LUTData, bytes) else np.frombuffer(item.LUTData, "<u2"))
        kind = str(item.get("ModalityLUTType") or "US").upper()
    except Exception as error:  # noqa: BLE001 - pydicom raises whatever a broken value leads to
        raise PixelError(f"an unreadable Modality LUT ({type(error).__name__})", reason="unsupported-lut") from None
    if slots.stack.slices[0].header.photometric == "MONOCHROME1":
        mapped = int(table.max()) + int(table.min()) - mapped.astype(np.int32)
    fits = int(mapped.min()) >= -32768 and int(mapped.max()) <= 32767
    return Values(mapped.astype(np.int16 if fits else np.float32), "HU" if kind == "HU" else "arbitrary")


def _coloured(slots: Slots, dataset: Any, *, allowed: bool) -> Values:
    """RGB as (3, z, y, x) uint8 or uint16, where the rules want colour at all."""
    first, stored = slots.stack.slices[0].header, slots.stored
    if not allowed:
        raise PixelError(
            "a colour image", reason="colour", hint="recipes that want colour say so; grey images need no change"
        )
    assert stored is not None  # noqa: S101 - filled before
    if first.photometric == "PALETTE COLOR" and first.samples_per_pixel == 1:
        from pydicom.pixels import apply_color_lut

        try:
            rgb = np.asarray(apply_color_lut(stored, dataset))
        except Exception as error:  # noqa: BLE001 - pydicom raises whatever a broken value leads to
            raise PixelError(f"an unreadable palette ({type(error).__name__})", reason="unsupported-lut") from None
        return Values(np.ascontiguousarray(np.moveaxis(rgb[..., :3], -1, 0)), "colour")
    if first.photometric not in _SEGMENTED or first.samples_per_pixel != 3:
        raise PixelError("this Photometric Interpretation is not supported", reason="unsupported-pixels")
    planar = first.planar_configuration == 1 and not first.encapsulated
    rgb = np.ascontiguousarray(np.moveaxis(stored, 1 if planar else -1, 0))
    # Decoders of JPEG (YBR_FULL_422 and the like) and of JPEG 2000 (YBR_RCT, YBR_ICT) give RGB.
    if first.photometric == "YBR_FULL" and (not first.encapsulated or first.transfer_syntax == codecs.RLE):
        from pydicom.pixels import convert_color_space

        rgb = np.moveaxis(convert_color_space(np.moveaxis(rgb, 0, -1), "YBR_FULL", "RGB"), -1, 0)
    return Values(np.ascontiguousarray(rgb), "colour")
