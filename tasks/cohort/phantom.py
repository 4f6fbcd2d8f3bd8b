"""An upper abdomen that never was: CT numbers on a grid, and the truth about its liver and lesions.

Structures are implicit functions of the position in the patient (LPS mm, relative to the middle of the liver, on a
body of 300 × 200 mm): positive inside, about the distance to the surface. They are painted one over the other with
edges a voxel wide, so that oblique grids and partial volume come out as in a scanner. Sizes, places, contrast and
noise are drawn per patient, and a smooth deformation bends everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from models.geometry import Geometry

Array = NDArray[np.float32]
Point = tuple[float, float, float]

LIVER, LESION = 1, 2
AIR, FAT, WATER, MUSCLE, BONE = -1000.0, -102.0, 0.0, 58.0, 420.0
BODY_WIDTH, BODY_DEPTH = 150.0, 100.0
"""Half axes of the body that positions below refer to, mm."""


@dataclass(frozen=True, slots=True)
class Phantom:
    """`hu` (z, y, x) int16 and `truth` (z, y, x) uint8 (0, LIVER, LESION) on one grid, z to the head."""

    hu: NDArray[np.int16]
    truth: NDArray[np.uint8]
    geometry: Geometry

    def volume_ml(self, structure: int) -> float:
        """Millilitres of LIVER or LESION."""
        return float((self.truth == structure).sum()) * self.geometry.voxel_volume / 1000


def make_phantom(rng: np.random.Generator, *, oblique: bool = False) -> Phantom:
    """One patient's scan. `oblique` turns the slices a few degrees out of the axial plane."""
    width, depth = rng.uniform(0.92, 1.06), rng.uniform(0.9, 1.12)
    origin = np.array([rng.uniform(-8, 8), rng.uniform(-6, 6), -float(rng.integers(120, 900))])
    geometry = _draw_grid(rng, origin - np.array([0, 0, 8]), 2 * BODY_WIDTH * width + 26, oblique)
    scene = _Scene(rng, geometry, origin, np.array([width, depth, 1.0]))
    cavity = _paint_wall(scene)
    cavity = _paint_bones(scene, cavity)
    diaphragm = _paint_chest(scene, cavity)
    neighbours = _paint_organs(scene, cavity, diaphragm)
    truth = _paint_liver(scene, np.minimum(cavity - 2, -neighbours), diaphragm)
    return Phantom(_scan(scene), truth, geometry)


def _draw_grid(rng: np.random.Generator, middle: NDArray[np.float64], field: float, oblique: bool) -> Geometry:
    """A square field of view of about `field` mm around `middle`, 24–32 slices."""
    size = int(rng.choice([64, 72, 80]))
    slice_spacing = float(rng.choice([3.75, 4.0, 4.5, 5.0]))
    slices = int(np.clip(round(rng.uniform(108, 138) / slice_spacing), 24, 32))
    pixel = round(field / size, 2)
    angles = np.radians(rng.uniform(2.5, 6, 2) * rng.choice([-1, 1], 2)) if oblique else np.zeros(2)
    (cx, cy), (sx, sy) = np.cos(angles), np.sin(angles)
    row, column = np.array([cy, 0, -sy]), np.array([sx * sy, cx, sx * cy])
    through = np.cross(row, column) * slice_spacing * (slices - 1)
    # Rounded to a micrometre: positions are written as decimal strings of 16 characters.
    first = np.round(middle - through / 2 - (row + column) * pixel * (size - 1) / 2, 3)
    return Geometry.from_dicom(
        image_orientation=[*row, *column],
        pixel_spacing=(pixel, pixel),
        first_position=first,
        last_position=first + through,
        shape=(slices, size, size),
    )


