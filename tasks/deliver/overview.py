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

from tasks.deliver.content import UNFAMILIAR, Said, Subject, finish
from tasks.deliver.segmentation import Structures
from tasks.imaging.montage import COLOURS, TILE, montage, spread
from tasks.stores.volumes import StoredVolume

_TILES: Final = 12
_LINE: Final = 22


def overview(subject: Subject, found: Structures, volume: StoredVolume) -> Dataset:
    """The picture of the structures."""
    places = spread(np.arange(len(found.marked)), _TILES)
    chosen = found.marked[places]
    slices = [volume.read_slab(int(z), int(z) + 1) for z in chosen]
    structures = [[found.inside(number, int(place)) for number in range(len(found.said))] for place in places]
    sheet = montage(slices, structures, found.geometry.spacing[1:], str(volume.about["unit"]))
    pixels = _framed(sheet, subject, found.said)
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


def _framed(sheet: Image.Image, subject: Subject, shown: Sequence[Said]) -> NDArray[np.uint8]:
    """The montage over a legend: model, structures with their volumes, and that no person has looked at it."""
    lines: list[tuple[str, Any]] = [(f"{subject.maker.title}, automatic result", (230, 230, 230))]
    if not subject.familiar:
        lines.append((UNFAMILIAR.meaning, (255, 127, 63)))
    for number, said in enumerate(shown):
        size = f", {said.volume_ml:.1f} mL" if said.volume_ml is not None else ""
        lines.append((f"{said.label}{size}, probability {said.confidence:.2f}", COLOURS[number % len(COLOURS)]))
    framed = Image.new("RGB", (max(sheet.width, 2 * TILE), sheet.height + _LINE * len(lines) + _LINE // 2))
    framed.paste(sheet, (0, 0))
    draw, font = ImageDraw.Draw(framed), ImageFont.load_default(15)
    for number, (text, colour) in enumerate(lines):
        draw.text((8, sheet.height + 4 + number * _LINE), text, fill=colour, font=font)
    return np.asarray(framed)
