"""Bringing one series of a patient to another by a rigid transform.

Mattes mutual information (Mattes et al. 2003) over three resolutions, by SimpleITK: series of one patient differ in
what they show, not in shape. Voxels are drawn by a fixed seed and summed in one thread, so that the same two images
always give the same transform. What is found is judged before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Self

import numpy as np
import SimpleITK as sitk  # noqa: N813 - as its users call it
from numpy.typing import NDArray

from models.errors import BadInputError
from models.geometry import Geometry, Matrix
from models.volume import Volume

VERSION: Final = 1
"""Rises whenever the same two images would get another transform."""

MOST_MM, MOST_DEGREES = 60.0, 30.0
"""A patient who lies still between two series moves less; what lies further off is a wrong answer."""

_SHRINK, _SMOOTH = (4, 2, 1), (2.0, 1.0, 0.0)
_FINEST_MM = 2.0
_BINS, _SHARE, _SEED = 32, 0.2, 20260101
_SAMPLES = 20_000  # about: fewer voxels make the metric's noise larger than what is left to find
_ITERATIONS = 200
_IMPROVED = 1e-4


@dataclass(frozen=True, slots=True)
class Rigid:
    """Where a point of the reference lies in the other series: 4×4, LPS mm to LPS mm.

    `degrees` and `mm` are how far it turns and how far it moves the reference's centre, from where the search began;
    `before` and `after` the metric there and at its end (the lower the better).
    """

    matrix: Matrix
    degrees: float = 0.0
    mm: float = 0.0
    before: float = 0.0
    after: float = 0.0

    @property
    def plausible(self) -> bool:
        """Whether a patient can have moved so."""
        return self.degrees <= MOST_DEGREES and self.mm <= MOST_MM

    @property
    def improved(self) -> bool:
        """Whether the images agree better than before."""
        return self.after < self.before - _IMPROVED

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(**(dict(data) | {"matrix": tuple(tuple(float(v) for v in row) for row in data["matrix"])}))

    def on_reference(self, other: Geometry, reference: Geometry) -> Geometry:
        """The other series' grid as it lies in the reference's world."""
        affine = np.linalg.inv(np.asarray(self.matrix)) @ other.matrix
        return Geometry(other.shape, _rows(affine), reference.frame_of_reference)


STILL: Final = Rigid(((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0)))
"""Leaves everything where it is."""


def register(reference: Volume, other: Volume) -> Rigid:
    """The transform from the reference's world to the other's, both (z, y, x).

    In one frame of reference the search begins where both lie, and that stands where it finds nothing better;
    else it begins where their middles meet. Raises BadInputError: `registration-implausible` (more than 60 mm or
    30°), `registration-failed` (the images do not agree better, or do not overlap).
    """
    same = reference.geometry.same_frame(other.geometry)
    fixed, moving = _image(reference), _image(other)
    start = _start(reference.geometry, other.geometry, same=same)
    found = _searched(fixed, moving, start, reference.geometry)
    if not found.improved:
        if same:
            return STILL
        raise BadInputError(
            "registration made the two series agree no better",
            hint="look whether both show the same part of the body",
            reason="registration-failed",
        )
    if not found.plausible:
        raise BadInputError(
            f"registration would move the series by {found.mm:.0f} mm and {found.degrees:.0f}°",
            hint=f"no patient moves more than {MOST_MM:.0f} mm or {MOST_DEGREES:.0f}° between two series",
            reason="registration-implausible",
        )
    return found


def _searched(fixed: Any, moving: Any, start: Any, grid: Geometry) -> Rigid:
    method = sitk.ImageRegistrationMethod()
    method.SetGlobalDefaultNumberOfThreads(1)
    method.SetNumberOfThreads(1)
    method.SetMetricAsMattesMutualInformation(_BINS)
    method.SetMetricSamplingStrategy(method.RANDOM)
    voxels = math.prod(fixed.GetSize())
    shares = [min(1.0, max(_SHARE, _SAMPLES * shrink**3 / voxels)) for shrink in _SHRINK]
    method.SetMetricSamplingPercentagePerLevel(shares, _SEED)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=2.0, minStep=1e-3, numberOfIterations=_ITERATIONS, relaxationFactor=0.6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(_SHRINK)
    method.SetSmoothingSigmasPerLevel(_SMOOTH)
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    method.SetInitialTransform(sitk.Euler3DTransform(start), inPlace=False)
    try:
        end = sitk.Euler3DTransform(sitk.CompositeTransform(method.Execute(fixed, moving)).GetNthTransform(0))
        before, after = (_agreement(fixed, moving, transform) for transform in (start, end))
    except RuntimeError:
        # ITK says so with a page of its own state.
        raise BadInputError(
            "the two series could not be registered: they hardly overlap", reason="registration-failed"
        ) from None
    begun, found = _matrix(start), _matrix(end)
    turn = found[:3, :3] @ begun[:3, :3].T
    degrees = math.degrees(math.acos(float(np.clip((np.trace(turn) - 1) / 2, -1, 1))))
    middle = np.append(grid.to_world((np.asarray(grid.shape) - 1) / 2), 1.0)
    mm = float(np.linalg.norm((found @ middle - begun @ middle)[:3]))
    return Rigid(_rows(found), degrees, mm, before, after)


def _agreement(fixed: Any, moving: Any, transform: Any) -> float:
    """The metric over all voxels of the finest level."""
    judge = sitk.ImageRegistrationMethod()
    judge.SetGlobalDefaultNumberOfThreads(1)
    judge.SetNumberOfThreads(1)
    judge.SetMetricAsMattesMutualInformation(_BINS)
    judge.SetInterpolator(sitk.sitkLinear)
    judge.SetInitialTransform(transform)
    return float(judge.MetricEvaluate(fixed, moving))


def _start(reference: Geometry, other: Geometry, *, same: bool) -> Any:
    """Turning about the reference's middle."""
    middle, goal = (g.to_world((np.asarray(g.shape) - 1) / 2) for g in (reference, other))
    start = sitk.Euler3DTransform()
    start.SetCenter([float(v) for v in middle])
    if not same:
        start.SetTranslation([float(v) for v in goal - middle])
    return start


