from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from models.series import MARKS, InstanceHeader, Plane, ScannedSeries, Source
from tasks.ingest.stack import Stack, stacks_of
from tests.tasks.ingest.synthetic import AXIAL

BASE = InstanceHeader(
    source=Source("x"),
    size=0,
    modified=0,
    transfer_syntax="1.2.840.10008.1.2.1",
    sop_class="",
    sop_uid="1.0",
    study_uid="1.1",
    series_uid="1.2",
    patient_id="P",
    modality="CT",
    image_type="",
    burned_in="",
    frame_of_reference="1.9",
    instance_number=1,
    acquired="",
    rows=8,
    columns=6,
    frames=1,
    samples_per_pixel=1,
    planar_configuration=0,
    photometric="MONOCHROME2",
    bits_allocated=16,
    bits_stored=16,
    high_bit=15,
    pixel_representation=0,
    has_pixels=True,
    pixel_offset=0,
    pixel_length=96,
    pixel_vr="OW",
    spacing_kind="PixelSpacing",
    rescale_type="",
    modality_lut=False,
    mosaic=0,
    planes=(),
)


def header(number: int, position: Any, orientation: Any = AXIAL, *, marks: dict[str, str] | None = None, **more: Any):
    values = tuple((marks or {}).get(name, "") for name in MARKS)
    plane = Plane(
        0,
        position=tuple(float(v) for v in position),
        orientation=tuple(float(v) for v in orientation),
        spacing=more.pop("spacing", (0.5, 0.75)),
        thickness=2.0,
        marks=values,
    )
    # The Instance Number lies, so that nobody can rely on it.
    return replace(BASE, sop_uid=f"1.0.{number}", instance_number=999 - number * 7 % 31, planes=(plane,), **more)


def series(headers: list[InstanceHeader]) -> ScannedSeries:
    return ScannedSeries("key", "image", headers[0].modality, "1.1", "1.2", tuple(headers))


def reasons(headers: list[InstanceHeader]) -> list[str]:
    stacks, refused = stacks_of(series(headers))
    assert stacks == []
    return [r.error.reason for r in refused]


def only(headers: list[InstanceHeader]) -> Stack:
    (stack,), refused = stacks_of(series(headers))
    assert refused == []
    return stack


def axial(places: Any, **more: Any) -> list[InstanceHeader]:
    return [header(n, (0, 0, z), **more) for n, z in enumerate(places)]


@st.composite
def frames(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A rotation's row and column."""
    angles = [draw(st.floats(-np.pi, np.pi)) for _ in range(3)]
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        c, s = np.cos(angle), np.sin(angle)
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[i, i], turn[j, j], turn[i, j], turn[j, i] = c, c, -s, s
        matrix = matrix @ turn
    return matrix[0], matrix[1]


@settings(max_examples=80, deadline=None)
@given(
    frame=frames(),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    gap=st.floats(0.3, 12),
    count=st.integers(2, 25),
    tilt=st.floats(-30, 30),
    digits=st.integers(4, 10),
    seed=st.integers(0, 2**32),
)
def test_any_orientation_permutation_and_tilt_gives_the_grid(
    frame: Any, origin: Any, gap: float, count: int, tilt: float, digits: int, seed: int
) -> None:
    row, column = (np.round(v, 6) for v in frame)
    normal = np.cross(*frame)
    step = normal * gap + frame[1] * gap * np.tan(np.radians(tilt))
    places = [np.round(np.asarray(origin) + n * step, digits) for n in range(count)]
    headers = [header(n, p, [*row, *column]) for n, p in enumerate(places)]
    expected = [h.sop_uid for h in headers]
    random.Random(seed).shuffle(headers)
    stack = only(headers)
    assert [s.header.sop_uid for s in stack.slices] == expected
    geometry = stack.geometry
    assert geometry.shape == (count, 8, 6)
    np.testing.assert_allclose(geometry.to_world([count - 1, 0, 0]), places[-1], atol=1e-3)
    np.testing.assert_allclose(geometry.to_world([0, 3, 2]), places[0] + 3 * 0.5 * column + 2 * 0.75 * row, atol=1e-3)
    assert geometry.tilt_degrees == pytest.approx(abs(tilt), abs=0.2)
    assert bool(stack.notes) == (geometry.tilt_degrees > 0.1)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(4, 30), gap=st.floats(0.5, 10), lost=st.integers(1, 28), seed=st.integers(0, 99))
def test_a_lost_slice_is_missed(count: int, gap: float, lost: int, seed: int) -> None:
    assume(lost < count - 1)
    headers = axial(n * gap for n in range(count) if n != lost)
    random.Random(seed).shuffle(headers)
    # Of four slices, two gaps cannot tell which is the regular one.
    assert reasons(headers) == ["missing-slices"] or (count == 4 and reasons(headers) == ["uneven-spacing"])


