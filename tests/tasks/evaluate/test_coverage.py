"""The 95 % intervals hold the truth of simulated cohorts about 95 times in 100."""

from __future__ import annotations

import pytest

from benchmarks.coverage import FIGURES, PATIENTS, Figure, coverage

JUDGED = [
    pytest.param(figure, patients, id=f"{figure.name}, {patients} patients")
    for figure in FIGURES
    if figure.judged
    for patients in PATIENTS
    if patients < 100 or "two scans" not in figure.name
]


@pytest.mark.parametrize(("figure", "patients"), JUDGED)
def test_intervals_hold_the_truth(figure: Figure, patients: int) -> None:
    share, _ = coverage(figure, patients, cohorts=400, resamples=250)
    least, greatest = figure.aim(patients)
    assert least <= share <= greatest
