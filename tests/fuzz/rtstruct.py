"""Whatever a structure set says: read it and draw it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from models.errors import LabelError
from models.geometry import Geometry
from models.pseudonyms import Pseudonymizer
from tasks.ingest.labels.polygons import fill
from tasks.ingest.labels.rtstruct import read_rtstruct
from tests.fuzz.dicom import NUMBERS, Element, element, part10, spoilt

FRAME: Final = b"1.2.3.5"
_PSEUDONYMIZER = Pseudonymizer(b"s" * 32)
GRID: Final = replace(
    Geometry.from_spacing((4, 12, 10), (3.0, 1.0, 0.5)), frame_of_reference=_PSEUDONYMIZER.uid(FRAME.decode())
)
_TILTED: Final = replace(
    Geometry.from_dicom(
        image_orientation=(1, 0, 0, 0, 0.8, 0.6),
        pixel_spacing=(1, 1),
        first_position=(0, 0, 0),
        last_position=(0, -1, 9),
        shape=(4, 12, 10),
    ),
    frame_of_reference=GRID.frame_of_reference,
)
Points = Sequence[tuple[float, float, float]]


def target(data: bytes) -> None:
    """A structure set on two grids. Raises LabelError alone."""
    label = read_rtstruct(data, _PSEUDONYMIZER)
    for geometry in (GRID, _TILTED):
        fit = label.fit(geometry)
        assert math.isfinite(fit.inside)
        assert math.isfinite(fit.closeness)
        try:
            mask = label.mask(geometry)
        except LabelError:
            continue
        assert mask.occupancy.shape == (len(mask.segments), *geometry.shape)
    for structure in label.structures:
        fill([points[:, 1:] for points in structure.contours], (9, 7))


def square(z: float = 3.0, size: float = 4.0) -> Points:
    """A contour that is right."""
    return [(0.2, 0.3, z), (size, 0.3, z), (size, size, z), (0.2, size, z)]


def structure_set(contours: Sequence[bytes], *, kind: bytes = b"CLOSED_PLANAR", rois: int = 1) -> list[Element]:
    """A structure set of contours whose points stand there as text."""
    drawn = [[element("ContourGeometricType", kind), Element(0x30060050, "UN", text)] for text in contours]
    numbers = [str(n + 1).encode() for n in range(rois)]
    names = [b"GTV", b"Liver", b"Doe^Jane 19470811", b"\xff"]
    return [
        element("SOPClassUID", b"1.2.840.10008.5.1.4.1.1.481.3"),
        element("Modality", b"RTSTRUCT"),
        element("PatientID", b"MRN-4711"),
        element("StudyInstanceUID", b"1.2.3"),
        element("ReferencedFrameOfReferenceSequence", [[element("FrameOfReferenceUID", FRAME)]]),
        element(
            "StructureSetROISequence",
            [
                [
                    element("ROINumber", number),
                    element("ReferencedFrameOfReferenceUID", FRAME),
                    element("ROIName", names[n % len(names)]),
                ]
                for n, number in enumerate(numbers)
            ],
        ),
        element(
            "ROIContourSequence",
            [[element("ContourSequence", drawn), element("ReferencedROINumber", number)] for number in numbers],
        ),
        element("RTROIObservationsSequence", [[element("ReferencedROINumber", numbers[0])]]),
    ]


def text_of(points: Points) -> bytes:
    """Contour Data."""
    return "\\".join(f"{value:.9g}" for point in points for value in point).encode()


def written(contours: Sequence[bytes], **more: object) -> bytes:
    """As a file."""
    return part10(structure_set(contours, **more), ImplicitVRLittleEndian)  # type: ignore[arg-type]


def seeds() -> list[bytes]:
    """Structure sets that are right: one contour, a hole, three planes, two structures, a point."""
    one = text_of(square())
    return [
        written([one]),
        written([one, text_of(square(size=2.0))]),
        written([text_of(square(z)) for z in (0.0, 3.0, 6.0)], rois=2),
        written([b"1\\2\\3"], kind=b"POINT"),
        part10(structure_set([one]), ExplicitVRLittleEndian),
    ]


_EXTREME = st.sampled_from((math.nan, math.inf, -math.inf, 0.0, 1e308, -1e308, 1e155, 1e-320, 1e15, -1e15, 4.0, 3.0))
_NUMBER = st.one_of(st.floats(-2, 14), st.floats(-2, 14), _EXTREME, st.floats())


@st.composite
def _contour(draw: st.DrawFn) -> bytes:
    """Points on one plane as a rule: self-crossing, twice the same, empty, off the plane, out of this world."""
    if draw(st.integers(0, 5)) == 0:
        return draw(st.one_of(st.sampled_from(NUMBERS), st.binary(max_size=30)))
    z = draw(st.one_of(st.sampled_from((0.0, 3.0, 3.02, 4.5, 9.0)), _NUMBER))
    flat = draw(st.integers(0, 5)) > 0
    ordinate = draw(st.sampled_from((st.floats(-2, 14), _NUMBER, st.integers(-1, 11).map(float))))
    points = draw(st.lists(st.tuples(ordinate, ordinate, st.just(z) if flat else _NUMBER), max_size=8))
    if points and draw(st.booleans()):
        points = points * draw(st.integers(1, 3))
    return text_of(points)


_contours = st.lists(_contour(), min_size=1, max_size=5).flatmap(
    lambda found: st.sampled_from((found, found * 2, [*found, text_of(square())]))
)
shaped = st.one_of(
    st.builds(written, _contours),
    st.builds(lambda found: written(found, rois=3), _contours),
    spoilt(structure_set([text_of(square()), text_of(square(6.0))], rois=2)).map(part10),
)
"""Structure sets whose contours are odd, or of which one to four elements are wrong."""


def zigzag(corners: int, rows: int) -> np.ndarray:
    """A polygon (y, x) each of whose edges crosses every row: the longest that a short file can draw."""
    y = np.where(np.arange(corners) % 2, -1.0, rows + 1.0)
    return np.column_stack([y, np.linspace(0, 9, corners)])