@pytest.mark.parametrize(
    ("places", "reason"),
    [
        ([0, 2, 4, 8, 10], "missing-slices"),
        ([0, 2, 4, 4, 6], "duplicate-slices"),
        ([0, 2, 4, 6.5, 8.5], "uneven-spacing"),
        ([0, 2, 4, 6, 7], "uneven-spacing"),
        ([0, 1, 3, 6, 10], "uneven-spacing"),
    ],
)
def test_uneven_places_are_refused_with_their_reason(places: list[float], reason: str) -> None:
    assert reasons(axial(places)) == [reason]


def test_decimals_cut_by_the_scanner_are_tolerated() -> None:
    stack = only(axial([round(1.25 * n, 1) for n in range(21)]))
    assert stack.geometry.spacing[0] == pytest.approx(1.25)


def test_slices_shifted_in_their_plane_are_refused() -> None:
    headers = [header(n, (0.0 if n != 3 else 1.5, 0, 2.0 * n)) for n in range(6)]
    assert reasons(headers) == ["shifted-slices"]


@pytest.mark.parametrize("count", [1, 2])
def test_a_localiser_beside_a_stack_is_told_apart(count: int) -> None:
    scout = [header(100 + n, (0, 5.0 * n, 0), (1, 0, 0, 0, 0, -1)) for n in range(count)]
    stacks, refused = stacks_of(series([*scout, *axial(range(5))]))
    assert [len(s.slices) for s in stacks] == ([5] if count == 1 else [5, 2])
    assert [r.error.reason for r in refused] == (["mixed-orientation"] if count == 1 else [])


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"rows": 16}, "mixed-matrix"),
        ({"spacing": (1.0, 1.0)}, "mixed-spacing"),
        ({"photometric": "RGB"}, "stray-slice"),
    ],
)
def test_a_slice_of_another_kind_is_set_aside(more: dict[str, Any], reason: str) -> None:
    stacks, refused = stacks_of(series([*axial(range(5)), header(100, (0, 0, 5), **more)]))
    assert [len(s.slices) for s in stacks] == [5]
    assert [r.error.reason for r in refused] == [reason]


def test_echoes_at_the_same_places_become_stacks_in_their_order() -> None:
    headers = [
        header(10 * e + n, (0, 0, n), marks={"echo": str(echo), "acquisition": str(n)})
        for e, echo in enumerate([9.2, 4.6, 13.8])
        for n in range(4)
    ]
    random.Random(1).shuffle(headers)
    stacks, refused = stacks_of(series(headers))
    assert refused == []
    assert [{s.plane.marks[MARKS.index("echo")] for s in stack.slices} for stack in stacks] == [
        {"4.6"},
        {"9.2"},
        {"13.8"},
    ]


def test_marks_that_vary_without_sharing_places_split_nothing() -> None:
    headers = [header(n, (0, 0, n), marks={"trigger": str(n * 31), "acquisition": str(n)}) for n in range(6)]
    assert len(only(headers).slices) == 6


def test_the_order_of_files_changes_nothing() -> None:
    headers = [header(10 * t + n, (0, 0, n), marks={"temporal": str(t)}) for t in range(12) for n in range(3)]
    first = stacks_of(series(headers))
    for seed in range(5):
        shuffled = headers[:]
        random.Random(seed).shuffle(shuffled)
        assert stacks_of(series(shuffled)) == first


def test_contradicting_instances_refuse_the_whole_series() -> None:
    good = axial(range(4))
    assert reasons([*good[:-1], replace(good[-1], patient_id="Q")]) == ["mixed-patients"]
    assert reasons([*good[:-1], replace(good[-1], modality="MR")]) == ["mixed-modality"]
    assert reasons([*good[:-1], replace(good[-1], sop_uid=good[0].sop_uid)]) == ["conflicting-instances"]
    assert reasons([*good[:-1], replace(good[-1], flaw="cut", flaw_reason="truncated-pixels")]) == ["truncated-pixels"]


@pytest.mark.parametrize("orientation", [(1, 0, 0, 1, 0, 0), (2, 0, 0, 0, 2, 0), (1, 0, 0, 0.5, 0.8, 0)])
def test_an_orientation_that_is_none_is_refused(orientation: Any) -> None:
    assert reasons([header(n, (0, 0, n), orientation) for n in range(3)]) == ["bad-orientation"]


def test_what_has_no_place() -> None:
    slices = [header(n, ()) for n in range(2)]
    assert reasons(slices) == ["no-position", "no-position"]
    films = [replace(h, modality="CR") for h in slices]
    stacks, refused = stacks_of(series(films))
    assert refused == []
    assert [s.geometry.spacing for s in stacks] == [(2.0, 0.5, 0.75)] * 2
    assert reasons([header(n, (0, 0, n), spacing=()) for n in range(2)]) == ["no-spacing"]
    bare = only([replace(header(0, (), spacing=()), modality="US")])
    assert bare.geometry.spacing == (2.0, 1.0, 1.0)
    assert "no pixel spacing" in bare.notes[0]
