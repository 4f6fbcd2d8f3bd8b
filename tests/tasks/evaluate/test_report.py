from __future__ import annotations

import dataclasses
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest

from models.dataset import Dataset, DatasetRow
from models.evaluation import Picture
from models.geometry import Geometry
from models.package import Environment, ModelPackage, TrainingRecord
from models.plan import Drift, InferPlan, NetworkPlan, Normalisation, Plan, PreparePlan, TrainPlan
from models.recipe import Recipe
from tasks.evaluate import tables
from tasks.evaluate.classification import evaluate_classification
from tasks.evaluate.comparison import compare_segmentation
from tasks.evaluate.report import Decision, Exclusion, ReportData, render
from tasks.evaluate.segmentation import SegmentationSample, evaluate_segmentation

NOW = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
_VOID = {"meta", "img", "br", "path", "circle"}


class _Page(HTMLParser):
    """Checks that tags close in order; gathers ids, links, images and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids += [values["id"]] if values.get("id") else []
        self.targets += [values["href"]] if values.get("href") else []
        self.images += [values] if tag == "img" else []
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def _segmentation(case: str = "c") -> ReportData:
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
    return ReportData(
        found,
        NOW,
        package=_package(),
        dataset=_dataset(),
        decision=Decision("promoted", "Better on <the same> patients."),
        comparison=gain,
        cases=frame,
        exclusions=(Exclusion("series", "non-uniform-spacing", 3, "slices are missing"),),
        pictures=tuple(pictures),
        notes=("One case is unusual.",),
        provenance=(("image of the container", "sha256:77"),),
    )


def _package() -> ModelPackage:
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
    return ModelPackage(
        key="k1",
        recipe=recipe,
        plan=plan,
        dataset="d1",
        weights_sha256="ab" * 32,
        training=record,
        environment=software,
    )


def _dataset() -> Dataset:
    rows = [
        DatasetRow(f"P{i}", "s", "s", f"v{i}", f"l{i}", "test" if i < 4 else "train", -1, "CT", vendor, "", *[9] * 6)
        for i, vendor in enumerate(["Acme"] * 3 + ["", "Acme", "Acme"])
    ]
    return Dataset("night", "segmentation", ("liver", "cyst"), tuple(rows))


def test_the_whole_story_is_on_one_page_that_fetches_nothing() -> None:
    text = render(_segmentation())
    page = _Page(text)
    for part in (
        "Promoted: this version serves", "Mean Dice", "in 4 cases of 4 test patients", "non-uniform-spacing", "Acme",
        "not told", "1 h 2 min", "1,234,567", "patch bounded by memory", "Surface Dice at 2 mm", "k0", "sha256:77",
        "missed cyst", "abc123", "images.modality", "One case is unusual.", "the challenger is better",
    ):  # fmt: skip
        assert part in page.text, part
    assert {t for t in page.targets if t.startswith("#")} == set(page.targets)
    assert {t[1:] for t in page.targets} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert len(page.images) == 5  # best, median and worst, distributions, learning curve
    assert all(image["src"].startswith("data:image/") and image["alt"] for image in page.images)
    assert not re.search(r"(src|href)=\"(?!data:|#)|@import|url\(", text)


def test_words_from_outside_stay_words() -> None:
    page = render(_segmentation("<script>alert(1)</script>"))
    assert "<script>" not in page
    assert "Better on &lt;the same&gt; patients." in page


def test_only_the_evaluation_is_needed() -> None:
    full = _segmentation()
    page = _Page(render(ReportData(full.evaluation, NOW)))
    for absent in ("data", "how", "champion", "worst"):
        assert absent not in page.ids
    assert {"summary", "good", "provenance"} <= set(page.ids)


@pytest.mark.parametrize("classes", [("no", "yes"), ("a", "b", "c")])
def test_classification_names_what_was_called_and_where_it_fails(classes: tuple[str, ...]) -> None:
    generator = np.random.default_rng(0)
    truth = np.arange(30) % len(classes)
    chances = generator.dirichlet(np.ones(len(classes)), 30)
    names = [f"P{i}" for i in range(30)], [f"c{i}" for i in range(30)]
    found, frame, pictures = evaluate_classification(
        *names, truth, chances, classes, package="k", dataset="d", bootstrap=100
    )
    page = _Page(render(ReportData(found, NOW, cases=frame, pictures=tuple(pictures))))
    assert len(page.images) == 4
    worst = int(np.argmin(chances[np.arange(30), truth]))
    assert tables.worst(frame, "classification", 1).rows[0][:3] == (f"P{worst}", f"c{worst}", classes[truth[worst]])
    assert ("By class" in page.text) == (len(classes) > 2)
    assert ("is called from a probability of 0.500" in page.text) == (len(classes) == 2)


def test_a_single_patient_has_no_interval() -> None:
    truth = np.ones((1, 8, 8), np.uint8)
    sample = SegmentationSample("P", "c", None, truth, truth, Geometry.from_spacing(truth.shape, (1, 1, 1)))
    found, _, pictures = evaluate_segmentation([sample], ("a",), package="k", dataset="d", bootstrap=100)
    page = _Page(render(ReportData(found, NOW, pictures=(*pictures, Picture("saliency", "Saliency", "heat", b"x")))))
    assert "one patient only" in page.text
    assert "Mean Dice 1.000 in 1 case of 1 test patient." in page.text


def test_worst_case_comes_first_and_numbers_have_real_minus_signs() -> None:
    data = _segmentation()
    assert [row[1] for row in tables.worst(data.cases, "segmentation", count=2).rows] == ["c3", "c2"]
    metric = tables.METRICS["volume_error_ml"]
    assert (metric.format(-1.234), metric.format(0.5, sign=True), metric.format(-0.0001)) == ("−1.23", "+0.50", "0.00")


def test_the_page_says_how_far_the_data_drifted_and_where_the_weights_came_from() -> None:
    data = _segmentation()
    assert data.package is not None
    moved = Drift(measure="spacing z", how="factor", value=1.6, threshold=1.1, told="median 1 mm then, 1.6 mm now")
    same = Drift(measure="manufacturers", how="psi", value=0.01, threshold=0.25, told="A 100% then, A 100% now")
    plan = data.package.plan.model_copy(update={"drift": (same, moved)})
    package = data.package.model_copy(update={"plan": plan, "started_from": "feedface"})
    page = render(dataclasses.replace(data, package=package, champion=data.package))
    assert page.index("median 1 mm then, 1.6 mm now") < page.index("A 100% then")
    assert "drifted" in page
    assert "feedface" in page
    assert "are dashed" in page
    assert "are dashed" not in render(data)
    assert "Drift from what" not in render(data)
