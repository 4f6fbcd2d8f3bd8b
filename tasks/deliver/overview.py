"""A secondary-capture picture (PS3.3 A.8.1): slices through what was found, with its contours. No identity is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from highdicom.sc import SCImage
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian
from scipy import ndimage

from tasks.deliver.content import UNFAMILIAR, Said, Subject, finish
from tasks.deliver.segmentation import Structures
from tasks.stores.volumes import StoredVolume

_TILES: Final = 12
_ACROSS: Final = 4
_TILE: Final = 256
_LINE: Final = 22
_HU: Final = (-160.0, 240.0)
_PERCENTILES: Final = (1.0, 99.0)
_COLOURS: Final = ((230, 159, 0), (86, 180, 233), (0, 200, 150), (240, 228, 66), (204, 121, 167), (255, 127, 63))


def overview(subject: Subject, found: Structures, volume: StoredVolume) -> Dataset:
    """The picture of the structures."""
    count = len(found.marked)
    places = np.unique(np.linspace(0, count - 1, min(_TILES, count)).round().astype(int))
    chosen = found.marked[places]
    slices = [_slice(volume, int(z)) for z in chosen]
    low, high = _window(slices, volume.about["unit"])
    tiles = [
        _tile(
            image,
            [found.inside(number, int(place)) for number in range(len(found.said))],
            found.geometry.spacing[1:],
            low,
            high,
        )
        for image, place in zip(slices, places, strict=True)
    ]
    pixels = _framed(_montage(tiles), subject, found.said)
    ds = SCImage(
        pixel_array=pixels,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        study_instance_uid=subject.origin.study_uid,
        transfer_syntax_uid=ExplicitVRLittleEndian,
        **subject.header("sc"),
    )
    ds.PatientOrientation = []  # of the picture as a whole, it has none
    ds.BurnedInAnnotation, ds.Laterality = "NO", ""
    ds.DerivationDescription = "Slices with contours of the structures found"
    ds.SourceImageSequence = [_reference(subject, int(z)) for z in chosen]
    finish(ds, subject)
    ds.DateOfSecondaryCapture, ds.TimeOfSecondaryCapture = ds.ContentDate, ds.ContentTime
    return ds


def _reference(subject: Subject, z: int) -> Dataset:
    part, item = subject.origin.slices[z], Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = part.sop_class, part.instance
    if part.frame is not None:
        item.ReferencedFrameNumber = part.frame
    return item


# -- drawing ------------------------------------------------------------------------------------------------------


def _slice(volume: StoredVolume, z: int) -> NDArray[np.float32]:
    """One slice, (y, x); of a colour image its brightness."""
    values = volume.read_slab(z, z + 1).astype(np.float32)
    return values.reshape(-1, *values.shape[-2:]).mean(axis=0)


def _window(slices: Sequence[NDArray[np.float32]], unit: str) -> tuple[float, float]:
    if unit == "HU":
        return _HU
    seen = np.concatenate([part[np.isfinite(part)] for part in slices])
    low, high = np.percentile(seen, _PERCENTILES) if seen.size else (0.0, 1.0)
    return float(low), float(max(high, low + 1e-6))


def _tile(
    image: NDArray[np.float32], planes: Sequence[NDArray[np.bool_]], spacing: Sequence[float], low: float, high: float
) -> Image.Image:
    """One slice in a square, its pixels' shape kept, with an outline for each structure."""
    grey = np.nan_to_num(np.clip((image - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    height, width = image.shape[0] * spacing[0], image.shape[1] * spacing[1]
    scale = _TILE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    pixels = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BILINEAR).convert("RGB")).copy()
    for number, plane in enumerate(planes):
        shown = np.asarray(Image.fromarray(plane.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) > 0
        pixels[shown & ~ndimage.binary_erosion(shown)] = _COLOURS[number % len(_COLOURS)]
    tile = Image.new("RGB", (_TILE, _TILE))
    tile.paste(Image.fromarray(pixels), ((_TILE - size[0]) // 2, (_TILE - size[1]) // 2))
    return tile


def _montage(tiles: Sequence[Image.Image]) -> Image.Image:
    across = min(_ACROSS, len(tiles))
    sheet = Image.new("RGB", (across * _TILE, -(-len(tiles) // across) * _TILE))
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % across * _TILE, number // across * _TILE))
    return sheet


def _framed(sheet: Image.Image, subject: Subject, shown: Sequence[Said]) -> NDArray[np.uint8]:
    """The montage over a legend: model, structures with their volumes, and that no person has looked at it."""
    lines: list[tuple[str, Any]] = [(f"{subject.maker.title}, automatic result", (230, 230, 230))]
    if not subject.familiar:
        lines.append((UNFAMILIAR.meaning, (255, 127, 63)))
    for number, said in enumerate(shown):
        size = f", {said.volume_ml:.1f} mL" if said.volume_ml is not None else ""
        lines.append((f"{said.label}{size}, probability {said.confidence:.2f}", _COLOURS[number % len(_COLOURS)]))
    framed = Image.new("RGB", (max(sheet.width, 2 * _TILE), sheet.height + _LINE * len(lines) + _LINE // 2))
    framed.paste(sheet, (0, 0))
    draw, font = ImageDraw.Draw(framed), ImageFont.load_default(15)
    for number, (text, colour) in enumerate(lines):
        draw.text((8, sheet.height + 4 + number * _LINE), text, fill=colour, font=font)
    return np.asarray(framed)
