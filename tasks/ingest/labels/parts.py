"""What SEG and RTSTRUCT readers share: who a label is of, how well it fits a grid, and names that are safe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from models.errors import LabelError, NocturneError
from models.geometry import Geometry
from models.pseudonyms import Pseudonymizer
from models.volume import Mask, Segment
from tasks.ingest.deidentify import patient_of
from tasks.ingest.descriptions import safe_description

_SCHEME = re.compile(r"[A-Za-z0-9_]{1,16}")
_VALUE = re.compile(r"[A-Za-z0-9.-]{1,16}")


@dataclass(frozen=True, slots=True, order=True)
class Fit:
    """How well a label lies on a grid, better fits being greater: the same voxels, then the share of its planes that
    lie in the image, then the mean distance (mm, negative) from each to its slice."""

    same_voxels: bool
    inside: float
    closeness: float


@dataclass(frozen=True, slots=True)
class Belonging:
    """Whose label it is, in pseudonyms: `series` are the image series that it names, `frames` the frames of
    reference that it lies in (none for flat images)."""

    patient: str
    study: str
    series: tuple[str, ...]
    frames: tuple[str, ...]

    @classmethod
    def of(
        cls, dataset: Dataset, series: Iterable[object], frames: Iterable[object], pseudonymizer: Pseudonymizer
    ) -> Self:
        """From a label's header and the original UIDs that it names."""
        study = str(dataset.get("StudyInstanceUID") or "")
        return cls(
            patient=pseudonymizer.patient(patient_of(dataset)),
            study=pseudonymizer.uid(study) if study else "",
            series=pseudonyms(series, pseudonymizer),
            frames=pseudonyms(frames, pseudonymizer),
        )


def pseudonyms(uids: Iterable[object], pseudonymizer: Pseudonymizer) -> tuple[str, ...]:
    """Each UID's pseudonym, in order, without empty ones and repetitions."""
    return tuple(dict.fromkeys(pseudonymizer.uid(str(uid)) for uid in uids if uid))


class PlacedLabel(Protocol):
    """A label that has been read and can be put on an image's grid."""

    @property
    def source(self) -> Literal["SEG", "RTSTRUCT"]: ...

    @property
    def belonging(self) -> Belonging: ...

    def fit(self, geometry: Geometry) -> Fit:
        """How well it lies on a grid of its frame of reference."""
        ...

    def mask(self, geometry: Geometry, instances: Sequence[str] = ()) -> Mask:
        """On the grid of an image with these (pseudonymous) instances. Raises LabelError where it does not fit."""
        ...


def fit_planes(z: NDArray[np.float64], geometry: Geometry, *, same_voxels: bool) -> Fit:
    """The fit of planes at fractional slice indices `z`."""
    inside = (z > -0.5) & (z < geometry.shape[0] - 0.5)
    if not inside.any():
        return Fit(False, 0.0, 0.0)
    distance = float(np.abs(z[inside] - np.round(z[inside])).mean()) * geometry.spacing[0]
    # To 0.1 mm: a PET and the CT of one study may lie 0.02 mm apart, which says nothing of where a contour was drawn.
    return Fit(same_voxels, round(float(inside.mean()), 3), 0.0 - round(distance, 1))


def safe_segment(number: int, text: object, code: Code | None, words: frozenset[str]) -> Segment:
    """A structure by its name as far as that is harmless, else by what its code means, else by its number."""
    means = (safe_description(code.meaning, words) or code.value) if code else ""
    name = safe_description(str(text or ""), words) or means or f"structure {number}"
    return Segment(number, name, code.value if code else None)


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept: `value` as scheme:value, and its meaning as somebody wrote it."""

    value: str
    meaning: str


def code_of(item: Dataset, keyword: str) -> Code | None:
    """The first code in a sequence that looks like one."""
    for entry in item.get(keyword) or ():
        scheme = str(entry.get("CodingSchemeDesignator") or "").strip()
        value = str(entry.get("CodeValue") or entry.get("LongCodeValue") or "").strip()
        if _SCHEME.fullmatch(scheme) and _VALUE.fullmatch(value):
            return Code(f"{scheme}:{value}", str(entry.get("CodeMeaning") or ""))
    return None


@contextmanager
def readable(kind: str) -> Iterator[None]:
    """A broken file comes up as any type, depending on where it is broken: tell it as one."""
    try:
        yield
    except (NocturneError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - and nothing is swallowed
        # Not chained: what a parser says may quote the file.
        raise LabelError(
            f"the {kind} cannot be read ({type(error).__name__})",
            reason="unreadable-label",
            hint="send it again from where it was made",
        ) from None
