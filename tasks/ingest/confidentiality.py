"""What becomes of each attribute: PS3.15 Table E.1-1 (2026c) and, where it is silent, rules by value representation.

Followed are the Basic Profile (113100) with modified dates (113107) and patient characteristics (113108). Where the
table leaves a choice ("X/Z", "X/D", "X/Z/D") because it depends on the object's type, the attribute stays with an
empty or dummy value, which fits all of them. Free text goes, "C" or not, except for the words of a few descriptions.
Two things are stricter than the options allow: the text of Ethnic Group goes (its codes stay), and so do Allergies,
Patient State, Pre-Medication and Special Needs, which would have to be cleaned by a reader.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from importlib.resources import files

from pydicom.datadict import DicomDictionary

TABLE_FILE = "ps3_15_e1_1.json"


class Action(Enum):
    """One of these happens to every element."""

    REMOVE = auto()
    EMPTY = auto()
    DUMMY = auto()
    UID = auto()
    """Each UID becomes its pseudonym."""
    PATIENT = auto()
    """A patient's identifier becomes the pseudonym."""
    SHIFT = auto()
    """Dates move by the patient's days, times of day stay; what is no valid date or time goes."""
    WORDS = auto()
    """Only harmless words stay."""
    KEEP = auto()
    """Stays where the value fits its representation; the items of a sequence are walked."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table. The options are "K", "C" or empty."""

    keyword: str
    basic: str
    modified_dates: str
    patient_characteristics: str
    clean_descriptors: str


_KINDS = {
    "number": "US SS UL SL UV SV FL FD AT DS IS",
    "text": "LO SH ST LT UC UT PN",
    "code": "CS",
    "uid": "UI",
    "time": "DA DT TM",
    "age": "AS",
    "bulk": "OB OW OF OD OL OV",
    "sequence": "SQ",
}
KIND = {vr: kind for kind, vrs in _KINDS.items() for vr in vrs.split()}
"""Value representation → kind. Others (AE, UR, UN) are never kept."""

PIXELS = frozenset({0x7FE00001, 0x7FE00002, 0x7FE00008, 0x7FE00009, 0x7FE00010})
"""Pixel Data in its three forms and the offset tables."""

_PATIENT_ID, _ETHNIC_GROUP = 0x00100020, 0x00102160
_KEPT_BULK = frozenset(
    """
    RedPaletteColorLookupTableData GreenPaletteColorLookupTableData BluePaletteColorLookupTableData
    AlphaPaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData
    SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData LUTData
    """.split()  # noqa: SIM905 - a list of names reads better than a list of strings
)
_KEPT_TEXT = frozenset(
    """
    AcquisitionDeviceProcessingCode AcquisitionMode AlgorithmName AlgorithmVersion AttenuationCorrectionMethod
    CardiacFramingType CodeValue CodingSchemeDesignator CodingSchemeVersion CollimatorGridName ContrastBolusRoute
    ConvolutionKernel DetectorLinesOfResponseUsed DimensionDescriptionLabel DoseModeName EnergyWindowName FilterType
    ImageFilter ImagedNucleus LongCodeValue Manufacturer ManufacturerModelName ModalityLUTType MultiCoilConfiguration
    MultiCoilElementName OpticalPathIdentifier OutputPower PVCRejection PhosphorType PlateType
    PositionReferenceIndicator ProcessingFunction PulseSequenceName RadiopharmaceuticalRoute
    ReceiveCoilManufacturerName ReceiveCoilName ReconstructionMethod RescaleType ScatterCorrectionMethod
    SegmentAlgorithmName SequenceName SoftwareVersions StackID TransducerData TransmitCoilManufacturerName
    TransmitCoilName TriggerSourceOrType TypeOfFilters
    """.split()  # noqa: SIM905
)
"""Text that a scanner writes about itself; none of it is in the table."""
_WORDS = frozenset(
    """
    CodeMeaning ContrastBolusAgent FrameLabel LUTExplanation LUTLabel ProtocolName ROIName Radiopharmaceutical
    SegmentDescription SegmentLabel SeriesDescription StageName StudyDescription ViewName WindowCenterWidthExplanation
    """.split()  # noqa: SIM905
)
_NEVER_WITHOUT = frozenset({"CodeMeaning", "SegmentLabel"})
_NUMBERS_THAT_NAME = frozenset({"OtherStudyNumbers"})
_BASIC = {
    "X": Action.REMOVE,
    "Z": Action.EMPTY,
    "X/Z": Action.EMPTY,
    "D": Action.DUMMY,
    "Z/D": Action.DUMMY,
    "X/D": Action.DUMMY,
    "X/Z/D": Action.DUMMY,
    "U": Action.UID,
    "X/Z/U*": Action.KEEP,
}


@cache
def table() -> dict[int, Row]:
    """The rows by tag. Private and repeating groups (50xx, 60xx) have none here: they always go."""
    raw = json.loads(files(__package__).joinpath(TABLE_FILE).read_text())
    return {int(tag, 16): Row(*rest) for tag, *rest in raw["rows"] if "x" not in tag}


@cache
def dictionary_vr(tag: int) -> str | None:
    """The (first) value representation of a standard attribute; None for one that the dictionary does not know."""
    entry = DicomDictionary.get(tag)
    return entry[0].split(" or ")[0] if entry else None


@cache
def keyword(tag: int) -> str:
    """The standard's keyword, or ""."""
    entry = DicomDictionary.get(tag)
    return entry[4] if entry else ""


@cache
def action_for(tag: int) -> Action:
    """What happens to elements with this tag, at any depth."""
    group = tag >> 16
    if group & 1 or group < 8 or tag & 0xFFFF == 0 or group >> 8 in (0x50, 0x60) or tag == 0x00080001:
        return Action.REMOVE
    if tag == _PATIENT_ID:
        return Action.PATIENT
    row, vr = table().get(tag), dictionary_vr(tag)
    if row is not None:
        return _by_table(tag, row, vr)
    return Action.REMOVE if vr is None else _by_representation(tag, vr)


@cache
def fallback(tag: int) -> Action:
    """What happens to a description of which no word may stay."""
    row = table().get(tag)
    if row is not None:
        return _BASIC[row.basic]
    return Action.DUMMY if keyword(tag) in _NEVER_WITHOUT else Action.REMOVE


def _by_table(tag: int, row: Row, vr: str | None) -> Action:
    if row.modified_dates and (vr is None or KIND.get(vr) == "time"):
        return Action.SHIFT
    if row.patient_characteristics == "K" and tag != _ETHNIC_GROUP:
        return Action.KEEP
    if row.keyword in _WORDS:
        return Action.WORDS
    if vr == "SQ" and row.basic == "X/Z/D":
        return Action.EMPTY  # an empty sequence is valid more often than one with a dummy item
    return _BASIC[row.basic]


def _by_representation(tag: int, vr: str) -> Action:
    name, kind = keyword(tag), KIND.get(vr)
    if kind == "uid":
        return Action.UID
    if kind == "time":
        return Action.SHIFT
    if kind == "text" and name in _WORDS:
        return Action.WORDS
    kept = (
        kind in ("number", "code", "age", "sequence")
        or (kind == "text" and name in _KEPT_TEXT)
        or (kind == "bulk" and (name in _KEPT_BULK or tag in PIXELS))
    )
    return Action.KEEP if kept and name not in _NUMBERS_THAT_NAME else Action.REMOVE
