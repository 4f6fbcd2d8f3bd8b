"""A cascade from the stores: planned, prepared on two grids, learnt, judged and applied; with missing channels."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from models.dataset import Dataset, DatasetRow, SplitName
from models.geometry import Geometry
from models.hashing import content_key
from models.plan import Plan
from models.recipe import Recipe
from models.refs import CaseRef
from models.volume import Mask, Segment, Volume
from tasks.evaluate.run import evaluate_package
from tasks.predict.run import predict_volumes
from tasks.preprocess.stored import plan_training, prepare_planned
from tasks.stores.datasets import record_of
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.tables import PlanRow, PredictionRow
from tasks.train.stored import train_package
from tests.tasks.predict.samples import a_volume
from tests.tasks.train.samples import ball

RECIPE = """
name = "balls"
kind = "segmentation"
labels = { source = "SEG", classes = ["ball", "core"] }
images.channels = [{ name = "T1", modality = "MR" }, { name = "T2", modality = "MR" }]
images.missing = "learn"
network = { features = [4, 8], resolution = "cascade" }
evaluate = { bootstrap = 100, explained = 0 }
[train]
epochs = 1
steps_per_epoch = 3
batch_size = 2
patch_size = [8, 16, 16]
precision = "fp32"
compile = false
device = "cpu"
validations = 1
ema = 0
"""


@pytest.fixture
def stores(house_of_one: Stores) -> Stores:
    return house_of_one


def a_patient(stores: Stores, number: int, split: str) -> DatasetRow:
    """With a ball in two series; the second is missing of every third."""
    case = ball(number)
    assert case.mask is not None
    image, patient = case.image[0].astype(np.float32), f"P-{number:03}"
    grid = Geometry.from_spacing(case.mask.shape, (1.0, 1.0, 1.0), (0.0, 0.0, float(number)), f"2.25.{number}")
    first = a_volume(stores, image, grid, study=f"2.25.{number}", series=f"t1-{number}", patient=patient).key
    second = content_key("second", number) if number % 3 else ""
    if second:
        stores.volumes.write(second, Volume(-image, grid, "MR"))
    label = content_key("label", number)
    occupancy = np.stack([case.mask == 1, case.mask == 2]).astype(np.uint8) * 255
    stores.volumes.write_mask(label, Mask(occupancy, (Segment(1, "ball"), Segment(2, "core")), grid, "SEG"))
    z, y, x = grid.shape
    return DatasetRow(
        patient, f"2.25.{number}", f"t1-{number}", first, label, cast(SplitName, split), -1, "MR", "", "", z, y, x,
        1.0, 1.0, 1.0, (second,),
    )  # fmt: skip


def test_from_the_plan_to_a_prediction(stores: Stores) -> None:
    recipe = Recipe.parse(RECIPE)
    splits = ["train"] * 4 + ["validation"] + ["test"] * 2
    dataset = Dataset(
        "balls", "segmentation", ("ball", "core"), tuple(a_patient(stores, n, split) for n, split in enumerate(splits))
    )
    ref = stores.datasets.write(dataset)
    stores.catalog.add(record_of(dataset))

    planned = plan_training(stores, recipe, ref)
    assert plan_training(stores, recipe, ref) == planned
    row = stores.catalog.get(PlanRow, planned.key)
    assert row is not None
    plan = Plan.model_validate(row.document)
    assert plan.low is not None
    assert (plan.network.in_channels, plan.network.told, plan.low.network.in_channels) == (2, 2, 2)

    assert prepare_planned(stores, recipe, planned) == prepare_planned(stores, recipe, planned)
    package = train_package(stores, recipe, planned)
    described = read_description(stores.packages.local(package.key))
    assert [member.name for member in described.members] == ["full", "low"]
    evaluation = stores.evaluations.read(evaluate_package(stores, package, ref).key)
    assert evaluation.n_cases == 2

    tested = dataset.rows[-1]
    (key,) = predict_volumes(stores, package, (CaseRef(key=tested.volume, channels=tested.channels),))
    assert stores.catalog.get(PredictionRow, key) is not None
    assert stores.volumes.open_mask(key).geometry.shape == (tested.shape_z, tested.shape_y, tested.shape_x)
