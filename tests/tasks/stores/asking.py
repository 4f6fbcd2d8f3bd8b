"""What the code asks of a catalog by day and by night, where that needs no images: of a `Crowd`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from flows import views
from models.hospital import Completion
from models.recipe import Recipe
from tasks.correct.run import correct
from tasks.deliver.run import Dispatcher
from tasks.evaluate import summary
from tasks.ingest.build import DatasetBuild, build_dataset
from tasks.ingest.labels.returned import Ours
from tasks.ingest.labels.run import settle
from tasks.lineage.run import lineage
from tasks.receive.completion import Completer
from tasks.receive.indexing import Arrived, Index, Told
from tasks.stores.alerts import open_alerts
from tasks.stores.house import Stores
from tasks.stores.outbox import Outbox
from tasks.stores.spool import Stored
from tasks.stores.tables import LabelRow, QuarantineRow, SeenRow, StudyRow, VaultRow, VolumeRow, now
from tasks.watch.seen import window
from tests.tasks.stores.crowd import LIVER, NIGHTS, Crowd, key, package, patient, uid

_CT = "1.2.840.10008.5.1.4.1.1.2"


def recipe_of(name: str, twentieths: int = 20) -> Recipe:
    """The liver's, or that of so many twentieths of the radiographs."""
    if name == LIVER:
        images = {"modality": "CT", "description": "^liver portal"}
        kind, labels = "segmentation", {"source": "SEG", "classes": ["Liver"]}
    else:
        images = {"modality": "DX", "description": "|".join(f"Chest {n:02d}" for n in range(twentieths))}
        kind = "classification"
        labels = {"source": "CSV", "name": "findings", "classes": ["normal", "effusion", "pneumonia"]}
    return Recipe.model_validate({"name": name, "kind": kind, "images": images, "labels": labels})


def build(stores: Stores, recipe: Recipe) -> DatasetBuild:
    """As a night does."""
    return build_dataset(recipe, stores.catalog, stores.datasets, stores.pseudonymizer)


def day(stores: Stores, crowd: Crowd) -> None:
    """What arrives and whether it is known, what is due, and what people look at."""
    catalog, study, at = stores.catalog, uid("new study"), datetime.now(UTC)
    index, outbox = Index(catalog, "listener"), Outbox(catalog)
    stored = [
        Stored(key("new", n), study, uid("new series"), uid("new", n), _CT, "CT", 526_000, Path(), new=True)
        for n in range(100)
    ]
    index.write([*(Arrived(one, at) for one in stored), Told(study, at)])
    index.known([one.instance for one in stored])
    Completer(catalog, {}, Completion()).look()
    for message in outbox.take("event", lease_seconds=60, limit=10):
        outbox.acknowledged(message.message)
    outbox.waiting("event")
    Dispatcher(stores, [], ae_title="NOCTURNE").run_due()
    views.stuck(stores)
    views.quarantine(stores)
    for number in range(0, crowd.series, max(1, crowd.series // 50)):
        _known(stores, number)


def _known(stores: Stores, number: int) -> None:
    """Whether a series and its label were taken in before."""
    catalog, study = stores.catalog, number // 4
    catalog.find(VolumeRow, VolumeRow.series == key("series", number))
    catalog.find(VolumeRow, VolumeRow.series_uid.in_([uid("series", number)]))
    catalog.find(VolumeRow, VolumeRow.frame_of_reference == uid("frame", study), VolumeRow.patient == patient(study))
    catalog.count(VolumeRow, VolumeRow.patient == patient(study))
    catalog.get(StudyRow, uid("study", study))
    catalog.get(SeenRow, key("seen", number))
    still_open = (QuarantineRow.subject.in_([key("series", number)]), QuarantineRow.resolved_at.is_(None))
    catalog.count(QuarantineRow, *still_open)
    catalog.find(LabelRow, LabelRow.source_digest == key("file", number))
    list(catalog.among(VolumeRow, VolumeRow.volume, [key("volume", number)]))
    list(catalog.among(VaultRow, VaultRow.key, [key("ingested", number)], VaultRow.kind == "ingested"))
    settle(catalog, uid("series", number), [])
    Ours.of(catalog, uid("study", study))


def looks(stores: Stores, name: str, patients: int = 200) -> None:
    """What came since, and how the model fares by its last `patients`."""
    correct(stores)
    stores.catalog.mark("corrections", now().isoformat())
    correct(stores)
    open_alerts(stores.catalog, name)
    for last in (package(name, NIGHTS // 2), package(name, NIGHTS - 1), None):
        window(stores, name, patients, set(), package=last)
        window(stores, name, patients, set(), package=last, oldest=True)


def report(stores: Stores, recipe: Recipe) -> None:
    """What a report asks beside files."""
    built = build(stores, recipe).dataset
    summary._characteristics(stores, built)
    list(summary._left_out(stores, recipe.images, built, built.key))
    list(summary._set_aside(stores))
    summary._watched(stores, recipe.name)


def origins(stores: Stores, crowd: Crowd) -> None:
    """Lineage from every kind of node but files'."""
    number = next(n for model, n in crowd.meant() if model == LIVER)
    study = number // 4
    names = [key(kind, number) for kind in ("volume", "label", "prediction", "analysis", "delivery")]
    for name in (*names, uid("study", study), uid("series", number), patient(study), key("version", study)):
        lineage(stores, name)
    lineage(stores, package(LIVER, 7))