class _Scene:
    """The grid's points in the standard body, bent, and the CT numbers painted so far."""

    def __init__(
        self, rng: np.random.Generator, geometry: Geometry, origin: NDArray[np.float64], scale: NDArray[np.float64]
    ) -> None:
        self.rng = rng
        self.shape = geometry.shape
        points = geometry.to_world(np.moveaxis(np.indices(geometry.shape), 0, -1))
        self.place = ((points - origin) / scale).astype(np.float32)
        self.x, self.y, self.z = (self.place[..., i] + self.field(5, 4.0) for i in range(3))
        self.edge = float(geometry.spacing[1])
        self.hu: Array = np.full(geometry.shape, AIR, np.float32)
        self.enhancement = float(rng.uniform(0.8, 1.12))
        self.grain = self.field(None, 1.0)

    def field(self, knots: int | None, sd: float) -> Array:
        """A random field, zero on average: cubic through `knots` per axis, or of voxel-sized grain without."""
        if knots is None:
            raw = ndimage.gaussian_filter(self.rng.standard_normal(self.shape, np.float32), 0.8)
        else:
            raw = self.rng.standard_normal((knots, knots, knots), np.float32)
            for size in self.shape:
                # Axis by axis: the axis in front is interpolated and goes to the back, so that all three get a turn.
                raw = np.tensordot(raw, _cubic(knots, size), axes=(0, 1))
        return np.asarray((raw - raw.mean()) * (sd / raw.std()), np.float32)

    def near(self, point: Point, jitter: float = 4.0) -> Point:
        """`point`, moved at random by about `jitter` mm: no two patients are alike."""
        x, y, z = np.asarray(point) + self.rng.normal(0, jitter / 2, 3)
        return float(x), float(y), float(z)

    def inside(self, distance: Array) -> Array:
        """Occupancy 0…1 of a structure, its edge a voxel wide."""
        return np.clip(distance / self.edge + 0.5, 0, 1)

    def paint(self, distance: Array, hu: float | Array) -> None:
        """Put a structure of `hu` over what is there."""
        self.hu += self.inside(distance) * (hu - self.hu)

    def contrast(self, plain: float, full: float) -> float:
        """CT number between before and after contrast medium, in this patient's phase, with some spread."""
        return plain + (full - plain) * self.enhancement + float(self.rng.normal(0, 3))

    def ellipsoid(self, centre: Point, radii: Point, turn: float = 0.0) -> Array:
        """Distance inside an ellipsoid, turned by `turn` degrees about the body's axis. Infinite radii: a cylinder."""
        c, s = np.float32(np.cos(np.radians(turn))), np.float32(np.sin(np.radians(turn)))
        dx, dy, dz = self.x - centre[0], self.y - centre[1], self.z - centre[2]
        scaled = [(c * dx + s * dy) / radii[0], (c * dy - s * dx) / radii[1], dz / radii[2]]
        q = np.sqrt(sum(p * p for p in scaled)) + 1e-3
        slope = np.sqrt(sum((p / r) ** 2 for p, r in zip(scaled, radii, strict=True))) / q
        return np.asarray((1 - q) / np.maximum(slope, 1 / max(r for r in radii if np.isfinite(r))), np.float32)

    def tube(self, points: list[Point], radius: float, end: float | None = None) -> Array:
        """Distance inside a tube along `points`, its radius going from `radius` to `end`."""
        far = np.full(self.shape, -1e3, np.float32)
        sizes = np.linspace(radius, radius if end is None else end, len(points))
        for a, b, ra, rb in zip(points, points[1:], sizes, sizes[1:], strict=False):
            along = np.asarray(b) - np.asarray(a)
            offset = (self.x - a[0], self.y - a[1], self.z - a[2])
            t = np.clip(sum(o * v for o, v in zip(offset, along, strict=True)) / float(along @ along), 0, 1)
            gap = sum((o - t * v) ** 2 for o, v in zip(offset, along, strict=True))
            np.maximum(far, ra + (rb - ra) * t - np.sqrt(gap), out=far, casting="same_kind")
        return far


@cache
def _cubic(knots: int, size: int) -> Array:
    """(size, knots): the matrix that interpolates `knots` values to `size` by a cubic spline."""
    return np.asarray(ndimage.zoom(np.eye(knots), (size / knots, 1), order=3), np.float32)


# -- the trunk ---------------------------------------------------------------------------------------------------


def _paint_wall(s: _Scene) -> Array:
    """Table, skin, fat and muscle. Returns the distance inside the cavity that they enclose."""
    table = s.place[..., 1] - (BODY_DEPTH + 7 + s.rng.uniform(0, 5) - (s.place[..., 0] / 75) ** 2)
    s.paint(np.minimum(3.5 - np.abs(table), 128 - np.abs(s.place[..., 0])), -40.0)
    waist = 1 - 0.05 * np.clip(-s.z / 60, 0, 1.2)
    u, v = np.abs(s.x) / (BODY_WIDTH * waist), np.abs(s.y) / BODY_DEPTH
    q = (u**2.5 + v**2.5) ** np.float32(0.4) + 1e-3
    slope = np.hypot((u / q) ** 1.5 / BODY_WIDTH, (v / q) ** 1.5 / BODY_DEPTH)
    body = np.minimum((1 - q) / slope, 60.0).astype(np.float32)
    fat = s.rng.uniform(9, 24) * (1 + 0.35 * np.clip(-s.y / 60, -0.6, 1)) + s.field(5, 1.5)
    muscle = s.rng.uniform(9, 13)
    s.paint(body, 5.0)
    s.paint(body - 2.5, FAT + 7 * s.grain)
    s.paint(body - fat, MUSCLE + 5 * s.grain)
    cavity = body - fat - muscle
    s.paint(cavity, FAT + 9 * s.grain + 70 * np.clip(s.field(16, 1.0) - 1.1, 0, 1.5))
    _paint_ribs(s, cavity + muscle / 2)
    return np.asarray(cavity, np.float32)


