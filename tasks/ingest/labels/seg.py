"""DICOM Segmentation → mask (PS3.3 A.51, C.8.20.2): BINARY, FRACTIONAL and LABELMAP, in any order of frames.

A frame finds its slice by Image Position (Patient) in the frame of reference; the instances it names count only for
flat images, which have no positions. Frames on the image's own voxels are copied; on another grid the segments are
put together, missing frames being empty, and resampled. Own reading over pydicom: highdicom's reader wants references
and dimensions that are whole, and many files' are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import iter_pixels
from pydicom.uid import ImplicitVRLittleEndian

from models.errors import LabelError
from models.geometry import Geometry
from models.pseudonyms import Pseudonymizer
from models.volume import Mask, Segment
from tasks.imaging.resample import resample_to_grid
from tasks.ingest.labels.parts import Belonging, Fit, code_of, fit_planes, pseudonyms, readable, safe_segment

_SAME = 0.1  # voxels by which a frame's corners may lie beside the image's voxels and still be theirs
_EVEN = 0.1  # of the distance between frames, by which one may lie beside its place in the stack
_MOST_PLANES = 4096
_MOST_FRAMES = 1_000_000

Vector = NDArray[np.float64]
Kind = Literal["BINARY", "FRACTIONAL", "LABELMAP"]


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames' place: `positions` (frame, 3) of the first pixels' centres in LPS mm, NaN where unknown,
    `orientation` the two unit vectors, `spacing` (row, column) mm, `between` (or else the thickness) in mm if given.
    `segments` holds each frame's segment number (0 in a LABELMAP), `instances` the instance it was drawn on."""

    positions: Vector
    orientation: Vector
    spacing: Vector
    between: float | None
    segments: tuple[int, ...]
    instances: tuple[str, ...]

    @property
    def placed(self) -> bool:
        """Whether every frame has a place in space."""
        return bool(np.isfinite(self.positions).all() and np.isfinite(self.orientation).all())


