"""Whatever numbers stand for places: stacks, grids and the ways between voxels and millimetres."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final

import numpy as np
from hypothesis import strategies as st

from models.errors import GeometryError
from models.geometry import Geometry
from models.series import InstanceHeader, Numbers, ScannedSeries
from tasks.ingest.elements import MemoryStream
from tasks.ingest.headers import parse
from tasks.ingest.stack import stacks_of
from tests.fuzz.dicom import element, part10
from tests.fuzz.headers import Source, image

_EXTREMES: Final = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1e-3,
    5e-324,
    1e-160,
    1e-12,
    1e12,
    1e154,
    1e160,
    1.7e308,
    math.inf,
    math.nan,
)
_SHAPE, _SPACING, _POSITION, _ORIENTATION = struct.Struct("<4B"), 3, 3, 6
_PLAIN: Final = parse(MemoryStream(part10(image())), Source("a.dcm"), modified=0)


def target(data: bytes) -> None:
    """Grids from numbers, in each of the ways that a file can give them. Raises GeometryError alone."""
    count, *shape = _SHAPE.unpack(data[:4].ljust(4, b"\1"))
    values = _numbers(data[4:])
    orientation, spacing = tuple(next(values) for _ in range(6)), tuple(next(values) for _ in range(3))
    positions = [tuple(next(values) for _ in range(3)) for _ in range(1 + count % 6)]
    shape = [max(1, n) for n in shape]
    made: list[Callable[[], Geometry]] = [
        lambda: Geometry.from_spacing(shape, spacing, positions[0]),
        lambda: Geometry.from_nifti(np.array([*orientation, *spacing, *positions[0], 0, 0, 0, 1]).reshape(4, 4), shape),
        lambda: Geometry.from_dicom(
            image_orientation=orientation,
            pixel_spacing=spacing[1:],
            first_position=positions[0],
            last_position=positions[-1],
            shape=shape,
            slice_spacing=spacing[0],
        ),
    ]
    for make in made:
        with suppress(GeometryError):
            _use(make())
    stacks, refused = stacks_of(_series(orientation, spacing, positions))
    assert stacks or refused
    for stack in stacks:
        _use(stack.geometry)


def _use(geometry: Geometry) -> None:
    """What later stages ask of a grid: all of it is there, and finite."""
    corners = np.array([(0, 0, 0), [n - 1 for n in geometry.shape]], dtype=float)
    world = geometry.to_world(corners)
    told = [geometry.spacing, geometry.origin, geometry.direction, geometry.normal, geometry.extent]
    told += [geometry.voxel_volume, geometry.tilt_degrees, world, geometry.to_index(world), geometry.to_nifti()]
    assert all(np.isfinite(one).all() for one in told), geometry
    assert min(geometry.spacing) > 0, geometry
    assert geometry.voxel_volume > 0, geometry
    assert Geometry.from_json(json.loads(json.dumps(geometry.to_json(), allow_nan=False))) == geometry
    assert geometry.same_grid(geometry)
    orientation, spacing, positions = geometry.to_dicom()
    assert np.isfinite([*orientation, *spacing, *np.ravel(positions)]).all()
    geometry.resized([max(1, n // 2) for n in geometry.shape])
    geometry.respaced((1.0, 1.0, 1.0)) if max(geometry.extent) < 1e6 else None
    geometry.padded((1, 1, 1), (0, 2, 1)).cropped([slice(1, None), slice(1, -2), slice(1, -1)])


def _series(orientation: Numbers, spacing: Numbers, positions: list[Numbers]) -> ScannedSeries:
    planes = [_header(n, orientation, spacing, position) for n, position in enumerate(positions)]
    return ScannedSeries("key", "image", "CT", "1", "2", tuple(planes))


def _header(number: int, orientation: Numbers, spacing: Numbers, position: Numbers) -> InstanceHeader:
    return parse(
        MemoryStream(
            part10(
                image(
                    element("SOPInstanceUID", f"1.2.3.{number}".encode()),
                    element("ImagePositionPatient", _text(position)),
                    element("ImageOrientationPatient", _text(orientation)),
                    element("PixelSpacing", _text(spacing[1:])),
                    element("SpacingBetweenSlices", _text(spacing[:1])),
                    element("SliceThickness", _text(spacing[:1])),
                )
            )
        ),
        Source("a.dcm"),
        modified=0,
    )


def _text(values: Numbers) -> bytes:
    return "\\".join(f"{value:.17g}" for value in values).encode()


def _numbers(data: bytes) -> Iterator[float]:
    """Doubles as they lie there, and then ones."""
    for (value,) in struct.iter_unpack("<d", data[: len(data) // 8 * 8]):
        yield value
    while True:
        yield 1.0


def packed(count: int, shape: tuple[int, int, int], values: list[float]) -> bytes:
    """What `target` unpacks: orientation (6), spacing (z, y, x), then positions."""
    return _SHAPE.pack(count, *shape) + struct.pack(f"<{len(values)}d", *values)


def stack(count: int, step: tuple[float, float, float] = (0.0, 0.0, 2.0), scale: float = 1.0) -> list[float]:
    """The numbers of an axial stack."""
    positions = [scale * n * part for n in range(count) for part in step]
    return [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 2.0 * scale, scale, scale, *positions]


def seeds() -> list[bytes]:
    """Grids that are right: one slice, several, tilted, large and small."""
    return [
        packed(0, (1, 6, 5), stack(1)),
        packed(3, (4, 6, 5), stack(4)),
        packed(3, (4, 6, 5), stack(4, (0.0, 0.5, 2.0))),
        packed(3, (4, 6, 5), stack(4, scale=1e-3)),
        packed(5, (6, 255, 255), stack(6, scale=100.0)),
    ]


@st.composite
def _spoilt(draw: st.DrawFn) -> bytes:
    count = draw(st.integers(1, 6))
    values = stack(count, draw(st.sampled_from(((0.0, 0.0, 2.0), (0.0, 0.5, 2.0), (1e-9, 0.0, 1e-9)))))
    scale = draw(st.sampled_from((1.0, 1.0, 1e-150, 1e-100, 1e-5, 1e5, 1e100, 1e150)))
    values = [value * scale if n >= _ORIENTATION else value for n, value in enumerate(values)]
    wrong = st.one_of(st.sampled_from(_EXTREMES), st.floats(), st.floats(-10, 10))
    for place in draw(st.lists(st.integers(0, len(values) - 1), max_size=4)):
        values[place] = draw(wrong)
    return packed(count - 1, draw(st.tuples(*[st.integers(1, 255)] * 3)), values)


shaped = _spoilt()
"""Stacks with some numbers that are none, denormal or beyond all measure."""
