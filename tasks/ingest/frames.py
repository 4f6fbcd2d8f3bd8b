"""Where the frames of a multi-frame instance lie: enhanced functional groups (PS3.3 C.7.6.16)."""

from __future__ import annotations

import io
import logging
import math
import warnings
from dataclasses import replace
from typing import Any

from models.errors import BadInputError, HeaderError
from models.series import InstanceHeader, Numbers, Plane

_COMPLEX = "ComplexImageComponent"

# pydicom's warnings quote the values that it stumbles over, and those may be identities.
logging.getLogger("pydicom").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module=r"pydicom\.")


def full_header(data: bytes) -> Any:
    """The data set in `data` (a stream up to its pixels), by pydicom. Raises HeaderError where it cannot be read."""
    import pydicom

    try:
        return pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=True)
    except RecursionError:
        raise HeaderError("sequences are nested too deep", reason="nesting-too-deep") from None
    except Exception as error:  # noqa: BLE001 - pydicom raises whatever a broken value leads to
        raise HeaderError(f"unreadable header ({type(error).__name__})", reason="unreadable-header") from None


def planes_of(header: InstanceHeader, data: bytes) -> tuple[Plane, ...]:
    """One plane per frame; bare planes where frames have no functional groups. Raises HeaderError."""
    try:
        dataset = full_header(data)
        if header.mosaic:
            return _mosaic(header, dataset)
        shared = _first(dataset, "SharedFunctionalGroupsSequence")
        groups = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
        if not groups:
            return (*header.planes, *(Plane(frame=n) for n in range(1, header.frames)))
        if len(groups) != header.frames:
            raise HeaderError(
                f"{len(groups)} functional groups for {header.frames} frames", reason="bad-functional-groups"
            )
        return tuple(_plane(n, group, shared, header) for n, group in enumerate(groups))
    except RecursionError:
        raise HeaderError("sequences are nested too deep", reason="nesting-too-deep") from None
    except BadInputError:
        raise
    except Exception as error:  # noqa: BLE001 - pydicom raises whatever a broken value leads to
        raise HeaderError(
            f"unreadable functional groups ({type(error).__name__})", reason="bad-functional-groups"
        ) from None


def _mosaic(header: InstanceHeader, dataset: Any) -> tuple[Plane, ...]:
    """The slices that Siemens laid out as tiles of one image. Their normal and number are in its private CSA header.

    Image Position is the corner of the whole mosaic as if it were centred where one slice is.
    """
    with warnings.catch_warnings():
        # Importing it warns that it is for Siemens alone; so is this.
        warnings.simplefilter("ignore", UserWarning)
        from nibabel.nicom.csareader import get_csa_header, get_n_mosaic, get_slice_normal

    csa = get_csa_header(dataset, "image")
    count, normal = (get_n_mosaic(csa), get_slice_normal(csa)) if csa else (None, None)
    plane = header.planes[0]
    step = plane.between or plane.thickness
    if not (count and normal is not None and step and plane.position and plane.orientation and plane.spacing):
        raise HeaderError(
            "a mosaic whose slices cannot be placed",
            reason="mosaic",
            hint="send it as enhanced multi-frame or as single slices",
        )
    if count != header.mosaic or header.rows % header.tiles or header.columns % header.tiles:
        raise HeaderError("a mosaic whose headers contradict each other", reason="mosaic")
    rows, columns = header.rows - header.plane_rows, header.columns - header.plane_columns
    corner = [
        place + columns / 2 * plane.spacing[1] * along_row + rows / 2 * plane.spacing[0] * along_column
        for place, along_row, along_column in zip(
            plane.position, plane.orientation[:3], plane.orientation[3:], strict=True
        )
    ]
    return tuple(
        replace(plane, frame=n, position=tuple(c + n * step * float(v) for c, v in zip(corner, normal, strict=True)))
        for n in range(count)
    )


def _plane(number: int, frame: Any, shared: Any, header: InstanceHeader) -> Plane:
    def group(name: str) -> Any:
        return _first(frame, name) or _first(shared, name)

    measures, values = group("PixelMeasuresSequence"), group("PixelValueTransformationSequence")
    base = header.planes[0]
    slope = _number(values, "RescaleSlope", base.slope)
    if not slope:
        raise HeaderError("Rescale Slope is zero", reason="zero-slope")
    return Plane(
        frame=number,
        position=_numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3) or base.position,
        orientation=_numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6) or base.orientation,
        spacing=_numbers(measures, "PixelSpacing", 2) or base.spacing,
        thickness=_number(measures, "SliceThickness", base.thickness),
        between=_number(measures, "SpacingBetweenSlices", base.between),
        slope=slope,
        intercept=_number(values, "RescaleIntercept", base.intercept) or 0.0,
        marks=_marks(group, header),
    )


def _marks(group: Any, header: InstanceHeader) -> tuple[str, ...]:
    kinds = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
    kind = next((found for name in kinds if (found := group(name)) is not None), None)
    content, diffusion = group("FrameContentSequence"), group("MRDiffusionSequence")
    direction = _first(diffusion, "DiffusionGradientDirectionSequence")
    timing, values = group("MRTimingAndRelatedParametersSequence"), group("PixelValueTransformationSequence")
    trigger = group("CardiacSynchronizationSequence")
    return (
        f"{_text(kind, 'FrameType')}|{_text(kind, _COMPLEX)}|{_text(values, 'RescaleType')}",
        f"{_text(group('MREchoSequence'), 'EffectiveEchoTime')}|{_text(timing, 'FlipAngle')}",
        "|".join(
            (
                _text(diffusion, "DiffusionDirectionality"),
                _text(diffusion, "DiffusionBValue"),
                _text(direction, "DiffusionGradientOrientation"),
            )
        ),
        _text(content, "TemporalPositionIndex"),
        _text(content, "StackID"),
        _text(trigger, "NominalCardiacTriggerDelayTime"),
        _text(content, "FrameAcquisitionNumber"),
        str(header.instance_number if header.instance_number is not None else header.sop_uid),
    )


def _first(dataset: Any, name: str) -> Any:
    items = dataset.get(name) if dataset is not None else None
    return items[0] if items else None


def _text(dataset: Any, name: str) -> str:
    value = dataset.get(name) if dataset is not None else None
    return "" if value is None else str(value)


def _number(dataset: Any, name: str, default: float | None) -> float | None:
    value = dataset.get(name) if dataset is not None else None
    if value is None or value == "":
        return default
    number = float(value)
    if not math.isfinite(number):
        raise HeaderError(f"{name} is NaN or infinite", reason="non-finite-geometry")
    return number


def _numbers(dataset: Any, name: str, count: int) -> Numbers:
    values = dataset.get(name) if dataset is not None else None
    if values is None or values == "":
        return ()
    numbers = tuple(float(v) for v in values)
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise HeaderError(f"{name} does not hold {count} finite numbers", reason="non-finite-geometry")
    return numbers