def _paint_ribs(s: _Scene, within_wall: Array) -> None:
    """Ribs run down and forward in the wall, and end at the costal margin."""
    angle = np.arctan2(np.abs(s.x), s.y)
    pitch = s.rng.uniform(25, 29)
    height = s.z + 32 * angle + s.rng.uniform(0, pitch)
    offset = (height + pitch / 2) % pitch - pitch / 2
    rib = 4.2 - np.hypot(within_wall, offset * 0.75)
    margin = (s.z - (34 * (angle - 0.5) - 72)) / 3
    s.paint(np.minimum(np.minimum(rib, margin), (angle - 0.42) * 40), BONE + 60 * s.grain)


def _paint_bones(s: _Scene, cavity: Array) -> Array:
    """Vertebrae with their discs, canal and processes, and the muscles along them. Returns the cavity left over."""
    taken = np.maximum(s.ellipsoid((0, 38, 0), (23, 18, np.inf)), s.ellipsoid((0, 74, 0), (34, 30, np.inf)))
    for side in (-1.0, 1.0):
        erector = s.ellipsoid((side * 36, 65, 0), (31, 19, np.inf), side * 12)
        taken = np.maximum(taken, erector)
        s.paint(erector, MUSCLE + 4 + 7 * s.grain)
        s.paint(np.minimum(s.ellipsoid((side * 35, 38, -60), (15, 17, 60)), cavity + 15), MUSCLE + 3 * s.grain)
    period = s.rng.uniform(32, 36)
    level = np.abs((s.z + s.rng.uniform(0, period)) % period - period / 2)
    disc = 4.5 - (period / 2 - level)
    process = 10 - level
    for side in (-1.0, 1.0):
        s.paint(np.minimum(s.ellipsoid((side * 30, 60, 0), (20, 5.5, np.inf), -side * 14), process), BONE)
    s.paint(np.minimum(s.ellipsoid((0, 79, 0), (4.5, 14, np.inf)), process + 3), BONE)
    s.paint(s.ellipsoid((0, 62, 0), (17, 14, np.inf)), BONE + 90)
    s.paint(s.ellipsoid((0, 61, 0), (10.5, 8, np.inf)), 32.0)
    body = s.ellipsoid((0, 38, 0), (23, 18, np.inf))
    s.paint(body, BONE + 40 - 15 * level)
    s.paint(body - 3.5, s.rng.uniform(150, 230) + 22 * s.grain)
    s.paint(np.minimum(body, disc), 92.0 + 5 * s.grain)
    return np.asarray(np.minimum(cavity, -taken - 1), np.float32)


def _paint_chest(s: _Scene, cavity: Array) -> Array:
    """Lungs and heart above the diaphragm. Returns the distance below it."""
    top = s.rng.uniform(46, 58)
    right = top - 30 * (((s.x + 68) / 80) ** 2 + ((s.y + 8) / 74) ** 2)
    left = top - 12 - 30 * (((s.x - 72) / 76) ** 2 + ((s.y + 4) / 70) ** 2)
    dome = np.where(np.abs(s.x) < 200, np.logaddexp(right / 8, left / 8) * 8, 0)
    below = (dome - s.z) * 0.8
    lung = np.minimum(-below, cavity + 2)
    s.paint(lung, -845 + 25 * s.grain + 120 * np.clip(s.field(14, 1.0) - 1.2, 0, 2))
    s.paint(np.minimum(np.abs(below) * -1 + 2.5, cavity + 2), MUSCLE)
    mediastinum = np.minimum(24 + s.field(5, 6.0) - np.abs(s.x - 4), -below)
    s.paint(np.minimum(mediastinum, cavity + 2), FAT + 45 + 25 * s.grain)
    heart = np.minimum(s.ellipsoid((28, -34, top + 32), (56, 44, 42), 25), np.minimum(-below, cavity - 2))
    s.paint(heart, s.contrast(45, 140) + 6 * s.grain)
    return np.asarray(below, np.float32)


