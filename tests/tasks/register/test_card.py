from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.package import ModelPackage
from tasks.register.card import model_card
from tests.tasks.register.samples import a_comparison, a_dataset, a_package, an_evaluation


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    return a_package(tmp_path / "p")


def test_it_says_what_a_reader_must_know(package: ModelPackage) -> None:
    card = model_card(package, an_evaluation(package), a_dataset())
    assert card.startswith("# liver\n")
    for heading in ("Intended use", "Data", "Training", "Performance", "Limitations", "Provenance", "Licence"):
        assert f"\n## {heading}\n" in card
    assert "**Not for diagnostic use.**" in card
    assert "| train | 7 | 7 |" in card
    assert "| test | 2 | 2 |" in card
    assert "| Dice | spleen | 0.7000 | 0.6700 to 0.7300 | 40 |" in card
    for key in (package.key, package.weights_sha256, package.dataset, package.recipe.key, package.plan.key):
        assert f"`{key}`" in card
    assert "nocturne predict STUDY_FOLDER --model liver" in card


def test_it_names_its_weak_points(package: ModelPackage) -> None:
    few = model_card(package, an_evaluation(package, n=12), a_dataset())
    assert "only 12 patients" in few
    assert "one manufacturer (SIEMENS)" in few
    assert "weakest on spleen" in few
    many = model_card(package, an_evaluation(package, n=80), a_dataset(manufacturers=("SIEMENS", "GE")))
    assert "one manufacturer" not in many
    assert "only 80" not in many


def test_one_patient_has_no_interval_and_the_card_says_so(package: ModelPackage) -> None:
    assert "none (one patient)" in model_card(package, an_evaluation(package, n=1), a_dataset())


def test_the_comparison_with_the_champion_is_told(package: ModelPackage) -> None:
    evaluation = an_evaluation(package)
    comparison = a_comparison(an_evaluation("old"), evaluation, -0.01, 0.02, 0.05)
    card = model_card(package, evaluation, a_dataset(), comparison=comparison)
    assert "Dice +0.0200 [-0.0100, +0.0500]" in card


def test_no_pseudonym_of_a_patient_is_in_it(package: ModelPackage) -> None:
    dataset = a_dataset()
    card = model_card(package, an_evaluation(package), dataset)
    for row in dataset.rows:
        for word in (row.patient, row.study + " ", row.volume):
            assert word not in card


def test_names_from_the_data_cannot_break_the_tables(package: ModelPackage) -> None:
    evaluation = an_evaluation(package)
    odd = evaluation.metrics[1].model_copy(update={"class_name": "a|b\n<script>"})
    card = model_card(package, evaluation.model_copy(update={"metrics": (*evaluation.metrics, odd)}), a_dataset())
    assert "a\\|b &lt;script>" in card


def test_images_of_several_classes_are_told_as_such(package: ModelPackage) -> None:
    several = package.model_copy(
        update={"plan": package.plan.model_copy(update={"kind": "classification", "several": True})}
    )
    data = a_dataset()
    rows = tuple(replace(row, target=-1, classes=(i % 2, 0)) for i, row in enumerate(data.rows))
    evaluation = an_evaluation(package).model_copy(update={"thresholds": (0.25, 0.5), "surface_tolerance_mm": None})
    card = model_card(several, evaluation, replace(data, kind="classification", rows=rows))
    assert "of which an image may show several or none" in card
    assert f"- class: {data.classes[0]} 5, none 5" in card or f"- class: none 5, {data.classes[0]} 5" in card
    assert "Called from a probability of 0.2500 (" in card
    assert "nevertheless given one" not in card


def test_regions_are_told_as_such(package: ModelPackage) -> None:
    regions = package.model_copy(update={"plan": package.plan.model_copy(update={"regions": True})})
    assert "regions that may overlap" in model_card(regions, an_evaluation(package), a_dataset())
