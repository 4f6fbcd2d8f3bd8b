"""Classes of patients: all of a patient's series are one case, drawn, judged and thresholded as one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.dataset import DatasetRow
from models.errors import LabelError
from tasks.train.patches import Case, Cases, ImageSampler
from tasks.train.teaching.classification import ImageTeaching
from tasks.train.validate import ImageValidation


@dataclass(frozen=True)
class PatientTeaching(ImageTeaching):
    """A classification's share, patient by patient."""

    def sampler(self, cases: Cases, rows: Sequence[DatasetRow]) -> ImageSampler:
        """Whole patients."""
        return super().sampler(*by_patient(cases, rows))

    def validation(self, cases: Cases, rows: Sequence[DatasetRow], device: torch.device) -> ImageValidation:
        """Area under the ROC curve over patients."""
        return super().validation(*by_patient(cases, rows), device)


def by_patient(cases: Cases, rows: Sequence[DatasetRow]) -> tuple[Cases, tuple[DatasetRow, ...]]:
    """The patients of `rows` as cases, in their order, and the first row of each.

    A patient is drawn as often as the most wanted of its series. Raises LabelError where two of its rows contradict.
    """
    found: dict[str, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        found[row.patient].append(index)
    for patient, series in found.items():
        if len({(rows[index].target, rows[index].classes) for index in series}) > 1:
            raise LabelError(
                "the labels of its series contradict each other",
                where=patient,
                hint='with labels.of = "patient" all series of a patient have one class: correct them',
                reason="contradicting-labels",
            )
    shares = None if cases.shares is None else [float(cases.shares[series].max()) for series in found.values()]
    together = Cases(_Patients(cases, found), tuple(found), shares)
    return together, tuple(rows[series[0]] for series in found.values())


@dataclass(frozen=True, slots=True)
class _Patients:
    """Opens a patient: stands where the prepared store stands for single images."""

    cases: Cases
    series: Mapping[str, Sequence[int]]

    def open(self, key: str) -> Case:
        return _Together(self.cases, self.series[key])


@dataclass(frozen=True, slots=True)
class _Together:
    """A patient's series, put together where they are looked at: the arrays themselves stay mapped."""

    cases: Cases
    series: Sequence[int]
    mask: None = None
    locations: Mapping[int, NDArray[Any]] = field(default_factory=dict)

    @property
    def image(self) -> NDArray[Any]:
        """(n, c, z, y, x)."""
        return np.stack([np.asarray(self.cases[index].image) for index in self.series])
