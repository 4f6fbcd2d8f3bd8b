"""Test cases apart, from the catalog to the evaluation and the comparison."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from models.dataset import Dataset, DatasetRow
from models.evaluation import Evaluation, Subgroup
from models.geometry import Geometry
from models.hashing import content_key
from models.recipe import Evaluate
from models.refs import PackageRef
from models.subgroups import NOT_RECORDED, Traits
from models.volume import Mask, Segment
from tasks.evaluate.classification import evaluate_classification
from tasks.evaluate.judging import figures_for
from tasks.evaluate.run import compare, evaluate_package
from tasks.evaluate.subgroups import paired_subgroups, subgroups, traits_of
from tasks.stores.datasets import record_of
from tasks.stores.house import Stores
from tasks.stores.tables import ClinicalRow, VolumeRow
from tests.tasks.predict.samples import a_package, a_volume, stores_at
from tests.tasks.train.samples import ball, balls

ASKED = Evaluate(bootstrap=100)
IDS = {"package": "p", "dataset": "d", "bootstrap": 100}


def _told(groups: tuple[Subgroup, ...]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for group in groups:
        found.setdefault(group.attribute, {})[group.group] = group.n_cases
    return found


def _value(group: Subgroup, metric: str) -> float:
    return next(m.interval.value for m in group.metrics if m.metric == metric)


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return stores_at(tmp_path / "home")


class Ward:
    """Six test patients: two makers, two sexes, some of known age, one of the sizes of balls each."""

    def __init__(self, stores: Stores) -> None:
        rows = []
        for number in range(6):
            case = ball(number)
            geometry = Geometry.from_spacing(case.image.shape[-3:], (1.0, 1.0, 1.0))
            patient, label = f"P-{number}", content_key("label", number)
            volume = a_volume(
                stores, case.image[0], geometry, study=f"2.25.{number + 1}", series=f"s{number}", patient=patient
            )
            there = np.stack([case.mask == 1, case.mask == 2]).astype(np.uint8) * np.uint8(255)
            segments = (Segment(1, "ball"), Segment(2, "core"))
            stores.volumes.write_mask(label, Mask(there, segments, geometry, "SEG"))
            kept = {"PatientSex": "MF"[number % 2], "site": "site-000001", "contrast": "with"}
            stores.catalog.change(
                VolumeRow,
                VolumeRow.volume == volume.key,
                slice_thickness=1.0 + number,
                characteristics=kept | ({"PatientAge": f"{20 + 10 * number:03d}Y"} if number else {}),
            )
            maker = "ACME" if number < 4 else "Bolt"
            place = (*geometry.shape, 1.0, 1.0, 1.0)
            rows.append(
                DatasetRow(
                    patient, f"2.25.{number + 1}", content_key(f"s{number}"), volume.key, label, "test", -1, "MR",
                    maker, "", *place,  # type: ignore[arg-type]
                )
            )  # fmt: skip
        self.dataset = Dataset("ward", "segmentation", ("ball", "core"), tuple(rows))
        self.ref = stores.datasets.write(self.dataset)
        stores.catalog.add(record_of(self.dataset))
        world = balls()
        judged = world.recipe.model_copy(update={"evaluate": Evaluate(bootstrap=100, explained=0)})
        self.package: PackageRef = a_package(stores, replace(world, recipe=judged))


def test_an_evaluation_and_a_comparison_have_groups_from_the_catalog_and_what_a_case_cost(
    stores: Stores, one_thread: None
) -> None:
    ward = Ward(stores)
    ref = evaluate_package(stores, ward.package, ward.ref)
    found = stores.evaluations.read(ref.key)
    told = _told(found.subgroups)
    assert told["manufacturer"] == {"ACME": 4, "Bolt": 2}
    assert told["sex"] == {"F": 3, "M": 3}
    assert told["age"] == {"18–39 years": 1, "40–59 years": 2, "60–79 years": 2, NOT_RECORDED: 1}
    assert told["slice_thickness"] == {"under 1.5 mm": 1, "1.5–3 mm": 1, "3–5 mm": 2, "5 mm and over": 2}
    assert not {"site", "contrast", "model_name"} & told.keys(), "all are in one group"
    cases = stores.evaluations.cases(ref.key)
    (acme,) = (group for group in found.subgroups if group.group == "ACME")
    chosen = {row.volume for row in ward.dataset.rows if row.manufacturer == "ACME"}
    assert _value(acme, "surface_dice") == pytest.approx(cases[cases["case"].isin(chosen)]["surface_dice"].mean())
    assert (acme.n_patients, acme.metrics[0].interval.n) == (4, 4)
    assert found.cost is not None
    assert 0 < found.cost.seconds_median <= found.cost.seconds_longest
    assert found.cost.megabytes > 0
    assert [agreement.class_name for agreement in found.agreement] == ["ball", "core"]
    again = compare(stores, ref, ref)
    assert _told(again.subgroups) == told
    assert {m.interval.value for group in again.subgroups for m in group.metrics} == {0}
    assert {(t.metric, t.class_name, t.adjusted) for t in again.tests} >= {("dice", None, 1), ("dice", "ball", 1)}


def test_traits_come_from_headers_the_recipes_variables_and_any_clinical_table(stores: Stores) -> None:
    ward = Ward(stores)
    stores.catalog.add(
        ClinicalRow(clinical="a" * 32, name="registry", patient="P-1", content={"stage": "II"}),
        ClinicalRow(clinical="b" * 32, name="registry", patient="P-2", content={"stage": "III"}),
    )
    cases = pd.DataFrame({"case": [row.volume for row in ward.dataset.rows], "volume_truth_ml": 1.5})
    asked = Evaluate(subgroups=("Stage", "PatientSex"))
    found = traits_of(stores, asked, ward.dataset, cases)
    by_patient = {row.patient: found[row.volume] for row in ward.dataset.rows}
    assert [by_patient[f"P-{n}"].clinical.get("stage", "") for n in range(4)] == ["", "II", "III", ""]
    assert by_patient["P-1"].clinical["patientsex"] == "F"
    one = by_patient["P-3"]
    assert (one.site, one.contrast, one.age_years, one.size_ml) == ("site-000001", "with", 50, 1.5)
    gone = traits_of(stores_at(stores.workspace), asked, ward.dataset, cases)
    assert next(iter(gone.values())).sex == "", "a volume that the catalog has lost is not recorded"


def _classified(sharpness: float) -> tuple[Evaluation, pd.DataFrame]:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 80)
    score = 1 / (1 + np.exp(-generator.normal(sharpness * (2 * truth - 1), 1)))
    ids = [f"P{number // 2}" for number in range(80)], [f"c{number}" for number in range(80)]
    found, frame, _ = evaluate_classification(*ids, truth, np.c_[1 - score, score], ("no", "yes"), **IDS)  # type: ignore[arg-type]
    return found, frame


def test_groups_of_classified_images_are_judged_as_all_are() -> None:
    (old, old_cases), (new, new_cases) = _classified(0.3), _classified(1.5)
    figures = figures_for("classification")
    assert figures is not None
    rows = new_cases[new_cases["class_name"] == "yes"]
    sexes = dict(zip(rows["case"], rows["patient"].map(lambda p: "F" if int(p[1:]) < 12 else "M"), strict=True))
    traits = {case: Traits(sex=sex) for case, sex in sexes.items()}
    groups = {g.group: g for g in subgroups(new_cases, new, figures, traits, ASKED)}
    assert {g: (x.n_patients, x.n_cases) for g, x in groups.items()} == {"M": (28, 56), "F": (12, 24)}
    mine = new_cases[new_cases["case"].map(sexes) == "F"]
    expected = figures(mine, new).statistic(np.ones((1, 24)))[0]
    assert _value(groups["F"], "auc") == pytest.approx(expected[0])
    gains = {g.group: g for g in paired_subgroups((old_cases, old), (new_cases, new), figures, traits, ASKED)}
    before = {g.group: g for g in subgroups(old_cases, old, figures, traits, ASKED)}
    for name, gain in gains.items():
        assert [m.metric for m in gain.metrics] == ["auc"]
        assert _value(gain, "auc") == pytest.approx(_value(groups[name], "auc") - _value(before[name], "auc"))


def test_a_group_of_one_class_is_shown_without_an_area() -> None:
    found, cases = _classified(1.0)
    figures = figures_for("classification")
    assert figures is not None
    positive = set(cases[(cases["class_name"] == "yes") & cases["truth"]]["case"])
    traits = {case: Traits(contrast="with" if case in positive else "without") for case in set(cases["case"])}
    for group in subgroups(cases, found, figures, traits, ASKED):
        there = {m.metric for m in group.metrics}
        assert "accuracy" in there
        assert "auc" not in there
        assert ("sensitivity" in there) == (group.group == "with")


def test_made_images_have_no_groups() -> None:
    assert figures_for("synthesis") is None
