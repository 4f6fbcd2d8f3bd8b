"""Whatever a file's header says: read it, place its planes, read it whole, free it of identities."""

from __future__ import annotations

import json
import struct

from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from models.pseudonyms import Pseudonymizer
from models.series import InstanceHeader, ScannedSeries, Source
from tasks.ingest.deidentify import Deidentifier, to_attributes
from tasks.ingest.elements import MemoryStream
from tasks.ingest.frames import full_header
from tasks.ingest.headers import _readable, parse, plain
from tasks.ingest.rows import circumstances, identities, places_of
from tasks.ingest.scan import kind_of
from tasks.ingest.stack import stacks_of
from tasks.ingest.suv import pet_scale
from tests.fuzz.dicom import Element, bytes_of, element, part10

_DEIDENTIFIER = Deidentifier(Pseudonymizer(b"s" * 32))
_SHORT = struct.Struct("<H").pack


def target(data: bytes) -> None:
    """A file through all that ingest does before it looks at pixels. Raises BadInputError alone."""
    header = parse(MemoryStream(data), Source("a.dcm"), modified=0)
    assert InstanceHeader.from_json(json.loads(json.dumps(header.to_json()))) == header
    series = ScannedSeries("key", kind_of(header) or "image", header.modality, "1", "2", (header,))
    stacks, _ = stacks_of(series)
    for stack in stacks:
        places_of(stack.slices)
    start = plain(data, header.transfer_syntax)[: header.pixel_offset]
    dataset = full_header(_readable(start, header))
    _DEIDENTIFIER.check_burned_in(dataset)
    clean = _DEIDENTIFIER.deidentify(dataset)
    json.dumps(to_attributes(clean))
    json.dumps([circumstances(dataset, _DEIDENTIFIER.pseudonymizer), identities(series, dataset, {})])
    pet_scale(dataset, header.acquired)
    for name in ("StudyDate", "SeriesDescription", "Manufacturer", "ManufacturerModelName"):
        assert "Gruber" not in str(clean.get(name) or "")


def image(*more: Element) -> list[Element]:
    """A CT slice of 2 × 3 pixels, with one of each kind of element."""
    plain_ones = [
        element("SpecificCharacterSet", b"ISO_IR 100"),
        element("ImageType", b"ORIGINAL\\PRIMARY\\AXIAL"),
        element("SOPClassUID", CTImageStorage.encode()),
        element("SOPInstanceUID", b"1.2.3.4"),
        element("StudyDate", b"20240229"),
        element("AcquisitionDateTime", b"20240229120000.5+0100"),
        element("Modality", b"CT"),
        element("SeriesDescription", b"Thorax 1.0 B30f"),
        element("PatientName", b"Gruber^Hannelore"),
        element("PatientID", b"MRN-4711"),
        element("PatientAge", b"091Y"),
        element("PatientSex", b"F"),
        element("PatientWeight", b"70.5"),
        element("SliceThickness", b"2"),
        element("SpacingBetweenSlices", b"2"),
        element("EchoTime", b"30"),
        element("FlipAngle", b"90"),
        Element(0x00189087, "FD", struct.pack("<d", 1000.0)),
        Element(0x00190010, "LO", b"SIEMENS MR HEADER "),
        Element(0x0019100A, "US", _SHORT(4)),
        Element(0x0019100C, "IS", b"1000"),
        element("StudyInstanceUID", b"1.2.3"),
        element("SeriesInstanceUID", b"1.2.3.1"),
        element("AcquisitionNumber", b"1"),
        element("InstanceNumber", b"7"),
        element("ImagePositionPatient", b"-10\\-20.5\\30"),
        element("ImageOrientationPatient", b"1\\0\\0\\0\\1\\0"),
        element("FrameOfReferenceUID", b"1.2.3.5"),
        element("TemporalPositionIdentifier", b"1"),
        element("SamplesPerPixel", _SHORT(1)),
        element("PhotometricInterpretation", b"MONOCHROME2"),
        element("NumberOfFrames", b"1"),
        element("Rows", _SHORT(2)),
        element("Columns", _SHORT(3)),
        element("PixelSpacing", b"0.5\\0.75"),
        element("BitsAllocated", _SHORT(16)),
        element("BitsStored", _SHORT(12)),
        element("HighBit", _SHORT(11)),
        element("PixelRepresentation", _SHORT(0)),
        element("BurnedInAnnotation", b"NO"),
        element("RescaleIntercept", b"-1024"),
        element("RescaleSlope", b"1"),
        element("RequestAttributesSequence", [[element("ScheduledProcedureStepID", b"P1")]]),
    ]
    kept = {one.tag: one for one in plain_ones} | {one.tag: one for one in more}
    return [*sorted(kept.values(), key=lambda one: one.tag), Element(0x7FE00010, "OW", bytes(12))]


