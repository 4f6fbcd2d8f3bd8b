"""From headers to stacks: which planes form one image, in which order, on which grid.

Planes are ordered by their position along the slices' normal, never by Instance Number. A plane may lie off the even
grid between first and last by 1 % of the spacing, or by 0.06 mm (positions are often written with one decimal) but
then by no more than 10 % of it. A gap of whole steps is missing slices; whatever else is off is uneven spacing.
Nothing is filled in or left out: what does not form a stack is refused with its reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.errors import BadInputError, GeometryError, HeaderError
from models.geometry import Geometry
from models.series import InstanceHeader, Numbers, Plane, ScannedSeries

RELATIVE_TOLERANCE: Final = 0.01
ABSOLUTE_TOLERANCE_MM: Final = 0.06
LARGEST_TOLERANCE: Final = 0.1
SAME_PLACE_MM: Final = 0.01
SAME_DIRECTION: Final = 1e-3
SAME_SPACING_MM: Final = 1e-3
TILT_NOTED_DEGREES: Final = 0.1
PROJECTIONS: Final = frozenset({"CR", "DX", "MG", "IO", "PX", "RG", "RF", "XA", "US", "XC", "ES", "OP", "OT", "SC"})
"""Modalities whose images need no place in the patient."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One plane of one instance."""

    header: InstanceHeader
    plane: Plane


@dataclass(frozen=True, slots=True)
class Stack:
    """Slices in order, on one grid. `geometry` has no frame of reference yet: its UID is still an original."""

    slices: tuple[Slice, ...]
    geometry: Geometry
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Refused:
    """Slices that do not form an image, and why."""

    slices: tuple[Slice, ...]
    error: BadInputError


def stacks_of(series: ScannedSeries) -> tuple[list[Stack], list[Refused]]:
    """Every stack of a series and what fits into none; the same for any order of instances and any file names."""
    flawed = next((h for h in sorted(series.instances, key=lambda h: h.sop_uid) if h.flaw_reason), None)
    slices = [Slice(header, plane) for header in series.instances for plane in header.planes]
    slices.sort(key=lambda s: (s.header.sop_uid, s.plane.frame))
    if flawed is not None:
        return [], [Refused(tuple(slices), HeaderError(flawed.flaw, reason=flawed.flaw_reason))]
    try:
        _check_series(series)
    except BadInputError as error:
        return [], [Refused(tuple(slices), error)]
    stacks, refused = [], []
    groups: list[list[Slice]] = []
    grid = _grids(slices)
    for alike in _grouped(slices, grid):
        try:
            groups += _apart(alike)
        except BadInputError as error:
            refused.append(Refused(tuple(alike), error))
    groups.sort(key=lambda group: (-len(group), _order(group)))
    for group in groups:
        try:
            if len(group) == 1 < len(groups[0]):
                raise _stray(grid(group[0]), grid(groups[0][0]))
            stacks.append(_stack(group))
        except BadInputError as error:
            refused.append(Refused(tuple(group), error))
    return stacks, refused


# -- grouping -----------------------------------------------------------------------------------------------------


def _grids(slices: Sequence[Slice]) -> Callable[[Slice], tuple[Hashable, ...]]:
    """A function that tells what one image has in common: orientation, matrix, spacing, kind of pixels, frame of
    reference. Decimals differ a little between slices: nearly equal values count as one.

    Instances without a place stand alone, each of them.
    """
    orientation = _representatives({s.plane.orientation for s in slices}, SAME_DIRECTION)
    spacing = _representatives({s.plane.spacing for s in slices}, SAME_SPACING_MM)

    def grid(s: Slice) -> tuple[Hashable, ...]:
        header = s.header
        return (
            orientation[s.plane.orientation],
            (header.plane_rows, header.plane_columns),
            spacing[s.plane.spacing],
            header.samples_per_pixel,
            header.photometric,
            header.frame_of_reference,
            "" if s.plane.position else header.sop_uid,
        )

    return grid


def _representatives(values: set[Numbers], tolerance: float) -> dict[Numbers, Numbers]:
    """Each value's first neighbour within `tolerance`, in sorted order."""
    found: dict[Numbers, Numbers] = {}
    leaders: list[Numbers] = []
    for value in sorted(values):
        near = (
            other
            for other in leaders
            if len(other) == len(value) and all(abs(a - b) <= tolerance for a, b in zip(other, value, strict=True))
        )
        leader = next(near, None)
        if leader is None:
            leaders.append(leader := value)
        found[value] = leader
    return found


