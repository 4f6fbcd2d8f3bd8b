"""A night as a report tells of it, made by hand."""

from __future__ import annotations

from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np

from models.dataset import Dataset, DatasetRow
from models.evaluation import Agreement, Cost, Interval, MetricSummary, PairedTest, Subgroup
from models.geometry import Geometry
from models.package import Environment, ModelPackage, TrainingRecord
from models.plan import InferPlan, NetworkPlan, Normalisation, Plan, PreparePlan, TrainPlan
from models.recipe import Recipe
from models.report import Check, Decision, Exclusion
from tasks.evaluate.comparison import compare_segmentation
from tasks.evaluate.reporting.compose import Judged, compose
from tasks.evaluate.reporting.page import render
from tasks.evaluate.segmentation import SegmentationSample, evaluate_segmentation

NOW = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
SECTIONS = ["summary", "data", "how", "good", "champion", "fails", "drift", "decision", "provenance"]
_VOID = {"meta", "img", "br", "path", "circle"}


class Page(HTMLParser):
    """Checks that tags close in order; gathers ids, links, images, text, and the text of each section."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""
        self.sections: dict[str, str] = {}
        self._section = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.targets += [values["href"]] if values.get("href") else []
        self.images += [values] if tag == "img" else []
        if tag == "section":
            self._section = values["id"] or ""
            self.sections[self._section] = ""
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self._section = ""
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._section:
            self.sections[self._section] += data


def page_of(judged: Judged) -> Page:
    """The page, read again."""
    return Page(render(*compose(judged)))


def an_interval(value: float, half: float, n: int) -> Interval:
    return Interval(value=value, low=value - half, high=value + half, n=n)


def a_segmentation(case: str = "c") -> Judged:
    """Four patients, of whom the last one's cyst is missed."""
    samples = []
    for index in range(4):
        truth = np.zeros((4, 16, 16), np.uint8)
        truth[1:3, 4:12, 4:12], truth[2, 6:8, 6:8] = 1, 2
        prediction = np.roll(truth, index, axis=2)
        if index == 3:
            prediction[prediction == 2] = 1
        grid = Geometry.from_spacing(truth.shape, (2, 1, 1))
        samples.append(SegmentationSample(f"P{index}", f"{case}{index}", None, truth, prediction, grid))
    found, frame, pictures = evaluate_segmentation(
        samples, ("liver", "cyst"), package="k1", dataset="d1", bootstrap=100
    )
    better = frame.assign(dice=frame["dice"] - 0.05)
    gain = compare_segmentation(better, frame, dataset="d1", champion_key="k0", challenger_key="k1", bootstrap=100)
    return Judged(
        found,
        NOW,
        package=a_package(),
        dataset=a_dataset(),
        decision=Decision(verdict="promoted", reasons=("Better on <the same> patients.",)),
        comparison=gain,
        cases=frame,
        exclusions=(Exclusion(subject="series", reason="non-uniform-spacing", count=3, meaning="slices are missing"),),
        pictures=tuple(pictures),
        notes=("One case is unusual.",),
        provenance=(("image of the container", "sha256:77"),),
    )


