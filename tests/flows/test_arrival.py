"""How far an arrived study came, in one word."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.arrival import _told
from flows.ingest import Ingested
from models.refs import AnalysisRef, VolumeRef
from tasks.deliver.door import Delivered
from tasks.stores.house import Stores
from tasks.stores.tables import AnalysisRow
from tests.tasks.deliver.installation import stores_at
from tests.tasks.predict.samples import a_package, a_study
from tests.tasks.train.samples import balls

ARRIVED = Ingested(
    series=1,
    volumes=(VolumeRef.to("v"),),
    labels=(),
    already_there=0,
    quarantined={},
    not_dicom=0,
    not_images=0,
)


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return stores_at(tmp_path)


def analyses(stores: Stores, *outcomes: str) -> tuple[AnalysisRef, ...]:
    """One for each model."""
    version = a_study(stores)
    rows = [
        AnalysisRow(
            analysis=f"{number}{outcome}",
            version=version.key,
            study="2.25.1",
            package=a_package(stores, balls(), str(number)).key,
            name=f"model{number}",
            predictions=["p"] if outcome == "predicted" else [],
            outcome=outcome,
            detail="" if outcome == "predicted" else "why",
        )
        for number, outcome in enumerate(outcomes)
    ]
    stores.catalog.add(*rows)
    return tuple(AnalysisRef.to(row.analysis) for row in rows)


@pytest.mark.parametrize(
    ("said", "outcome", "detail"),
    [
        (("nothing-fits", "nothing-fits"), "nothing-fits", "model0: why; model1: why"),
        (("set-aside",), "quarantined", "model0: why"),
        (("nothing-fits", "set-aside"), "quarantined", "model0: why; model1: why"),
        (("set-aside", "predicted"), "predicted", ""),
    ],
)
def test_what_the_models_said(stores: Stores, said: tuple[str, ...], outcome: str, detail: str) -> None:
    assert _told(stores, ARRIVED, analyses(stores, *said), ()) == (outcome, detail)


@pytest.mark.parametrize("state", ["waiting", "refused"])
def test_one_destination_that_has_it_not_is_told(stores: Stores, state: str) -> None:
    sent = (Delivered("d", "pacs", "sent", "", 2), Delivered("e", "archive", state, "away", 2))
    assert _told(stores, ARRIVED, analyses(stores, "predicted"), sent) == (state, "archive: away")


def test_only_bad_series(stores: Stores) -> None:
    bad = ARRIVED.model_copy(update={"volumes": (), "quarantined": {"truncated-pixels": 2}})
    assert _told(stores, bad, (), ()) == ("quarantined", "2 × truncated-pixels")
