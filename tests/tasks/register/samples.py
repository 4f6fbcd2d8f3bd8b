"""Small but whole nouns: a package with real weights, its evaluations, its dataset."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from models.dataset import Dataset, DatasetRow, SplitName
from models.evaluation import Comparison, Evaluation, Interval, MetricSummary
from models.hashing import content_key
from models.package import PACKAGE_FILE, WEIGHTS_FILE, Environment, ModelPackage, TrainingRecord
from models.plan import InferPlan, NetworkPlan, Normalisation, Plan, PreparePlan, TrainPlan
from models.recipe import Augment, Recipe

DATASET = content_key("dataset of the samples")


def a_recipe(name: str = "liver", promote: str = "") -> Recipe:
    return Recipe.parse(f"""
        name = "{name}"
        kind = "segmentation"
        [images]
        modality = "CT"
        [labels]
        source = "SEG"
        classes = ["liver", "spleen"]
        {promote}
    """)


def a_package(folder: Path, *, name: str = "liver", number: int = 1, promote: str = "") -> ModelPackage:
    """Written to `folder`; every `number` has other weights."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = np.full((2, 3), number, np.float32)
    save_file({"head.weight": weights}, folder / WEIGHTS_FILE)
    recipe = a_recipe(name, promote)
    package = ModelPackage(
        key=content_key("package", name, number),
        recipe=recipe,
        plan=_plan(recipe),
        dataset=DATASET,
        weights_sha256=hashlib.sha256((folder / WEIGHTS_FILE).read_bytes()).hexdigest(),
        training=TrainingRecord(
            steps=200,
            epochs=2,
            seconds=90.0,
            stopped_by="minutes",
            device="cpu",
            precision="bf16",
            batch_size=2,
            parameters=1_234_567,
            best_metric=0.81,
            best_step=200,
            history=((100, 1.5, 0.62), (200, 0.9, 0.81)),
        ),
        environment=Environment(nocturne="0.1.0", code="0123abcd", python="3.11", torch="2.13.0", platform="Linux"),
    )
    (folder / PACKAGE_FILE).write_text(package.model_dump_json(indent=1))
    return package


def an_evaluation(package: ModelPackage | str, dice: float = 0.8, *, dataset: str = DATASET, n: int = 40) -> Evaluation:
    return Evaluation(
        kind="segmentation",
        package=package if isinstance(package, str) else package.key,
        dataset=dataset,
        class_names=("liver", "spleen"),
        primary="dice",
        metrics=(
            MetricSummary(metric="dice", interval=an_interval(dice, 0.02, n)),
            MetricSummary(metric="dice", class_name="liver", interval=an_interval(dice + 0.1, 0.02, n)),
            MetricSummary(metric="dice", class_name="spleen", interval=an_interval(dice - 0.1, 0.03, n)),
            MetricSummary(metric="surface_dice", interval=an_interval(0.7, 0.05, n)),
        ),
        surface_tolerance_mm=2.0,
        n_patients=n,
        n_cases=n + 3,
    )


def a_comparison(
    champion: Evaluation, challenger: Evaluation, low: float | None, value: float, high: float | None, n: int = 40
) -> Comparison:
    difference = MetricSummary(metric="dice", interval=Interval(value=value, low=low, high=high, n=n))
    return Comparison(
        kind="segmentation",
        dataset=challenger.dataset,
        champion=champion.package,
        challenger=challenger.package,
        primary="dice",
        differences=(difference,),
        n_patients=n,
        n_cases=n + 3,
    )


def an_interval(value: float, half: float, n: int) -> Interval:
    return Interval(value=value, low=value - half, high=value + half, n=n) if n > 1 else _alone(value)


def a_dataset(patients: int = 10, manufacturers: tuple[str, ...] = ("SIEMENS",)) -> Dataset:
    splits: tuple[SplitName, ...] = ("train",) * 7 + ("validation",) + ("test",) * 2
    rows = tuple(
        DatasetRow(
            patient=f"P-{i:03}",
            study=f"2.25.{i}",
            series=f"2.25.1{i}",
            volume=content_key("v", i),
            label=content_key("l", i),
            split=splits[i % 10],
            target=-1,
            modality="CT",
            manufacturer=manufacturers[i % len(manufacturers)],
            model_name="",
            shape_z=40,
            shape_y=512,
            shape_x=512,
            spacing_z=2.5 + i % 2,
            spacing_y=0.7,
            spacing_x=0.7,
        )
        for i in range(patients)
    )
    return Dataset(name="liver", kind="segmentation", classes=("liver", "spleen"), rows=rows)


def _alone(value: float) -> Interval:
    return Interval(value=value, low=None, high=None, n=1)


def _plan(recipe: Recipe) -> Plan:
    return Plan(
        recipe=recipe.key,
        kind="segmentation",
        seed=0,
        classes=("liver", "spleen"),
        prepare=PreparePlan(
            dimensions=3,
            spacing=(2.5, 0.8, 0.8),
            normalisation=(Normalisation(scheme="ct", low=-100, high=300, mean=80, std=40),),
        ),
        network=NetworkPlan(name="unet", dimensions=3, in_channels=1, out_channels=3, features=(16, 32)),
        train=TrainPlan(
            patch_size=(32, 96, 96),
            batch_size=2,
            steps_per_epoch=100,
            epochs=None,
            minutes=5,
            optimiser="sgd",
            learning_rate=0.01,
            weight_decay=3e-5,
            schedule="poly",
            warmup=0.02,
            loss="dice_ce",
            class_balance=True,
            label_smoothing=0,
            clip=12,
            ema=0.999,
            oversample_foreground=0.33,
            precision="auto",
            compile="auto",
            patience=None,
            validations=20,
            checkpoint_minutes=1,
            device="auto",
            augment=Augment(),
            flip_axes=("z", "y", "x"),
        ),
        infer=InferPlan(tile=(32, 96, 96), overlap=0.5, mirror_axes=(), keep_largest="auto"),
    )
