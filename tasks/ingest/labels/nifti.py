"""NIfTI label map → mask. NIfTI knows no patient and no frame of reference: the caller says which image it is of."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from models.errors import LabelError
from models.geometry import Geometry
from models.volume import Mask, Segment
from tasks.imaging.resample import resample_to_grid

_LONGEST_AXIS = 8192
_MOST_VOXELS = 2**31
_MOST_LABELS = 512


@dataclass(frozen=True, slots=True)
class LabelMap:
    """Labels (z, y, x) on a grid in the space of an image that is yet to be named; 0 is the background."""

    labels: NDArray[np.integer[Any]]
    geometry: Geometry
    segments: tuple[Segment, ...]
    source: Literal["NIfTI"] = "NIfTI"

    def mask(self, geometry: Geometry) -> Mask:
        """The labels on `geometry`'s grid, by the nearest voxel where the grids differ. Raises LabelError."""
        labels, notes = self.labels, []
        if not self.geometry.same_grid(geometry):
            labels = resample_to_grid(self.labels, self.geometry, geometry, order=0)
            notes.append("brought from another grid to the image's by the nearest voxel")
            if not labels.any():
                raise LabelError(
                    "none of its labelled voxels lies in the image",
                    reason="no-overlap",
                    hint="its affine must be in the image's space (mm)",
                )
        occupancy = np.stack([(labels == segment.number) * np.uint8(255) for segment in self.segments])
        return Mask(occupancy, self.segments, geometry, self.source, tuple(notes))


def read_nifti(path: Path, names: Mapping[int, str] | None = None) -> LabelMap:
    """Read .nii or .nii.gz; `names` name values ("1" where they do not). Raises LabelError."""
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            raise LabelError("the file is not NIfTI", reason="unreadable-label")
        shape = tuple(int(n) for n in image.shape)
        _check_header(shape, int(image.header["sform_code"]), int(image.header["qform_code"]))
        values = np.asarray(image.dataobj).reshape(shape[:3])
        affine = np.asarray(image.affine, dtype=float)
    except LabelError:
        raise
    except (ImageFileError, HeaderDataError, EOFError, OSError, ValueError, KeyError, zlib.error) as error:
        raise LabelError(
            f"the file is not NIfTI that can be read ({type(error).__name__})", reason="unreadable-label"
        ) from None
    labels = _whole(values).transpose(2, 1, 0)
    geometry = Geometry.from_nifti(affine, shape[:3])
    return LabelMap(labels, geometry, _segments(labels, names or {}))


def _check_header(shape: Sequence[int], sform: int, qform: int) -> None:
    if len(shape) < 3 or any(n != 1 for n in shape[3:]):
        raise LabelError(f"a label map has three axes, not {len(shape)}", reason="not-a-label-map")
    if max(shape) > _LONGEST_AXIS or int(np.prod(shape, dtype=float)) > _MOST_VOXELS:
        raise LabelError("it claims to be larger than any image", reason="not-a-label-map")
    if sform <= 0 and qform <= 0:
        raise LabelError(
            "it does not say where it lies (sform and qform are both 0)",
            reason="no-orientation",
            hint="write it with the affine of its image",
        )


def _whole(values: NDArray[Any]) -> NDArray[np.integer[Any]]:
    """Integers, whatever they were stored as."""
    if np.issubdtype(values.dtype, np.integer) or values.dtype == bool:
        return values.astype(np.uint8) if values.dtype == bool else values
    if not np.isfinite(values).all() or np.abs(values - np.round(values)).max() > 1e-3:
        raise LabelError("its values are not whole numbers: a label map is wanted", reason="not-a-label-map")
    return np.round(values).astype(np.int32)


def _segments(labels: NDArray[np.integer[Any]], names: Mapping[int, str]) -> tuple[Segment, ...]:
    """A segment for each value that is there or named."""
    present = [int(value) for value in np.unique(labels) if value]
    if len(present) > _MOST_LABELS or any(value < 0 for value in present):
        raise LabelError(f"{len(present)} values, or negative ones: a label map is wanted", reason="not-a-label-map")
    if not present and not names:
        raise LabelError("it marks nothing", reason="empty-label", hint="name its values to take it as such")
    numbers = sorted({*present, *names})
    return tuple(Segment(number, names.get(number, str(number))) for number in numbers)
