"""Patients as cases: all of a patient's series have the patient's class, each of them told of it or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from models.assembly import Assembled, current
from tasks.ingest.cases import Case, Exclusion
from tasks.stores.tables import VolumeRow

UNTOLD = "no-label"


def whole_patients(
    cases: Sequence[Case], excluded: Sequence[Exclusion], assembled: Sequence[Assembled[VolumeRow]]
) -> tuple[list[Case], list[Exclusion]]:
    """`cases` without patients whose series contradict each other, and with the unlabelled series of the others.

    A model that learns from patients is told of all of a patient's series when it is applied; so it learns from all.
    """
    of_patient: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        of_patient[case.volume.patient].append(case)
    torn = {patient for patient, told in of_patient.items() if len({_class(case) for case in told}) > 1}
    kept = [case for case in cases if case.volume.patient not in torn]
    untold = {exclusion.subject for exclusion in excluded if exclusion.reason == UNTOLD}
    beside = {one.reference.volume: one for one in assembled if one.reference.volume in untold}
    joining = [
        Case(
            volume,
            of_patient[volume.patient][0].label,
            of_patient[volume.patient][0].shows,
            beside[volume.volume].channels,
        )
        for volume in current(one.reference for one in beside.values())
        if volume.patient in of_patient and volume.patient not in torn
    ]
    joined = {case.volume.volume for case in joining}
    against = [Exclusion(case.volume.volume, "contradicting-labels") for case in cases if case.volume.patient in torn]
    return kept + joining, [one for one in excluded if one.subject not in joined] + against


def _class(case: Case) -> frozenset[str]:
    """Spellings that differ in case alone are one class, as in a dataset."""
    return frozenset(name.casefold() for name in case.shows)
