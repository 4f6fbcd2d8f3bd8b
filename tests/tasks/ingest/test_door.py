"""What a part of an ingest says in its run's log."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tasks.ingest import door
from tasks.ingest.run import IngestRules
from tasks.stores.tables import VolumeRow
from tests.tasks.ingest.synthetic import stack, write
from tests.tasks.predict.samples import stores_at


def test_a_series_that_is_set_aside_is_told_and_the_others_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(door, "get_run_logger", lambda: logging.getLogger("run"))
    stores, rules = stores_at(tmp_path), IngestRules()
    write(tmp_path / "in" / "sound", stack(4, series="1"))
    write(tmp_path / "in" / "broken", [ds for n, ds in enumerate(stack(6, series="2")) if n != 3])
    refs = door.scan.fn(stores, stores.seal_batch([tmp_path / "in"]), rules).series
    outcomes = door.ingest_series.fn(stores, refs, rules, part=0)
    (broken,) = (outcome for outcome in outcomes if outcome.quarantined)
    (told,) = (record.getMessage() for record in caplog.records if record.name == "run")
    assert told == f"series {broken.ref}: set aside: {broken.quarantined[0]}"
    assert "MRN-4711" not in told
    assert stores.catalog.count(VolumeRow) == 1
