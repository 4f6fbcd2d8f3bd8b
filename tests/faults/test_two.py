"""Two nights on one home at the same time: what both would do is done once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.cohort.write import write_cohort
from tests.faults.night import Home
from tests.matrix import Figure

LONGEST_SECONDS = 1800.0


@pytest.mark.fault("stores/two")
@pytest.mark.long
def test_two_nights_at_once_leave_one_model(tmp_path: Path, figure: Figure) -> None:
    cohort = write_cohort(tmp_path / "cohort", patients=10, broken=0).incoming
    home = Home(tmp_path / "home", cohort)
    nights = [home.start(), home.start()]
    told = [night.communicate(timeout=LONGEST_SECONDS)[0] for night in nights]
    ended = [night.returncode for night in nights]
    assert 0 in ended, told
    for code, said in zip(ended, told, strict=True):
        assert code == 0 or "another process" in said, said
    assert [len(home.rows(table)) for table in ("datasets", "plans", "packages", "decisions")] == [1, 1, 1, 1]
    home.finish()
    assert len(home.rows("packages")) == 1
    figure(f"exit codes {sorted(ended)}; one dataset, one package, one decision")