def everything() -> Judged:
    """A report with a word in every part: what other rooms find is put in by hand."""
    import dataclasses

    judged = a_segmentation()
    groups = tuple(
        Subgroup(
            attribute=attribute,
            group=group,
            n_patients=n,
            n_cases=n + 1,
            metrics=(MetricSummary(metric="dice", interval=an_interval(value, 0.02, n)),),
        )
        for attribute, group, n, value in (
            ("manufacturer", "Acme", 30, 0.2),
            ("manufacturer", "Bolt", 3, 0.9),
            ("sex", "F", 20, 0.95),
        )
    )
    size = Agreement(
        class_name="liver",
        bias=an_interval(-1.5, 0.5, 30),
        lower=an_interval(-4, 1, 30),
        upper=an_interval(1, 1, 30),
        points=((10.0, -1.0), (12.0, -2.0)),
    )
    cost = Cost(seconds_median=1.25, seconds_longest=4.5, megabytes=7.75, device="cpu")
    evaluation = judged.evaluation.model_copy(update={"subgroups": groups, "agreement": (size,), "cost": cost})
    assert judged.comparison
    moved = tuple(
        g.model_copy(
            update={"metrics": (MetricSummary(metric="dice", interval=an_interval(shift, 0.02, g.n_patients)),)}
        )
        for g, shift in zip(groups, (-0.1, 0.5, 0.2), strict=True)
    )
    tests = (
        PairedTest(metric="dice", class_name="liver", wilcoxon=0.0004, bootstrap=0.002, adjusted=0.0008),
        PairedTest(metric="dice", class_name="cyst", wilcoxon=None, bootstrap=0.4, adjusted=0.4),
    )
    checks = (
        Check(rule="margin", limit=-0.01, value=0.03, passed=True, told="not worse within the margin of -0.01"),
        Check(rule="seconds", limit=1, value=1.25, passed=False, told="the median case took 1.25 s"),
        Check(rule="approval", passed=None, told="nobody was asked"),
    )
    decision = Decision(
        verdict="kept",
        reasons=("the median case took 1.25 s",),
        checks=checks,
        who="dr-x",
        number=17,
        decided_at=NOW,
    )
    return dataclasses.replace(
        judged,
        evaluation=evaluation,
        comparison=judged.comparison.model_copy(update={"tests": tests, "subgroups": moved}),
        decision=decision,
    )


def a_package() -> ModelPackage:
    recipe = Recipe.parse('name="night"\nkind="segmentation"\nimages.modality="CT"\nlabels.source="SEG"')
    train = recipe.train.model_dump(exclude={"deep_supervision"}) | {
        "patch_size": (4, 16, 16), "batch_size": 2, "steps_per_epoch": 10, "optimiser": "sgd", "learning_rate": 0.01,
        "weight_decay": 0.0, "schedule": "poly", "loss": "dice_ce", "augment": recipe.augment, "flip_axes": ("x",),
    }  # fmt: skip
    plan = Plan(
        recipe=recipe.key,
        kind="segmentation",
        seed=3,
        classes=("liver", "cyst"),
        prepare=PreparePlan(dimensions=3, spacing=(2, 1, 1), normalisation=(Normalisation(scheme="ct"),)),
        network=NetworkPlan(name="unet", dimensions=3, in_channels=1, out_channels=3, features=(8, 16)),
        train=TrainPlan.model_validate(train),
        infer=InferPlan(tile=(4, 16, 16), overlap=0.5, mirror_axes=(), keep_largest=False),
        notes=("patch bounded by memory",),
    )
    record = TrainingRecord(
        steps=20, epochs=2, seconds=3725, stopped_by="minutes", device="cpu", precision="bf16", batch_size=2,
        parameters=1234567, best_metric=0.8, best_step=20, history=((10, 0.9, 0.5), (20, 0.6, 0.8)),
    )  # fmt: skip
    software = Environment(nocturne="0.1.0", code="abc123", python="3.11", torch="2.13", platform="Linux")
    case = {"shape": (4, 9, 9), "spacing": (2, 1, 1), "cropped_shape": (4, 9, 9), "median": 0.0, "iqr": 1.0}
    cases = [
        {"volume": "v4", "class_voxels": (500, 0), **case},
        {"volume": "v5", "class_voxels": (1500, 7), **case},
        {"volume": "of an earlier night", "class_voxels": (9, 9), **case},
    ]
    return ModelPackage(
        key="k1",
        recipe=recipe,
        plan=plan,
        dataset="d1",
        weights_sha256="ab" * 32,
        training=record,
        environment=software,
        fingerprint={"cases": cases},
    )


def a_dataset() -> Dataset:
    rows = [
        DatasetRow(f"P{i}", "s", "s", f"v{i}", f"l{i}", "test" if i < 4 else "train", -1, "CT", vendor, model, *[9] * 6)
        for i, (vendor, model) in enumerate([("Acme", "Pulsar")] * 3 + [("", ""), ("Acme", "Pulsar"), ("Bolt", "")])
    ]
    return Dataset("night", "segmentation", ("liver", "cyst"), tuple(rows))
