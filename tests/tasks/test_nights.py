"""Night after night from the catalog: the champion goes on, its plan stays, nothing new costs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from models.errors import RecipeError
from models.geometry import Geometry
from models.hashing import content_key
from models.package import WEIGHTS_FILE, ModelPackage
from models.plan import Plan
from models.recipe import Recipe
from models.refs import DatasetRef, PackageRef, PlanRef
from tasks.ingest.build import build_dataset
from tasks.preprocess.stored import plan_training, prepare_planned
from tasks.stores.house import Stores
from tasks.stores.packages import digest, read_description, read_package
from tasks.stores.tables import LabelRow, PlanRow, SplitRow
from tasks.train.stored import train_package
from tests.tasks.predict.samples import a_volume

RECIPE = """
name = "squares"
kind = "classification"
images.modality = "MR"
labels = {source = "CSV", of = "series"}
network.features = [8, 12]
train = {epochs = 4, steps_per_epoch = 3, batch_size = 8, learning_rate = 5e-3, device = "cpu", validations = 2}
augment = {rotation = 0, scaling = 0, noise = 0, blur = 0, brightness = 0, contrast = 0, low_resolution = 0, gamma = 0}
"""
CHAMPION = 'start = { source = "champion", budget = 0.5 }\n'


@dataclass(frozen=True)
class House:
    """Patients come in; a night is planned, prepared and learnt."""

    stores: Stores

    def patients(self, numbers: range, *, labelled: bool = True, spacing: float = 1.0) -> None:
        for number in numbers:
            rng, patient = np.random.default_rng(number), f"P-{number:03}"
            image = rng.normal(0, 0.5, (1, 16, 16)).astype(np.float32)
            image[0, 4:10, 4:10] += 2.5 * (number % 2)
            grid = Geometry.from_spacing((1, 16, 16), (1.0, spacing, spacing))
            a_volume(self.stores, image, grid, study=f"2.25.{number}", series=f"s{number}", patient=patient)
            if labelled:
                value = "square" if number % 2 else "plain"
                key = content_key("label", patient)
                row = LabelRow(label=key, patient=patient, source="CSV", name="truth", value=value)
                self.stores.catalog.add(row)

    def build(self, recipe: Recipe) -> DatasetRef:
        return build_dataset(recipe, self.stores.catalog, self.stores.datasets, self.stores.pseudonymizer).ref

    def plan(self, recipe: Recipe, champion: PackageRef | None = None) -> PlanRef:
        return plan_training(self.stores, recipe, self.build(recipe), champion)

    def planned(self, ref: PlanRef) -> Plan:
        row = self.stores.catalog.get(PlanRow, ref.key)
        assert row is not None
        return Plan.model_validate(row.document)

    def night(self, text: str, champion: PackageRef | None = None) -> PackageRef:
        recipe = Recipe.parse(RECIPE + text)
        plan = self.plan(recipe, champion)
        prepare_planned(self.stores, recipe, plan)
        return train_package(self.stores, recipe, plan, champion)

    def described(self, package: PackageRef) -> ModelPackage:
        return read_description(self.stores.packages.local(package.key))


@pytest.fixture
def house(house_of_one: Stores) -> House:
    made = House(house_of_one)
    made.patients(range(24))
    return made


def test_the_champion_goes_on_with_what_is_new_and_rests_when_nothing_is(house: House) -> None:
    first = house.night(CHAMPION)
    assert house.described(first).started_from == ""
    assert "there is no champion yet: from scratch" in house.described(first).training.notes
    assert house.night(CHAMPION, first) == first  # nothing new: the champion stays

    house.patients(range(24, 40))
    second = house.night(CHAMPION, first)
    described = house.described(second)
    assert described.started_from == first.key
    assert described.training.steps == house.described(first).training.steps / 2
    assert house.night(CHAMPION, first) == second  # found again, though it does not serve
    assert house.night(CHAMPION, second) == second

    changed = house.night(CHAMPION + "seed = 7", second).key  # not new, but asked otherwise: learnt anew from there
    assert changed != second.key
    assert house.described(PackageRef.to(changed)).started_from == second.key


def test_a_champions_plan_is_kept_until_the_data_drift(house: House) -> None:
    on_drift = 'nights.plan = "on-drift"\n'
    first = house.night(on_drift)
    assert any("no champion whose plan" in note for note in house.described(first).plan.notes)
    assert house.night(on_drift, first) == first

    house.patients(range(24, 32))
    recipe = Recipe.parse(RECIPE + on_drift)
    same = house.plan(recipe, first)
    kept = house.planned(same)
    assert kept.course_key == house.described(first).plan.course_key
    assert kept.made_for == house.described(first).dataset
    assert any("is kept: no drift" in note for note in kept.notes)
    assert {m.measure for m in kept.drift} >= {"spacing y", "median of intensities", "manufacturers"}
    assert not any(m.drifted for m in kept.drift)
    second = house.night(on_drift, first)

    house.patients(range(32, 74), spacing=2.0)
    again = house.planned(house.plan(recipe, second))
    assert any("planned anew, as the data has drifted: spacing" in note for note in again.notes)
    assert again.made_for == ""
    never = house.planned(house.plan(Recipe.parse(RECIPE + 'nights.plan = "keep"\n'), second))
    assert never.course_key == kept.course_key
    assert any("though the data has drifted" in note for note in never.notes)


def test_a_plan_is_not_kept_against_the_recipe(house: House) -> None:
    first = house.night('nights.plan = "keep"\n')
    house.patients(range(24, 32))
    longer = Recipe.parse(RECIPE.replace("epochs = 4", "epochs = 9") + 'nights.plan = "keep"\n')
    plan = house.planned(house.plan(longer, first))
    assert plan.train.epochs == 9
    assert any("the recipe has changed" in note for note in plan.notes)


def test_pretraining_sees_unlabelled_images_but_none_of_those_that_judge(house: House) -> None:
    text = 'start = { source = "pretraining", pretraining_share = 0.5 }\n'
    house.patients(range(200, 206), labelled=False)
    first = house.night(text)
    plan = house.described(first).plan
    volumes = {volume for volume, *_ in plan.unlabelled}
    assert volumes == {content_key("volume", f"2.25.{n}", f"s{n}") for n in range(200, 206)}
    trained = len(house.stores.datasets.read(house.described(first).dataset).split("train"))
    assert any(f"masked pretraining on {trained + 6} images" in note for note in house.described(first).training.notes)

    # An unlabelled image alone makes no new night; the plan says which images were seen.
    house.patients(range(206, 208), labelled=False)
    assert house.night(text) == first
    judged = house.stores.catalog.find(SplitRow, SplitRow.split != "train")[0].patient
    a_volume(house.stores, np.zeros((1, 16, 16), np.float32) + 1, study="2.25.9", series="more", patient=judged)
    house.patients(range(24, 26))
    second = house.described(house.night(text))
    assert second.key != first.key
    seen = {volume for volume, *_ in second.plan.unlabelled}
    assert content_key("volume", "2.25.9", "more") not in seen
    assert len(seen) == 8


def test_a_file_of_weights_is_taken_up_wherever_it_lies(house: House, tmp_path: Path) -> None:
    source = house.night("")
    _, weights = read_package(house.stores.packages.local(source.key))
    file = tmp_path / "net.safetensors"
    save_file(weights, file)
    text = f'start = {{ source = "weights", weights = "{file}", sha256 = "{digest(file)}" }}\n'
    package = house.night(text)
    assert house.described(package).started_from == digest(file)
    assert digest(file) == digest(house.stores.packages.local(source.key) / WEIGHTS_FILE)
    moved = file.rename(tmp_path / "elsewhere.safetensors")
    assert house.night(text.replace(str(file), str(moved))) == package
    house.patients(range(24, 26))
    with pytest.raises(RecipeError, match="no such file"):
        house.night(text)