def frames(count: int = 2) -> list[Element]:
    """The same as an enhanced multi-frame image."""
    groups = [
        [
            element("FrameContentSequence", [[element("TemporalPositionIndex", struct.pack("<I", 1))]]),
            element("PlanePositionSequence", [[element("ImagePositionPatient", f"0\\0\\{2 * n}".encode())]]),
            element("MRDiffusionSequence", [[element("DiffusionBValue", struct.pack("<d", 50.0 * n))]]),
        ]
        for n in range(count)
    ]
    shared = [
        element("PixelMeasuresSequence", [[element("PixelSpacing", b"0.5\\0.5"), element("SliceThickness", b"2")]]),
        element("PlaneOrientationSequence", [[element("ImageOrientationPatient", b"1\\0\\0\\0\\1\\0")]]),
        element(
            "PixelValueTransformationSequence", [[element("RescaleSlope", b"1"), element("RescaleIntercept", b"0")]]
        ),
    ]
    return [
        *image(
            element("NumberOfFrames", str(count).encode()),
            element("SharedFunctionalGroupsSequence", [shared]),
            element("PerFrameFunctionalGroupsSequence", groups),
        )[:-1],
        Element(0x7FE00010, "OW", bytes(12 * count)),
    ]


def mosaic() -> list[Element]:
    """A Siemens mosaic with a (short) private CSA header."""
    csa = b"SV10\4\3\2\1" + struct.pack("<II", 1, 77) + b"NumberOfImagesInMosaic".ljust(64, b"\0")
    csa += struct.pack("<i4sIII", 1, b"US\0\0", 1, 1, 205) + struct.pack("<4I", 4, 4, 77, 4) + b"4\0\0\0"
    return image(
        element("ImageType", b"ORIGINAL\\PRIMARY\\MOSAIC"),
        Element(0x00290010, "LO", b"SIEMENS CSA HEADER"),
        Element(0x00291010, "OB", csa),
    )


def scintigram() -> list[Element]:
    """A PET slice that says all that SUV needs."""
    return image(
        element("Modality", b"PT"),
        element("Units", b"BQML"),
        element("CorrectedImage", b"ATTN\\DECY"),
        element("DecayCorrection", b"START"),
        element("SeriesDate", b"20240229"),
        element("SeriesTime", b"115500.0"),
        element(
            "RadiopharmaceuticalInformationSequence",
            [
                [
                    element("RadiopharmaceuticalStartTime", b"110000.25"),
                    element("RadionuclideTotalDose", b"370000000"),
                    element("RadionuclideHalfLife", b"6586.2"),
                ]
            ],
        ),
    )


def seeds() -> list[bytes]:
    """Files that are right."""
    written = [part10(image(), syntax) for syntax in (ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)]
    written += [part10(image(), "1.2.840.10008.1.2"), part10(image(), "1.2.840.10008.1.2.2")]
    return [
        *written,
        part10(frames()),
        part10(mosaic()),
        part10(scintigram()),
        part10(image())[132:],
        part10(image(), ""),
    ]


shaped = bytes_of(image()) | bytes_of(frames()) | bytes_of(mosaic()) | bytes_of(scintigram())
"""Files of which one to four things are wrong."""
