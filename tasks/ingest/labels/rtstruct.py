"""DICOM RT Structure Set → mask (PS3.3 A.19, C.8.8.5, C.8.8.6).

Contours find their slices by their position in the frame of reference, never by ContourImageSequence: its UIDs are
often those of another copy of the image. On its slice a contour becomes voxels by the voxel-centre rule.

Where slices are finer than contours, each contour stands for the slab that reaches half-way to its neighbours, so
that area times distance stays the structure's volume; nothing is interpolated. Planes more than 10 mm apart are taken
for separate pieces, and a slice inside a structure that no slab reaches is left empty and counted in a note.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

from models.errors import LabelError
from models.geometry import Geometry
from models.pseudonyms import Pseudonymizer
from models.volume import Mask, Segment
from tasks.ingest.labels.parts import Belonging, Fit, code_of, fit_planes, pseudonyms, readable, safe_segment
from tasks.ingest.labels.polygons import fill

_CONTOUR_DATA = 0x30060050
_CLOSED = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})
_FARTHEST_MM = 1e6  # as of an image; NaN and infinity are no nearer
_SEPARATE_MM = 10.0
_FLAT = 0.25  # slices by which a contour may leave its plane
_ONE_PLANE = 0.05  # slices within which contours lie in one plane
_JITTER = 0.02  # slices by which planes that were drawn evenly may deviate

Points = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Structure:
    """One region of interest: closed contours (n, 3) in LPS mm, in a (pseudonymous) frame of reference."""

    segment: Segment
    frame: str
    contours: tuple[Points, ...]


@dataclass(frozen=True, slots=True)
class StructureSet:
    """A structure set that has been read, free of identities."""

    belonging: Belonging
    structures: tuple[Structure, ...]
    notes: tuple[str, ...] = ()
    source: Literal["RTSTRUCT"] = "RTSTRUCT"

    def fit(self, geometry: Geometry) -> Fit:
        """How well the contours' planes meet the slices of `geometry`."""
        contours = [c for structure in self._within(geometry) for c in structure.contours]
        if not contours:
            return Fit(False, 0.0, 0.0)
        index = [geometry.to_index(c) for c in contours]
        flat = all(np.ptp(points[:, 0]) <= _FLAT for points in index)
        return fit_planes(np.array([points[:, 0].mean() for points in index]), geometry, same_voxels=flat)

    def mask(self, geometry: Geometry, instances: Sequence[str] = ()) -> Mask:
        """The structures on `geometry`'s grid, 255 inside. Raises LabelError."""
        structures = self._within(geometry)
        if not structures:
            raise LabelError(
                "none of its structures lies in the image's frame of reference", reason="frame-of-reference-mismatch"
            )
        occupancy = np.zeros((len(structures), *geometry.shape), dtype=np.uint8)
        notes = list(self.notes)
        if left := len(self.structures) - len(structures):
            notes.append(f"{left} structures lie in another frame of reference")
        for target, structure in zip(occupancy, structures, strict=True):
            notes += _draw(structure, geometry, target)
        if not occupancy.any():
            raise LabelError("none of its contours meets a voxel of the image", reason="no-overlap")
        return Mask(occupancy, tuple(s.segment for s in structures), geometry, self.source, tuple(notes))

    def _within(self, geometry: Geometry) -> tuple[Structure, ...]:
        return tuple(s for s in self.structures if s.frame and s.frame == geometry.frame_of_reference)


def read_rtstruct(content: bytes, pseudonymizer: Pseudonymizer, *, words: frozenset[str] = frozenset()) -> StructureSet:
    """Read a structure set; `words` are further harmless words of names. Raises LabelError."""
    with readable("RTSTRUCT"):
        dataset = pydicom.dcmread(BytesIO(content), force=True)
        return _parsed(dataset, pseudonymizer, words)


# -- reading -----------------------------------------------------------------------------------------------------


def _parsed(dataset: Dataset, pseudonymizer: Pseudonymizer, words: frozenset[str]) -> StructureSet:
    frames = dataset.get("ReferencedFrameOfReferenceSequence") or []
    usual = next((f.FrameOfReferenceUID for f in frames if f.get("FrameOfReferenceUID")), None)
    usual = usual or dataset.get("FrameOfReferenceUID")
    codes = {
        int(o.ReferencedROINumber): code_of(o, "RTROIIdentificationCodeSequence")
        for o in dataset.get("RTROIObservationsSequence") or ()
        if o.get("ReferencedROINumber") is not None
    }
    drawn = {int(c.ReferencedROINumber): c for c in dataset.get("ROIContourSequence") or ()}
    structures, empty, ignored = [], 0, Counter[str]()
    for item in dataset.get("StructureSetROISequence") or ():
        number = int(item.ROINumber)
        contours = tuple(_closed(drawn[number], ignored)) if number in drawn else ()
        if not contours:
            empty += 1
            continue
        segment = safe_segment(number, item.get("ROIName"), codes.get(number), words)
        frame = pseudonyms([item.get("ReferencedFrameOfReferenceUID") or usual], pseudonymizer)
        structures.append(Structure(segment, frame[0] if frame else "", contours))
    if not structures:
        raise LabelError("no structure has a closed contour", reason="empty-label")
    notes = [f"{empty} structures without a closed contour were left out"] if empty else []
    notes += [f"{count} {kind} contours were left out" for kind, count in sorted(ignored.items())]
    belonging = Belonging.of(dataset, _named_series(frames), (), pseudonymizer)
    frames_here = tuple(dict.fromkeys(s.frame for s in structures if s.frame))
    belonging = Belonging(belonging.patient, belonging.study, belonging.series, frames_here)
    return StructureSet(belonging, tuple(structures), tuple(notes))


