"""Versions of a model from the rooms themselves: one that has learnt little, one from noise, one that is better."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from models.card import CARD_DOCUMENT, ModelCard
from models.errors import RecipeError
from models.geometry import Geometry
from models.hashing import content_key
from models.package import CARD_FILE
from models.recipe import Recipe
from models.refs import EvaluationRef, PackageRef, VolumeRef
from models.registration import Registered
from tasks.evaluate.run import compare, evaluate_package
from tasks.ingest.build import build_dataset
from tasks.predict.run import predict_volumes
from tasks.predict.warm import WARM
from tasks.preprocess import stored
from tasks.preprocess.stored import plan_training, prepare_planned
from tasks.register import promotion
from tasks.register.card import markdown
from tasks.register.run import champion, check, register, resolve, rollback, serving
from tasks.stores.house import Stores
from tasks.stores.packages import read_package
from tasks.stores.tables import LabelRow, PackageRow, PredictionRow, SplitRow
from tasks.train.stored import train_package
from tests.tasks.predict.samples import a_volume, stores_at

PATIENTS = 40
RECIPE = """
name = "squares"
kind = "classification"
images.modality = "MR"
labels = {{ source = "CSV", name = "{truth}", classes = ["plain", "square"] }}
split = {{ train = 0.5, validation = 0.1, test = 0.4 }}
network.features = [8, 12]
train.epochs = {epochs}
train.steps_per_epoch = {steps}
train.learning_rate = {rate}
train.batch_size = 8
train.device = "cpu"
train.precision = "fp32"
train.compile = false
train.validations = 1
augment = {{ rotation = 0, scaling = 0, noise = 0, blur = 0, brightness = 0, contrast = 0, gamma = 0 }}
evaluate.bootstrap = 200
promote = {{ regression = 0.0, class_floors = {{ square = 0.4 }} }}
"""
HARDLY = {"truth": "truth", "epochs": 1, "steps": 1, "rate": 1e-6}
NOISY = {"truth": "noisy", "epochs": 6, "steps": 6, "rate": 5e-3}
BETTER = {"truth": "truth", "epochs": 6, "steps": 6, "rate": 5e-3}


@dataclass(frozen=True)
class Night:
    """What a night came to."""

    package: PackageRef
    evaluation: EvaluationRef
    registered: Registered


def image(number: int) -> np.ndarray:
    """A bright square in noise, in every other one."""
    rng = np.random.default_rng(number)
    found = rng.normal(0, 0.5, (1, 16, 16)).astype(np.float32)
    y, x = rng.integers(0, 10, 2)
    found[0, y : y + 6, x : x + 6] += 2.0 * (number % 2)
    return found


def patients(stores: Stores) -> None:
    """Images with their labels; and labels of the training patients in which nothing of the truth is left."""
    grid = Geometry.from_spacing((1, 16, 16), (1.0, 1.0, 1.0))
    for number in range(PATIENTS):
        patient = f"P-{number:03}"
        a_volume(stores, image(number), grid, study=f"2.25.{number}", series=f"s{number}", patient=patient)
        stores.catalog.add(said(number, "truth", number % 2))
    build_dataset(recipe(HARDLY), stores.catalog, stores.datasets, stores.pseudonymizer)
    sides = {row.patient: row.split for row in stores.catalog.find(SplitRow)}
    for number in range(PATIENTS):
        true = sides[f"P-{number:03}"] == "test"
        stores.catalog.add(said(number, "noisy", number % 2 if true else (number // 2) % 2))


def said(number: int, name: str, target: int) -> LabelRow:
    value = ("plain", "square")[target]
    return LabelRow(label=content_key(name, number), patient=f"P-{number:03}", source="CSV", name=name, value=value)


def recipe(choices: dict[str, object]) -> Recipe:
    return Recipe.parse(RECIPE.format(**choices))


def night(stores: Stores, choices: dict[str, object]) -> Night:
    """As `flows.retrain` goes through the rooms."""
    asked = recipe(choices)
    dataset = build_dataset(asked, stores.catalog, stores.datasets, stores.pseudonymizer).ref
    check(stores, asked, dataset)
    plan = plan_training(stores, asked, dataset)
    prepare_planned(stores, asked, plan)
    package = train_package(stores, asked, plan)
    evaluation = evaluate_package(stores, package, dataset)
    serves = champion(stores, asked.name)
    before = evaluate_package(stores, serves, dataset) if serves else None
    comparison = compare(stores, before, evaluation) if before else None
    registered = register(stores, package, evaluation, before, comparison, policy=asked.promote)
    return Night(package, evaluation, registered)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    WARM.forget()
    stores = stores_at(tmp_path_factory.mktemp("promotion"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "compute_client", lambda *_: nullcontext())  # so few images need no cluster
        patients(stores)
        yield stores
    stores.catalog.close()
    WARM.forget()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def nights(stores: Stores) -> tuple[Night, Night, Night]:
    """Three nights, one after the other."""
    return night(stores, HARDLY), night(stores, NOISY), night(stores, BETTER)


def the_next_image(stores: Stores, number: int, *, with_version: str = "champion") -> str:
    """An image that nobody has seen, as it arrives; returns the package that said what it shows."""
    grid = Geometry.from_spacing((1, 16, 16), (1.0, 1.0, 1.0))
    new = a_volume(stores, image(number), grid, study=f"2.25.9{number}", series=f"new{number}", patient=f"N-{number}")
    (key,) = predict_volumes(stores, resolve(stores, "squares", with_version), [VolumeRef.to(new.key)])
    row = stores.catalog.get(PredictionRow, key)
    assert row is not None
    assert len(row.result["findings"]) == 2
    return row.package


def test_what_was_learnt_from_noise_does_not_serve_and_what_is_better_does(
    stores: Stores, nights: tuple[Night, Night, Night]
) -> None:
    first, noisy, better = (one.registered for one in nights)
    assert (first.action, noisy.action, better.action) == ("promoted", "kept", "promoted")
    assert "on the same 16 test patients" in noisy.reasons[0]
    assert any(reason.startswith("it is not better on average") for reason in noisy.reasons)
    rows = promotion.history(stores.registry, stores.catalog, "squares")[:3]
    assert [(row.action, row.version, row.before) for row in rows] == [
        ("promoted", "1", None),
        ("kept", "2", "1"),
        ("promoted", "3", "1"),
    ]
    kept = rows[1].figures
    assert kept["inputs"]["champion"] == nights[0].package.key
    assert kept["inputs"]["evaluation"] == stores.evaluations.read(nights[1].evaluation.key).digest
    assert kept["policy"]["regression"] == 0.0
    failed = {one["rule"] for one in kept["checks"] if not one["passed"]}
    assert {"better", "margin", "regression"} <= failed
    assert all(one["passed"] for one in rows[2].figures["checks"])


def test_after_a_rollback_the_old_one_says_what_the_next_image_shows(
    stores: Stores, nights: tuple[Night, Night, Night]
) -> None:
    first, _, better = nights
    assert the_next_image(stores, 1) == better.package.key
    assert rollback(stores, "squares", who="ana", reason="misses the small ones") == "1"
    assert the_next_image(stores, 2) == first.package.key  # though the other is still in memory
    (serves,) = serving(stores, (), shadow=False)
    assert (serves.version, serves.package) == ("1", first.package)
    last = promotion.history(stores.registry, stores.catalog, "squares")[-1]
    assert (last.action, last.version, last.before, last.who) == ("rolled-back", "1", "3", "ana")
    again = night(stores, BETTER).registered
    assert again.action == "kept"
    assert "ana took version 3 out of service" in again.reasons[0]


def test_versions_that_serve_no_longer_can_still_be_asked(
    stores: Stores, nights: tuple[Night, Night, Night], tmp_path: Path
) -> None:
    WARM.forget()
    for version, one in zip("123", nights, strict=True):
        assert the_next_image(stores, 10 + int(version), with_version=version) == one.package.key
        kept = stores.packages.local(one.package.key)
        package, weights = read_package(kept)
        folder = stores.registry.fetch("squares", version, tmp_path)
        fetched, same = read_package(folder)
        assert fetched == package
        assert weights.keys() == same.keys()
        assert all(torch.equal(weights[name], same[name]) for name in weights)
        card = ModelCard.parse((folder / CARD_DOCUMENT).read_bytes())
        assert (folder / CARD_FILE).read_text() == markdown(card)
        assert (card.details.package, card.performance.n_patients) == (package.key, 16)


def test_a_policy_that_names_a_class_that_is_not_there_is_told_before_training(stores: Stores) -> None:
    asked = recipe(BETTER | {"rate": 1e-4})
    wrong = asked.model_copy(update={"promote": asked.promote.model_copy(update={"class_floors": {"circle": 0.5}})})
    before = stores.catalog.count(PackageRow)
    dataset = build_dataset(wrong, stores.catalog, stores.datasets, stores.pseudonymizer).ref
    with pytest.raises(RecipeError, match=r"class_floors.*'circle'.*plain, square"):
        check(stores, wrong, dataset)
    assert stores.catalog.count(PackageRow) == before


def test_a_night_by_hand_asks_a_person_where_the_settings_want_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    import flows.cli
    import flows.retrain

    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(flows.retrain, "retrain", lambda *given: asked.append(given))
    monkeypatch.setattr(flows.cli, "_tell", lambda *_: None)
    monkeypatch.setenv("NOCTURNE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NOCTURNE_NIGHTLY__APPROVAL_HOURS", "3")
    (tmp_path / "squares.toml").write_text(RECIPE.format(**BETTER))
    for wanted in ("true", "false"):
        monkeypatch.setenv("NOCTURNE_NIGHTLY__APPROVAL", wanted)
        done = CliRunner().invoke(flows.cli.app, ["retrain", str(tmp_path / "squares.toml")])
        assert done.exit_code == 0, done.output
    assert [given[2:] for given in asked] == [(True, 3.0), (False, 3.0)]