def _grouped(slices: Iterable[Slice], key: Callable[[Slice], Hashable]) -> list[list[Slice]]:
    groups: dict[Hashable, list[Slice]] = defaultdict(list)
    for s in slices:
        groups[key(s)].append(s)
    return list(groups.values())


def _apart(group: list[Slice]) -> list[list[Slice]]:
    """The group, or its parts where planes share places and their marks (echo, time, type, …) tell them apart.

    The fewest marks that do are used, the most meaningful first; where none do, the group stays whole.
    """
    if not _repeats(group):
        return [group]
    varying = [n for n in range(len(group[0].plane.marks)) if len({s.plane.marks[n] for s in group}) > 1]
    choices = [(n,) for n in varying] + [tuple(varying[:count]) for count in range(2, len(varying) + 1)]
    for marks in choices:
        parts = _grouped(group, lambda s, marks=marks: tuple(s.plane.marks[n] for n in marks))  # type: ignore[misc]
        if not any(_repeats(part) for part in parts):
            return sorted(parts, key=lambda part: _natural(tuple(part[0].plane.marks[n] for n in marks)))
    return [group]


def _natural(marks: tuple[str, ...]) -> tuple[tuple[int, float, str], ...]:
    """Marks in the order of their numbers where they are numbers."""
    return tuple((0, float(m), "") if m.replace(".", "", 1).isdecimal() else (1, 0.0, m) for m in marks)


def _repeats(group: Sequence[Slice]) -> bool:
    """Whether two planes lie at one place."""
    if len(group) < 2 or not group[0].plane.orientation or not all(s.plane.position for s in group):
        return False
    along = np.sort(_positions(group) @ _normal(group[0].plane))
    return bool((np.diff(along) < SAME_PLACE_MM).any())


def _order(group: Sequence[Slice]) -> tuple[tuple[tuple[int, float, str], ...], str, int]:
    first = min(group, key=lambda s: (s.header.sop_uid, s.plane.frame))
    return _natural(first.plane.marks), first.header.sop_uid, first.plane.frame


# -- checks -------------------------------------------------------------------------------------------------------


def _check_series(series: ScannedSeries) -> None:
    headers = series.instances
    if len({h.patient_id for h in headers}) > 1:
        raise HeaderError("instances of one series name different patients", reason="mixed-patients")
    if len({h.modality for h in headers}) > 1:
        raise HeaderError("instances of one series name different modalities", reason="mixed-modality")
    if len({h.sop_uid for h in headers}) < len(headers):
        raise HeaderError(
            "different instances share one SOP Instance UID",
            reason="conflicting-instances",
            hint="remove the wrong ones from the spool",
        )
    if not headers[0].modality:
        raise HeaderError("no Modality", reason="no-modality")


def _stray(lone: Sequence[Hashable], main: Sequence[Hashable]) -> GeometryError:
    """Why a single plane, by its grid, is no part of the series' largest stack."""
    for place, name in enumerate(("orientation", "matrix", "spacing")):
        if lone[place] != main[place]:
            return GeometryError(f"a single slice of another {name} than the rest", reason=f"mixed-{name}")
    return GeometryError("a single slice apart from the rest", reason="stray-slice")


def _stack(group: Sequence[Slice]) -> Stack:
    """One group as a stack. Raises GeometryError with the reason that it is none."""
    first = group[0]
    if not all(s.plane.position for s in group) or not first.plane.orientation:
        return _unplaced(group)
    if not first.plane.spacing:
        raise GeometryError("no Pixel Spacing", reason="no-spacing")
    if len(group) == 1:
        return _single(first)
    normal = _normal(first.plane)
    positions = _positions(group)
    order = np.argsort(positions @ normal, kind="stable")
    ordered, positions = tuple(group[i] for i in order), positions[order]
    _check_even(positions, normal)
    geometry = _geometry(ordered, positions[0], positions[-1])
    tilt = geometry.tilt_degrees
    notes = (f"gantry tilt of {tilt:.1f} degrees",) if tilt > TILT_NOTED_DEGREES else ()
    return Stack(ordered, geometry, notes + _spacing_notes(ordered))


