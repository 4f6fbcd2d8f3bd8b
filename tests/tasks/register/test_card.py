from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.card import ModelCard
from models.dataset import Dataset
from models.errors import PackageError
from models.evaluation import Agreement, Comparison, Cost, Evaluation, MetricSummary, PairedTest, Subgroup
from models.package import ModelPackage
from tasks.register.card import gather, markdown
from tasks.register.card.markdown import front_matter
from tests.tasks.register.samples import a_comparison, a_dataset, a_package, an_evaluation, an_interval


def model_card(
    package: ModelPackage, evaluation: Evaluation, dataset: Dataset, comparison: Comparison | None = None
) -> str:
    return markdown(gather(package, evaluation, dataset, comparison=comparison))


@pytest.fixture
def package(tmp_path: Path) -> ModelPackage:
    return a_package(tmp_path / "p")


def test_it_says_what_a_reader_must_know(package: ModelPackage) -> None:
    card = model_card(package, an_evaluation(package), a_dataset())
    assert card.startswith("# liver\n")
    told = ("Intended use", "Data", "Training", "Performance", "Limitations", "Ethical considerations")
    for heading in (*told, "Provenance", "Licence", "How to run"):
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


def told_apart(package: ModelPackage) -> Evaluation:
    """An evaluation with all that a card may show."""

    def group(attribute: str, name: str, dice: float, n: int) -> Subgroup:
        told = MetricSummary(metric="dice", interval=an_interval(dice, 0.05, n))
        return Subgroup(attribute=attribute, group=name, n_patients=n, n_cases=n + 1, metrics=(told,))

    volumes = {"bias": an_interval(-1.5, 0.5, 40), "lower": an_interval(-9, 1, 40), "upper": an_interval(6, 1, 40)}
    agreement = Agreement(class_name="liver", points=((100.0, -2.0), (140.0, 1.0)), **volumes)
    return an_evaluation(package).model_copy(
        update={
            "subgroups": (
                group("site", "A", 0.85, 25),
                group("site", "B|C", 0.66, 12),
                group("slice_thickness", "under 1.5 mm", 0.2, 3),
            ),
            "agreement": (agreement,),
            "cost": Cost(seconds_median=2.5, seconds_longest=9.0, megabytes=120.5, device="cpu (x86_64)"),
        }
    )


def test_subgroups_agreement_and_cost_are_shown_and_the_small_ones_marked(package: ModelPackage) -> None:
    card = model_card(package, told_apart(package), a_dataset())
    assert "| site A | 25 | 26 | 0.8500 [0.8000, 0.9000] |" in card
    assert "| site B\\|C | 12 | 13 | 0.6600" in card
    assert "| slice thickness under 1.5 mm \\* | 3 | 4 |" in card
    assert "fewer than 10 patients: shown, but too few" in card
    assert "weakest on site B|C: Dice 0.6600" in card
    assert "Too few test patients for any conclusion in slice thickness under 1.5 mm (3)" in card
    assert "judged apart by site and slice thickness" in card
    assert "could not be told apart by manufacturer" in card
    assert "| liver | -1.5000 [-2.0000, -1.0000] | -9.0000" in card
    assert "2.5 s in the median and 9 s at most on cpu (x86_64); the weights take 120.5 MB" in card
    without = model_card(package, an_evaluation(package), a_dataset())
    for heading in ("## Subgroups", "## Agreement", "## Cost"):
        assert heading in card
        assert heading not in without


def test_the_document_says_the_same_and_comes_back_whole(package: ModelPackage) -> None:
    evaluation = told_apart(package)
    gap = a_comparison(an_evaluation("old"), evaluation, -0.01, 0.02, 0.05)
    test = PairedTest(metric="dice", wilcoxon=0.0123, bootstrap=0.02, adjusted=0.04)
    card = gather(package, evaluation, a_dataset(), comparison=gap.model_copy(update={"tests": (test,)}))
    again = ModelCard.parse(card.to_json())
    assert again == card
    assert markdown(again) == markdown(card)
    assert "| Dice | all | 0.0123 | 0.0200 | 0.0400 |" in markdown(card)
    assert again.performance.metrics == evaluation.metrics
    assert again.performance.subgroups == evaluation.subgroups
    assert again.performance.cost == evaluation.cost
    assert again.performance.against is not None
    assert again.performance.against.difference.value == 0.02
    assert [g.group for g in again.small_subgroups] == ["under 1.5 mm"]
    assert (again.data.splits[0].patients, again.data.manufacturers) == (7, {"SIEMENS": 10})
    assert again.provenance.weights_sha256 == package.weights_sha256
    assert again.format == 1


def test_no_pseudonym_of_a_patient_is_in_the_document(package: ModelPackage) -> None:
    dataset = a_dataset()
    document = gather(package, told_apart(package), dataset).to_json()
    for row in dataset.rows:
        for word in (f'"{row.patient}"', f'"{row.study}"', f'"{row.series}"', row.volume, row.label):
            assert word not in document


def test_the_hubs_fields_are_the_page_s_front_matter(package: ModelPackage) -> None:
    card = gather(package, an_evaluation(package), a_dataset())
    front = front_matter(card)
    assert front.startswith("---\n")
    assert 'pipeline_tag: "image-segmentation"' in front
    assert "base_model" not in front
    (index,) = card.hub["model-index"]
    (result,) = index["results"]
    assert {"type": "dice", "name": "Dice", "value": 0.8} in result["metrics"]


def test_what_is_no_card_is_refused() -> None:
    with pytest.raises(PackageError, match=r"card\.json"):
        ModelCard.parse('{"format": 2}')
