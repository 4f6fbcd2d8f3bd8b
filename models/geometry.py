"""Where an image lies in the patient.

Arrays are indexed (z, y, x) and world coordinates are DICOM's LPS in mm (PS3.3 C.7.6.2.1.1: x to the patient's
left, y to posterior, z to the head). NIfTI's world is RAS: x and y change sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from models.errors import GeometryError

Triple = tuple[float, float, float]
Shape = tuple[int, int, int]
Matrix = tuple[tuple[float, float, float, float], ...]

# Within these bounds every way between voxels and millimetres is finite, and exact enough to come back.
_FARTHEST_MM, _FINEST_MM, _FLATTEST = 1e6, 1e-6, 1e-6
_LPS_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_REVERSE = np.array([[0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]], dtype=float)


@dataclass(frozen=True, slots=True)
class Geometry:
    """The grid of an image: `shape` (z, y, x) and `affine`, 4×4, from voxel index (z, y, x, 1) to LPS mm.

    The affine points at voxel centres. `frame_of_reference` is the (pseudonymous) Frame of Reference UID: two
    geometries may be compared only within one.
    """

    shape: Shape
    affine: Matrix
    frame_of_reference: str | None = None

    def __post_init__(self) -> None:
        matrix = np.asarray(self.affine, dtype=float)
        if matrix.shape != (4, 4) or len(self.shape) != 3:
            raise GeometryError(f"a geometry needs a 3-D shape and a 4×4 affine, not {self.shape} and {matrix.shape}")
        if min(self.shape) < 1:
            raise GeometryError(f"an image needs at least one voxel on each axis, not {self.shape}")
        if not np.isfinite(matrix).all():
            raise GeometryError("the affine holds NaN or infinity", reason="non-finite-geometry")
        if np.abs(matrix).max() > _FARTHEST_MM:
            raise GeometryError("the affine reaches farther than a kilometre: no image lies there")
        spacing = np.linalg.norm(matrix[:3, :3], axis=0)
        if spacing.min() < _FINEST_MM or abs(np.linalg.det(matrix[:3, :3] / spacing)) < _FLATTEST:
            raise GeometryError("the affine is singular: two axes coincide or a spacing is zero")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "affine", tuple(tuple(float(v) for v in row) for row in matrix))

    # -- construction -------------------------------------------------------------------------------------------

    @classmethod
    def from_spacing(
        cls,
        shape: Sequence[int],
        spacing: Sequence[float],
        origin: Sequence[float] = (0.0, 0.0, 0.0),
        frame_of_reference: str | None = None,
    ) -> Self:
        """An axial grid: z to the head, y to posterior, x to the left; `spacing` (z, y, x) mm, `origin` (x, y, z)."""
        affine = np.eye(4)
        affine[:3, :3] = 0.0
        for axis, (world, step) in enumerate(zip((2, 1, 0), spacing, strict=True)):
            affine[world, axis] = step
        affine[:3, 3] = origin
        return cls(_shape(shape), _matrix(affine), frame_of_reference)

    @classmethod
    def from_dicom(
        cls,
        *,
        image_orientation: Sequence[float],
        pixel_spacing: Sequence[float],
        first_position: Sequence[float],
        last_position: Sequence[float],
        shape: Sequence[int],
        slice_spacing: float | None = None,
        frame_of_reference: str | None = None,
    ) -> Self:
        """From Image Orientation (Patient), Pixel Spacing (row, column) and the first and last slice's positions.

        The z axis runs from `first_position` to `last_position`, so a gantry tilt is kept as shear; for a single
        slice it runs along the normal by `slice_spacing` (mm, 1 by default). PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1.
        """
        row = np.asarray(image_orientation[:3], dtype=float)
        column = np.asarray(image_orientation[3:], dtype=float)
        spacing = np.asarray(pixel_spacing, dtype=float)
        if not np.isfinite(np.r_[row, column, spacing]).all() or (spacing <= 0).any():
            raise GeometryError("orientation or pixel spacing is not finite and positive", reason="non-finite-geometry")
        if abs(np.linalg.norm(row) - 1) > 1e-3 or abs(np.linalg.norm(column) - 1) > 1e-3 or abs(row @ column) > 1e-3:
            raise GeometryError("ImageOrientationPatient is not two orthogonal unit vectors", reason="bad-orientation")
        first, last = np.asarray(first_position, dtype=float), np.asarray(last_position, dtype=float)
        count = int(shape[0])
        step = (last - first) / (count - 1) if count > 1 else np.cross(row, column) * (slice_spacing or 1.0)
        affine = np.eye(4)
        # ImageOrientationPatient's first vector points along a row, that is along x (columns change).
        affine[:3, 0], affine[:3, 1], affine[:3, 2] = step, column * spacing[0], row * spacing[1]
        affine[:3, 3] = first
        return cls(_shape(shape), _matrix(affine), frame_of_reference)

    @classmethod
    def from_nifti(cls, affine: ArrayLike, shape: Sequence[int], frame_of_reference: str | None = None) -> Self:
        """From a NIfTI affine (i, j, k → RAS mm) and `shape` (i, j, k). The array is to be transposed to (k, j, i)."""
        matrix = _LPS_RAS @ np.asarray(affine, dtype=float) @ _REVERSE
        return cls(_shape(tuple(shape)[::-1]), _matrix(matrix), frame_of_reference)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(tuple(data["shape"]), _matrix(data["affine"]), data.get("frame_of_reference"))

    # -- views --------------------------------------------------------------------------------------------------

    @property
    def matrix(self) -> NDArray[np.float64]:
        """`affine` as a 4×4 array."""
        return np.asarray(self.affine, dtype=float)

    @property
    def spacing(self) -> Triple:
        """Distance between neighbouring voxel centres along (z, y, x), mm."""
        return _triple(np.linalg.norm(self.matrix[:3, :3], axis=0))

    @property
    def origin(self) -> Triple:
        """LPS position (x, y, z) of the centre of voxel (0, 0, 0), mm."""
        return _triple(self.matrix[:3, 3])

    @property
    def direction(self) -> NDArray[np.float64]:
        """3×3: unit vectors of the array's z, y and x axes, as columns in LPS."""
        return self.matrix[:3, :3] / np.asarray(self.spacing)

    @property
    def normal(self) -> Triple:
        """Unit normal of the slices: Image Orientation's row × column."""
        axis = np.cross(self.direction[:, 2], self.direction[:, 1])
        return _triple(axis / np.linalg.norm(axis))

    @property
    def tilt_degrees(self) -> float:
        """Angle between the stacking axis and the slices' normal: the gantry tilt; 0 for a rectangular grid."""
        cosine = abs(float(np.dot(self.normal, self.direction[:, 0])))
        return float(np.degrees(np.arccos(min(1.0, cosine))))

    @property
    def extent(self) -> Triple:
        """Size of the whole grid, (z, y, x) mm."""
        z, y, x = (n * s for n, s in zip(self.shape, self.spacing, strict=True))
        return z, y, x

    @property
    def voxel_volume(self) -> float:
        """mm³."""
        return float(abs(np.linalg.det(self.matrix[:3, :3])))

    def to_world(self, index: ArrayLike) -> NDArray[np.float64]:
        """(…, 3) voxel indices (z, y, x) → (…, 3) LPS (x, y, z) mm."""
        points = np.asarray(index, dtype=float)
        return points @ self.matrix[:3, :3].T + self.matrix[:3, 3]

    def to_index(self, world: ArrayLike) -> NDArray[np.float64]:
        """(…, 3) LPS (x, y, z) mm → (…, 3) fractional voxel indices (z, y, x)."""
        points = np.asarray(world, dtype=float) - self.matrix[:3, 3]
        return points @ np.linalg.inv(self.matrix[:3, :3]).T

    def to_dicom(self) -> tuple[list[float], list[float], list[list[float]]]:
        """Image Orientation (Patient), Pixel Spacing (row, column) and each slice's Image Position (Patient)."""
        orientation = [*self.direction[:, 2], *self.direction[:, 1]]
        index = np.zeros((self.shape[0], 3))
        index[:, 0] = np.arange(self.shape[0])
        positions = [[float(v) for v in p] for p in self.to_world(index)]
        return [float(v) for v in orientation], [self.spacing[1], self.spacing[2]], positions

    def to_nifti(self) -> NDArray[np.float64]:
        """The NIfTI affine (i, j, k → RAS mm) of the array transposed to (x, y, z)."""
        return _LPS_RAS @ self.matrix @ _REVERSE

    def to_json(self) -> dict[str, Any]:
        """Plain values for JSON; floats survive exactly."""
        return {
            "shape": list(self.shape),
            "spacing": list(self.spacing),
            "affine": [list(row) for row in self.affine],
            "frame_of_reference": self.frame_of_reference,
        }

    # -- derived grids ------------------------------------------------------------------------------------------

    def cropped(self, slices: Sequence[slice]) -> Geometry:
        """The grid of `array[slices]` (z, y, x; step 1)."""
        bounds = [s.indices(n) for s, n in zip(slices, self.shape, strict=True)]
        start = np.array([b[0] for b in bounds], dtype=float)
        affine = self.matrix
        affine[:3, 3] = self.to_world(start)
        return Geometry(_shape([b[1] - b[0] for b in bounds]), _matrix(affine), self.frame_of_reference)

    def padded(self, before: Sequence[int], after: Sequence[int]) -> Geometry:
        """The grid with `before` and `after` voxels added on each axis (z, y, x)."""
        affine = self.matrix
        affine[:3, 3] = self.to_world(-np.asarray(before, dtype=float))
        shape = [n + b + a for n, b, a in zip(self.shape, before, after, strict=True)]
        return Geometry(_shape(shape), _matrix(affine), self.frame_of_reference)

    def resized(self, shape: Sequence[int]) -> Geometry:
        """The grid of `shape` over the same extent: outer voxel borders coincide, as in nnU-Net's resampling."""
        factor = np.asarray(self.shape, dtype=float) / np.asarray(shape, dtype=float)
        affine = self.matrix
        affine[:3, 3] = self.to_world((factor - 1.0) / 2.0)
        affine[:3, :3] = self.matrix[:3, :3] * factor
        return Geometry(_shape(shape), _matrix(affine), self.frame_of_reference)

    def respaced(self, spacing: Sequence[float]) -> Geometry:
        """The grid over the same extent whose shape comes nearest to `spacing` (z, y, x) mm."""
        shape = [max(1, round(n * old / new)) for n, old, new in zip(self.shape, self.spacing, spacing, strict=True)]
        return self.resized(shape)

    # -- comparison ---------------------------------------------------------------------------------------------

    def same_frame(self, other: Geometry) -> bool:
        """Whether both lie in one known frame of reference."""
        return self.frame_of_reference is not None and self.frame_of_reference == other.frame_of_reference

    def same_grid(self, other: Geometry, tolerance: float = 0.05) -> bool:
        """Whether voxel (z, y, x) is the same place in both: every corner within `tolerance` voxels."""
        if self.shape != other.shape:
            return False
        corners = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij")).reshape(3, -1).T
        return bool(np.abs(self.to_index(other.to_world(corners)) - corners).max() <= tolerance)


def _shape(values: Sequence[int]) -> Shape:
    z, y, x = (int(v) for v in values)
    return z, y, x


def _triple(values: ArrayLike) -> Triple:
    z, y, x = (float(v) for v in np.asarray(values, dtype=float))
    return z, y, x


def _matrix(values: ArrayLike) -> Matrix:
    a, b, c, d = (tuple(float(v) for v in row) for row in np.asarray(values, dtype=float))
    return a, b, c, d  # type: ignore[return-value]
