"""A night of a detection, by both methods: from images with lesions to a model that serves and says where they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from models.errors import RecipeError
from models.evaluation import Comparison
from models.geometry import Geometry
from models.hashing import content_key
from models.package import ModelPackage
from models.recipe import Recipe
from models.refs import DatasetRef, EvaluationRef, PackageRef, VolumeRef
from models.schemas import CASE_METRICS_DETECTION, check
from models.volume import Mask, Segment
from tasks.evaluate.run import compare, evaluate_package
from tasks.evaluate.summary import write
from tasks.ingest.build import build_dataset
from tasks.predict.run import findings, predict_volumes
from tasks.predict.warm import WARM
from tasks.preprocess import stored
from tasks.preprocess.stored import plan_training, prepare_planned
from tasks.register.run import champion, register
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.tables import LabelRow, PlanRow, VolumeRow
from tasks.train.stored import train_package
from tests.tasks.predict.samples import a_volume, stores_at
from tests.tasks.train.lesions import spots

PATIENTS = 16
EPOCHS = {"components": 16, "retinanet": 8}
RECIPE = """
name = "spots"
kind = "detection"
images.modality = "MR"
labels.source = "SEG"
labels.classes = ["spot"]
preprocess.spacing = [2.0, 1.0, 1.0]
preprocess.normalise = "none"
detection.method = "{method}"
detection.min_volume_ml = 0.02
train.patch_size = [16, 32, 32]
train.batch_size = 2
train.epochs = {epochs}
train.steps_per_epoch = 10
train.precision = "fp32"
train.compile = false
train.validations = 1
train.oversample_foreground = 0.5
network.features = [6, 12, 12]
network.dimensions = 3
evaluate.bootstrap = 200
promote.metric = "froc"
promote.floor = 0.3
seed = {seed}
"""


def a_recipe(method: str, epochs: int, seed: int = 0) -> Recipe:
    return Recipe.parse(RECIPE.format(method=method, epochs=epochs, seed=seed))


def cohort(stores: Stores) -> None:
    """Patients with none to three bright balls each; every fourth has a segment without a voxel or a few of them."""
    grid = Geometry.from_spacing((16, 32, 32), (2.0, 1.0, 1.0), (5.0, -7.0, 11.0))
    for number in range(PATIENTS):
        case = spots(number)
        image = case.image[0].astype(np.float32)
        volume = a_volume(stores, image, grid, study=f"2.25.{number}", series=f"s{number}").key
        stores.catalog.change(VolumeRow, VolumeRow.volume == volume, patient=f"P-{number}")
        label = content_key("label", number)
        segments = (Segment(1, "spot"),)
        assert case.mask is not None
        stores.volumes.write_mask(label, Mask(case.mask[None] * np.uint8(255), segments, grid, "SEG"))
        told = [{"number": 1, "name": "spot", "code": None, "voxels": int(case.mask.sum())}]
        stores.catalog.add(
            LabelRow(
                label=label, patient=f"P-{number}", source="SEG", study=f"2.25.{number}", volume=volume, segments=told
            )
        )


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    WARM.forget()
    stores = stores_at(tmp_path_factory.mktemp("lesions"))
    cohort(stores)
    with pytest.MonkeyPatch.context() as patch:
        # So few images need no cluster.
        patch.setattr(stored, "compute_client", lambda *_: nullcontext())
        yield stores
    stores.catalog.close()
    WARM.forget()
    torch.set_num_threads(threads)


def learnt(stores: Stores, recipe: Recipe) -> tuple[PackageRef, DatasetRef]:
    dataset = build_dataset(recipe, stores.catalog, stores.datasets, stores.pseudonymizer, stores.volumes).ref
    plan = plan_training(stores, recipe, dataset)
    prepare_planned(stores, recipe, plan)
    return train_package(stores, recipe, plan), dataset


def described(stores: Stores, package: PackageRef) -> ModelPackage:
    return read_description(stores.packages.local(package.key))


Night = tuple[PackageRef, DatasetRef, EvaluationRef]


@pytest.fixture(scope="module", params=["components", "retinanet"])
def night(request: pytest.FixtureRequest, stores: Stores) -> Night:
    package, dataset = learnt(stores, a_recipe(request.param, EPOCHS[request.param]))
    return package, dataset, evaluate_package(stores, package, dataset)


def test_it_learns_to_find_bright_balls(stores: Stores, night: Night) -> None:
    package, _, ref = night
    evaluation = stores.evaluations.read(ref.key)
    assert evaluation.primary == "froc"
    assert evaluation.of("froc").value > 0.6
    assert evaluation.of("average_precision").value > 0.5
    assert evaluation.of("sensitivity").value > 0.5
    assert evaluation.threshold == described(stores, package).threshold
    check(stores.evaluations.cases(ref.key), CASE_METRICS_DETECTION, where="test")
    assert {"overlays-best", "overlays-worst", "froc"} <= {p.name for p in stores.evaluations.pictures(ref.key)}


def test_cases_without_a_lesion_are_judged_too(stores: Stores, night: Night) -> None:
    _, dataset, ref = night
    rows = stores.datasets.read(dataset.key).split("test")
    evaluation, table = stores.evaluations.read(ref.key), stores.evaluations.cases(ref.key)
    assert evaluation.n_cases == len(rows)
    assert set(table["case"]) == {row.volume for row in rows}


def test_its_findings_lie_where_the_lesions_are(stores: Stores, night: Night) -> None:
    package, dataset, _ = night
    rows = stores.datasets.read(dataset.key).split("train")
    near = []
    for row in rows[:6]:
        mask = stores.volumes.open_mask(row.label).read()
        if not mask.occupancy.any():
            continue
        (key,) = predict_volumes(stores, package, [VolumeRef.to(row.volume)])
        for finding in findings(stores, key):
            assert finding.class_name == "spot"
            if finding.called:
                assert finding.centroid_mm is not None
                assert finding.number is not None
                low, high = finding.bounds_mm or ((), ())
                assert all(a < c < b for a, c, b in zip(low, finding.centroid_mm, high, strict=True))
                z, y, x = np.round(mask.geometry.to_index(finding.centroid_mm)).astype(int)
                near.append(bool(mask.occupancy[0, z, y, x]))
                by_voxels = described(stores, package).plan.segments
                assert (finding.volume_ml is not None) == by_voxels
        assert stores.volumes.open_mask(key).read().segments
    assert np.mean(near) > 0.7


def test_it_serves_and_its_report_and_card_speak_of_lesions(stores: Stores, night: Night) -> None:
    package, _, ref = night
    name = described(stores, package).recipe.name
    serving = champion(stores, name)
    before = evaluate_package(stores, serving, night[1]) if serving and serving != package else None
    comparison = compare(stores, before, ref) if before else None
    registered = register(stores, package, ref, before, comparison)
    assert registered.action in ("promoted", "kept")
    if before is None:
        assert registered.action == "promoted"
        assert "froc" in registered.reasons[0]
    page = write(stores, ref, before, registered).read_text()
    assert "FROC" in page
    assert "False positives an image" in page
    assert "A lesion is found once" in page


def test_both_methods_compare_lesion_by_lesion(stores: Stores) -> None:
    """Whatever they are made of, they are judged alike."""
    first, dataset = learnt(stores, a_recipe("components", EPOCHS["components"]))
    second, _ = learnt(stores, a_recipe("retinanet", EPOCHS["retinanet"]))
    old, new = (evaluate_package(stores, package, dataset) for package in (first, second))
    comparison: Comparison = compare(stores, old, new)
    values = [stores.evaluations.read(ref.key).of("froc").value for ref in (old, new)]
    assert comparison.primary_difference.value == pytest.approx(values[1] - values[0])
    assert comparison.n_unmatched == 0
    itself = compare(stores, old, old)
    assert (itself.primary_difference.low, itself.primary_difference.high) == (0, 0)


def test_the_plan_says_how_lesions_are_found(stores: Stores) -> None:
    recipe = Recipe.parse(RECIPE.format(method="auto", epochs=1, seed=0))
    dataset = build_dataset(recipe, stores.catalog, stores.datasets, stores.pseudonymizer, stores.volumes).ref
    row = stores.catalog.get(PlanRow, plan_training(stores, recipe, dataset).key)
    assert row is not None
    assert row.document["detection"]["method"] == "components"
    assert row.document["network"]["name"] == "unet"
    assert row.document["network"]["out_channels"] == 2


@pytest.mark.parametrize(("method", "network"), [("components", "retinanet"), ("retinanet", "unet")])
def test_a_network_that_cannot_is_refused(stores: Stores, method: str, network: str) -> None:
    text = RECIPE.format(method=method, epochs=1, seed=0) + f'network.name = "{network}"\n'
    recipe = Recipe.parse(text)
    dataset = build_dataset(recipe, stores.catalog, stores.datasets, stores.pseudonymizer, stores.volumes).ref
    with pytest.raises(RecipeError, match=f"{network} cannot do detection by {method}"):
        plan_training(stores, recipe, dataset)