def _image(volume: Volume) -> Any:
    """For ITK, no finer than 2 mm: a rigid transform needs no more, and a large CT would take minutes."""
    array, geometry = np.asarray(volume.array, np.float32), volume.geometry
    steps = [max(1, int(_FINEST_MM / spacing)) for spacing in geometry.spacing]
    array = _thinned(array, steps)
    affine = geometry.matrix
    affine[:3, 3] = geometry.to_world([(step - 1) / 2 for step in steps])
    affine[:3, :3] = affine[:3, :3] * steps
    thinned = Geometry(_shape(array), _rows(affine))
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetOrigin([float(v) for v in thinned.origin])
    image.SetSpacing([float(v) for v in thinned.spacing[::-1]])
    # ITK wants orthogonal axes; a gantry's tilt (shear) is what a rigid search may take up.
    columns, _ = np.linalg.qr(thinned.direction[:, ::-1])
    columns *= np.sign((columns * thinned.direction[:, ::-1]).sum(axis=0))
    image.SetDirection([float(v) for v in columns.ravel()])
    return image


def _thinned(array: NDArray[np.float32], steps: list[int]) -> NDArray[np.float32]:
    """Means of blocks of `steps` voxels."""
    for axis, step in enumerate(steps):
        count = array.shape[axis] // step
        if step > 1 and count:
            whole = np.take(array, range(count * step), axis=axis)
            split = (*whole.shape[:axis], count, step, *whole.shape[axis + 1 :])
            array = whole.reshape(split).mean(axis=axis + 1)
    return array


def _shape(array: NDArray[Any]) -> tuple[int, int, int]:
    z, y, x = array.shape
    return z, y, x


def _matrix(transform: Any) -> NDArray[np.float64]:
    """An Euler transform (about a centre) as 4×4."""
    turn = np.asarray(transform.GetMatrix()).reshape(3, 3)
    centre, shift = np.asarray(transform.GetCenter()), np.asarray(transform.GetTranslation())
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = turn, centre + shift - turn @ centre
    return matrix


def _rows(matrix: NDArray[np.float64]) -> Matrix:
    a, b, c, d = (tuple(float(v) for v in row) for row in matrix)
    return a, b, c, d  # type: ignore[return-value]
