"""An installation with a whole round: an image, what was said of it, its correction, and the model made from that."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from models.hashing import content_key
from models.package import PACKAGE_FILE, WEIGHTS_FILE
from models.recipe import Recipe
from tasks.ingest.build import build_dataset
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.tables import (
    AlertRow,
    CorrectionRow,
    DecisionRow,
    DeliveryRow,
    EvaluationRow,
    LabelRow,
    PackageRow,
    PlanRow,
)
from tests.tasks.correct.conftest import a_reader
from tests.tasks.deliver.installation import CODES

RECIPE = f'name = "liver"\nkind = "segmentation"\n[images]\nmodality = "CT"\n[labels]\nsource = "SEG"\n{CODES}'


@dataclass(frozen=True)
class Round:
    """The stores after it, the keys of all that is in it by kind, and the two objects in the PACS."""

    stores: Stores
    keys: dict[str, str]
    ours: Dataset
    corrected: Dataset


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Round]:
    """To be looked at."""
    made = a_round(tmp_path_factory.mktemp("round"))
    yield made
    made.stores.catalog.close()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Round]:
    """To be added to."""
    made = a_round(tmp_path)
    yield made
    made.stores.catalog.close()


def a_round(folder: Path) -> Round:
    """What was predicted, delivered, corrected and learnt from."""
    reader = a_reader(folder)
    stores = reader.installation.stores
    analysis = reader.installation.row(reader.analysis)
    corrected = reader.correct(reader.drawn())
    (correction,) = reader.corrections(reader.send(corrected))
    dataset = build_dataset(Recipe.parse(RECIPE), stores.catalog, stores.datasets, stores.pseudonymizer).ref.key
    package = _learnt(stores, analysis.package, dataset)
    evaluation = content_key("evaluation", package)
    stores.catalog.add(
        EvaluationRow(
            evaluation=evaluation, package=package, dataset=dataset, metric="dice", value=0.9, low=0.8, high=0.95
        ),
        DecisionRow(name="liver", action="promoted", package=package, version="8", evaluation=evaluation),
        AlertRow(
            alert=content_key("alert", package),
            name="liver",
            package=package,
            kind="input",
            measure="spacing",
            how="ks",
            value=0.0,
            threshold=0.01,
            cases=40,
        ),
    )
    (delivery,) = stores.catalog.find(DeliveryRow)
    (label,) = stores.catalog.find(LabelRow)
    volume = reader.volume
    (row,) = stores.catalog.find(CorrectionRow)
    assert row.correction == correction.key
    keys = {
        "patient": volume.patient,
        "study": volume.study,
        "series": volume.series_uid,
        "volume": volume.volume,
        "label": label.label,
        "version": analysis.version,
        "dataset": dataset,
        "plan": content_key("plan", dataset),
        "package": package,
        "evaluation": evaluation,
        "decision": "1",
        "alert": content_key("alert", package),
        "prediction": reader.prediction.prediction,
        "analysis": analysis.analysis,
        "delivery": delivery.delivery,
        "object": stores.pseudonymizer.uid(str(reader.ours.SOPInstanceUID)),
        "correction": correction.key,
    }
    return Round(stores, keys, reader.ours, corrected)


def _learnt(stores: Stores, before: str, dataset: str) -> str:
    """A package that was learnt from the dataset, and began from the one before."""
    folder = stores.packages.local(before)
    first = read_description(folder)
    key = content_key("package", dataset)
    package = first.model_copy(update={"key": key, "dataset": dataset, "started_from": before})
    with stores.packages.staging() as staged:
        shutil.copy(folder / WEIGHTS_FILE, staged)
        (staged / PACKAGE_FILE).write_text(package.model_dump_json())
        stores.packages.publish(staged, key)
    stores.catalog.add(
        PlanRow(
            plan=content_key("plan", dataset), dataset=dataset, document={"recipe": first.plan.recipe}, fingerprint={}
        ),
        PackageRow(package=key, name="liver", dataset=dataset, weights_sha256=first.weights_sha256, version="8"),
    )
    return key
