"""Thousands of small studies from senders to the PACS: nothing lost, nothing twice, and nothing that grows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.components import needs, running_orthanc, until
from tests.faults.night import Home
from tests.faults.soaking import Held, Kind, Soaked, soak
from tests.flows.hospital import PATIENCE, at_work
from tests.matrix import Figure, Times

MOST_MB, MOST_FILES = 10.0, 2.0
"""What a process may take more for each thousand studies, once it is warm."""
SHORT, LONG = 7, 2_000


@pytest.fixture
def hospital(tmp_path: Path) -> Iterator[Soaked]:
    needs("Orthanc")
    (tmp_path / "pacs").mkdir()
    with running_orthanc(tmp_path / "pacs") as pacs:
        soaked = Soaked(Home(tmp_path / "home", tmp_path), pacs, tmp_path / "inbox")
        (tmp_path / "home").mkdir()
        try:
            with at_work(soaked):
                yield soaked
        except BaseException:
            print(soaked.logs())
            raise


@pytest.mark.fault("soak/studies")
def test_every_study_is_accounted_for_and_nothing_grows(hospital: Soaked, times: Times, figure: Figure) -> None:
    number, held = times(SHORT, full=LONG), Held()
    studies = soak(hospital, number, at_once=min(40, number), held=held)

    of = Counter(sent.kind for sent in studies)
    found = hospital.account()
    assert found.holds
    assert found.received == number == found.delivered + found.quarantined
    assert found.quarantined == of[Kind.BROKEN]
    assert found.nothing_to_send == of[Kind.OTHER]
    assert found.unfiled == of[Kind.NAMELESS]
    assert found.instances == sum(sent.instances for sent in studies)
    assert json.loads(hospital.command("status", "--json"))["account"] == found.to_json()
    assert str(found) in hospital.command("status")

    assert "database is locked" not in (hospital.home.folder / "logs" / "prefect.log").read_text()

    expected = {sent.uid: sent.results for sent in studies if sent.results}
    until(lambda: hospital.reports().keys() >= expected.keys(), "every result in the PACS", PATIENCE)
    assert hospital.reports() == expected

    told = f"{found}; {sum(expected.values()):,} results in the PACS, none twice"
    if number == LONG:
        memory, files = (held.growth(kept, warm=LONG // 4) for kept in (held.memory, held.files))
        most = {name: f"{mb:+.1f} MB" for name, mb in memory.items()}
        assert max(memory.values()) < MOST_MB, most
        assert max(files.values()) < MOST_FILES, files
        told += f"; a thousand studies more: {', '.join(f'{name} {mb}' for name, mb in most.items())}"
    figure(told)