@dataclass(frozen=True, slots=True)
class Segmentation:
    """A segmentation that has been read, free of identities but for the pixels' data set, which stays in here."""

    belonging: Belonging
    kind: Kind
    segments: tuple[Segment, ...]
    frames: Frames
    size: tuple[int, int]
    full: int
    _dataset: Dataset = field(repr=False)
    source: Literal["SEG"] = "SEG"

    def fit(self, geometry: Geometry) -> Fit:
        """How well the frames lie on `geometry`: same voxels, or only the same space."""
        if not self.frames.placed:
            return Fit(self.size == geometry.shape[1:], 1.0, 0.0)
        first = geometry.to_index(self.frames.positions)
        centres = self.frames.positions + self._corner / 2
        same = bool(self._on_voxels(geometry, first).all())
        return fit_planes((first if same else geometry.to_index(centres))[:, 0], geometry, same_voxels=same)

    def mask(self, geometry: Geometry, instances: Sequence[str] = ()) -> Mask:
        """The segments on `geometry`'s grid, 255 inside. Raises LabelError."""
        occupancy = np.zeros((len(self.segments), *geometry.shape), dtype=np.uint8)
        notes: list[str] = []
        if not self.frames.placed:
            self._paste(occupancy, self._by_instance(geometry, instances))
        else:
            first = geometry.to_index(self.frames.positions)
            if self._on_voxels(geometry, first).all():
                notes += self._on_slices(occupancy, np.round(first).astype(int))
            else:
                notes += self._resampled(occupancy, geometry)
        if not occupancy.any():
            notes.append("no voxel is marked")
        return Mask(occupancy, self.segments, geometry, self.source, tuple(notes))

    # -- copying -------------------------------------------------------------------------------------------------

    @property
    def _corner(self) -> Vector:
        """From a frame's first to its last pixel, LPS mm."""
        row, column = self.frames.orientation[:3], self.frames.orientation[3:]
        return row * self.frames.spacing[1] * (self.size[1] - 1) + column * self.frames.spacing[0] * (self.size[0] - 1)

    def _on_voxels(self, geometry: Geometry, first: Vector) -> NDArray[np.bool_]:
        """For each frame whether its pixels are voxels of the image (or of the image's grid, were it larger)."""
        rows, columns = self.size
        # Both diagonals: with one, a frame turned about it would pass.
        row, column = self.frames.orientation[:3], self.frames.orientation[3:]
        across = row * self.frames.spacing[1] * (columns - 1)
        along = column * self.frames.spacing[0] * (rows - 1)
        corners = [(self.frames.positions, (0, 0, 0)), (self.frames.positions + across, (0, 0, columns - 1))]
        corners += [(self.frames.positions + along, (0, rows - 1, 0))]
        corners += [(self.frames.positions + along + across, (0, rows - 1, columns - 1))]
        nearest = np.round(first)
        error = [np.abs(geometry.to_index(world) - nearest - step).max(axis=1) for world, step in corners]
        return np.asarray(np.max(error, axis=0) <= _SAME)

    def _on_slices(self, occupancy: NDArray[np.uint8], first: NDArray[np.int_]) -> list[str]:
        shape = np.array(occupancy.shape[1:])
        size = np.array([1, *self.size])
        meets = ((first < shape) & (first + size > 0)).all(axis=1)
        if not meets.any():
            raise LabelError("none of its frames lies in the image", reason="no-overlap")
        self._paste(occupancy, [tuple(place) if ok else None for place, ok in zip(first, meets, strict=True)])
        missed = int((~meets).sum())
        return [f"{missed} of {len(meets)} frames lie outside the image"] if missed else []

    def _by_instance(self, geometry: Geometry, instances: Sequence[str]) -> list[tuple[int, ...] | None]:
        """Places of frames without positions: on the slice of the instance that they were drawn on."""
        if geometry.shape[1:] != self.size or len(instances) != geometry.shape[0]:
            raise LabelError("its frames have no position, and are not of the image's size", reason="no-overlap")
        slices = {uid: (number, 0, 0) for number, uid in enumerate(instances)}
        places = [slices.get(uid) for uid in self.frames.instances]
        if not any(places):
            raise LabelError("its frames have no position, and name no instance of the image", reason="no-overlap")
        return list(places)

    def _paste(self, occupancy: NDArray[np.uint8], places: Sequence[tuple[int, ...] | None]) -> None:
        """Copy each frame to its (slice, row, column); what leaves the image is cut off."""
        _, _, rows, columns = occupancy.shape
        for place, parts in zip(places, self._values(), strict=True):
            if place is None:
                continue
            z, y, x = place
            target = (slice(max(y, 0), min(y + self.size[0], rows)), slice(max(x, 0), min(x + self.size[1], columns)))
            source = (slice(target[0].start - y, target[0].stop - y), slice(target[1].start - x, target[1].stop - x))
            for plane, values in parts:
                np.maximum(occupancy[plane, z][target], values[source], out=occupancy[plane, z][target])

    def _values(self) -> Iterator[list[tuple[int, NDArray[np.uint8]]]]:
        """For each frame: (place of the segment in the mask, occupancy)."""
        order = {segment.number: place for place, segment in enumerate(self.segments)}
        frames = self._pixels()
        for number in self.frames.segments:
            with readable("SEG's pixel data"):
                pixels = next(frames, None)
            if pixels is None or pixels.shape != self.size:
                raise LabelError("the SEG's pixel data ends early", reason="truncated-label")
            if self.kind == "LABELMAP":
                there = [int(value) for value in np.unique(pixels) if int(value) in order]
                yield [(order[value], (pixels == value) * np.uint8(255)) for value in there]
            else:
                yield [(order[number], self._scaled(pixels))]

    def _pixels(self) -> Iterator[NDArray[Any]]:
        """Each frame's stored values (row, column)."""
        syntax = self._dataset.file_meta.get("TransferSyntaxUID", ImplicitVRLittleEndian)
        if self._dataset.BitsAllocated != 1 or syntax.is_encapsulated:
            yield from iter_pixels(self._dataset, raw=True)
            return
        # Frames of single bits follow each other without padding, which pydicom's iterator gets wrong.
        packed = np.frombuffer(self._dataset.PixelData, dtype=np.uint8)
        count = self.size[0] * self.size[1]
        for first in range(0, 8 * packed.size - count + 1, count):
            bits = np.unpackbits(packed[first // 8 : -(-(first + count) // 8)], bitorder="little")
            yield bits[first % 8 : first % 8 + count].reshape(self.size)

    def _scaled(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        if self.kind == "BINARY":
            return (pixels != 0) * np.uint8(255)
        share = np.minimum(pixels.astype(np.float32) / self.full, 1)
        return np.round(share * 255).astype(np.uint8)

    # -- another grid --------------------------------------------------------------------------------------------

    def _resampled(self, occupancy: NDArray[np.uint8], geometry: Geometry) -> list[str]:
        """Put the frames together on their own grid and bring that to the image's."""
        own, slices = self._own_grid(geometry.frame_of_reference)
        stack = np.zeros((len(self.segments), *own.shape), dtype=np.uint8)
        self._paste(stack, [(int(number), 0, 0) for number in slices])
        for target, segment in zip(occupancy, stack, strict=True):
            if segment.any():
                order: Literal[0, 1] = 1 if self.kind == "FRACTIONAL" else 0
                target[...] = np.round(resample_to_grid(segment, own, geometry, order=order))
        if stack.any() and not occupancy.any():
            raise LabelError("none of its voxels lies in the image", reason="no-overlap")
        before, after = (_millilitres(a, g) for a, g in ((stack, own), (occupancy, geometry)))
        return [f"brought from another grid to the image's: {before:.1f} ml were, {after:.1f} ml are marked"]

    def _own_grid(self, frame: str | None) -> tuple[Geometry, NDArray[np.int_]]:
        """The grid that the frames are slices of, and each one's slice."""
        normal = np.cross(self.frames.orientation[:3], self.frames.orientation[3:])
        height = self.frames.positions @ normal
        levels = np.unique(np.round(height, 3))
        gap = float(np.diff(levels).min()) if len(levels) > 1 else 0.0
        step = self.frames.between if self.frames.between and len(levels) > 1 else gap
        # The header's distance counts only where the frames keep to it.
        if step and np.abs(np.round((levels - levels[0]) / step) - (levels - levels[0]) / step).max() > _EVEN:
            step = gap
        place = (height - height.min()) / step if step else np.zeros(len(height))
        slices = np.round(place).astype(int)
        if np.abs(place - slices).max() > _EVEN or slices.max() >= _MOST_PLANES:
            raise LabelError("its frames are not evenly spaced slices of one grid", reason="irregular-frames")
        low, high = int(slices.argmin()), int(slices.argmax())
        own = Geometry.from_dicom(
            image_orientation=self.frames.orientation.tolist(),
            pixel_spacing=self.frames.spacing.tolist(),
            first_position=self.frames.positions[low].tolist(),
            last_position=self.frames.positions[high].tolist(),
            shape=(int(slices.max()) + 1, *self.size),
            slice_spacing=self.frames.between,
            frame_of_reference=frame,
        )
        return own, slices


def _millilitres(stack: NDArray[np.uint8], geometry: Geometry) -> float:
    return float(stack.sum(dtype=np.int64)) / 255 * geometry.voxel_volume / 1000


def read_seg(content: bytes, pseudonymizer: Pseudonymizer, *, words: frozenset[str] = frozenset()) -> Segmentation:
    """Read a segmentation; `words` are further harmless words of names. Raises LabelError."""
    with readable("SEG"):
        return _parsed(pydicom.dcmread(BytesIO(content), force=True), pseudonymizer, words)


# -- reading -----------------------------------------------------------------------------------------------------


def _parsed(dataset: Dataset, pseudonymizer: Pseudonymizer, words: frozenset[str]) -> Segmentation:
    kind = str(dataset.SegmentationType).strip().upper()
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise LabelError("its Segmentation Type is unknown", reason="unknown-segmentation-type")
    items = {int(item.SegmentNumber): item for item in dataset.SegmentSequence}
    # Segment 0 of a LABELMAP is its background, if it is described at all.
    numbers = [number for number in items if number or kind != "LABELMAP"]
    if not numbers:
        raise LabelError("it describes no segment", reason="empty-label")
    codes = {number: code_of(items[number], "SegmentedPropertyTypeCodeSequence") for number in numbers}
    segments = tuple(safe_segment(n, items[n].get("SegmentLabel"), codes[n], words) for n in numbers)
    frames = _frames(dataset, kind, pseudonymizer)
    if unknown := set(frames.segments) - set(numbers) - {0}:
        raise LabelError(f"{len(unknown)} segments have frames and no description", reason="unknown-segment")
    uid = dataset.get("FrameOfReferenceUID") if frames.placed else None
    belonging = Belonging.of(dataset, _named_series(dataset), [uid], pseudonymizer)
    full = int(dataset.get("MaximumFractionalValue") or 255)
    size = (int(dataset.Rows), int(dataset.Columns))
    return Segmentation(belonging, kind, segments, frames, size, full, dataset)  # type: ignore[arg-type]


def _named_series(dataset: Dataset) -> Iterator[object]:
    groups = [dataset, *(dataset.get("StudiesContainingOtherReferencedInstancesSequence") or ())]
    for group in groups:
        for series in group.get("ReferencedSeriesSequence") or ():
            yield series.get("SeriesInstanceUID")


def _frames(dataset: Dataset, kind: str, pseudonymizer: Pseudonymizer) -> Frames:
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    count = int(dataset.get("NumberOfFrames") or 1)
    own = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    if not 0 < count <= _MOST_FRAMES or len(own) not in (0, count):
        raise LabelError(f"{count} frames, but {len(own)} descriptions of frames", reason="frames-not-described")
    groups = [(frame, shared) for frame in own] or [(shared, shared)] * count
    positions = _numbers(groups, "PlanePositionSequence", "ImagePositionPatient", 3)
    orientation = _one(_numbers(groups, "PlaneOrientationSequence", "ImageOrientationPatient", 6), "orientation")
    spacing = _one(_numbers(groups, "PixelMeasuresSequence", "PixelSpacing", 2), "pixel spacing")
    distances = [
        _numbers(groups[:1], "PixelMeasuresSequence", keyword, 1)[0, 0]
        for keyword in ("SpacingBetweenSlices", "SliceThickness")
    ]
    placed = np.isfinite(positions).all() and np.isfinite(orientation).all() and np.isfinite(spacing).all()
    return Frames(
        positions,
        orientation,
        spacing,
        next((float(mm) for mm in distances if mm > 0), None),
        tuple(0 if kind == "LABELMAP" else _segment(*pair) for pair in groups),
        () if placed else tuple(_drawn_on(*pair, pseudonymizer) for pair in groups),
    )


def _numbers(groups: Sequence[tuple[Dataset, Dataset]], sequence: str, keyword: str, width: int) -> Vector:
    """(frame, width): an attribute of each frame's functional group, or of the shared one; NaN where neither has it."""
    result = np.full((len(groups), width), np.nan)
    cached: dict[int, Any] = {}
    for row, (own, shared) in zip(result, groups, strict=True):
        holder = own if own.get(sequence) else shared
        if id(holder) not in cached or holder is own:
            items = holder.get(sequence) or [Dataset()]
            cached[id(holder)] = items[0].get(keyword)
        value = cached[id(holder)]
        if value is not None:
            row[:] = np.asarray(value, dtype=float)
    return result


def _one(values: Vector, what: str) -> Vector:
    """What all frames share. Raises LabelError where they differ."""
    if np.isfinite(values).all() and np.ptp(values, axis=0).max() > 1e-4:
        raise LabelError(f"its frames differ in {what}", reason="mixed-frames")
    return np.asarray(values[0])


def _segment(own: Dataset, shared: Dataset) -> int:
    for group in (own, shared):
        for item in group.get("SegmentIdentificationSequence") or ():
            return int(item.ReferencedSegmentNumber)
    raise LabelError("a frame does not say which segment it shows", reason="unknown-segment")


def _drawn_on(own: Dataset, shared: Dataset, pseudonymizer: Pseudonymizer) -> str:
    for group in (own, shared):
        for derivation in group.get("DerivationImageSequence") or ():
            for image in derivation.get("SourceImageSequence") or ():
                return next(iter(pseudonyms([image.get("ReferencedSOPInstanceUID")], pseudonymizer)), "")
    return ""