# -- the organs --------------------------------------------------------------------------------------------------


def _paint_organs(s: _Scene, cavity: Array, diaphragm: Array) -> Array:
    """All but the liver. Returns the distance inside those that the liver must leave room for."""
    room = np.minimum(cavity - 2, diaphragm - 3)
    _paint_bowel(s, np.minimum(room, 20 - s.z))
    kidneys = np.maximum(_paint_kidney(s, -1.0, room), _paint_kidney(s, 1.0, room))
    spleen = np.minimum(s.ellipsoid(s.near((100, 28, 14)), (27, 44, 42), -18), room)
    s.paint(spleen, s.contrast(48, 122) + 5 * s.grain)
    stomach = np.minimum(np.minimum(s.ellipsoid(s.near((64, -34, 16), 8), (40, 34, 40), 20), room), -spleen - 3)
    _paint_hollow(s, stomach, level=s.rng.uniform(-58, -40), content=s.rng.uniform(15, 50))
    pancreas = s.tube([s.near(p) for p in ((-28, -8, -26), (4, -14, -14), (62, 2, 2))], 11, 7)
    s.paint(np.minimum(pancreas, room), s.contrast(40, 100) + 12 * s.grain)
    s.paint(s.ellipsoid((8, 11, 0), (10.5, 10.5, np.inf)), s.contrast(42, 172) + 3 * s.grain)
    cava = s.ellipsoid((-21, 12, 0), (12, 10, np.inf))
    s.paint(cava, s.contrast(42, 142) + 3 * s.grain)
    gallbladder = np.minimum(s.ellipsoid(s.near((-44, -46, -34), 6), (13, 17, 22), 20), room)
    s.paint(gallbladder + 1, 55.0)
    s.paint(gallbladder - 1, s.rng.uniform(4, 18) + 2 * s.grain)
    spine = s.ellipsoid((0, 42, 0), (34, 26, np.inf))
    return np.maximum.reduce([kidneys + 5, spleen + 4, stomach + 2, cava, gallbladder + 1, spine])


def _paint_kidney(s: _Scene, side: float, room: Array) -> Array:
    x, y, z = s.near((side * 61, 38, -40 if side < 0 else -28), 6)
    whole = s.ellipsoid((x, y, z), (25, 22, 46), side * 35)
    hilum = s.ellipsoid((x - side * 20, y - 6, z), (15, 10, 20), side * 35)
    kidney = np.minimum(np.minimum(whole, -hilum), room)
    s.paint(kidney, s.contrast(32, 178) + 5 * s.grain)
    s.paint(np.minimum(kidney, whole - 8), s.contrast(32, 138) + 9 * s.grain)
    s.paint(np.minimum(kidney, s.ellipsoid((x - side * 10, y - 3, z), (9, 7, 16), side * 35)), 4.0)
    return np.asarray(whole, np.float32)


def _paint_hollow(s: _Scene, distance: Array, level: float, content: float) -> None:
    """An organ with a wall, its content below `level` and gas, which rises to the front, above."""
    s.paint(distance, s.contrast(45, 88))
    s.paint(distance - 4, content + 6 * s.grain)
    s.paint(np.minimum(distance - 4, level - s.y), -930.0)


def _paint_bowel(s: _Scene, room: Array) -> None:
    for _ in range(int(s.rng.integers(11, 16))):
        centre = s.rng.uniform((-45, -62, -75), (98, 8, -12))
        radii = s.rng.uniform((12, 10, 12), (22, 16, 26))
        loop = np.minimum(s.ellipsoid(tuple(centre), tuple(radii), s.rng.uniform(0, 180)), room)
        gas = centre[1] - (s.rng.uniform(0, 6) if s.rng.random() < 0.3 else 99)
        _paint_hollow(s, loop, gas, content=s.rng.uniform(10, 45))
    path = ((-104, 12, -72), (-92, -22, -56), (-40, -60, -66), (30, -66, -58), (98, -30, -34), (108, 10, -60))
    colon = np.minimum(s.tube([s.near(p, 8) for p in path], s.rng.uniform(14, 18)), room)
    _paint_hollow(s, colon, level=s.rng.uniform(-62, -48), content=30.0)
    s.paint(colon - 4, s.hu + 90 * np.clip(s.field(12, 1.0), -1.5, 1.5))


# -- the liver ---------------------------------------------------------------------------------------------------