def _named_series(frames: Sequence[Dataset]) -> Iterator[object]:
    for frame in frames:
        for study in frame.get("RTReferencedStudySequence") or ():
            for series in study.get("RTReferencedSeriesSequence") or ():
                yield series.get("SeriesInstanceUID")


def _closed(item: Dataset, ignored: Counter[str]) -> Iterator[Points]:
    for contour in item.get("ContourSequence") or ():
        kind = str(contour.get("ContourGeometricType") or "CLOSED_PLANAR").strip().upper()
        points = _points(contour)
        if kind not in _CLOSED:
            ignored[kind if kind in ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR") else "other"] += 1
        elif len(points) < 3:
            ignored["degenerate"] += 1
        else:
            yield points


def _points(contour: Dataset) -> Points:
    """(n, 3) LPS mm. Straight from the bytes: pydicom would make an object of each of 100,000 numbers."""
    if _CONTOUR_DATA not in contour:
        return np.empty((0, 3))
    element = contour.get_item(_CONTOUR_DATA)
    if isinstance(element, RawDataElement) and isinstance(element.value, bytes):
        # Not as an array of texts: each would take as much room as the longest.
        values = np.array([float(text) for text in element.value.strip(b" \0").split(b"\\")])
    else:
        values = np.asarray(contour[_CONTOUR_DATA].value or [], dtype=float).ravel()
    if values.size % 3 or not (np.abs(values) <= _FARTHEST_MM).all():
        raise LabelError("a contour is not a list of finite points", reason="bad-contour")
    return values.reshape(-1, 3)


# -- drawing -----------------------------------------------------------------------------------------------------


def _draw(structure: Structure, geometry: Geometry, target: NDArray[np.uint8]) -> list[str]:
    """Draw a structure into `target` (z, y, x); returns what a reader should know."""
    index = [geometry.to_index(points) for points in structure.contours]
    if max(float(np.ptp(points[:, 0])) for points in index) > _FLAT:
        raise LabelError(
            "a contour does not lie in a plane parallel to the image's slices",
            reason="tilted-contours",
            hint="export the structures on the series that they are to label",
        )
    planes = _planes(index)
    heights = np.array([z for z, _ in planes])
    nearest = _plane_of_slices(heights, geometry.shape[0], geometry.spacing[0])
    for number in np.unique(nearest[nearest >= 0]):
        target[nearest == number] = fill(planes[number][1], geometry.shape[1:]) * np.uint8(255)
    notes = []
    name = structure.segment.name
    if not target.any():
        notes.append(f"{name}: no voxel's centre lies inside")
    if outside := int(((heights <= -0.5) | (heights >= geometry.shape[0] - 0.5)).sum()):
        notes.append(f"{name}: {outside} of {len(planes)} contour planes lie outside the image")
    used = np.flatnonzero(nearest >= 0)
    if len(used) and (gaps := int((nearest[used[0] : used[-1]] < 0).sum())):
        notes.append(f"{name}: {gaps} slices between its contours have none")
    return notes


def _planes(index: Sequence[Points]) -> list[tuple[float, list[Points]]]:
    """Contours (z, y, x) of one plane together: its fractional slice index, and polygons (y, x)."""
    planes: list[tuple[float, list[Points]]] = []
    for z, points in sorted(((float(p[:, 0].mean()), p) for p in index), key=lambda entry: entry[0]):
        if not planes or z - planes[-1][0] > _ONE_PLANE:
            planes.append((z, []))
        planes[-1][1].append(points[:, 1:])
    return planes


def _plane_of_slices(heights: NDArray[np.float64], slices: int, slice_mm: float) -> NDArray[np.intp]:
    """For each slice the plane whose slab it lies in, or −1; `heights` are sorted.

    A slab holds its upper border and not its lower one.
    """
    gap = float(np.diff(heights).min()) if len(heights) > 1 else 1.0
    half = max(1.0, gap if gap * slice_mm <= _SEPARATE_MM else 1.0) / 2
    # The planes next below and above each slice: there may be far more planes than slices.
    above = np.searchsorted(heights, np.arange(slices))
    near = np.clip(np.stack([above - 1, above], axis=1), 0, len(heights) - 1)
    distance = np.round(np.arange(slices)[:, None] - heights[near], 4)
    reached = (distance > -half + _JITTER) & (distance <= half + _JITTER)
    # Of two planes equally far the lower one: ties go the way of the slab's closed border.
    cost = np.where(reached, np.abs(distance) - 1e-6 * (distance > 0), np.inf)
    return np.where(reached.any(axis=1), near[np.arange(slices), cost.argmin(axis=1)], -1)
