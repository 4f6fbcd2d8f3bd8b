"""A known movement is found again, the same each time; what no patient does is refused."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from models.geometry import Geometry
from models.volume import Volume
from tasks.imaging.registration import STILL, Rigid, register

MR = Geometry.from_spacing((28, 56, 48), (4.0, 3.0, 3.0), (-72.0, -84.0, -56.0), "2.25.1")
CT = Geometry.from_spacing((40, 64, 64), (3.0, 2.5, 2.5), (-80.0, -80.0, -60.0), "2.25.2")


def body(world: NDArray[np.float64]) -> NDArray[np.float64]:
    """What lies at LPS points: a trunk with two organs, a spine and a mark on one side."""
    x, y, z = np.moveaxis(world, -1, 0)
    trunk = (x / 62) ** 2 + (y / 48) ** 2 + (z / 80) ** 2 < 1
    liver = ((x + 25) / 24) ** 2 + ((y + 5) / 22) ** 2 + ((z - 18) / 26) ** 2 < 1
    kidney = ((x - 28) / 12) ** 2 + ((y - 14) / 11) ** 2 + ((z + 10) / 20) ** 2 < 1
    spine = (x**2 + (y - 30) ** 2 < 90) & (np.abs(z) < 55)
    mark = ((x - 20) / 9) ** 2 + ((y + 22) / 9) ** 2 + ((z + 28) / 9) ** 2 < 1
    return trunk * 1.0 + liver * 2.0 + kidney * 1.0 + spine * 3.0 + mark * 4.0


def seen(geometry: Geometry, moved: Rigid = STILL, *, as_ct: bool = False) -> Volume:
    """The body on a grid, after `moved`: MR shows its parts in other shades than CT."""
    index = np.moveaxis(np.indices(geometry.shape), 0, -1)
    world = geometry.to_world(index)
    back = np.linalg.inv(np.asarray(moved.matrix))
    tissue = body(world @ back[:3, :3].T + back[:3, 3])
    shades = (
        np.array([-1000, 0, 60, 40, 700, 30, 90, 120.0]) if as_ct else np.array([0, 90, 150, 210, 20, 240, 60, 30.0])
    )
    noise = np.random.default_rng(3).normal(0, 12 if as_ct else 4, geometry.shape)
    return Volume((shades[tissue.astype(int)] + noise).astype(np.float32), geometry, "CT" if as_ct else "MR")


def turned(degrees: float, shift: tuple[float, float, float]) -> Rigid:
    """About an oblique axis."""
    axis = np.array([0.3, -0.4, 0.866])
    axis /= np.linalg.norm(axis)
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.radians(degrees)
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k
    matrix[:3, 3] = shift
    return Rigid(tuple(map(tuple, matrix.tolist())))


def off(found: Rigid, truth: Rigid) -> tuple[float, float]:
    """(mm at the farthest of some points of the body, degrees) between two transforms."""
    a, b = np.asarray(found.matrix), np.asarray(truth.matrix)
    points = np.array([[x, y, z, 1.0] for x in (-40, 0, 40) for y in (-30, 0, 30) for z in (-50, 0, 50)]).T
    turn = a[:3, :3] @ b[:3, :3].T
    angle = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
    return float(np.linalg.norm(((a - b) @ points)[:3], axis=0).max()), float(angle)


def test_a_known_movement_is_found_again_and_always_the_same() -> None:
    truth = turned(8.0, (14.0, -9.0, 6.0))
    reference, other = seen(MR), seen(CT, truth, as_ct=True)
    found = register(reference, other)
    mm, degrees = off(found, truth)
    assert mm < 1
    assert degrees < 1
    assert found.improved
    assert register(reference, other) == found