def _paint_liver(s: _Scene, room: Array, diaphragm: Array) -> NDArray[np.uint8]:
    """Liver, its vessels and one or two lesions. Returns the truth."""
    size = s.rng.uniform(0.9, 1.1)
    right = s.ellipsoid(s.near((-70, -4, -4), 6), (74 * size, 72 * size, 64 * size))
    left = s.ellipsoid(s.near((-4, -48, 16), 6), (70 * size, 30 * size, 32 * size), 14)
    blend = np.logaddexp(right / 6, left / 6) * 6 + s.field(7, 1.5)
    liver = np.minimum(np.minimum(blend, diaphragm - 3), room).astype(np.float32)
    parenchyma = s.contrast(s.rng.uniform(48, 62), 108)
    s.paint(liver, parenchyma + 5 * s.grain + s.field(8, 3.0))
    s.paint(np.minimum(liver, _vessels(s)), s.contrast(42, 150) + 3 * s.grain)
    truth = (liver > 0).astype(np.uint8) * np.uint8(LIVER)
    volume = float(np.exp(s.rng.uniform(np.log(11), np.log(120))))
    for millilitres in (volume, volume * s.rng.uniform(0.15, 0.6))[: 1 + int(s.rng.random() < 0.35)]:
        lesion = _paint_lesion(s, liver, max(millilitres, 5.0), parenchyma)
        truth[(lesion > 0) & (liver > 0)] = LESION
    return truth


def _vessels(s: _Scene) -> Array:
    """Portal vein from the hilum, hepatic veins to the vena cava under the diaphragm."""
    hilum, outlet = s.near((-34, -12, -6)), s.near((-22, 6, 42))
    portal = (((-96, -34, 6), 3.2), ((-102, 26, -10), 3.2), ((-80, -2, -36), 2.6), ((-6, -48, 18), 3.0))
    hepatic = (((-118, 6, 8), 2.8), ((-66, -54, 6), 2.8), ((14, -52, 24), 2.5))
    trunk = s.tube([(-10, -2, -24), hilum, (-52, -14, 0)], 7.5, 5.5)
    branches = [_branch(s, start, end, r) for start, ends in ((hilum, portal), (outlet, hepatic)) for end, r in ends]
    return np.maximum.reduce([trunk, *branches])


def _branch(s: _Scene, start: Point, end: Point, thin: float) -> Array:
    tip = s.near(end, 16)
    knee = s.near(tuple((np.asarray(start) + tip) / 2), 12)
    return s.tube([start, knee, tip], 5.5, thin * 0.7)


def _paint_lesion(s: _Scene, liver: Array, millilitres: float, parenchyma: float) -> Array:
    """A mass darker than the liver, often with a denser rim and a necrotic core, well inside where it fits."""
    radius = float((millilitres * 750 / np.pi) ** (1 / 3))
    whole = np.minimum(liver, 4 * s.edge)
    candidates = np.flatnonzero(whole >= min(0.5 * radius + 2, float(whole.max())))
    spot = np.unravel_index(int(s.rng.choice(candidates)), s.shape)
    centre = (float(s.x[spot]), float(s.y[spot]), float(s.z[spot]))
    stretch = s.rng.uniform(0.85, 1.2, 3)
    stretch /= np.cbrt(stretch.prod())
    lesion = s.ellipsoid(centre, tuple(radius * stretch), s.rng.uniform(0, 180)) + s.field(9, 0.09 * radius)
    lesion = np.minimum(lesion, liver)
    drop = s.rng.uniform(38, 64)
    rim = s.rng.uniform(0, 14) if s.rng.random() < 0.5 else 0.0
    s.paint(lesion, parenchyma - drop + rim + 7 * s.grain)
    s.paint(lesion - 0.3 * radius, parenchyma - drop - s.rng.uniform(0, 20) + 7 * s.grain)
    return np.asarray(lesion, np.float32)


# -- the scanner -------------------------------------------------------------------------------------------------


def _scan(s: _Scene) -> NDArray[np.int16]:
    """What the scanner makes of it: a little blur, and noise that is rougher through the middle of the body."""
    blurred = ndimage.gaussian_filter(s.hu, (0.3, 0.4, 0.4))
    noise = ndimage.gaussian_filter(s.rng.standard_normal(s.shape, np.float32), (0, 0.55, 0.55))
    depth = np.exp(-((s.x / BODY_WIDTH) ** 2 + (s.y / BODY_DEPTH) ** 2))
    sd = s.rng.uniform(7, 15) * (0.5 + 0.8 * depth)
    return np.rint(np.clip(blurred + noise / noise.std() * sd, -1024, 3071)).astype(np.int16)