def _check_even(positions: NDArray[np.float64], normal: NDArray[np.float64]) -> None:
    """Raise GeometryError unless `positions`, sorted along `normal`, are the points of one even line."""
    along = positions @ normal
    gaps = np.diff(along)
    if (gaps < SAME_PLACE_MM).any():
        count = int((gaps < SAME_PLACE_MM).sum())
        raise GeometryError(f"{count} slice(s) lie where another one does", reason="duplicate-slices")
    step = float(np.median(gaps))
    tolerance = max(RELATIVE_TOLERANCE * step, min(ABSOLUTE_TOLERANCE_MM, LARGEST_TOLERANCE * step))
    line = np.linspace(positions[0], positions[-1], len(positions))
    off = positions - line
    if np.linalg.norm(off, axis=1).max() <= tolerance and abs(gaps - step).max() <= 2 * tolerance:
        return
    steps = gaps / step
    whole = np.abs(steps - np.round(steps)) * step <= 2 * tolerance
    if (np.round(steps) > 1).any() and whole.all():
        missing = int((np.round(steps) - 1).sum())
        raise GeometryError(
            f"{missing} slice(s) are missing", reason="missing-slices", hint="send the whole series again"
        )
    if np.abs(off @ normal).max() <= tolerance and abs(gaps - step).max() <= 2 * tolerance:
        raise GeometryError("slices are shifted against each other in their plane", reason="shifted-slices")
    raise GeometryError(
        f"distances between slices run from {gaps.min():.3f} to {gaps.max():.3f} mm", reason="uneven-spacing"
    )


def _unplaced(group: Sequence[Slice]) -> Stack:
    """An image without a place in the patient: a projection, on a grid of its own."""
    s = group[0]
    if s.header.modality not in PROJECTIONS:
        raise GeometryError("no Image Position or Orientation (Patient)", reason="no-position")
    if len(group) > 1:
        raise GeometryError("frames without a place: a film is no volume", reason="no-position")
    notes = _spacing_notes(group)
    spacing = s.plane.spacing
    if not spacing:
        spacing, notes = (1.0, 1.0), ("no pixel spacing: 1 mm is assumed",)
    depth = s.plane.thickness if s.plane.thickness and s.plane.thickness > 0 else 1.0
    shape = (1, s.header.plane_rows, s.header.plane_columns)
    return Stack((s,), Geometry.from_spacing(shape, (depth, spacing[0], spacing[1])), notes)


def _single(s: Slice) -> Stack:
    geometry = _geometry((s,), np.asarray(s.plane.position), np.asarray(s.plane.position))
    return Stack((s,), geometry, _spacing_notes((s,)))


def _geometry(ordered: Sequence[Slice], first: NDArray[np.float64], last: NDArray[np.float64]) -> Geometry:
    header, plane = ordered[0].header, ordered[0].plane
    depths = [d for d in (plane.thickness, plane.between) if d is not None and d > 0]
    return Geometry.from_dicom(
        image_orientation=_orthonormal(plane.orientation),
        pixel_spacing=plane.spacing,
        first_position=[float(v) for v in first],
        last_position=[float(v) for v in last],
        shape=(len(ordered), header.plane_rows, header.plane_columns),
        slice_spacing=depths[0] if depths else None,
    )


def _orthonormal(orientation: Sequence[float]) -> list[float]:
    """The orientation, freed of the rounding in its decimals; one that is wrong is left for Geometry to refuse."""
    row, column = np.asarray(orientation[:3]), np.asarray(orientation[3:])
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if abs(lengths[0] - 1) > 1e-3 or abs(lengths[1] - 1) > 1e-3 or abs(row @ column) > 1e-3:
        return [float(v) for v in orientation]
    return [*(float(v) for v in row / lengths[0]), *(float(v) for v in column / lengths[1])]


def _spacing_notes(group: Sequence[Slice]) -> tuple[str, ...]:
    if group[0].header.spacing_kind == "ImagerPixelSpacing":
        return ("spacing at the detector: the patient's is smaller by the unknown magnification",)
    return ()


def _positions(group: Sequence[Slice]) -> NDArray[np.float64]:
    return np.array([s.plane.position for s in group], dtype=float)


def _normal(plane: Plane) -> NDArray[np.float64]:
    normal = np.cross(plane.orientation[:3], plane.orientation[3:])
    length = float(np.linalg.norm(normal))
    if not length > 0.5:
        raise GeometryError("ImageOrientationPatient is not two orthogonal unit vectors", reason="bad-orientation")
    return np.asarray(normal / length)
