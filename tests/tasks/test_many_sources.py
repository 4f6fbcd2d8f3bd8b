"""Several series as channels and clinical variables, from files to predictions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.evaluation import Evaluation
from models.geometry import Geometry
from models.hashing import content_key
from models.plan import Plan
from models.recipe import Recipe
from models.refs import CaseRef, PackageRef, VolumeRef
from models.volume import Volume
from tasks.evaluate.run import evaluate_package
from tasks.ingest.build import build_dataset
from tasks.ingest.clinical import import_clinical
from tasks.ingest.labels.run import LabelIngestor
from tasks.ingest.labels.table import import_csv
from tasks.ingest.run import Ingestor, IngestRules
from tasks.predict.run import checks, choose_volumes, findings, predict_volumes
from tasks.preprocess.stored import plan_training, prepare_planned
from tasks.stores.house import Stores
from tasks.stores.tables import PlanRow, PredictionRow, SeriesRow, StudyRow, VolumeRow
from tasks.train.stored import train_package

ROOT = Path(__file__).resolve().parents[2]
SHORT = """
epochs = 1
steps_per_epoch = 2
batch_size = 2
patch_size = [24, 24, 24]
precision = "fp32"
compile = false
validations = 1
ema = 0
[evaluate]
bootstrap = 100
[network]
features = [4, 8]
"""


@pytest.fixture
def stores(house_of_one: Stores) -> Stores:
    return house_of_one


def learnt(stores: Stores, recipe: Recipe) -> tuple[PackageRef, Plan, Evaluation]:
    built = build_dataset(recipe, stores.catalog, stores.datasets, stores.pseudonymizer, stores.volumes)
    ref = plan_training(stores, recipe, built.ref)
    prepare_planned(stores, recipe, ref)
    row = stores.catalog.get(PlanRow, ref.key)
    assert row is not None
    package = train_package(stores, recipe, ref)
    judged = stores.evaluations.read(evaluate_package(stores, package, built.ref).key)
    return package, Plan.model_validate(row.document), judged


def test_pet_and_ct_as_two_channels(stores: Stores, shared_data: Path) -> None:
    text = (ROOT / "recipes" / "sarcoma_petct.toml").read_text()
    recipe = Recipe.parse(text.replace("minutes = 10", SHORT).replace("mirror = true", "mirror = false"))
    patients = [shared_data / "sarcoma" / f"STS_{number:03d}" for number in (3, 5, 8, 22)]
    patients = [folder for folder in patients if (folder / "CT").is_dir()][:3]
    images = Ingestor(stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer, IngestRules(), workers=1)
    labels = LabelIngestor(stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer)
    found = images.scan([str(folder / what) for folder in patients for what in ("PET", "CT")])
    assert not any(images.ingest(ref).quarantined for ref in found.series)
    assert not any(labels.ingest(ref).quarantined for ref in found.labels)
    package, plan, judged = learnt(stores, recipe)
    assert judged.n_cases == 1
    assert plan.channels == ("PET", "CT")
    assert plan.network.in_channels == 2
    pet, ct = plan.prepare.normalisation
    assert (pet.scheme, ct.scheme) == ("ct", "ct")
    assert pet.low >= 0
    assert ct.low < 0 < ct.high

    # CT alone arrives: its PET is in the catalog already.
    pets = {row.study: row for row in stores.catalog.find(VolumeRow, VolumeRow.modality == "PT")}
    one = stores.catalog.find(VolumeRow, VolumeRow.modality == "CT")[0]
    chosen = choose_volumes(stores, package, [VolumeRef.to(one.volume)])
    assert chosen == (CaseRef(key=pets[one.study].volume, channels=(one.volume,)),)
    (key,) = predict_volumes(stores, package, chosen)
    row = stores.catalog.get(PredictionRow, key)
    assert row is not None
    assert row.volume == pets[one.study].volume
    mask = stores.volumes.open_mask(key)
    assert mask.geometry.same_grid(Geometry.from_json(pets[one.study].geometry))
    told = {check.name for check in checks(stores, key)}
    assert {"median of PET", "median of CT"} <= told
    # The recipe says that a study without CT is predicted too, and that is another prediction.
    alone = (CaseRef(key=row.volume, channels=("",)),)
    (other,) = predict_volumes(stores, package, alone)
    assert other != key
    assert not any(check.name == "median of CT" for check in checks(stores, other))


MARKED = """
name = "marked"
kind = "classification"
seed = 1
images.modality = "CR"
labels.source = "CSV"
labels.classes = ["well", "sick"]
clinical.name = "lab"
clinical.variables = [{ name = "marker" }, { name = "ward", kind = "category" }]
network.name = "cnn"
network.dimensions = 2
network.features = [4, 8]
preprocess.size = [1, 16, 16]
augment = { rotation = 0, scaling = 0, flip = [] }
evaluate.bootstrap = 100
split = { train = 0.5, validation = 0.2, test = 0.3 }
[train]
epochs = 8
steps_per_epoch = 10
batch_size = 8
precision = "fp32"
compile = false
validations = 1
learning_rate = 0.01
"""


def an_image(stores: Stores, number: int) -> VolumeRow:
    """Noise, which tells nothing."""
    key = content_key("image", number)
    study, patient = stores.pseudonymizer.uid(f"1.2.{number}"), stores.pseudonymizer.patient(f"MRN-{number}")
    grid = Geometry.from_spacing((1, 16, 16), (1, 1, 1))
    noise = np.random.default_rng(number).normal(0, 1, grid.shape).astype(np.float32)
    stores.volumes.write(key, Volume(noise, grid, "CR"))
    row = VolumeRow(
        volume=key,
        series=key,
        series_uid=key,
        study=study,
        patient=patient,
        modality="CR",
        unit="arbitrary",
        frame_of_reference=None,
        shape_z=1,
        shape_y=16,
        shape_x=16,
        spacing_z=1,
        spacing_y=1,
        spacing_x=1,
        geometry=grid.to_json(),
    )
    stores.catalog.add(
        StudyRow(study=study, patient=patient),
        SeriesRow(series=key, series_uid=key, study=study, patient=patient, modality="CR"),
        row,
    )
    return row


def test_what_only_a_variable_tells_is_learnt_and_said(stores: Stores, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sick = [n % 2 == 1 for n in range(60)]
    for number in range(60):
        an_image(stores, number)
    classes, table = tmp_path / "classes.csv", tmp_path / "lab.csv"
    classes.write_text(
        "PatientID,label\n" + "".join(f"MRN-{n},{'sick' if s else 'well'}\n" for n, s in enumerate(sick))
    )
    marker = [100 + (30 if s else 0) + rng.normal(0, 5) for s in sick]
    table.write_text(
        "PatientID,marker,ward\n"
        + "".join(f"MRN-{n},{m:.1f},{'A' if n % 3 else 'B'}\n" for n, m in enumerate(marker) if n not in (7, 8))
    )
    known = {"catalog": stores.catalog, "pseudonymizer": stores.pseudonymizer}
    import_csv(classes, name="classes", **known)  # type: ignore[arg-type]
    import_clinical(table, name="lab", **known)  # type: ignore[arg-type]
    package, plan, judged = learnt(stores, Recipe.parse(MARKED))
    assert [variable.name for variable in plan.variables] == ["marker", "ward"]
    assert plan.network.variables == 2 + 3
    assert judged.primary_interval.value > 0.9

    fresh = an_image(stores, 1000)
    ref = VolumeRef.to(fresh.volume)

    def said() -> tuple[str, float]:
        (key,) = predict_volumes(stores, package, [ref])
        return key, findings(stores, key)[1].confidence

    unknown, unsure = said()
    assert said() == (unknown, unsure)
    shares = {}
    for value in (100, 130):
        table.write_text(f"PatientID,marker\nMRN-1000,{value}\n")
        import_clinical(table, name="lab", **known)  # type: ignore[arg-type]
        key, shares[value] = said()
        assert key != unknown
        row = stores.catalog.get(PredictionRow, key)
        assert row is not None
        assert row.result["clinical"] == {"marker": str(value), "ward": ""}
    assert shares[130] > 0.8 > 0.2 > shares[100]
