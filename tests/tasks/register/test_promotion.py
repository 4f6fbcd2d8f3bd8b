"""Over a real MLflow and a real catalog, shared by the module; every test has a model of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from models.approval import NOBODY, Word
from models.errors import NotFoundError, PackageError, RecipeError, ServiceUnavailableError
from models.evaluation import Comparison, Evaluation
from models.package import ModelPackage
from models.recipe import Promote
from tasks.register import promotion
from tasks.register.promotion import Registration
from tasks.stores.catalog import Catalog
from tasks.stores.registry import Registry
from tasks.stores.tables import DatasetRecord, DecisionRow, PackageRow
from tests.tasks.register.samples import DATASET, a_comparison, a_package, an_evaluation

_names = (f"model-{n}" for n in itertools.count())


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("house")


@pytest.fixture(scope="module")
def registry(home: Path) -> Registry:
    return Registry(f"sqlite:///{home / 'mlflow.db'}", str(home / "artifacts"))


@pytest.fixture(scope="module")
def catalog(home: Path) -> Iterator[Catalog]:
    catalog = Catalog(f"sqlite:///{home / 'catalog.db'}")
    catalog.add(DatasetRecord(dataset=DATASET, name="liver", kind="segmentation", classes=[], counts={}))
    yield catalog
    catalog.close()


@dataclass
class Nights:
    """One model's nights."""

    registry: Registry
    catalog: Catalog
    folder: Path
    name: str
    rules: str = ""

    def package(self, number: int) -> tuple[ModelPackage, Path]:
        folder = self.folder / f"{self.name}-{number}"
        package = a_package(folder, name=self.name, number=number, promote=self.rules)
        self.catalog.add(
            PackageRow(package=package.key, name=self.name, dataset=DATASET, weights_sha256=package.weights_sha256)
        )
        return package, folder

    def night(
        self, number: int, dice: float = 0.8, gain: float = 0.02, half: float = 0.01, word: Word | None = None
    ) -> Registration:
        """Judge package `number` against whoever serves, `gain` ± `half` better, and register it."""
        package, folder = self.package(number)
        evaluation = an_evaluation(package, dice)
        current = promotion.serving(self.registry, self.catalog, self.name)
        champion: Evaluation | None = None
        comparison: Comparison | None = None
        if current and current.package != package.key:
            champion = an_evaluation(current.package, dice - gain)
            comparison = a_comparison(champion, evaluation, gain - half, gain, gain + half)
        return promotion.register(
            self.registry,
            self.catalog,
            package,
            folder,
            evaluation,
            champion=champion,
            comparison=comparison,
            word=word,
        )

    @property
    def champion(self) -> str | None:
        found = self.registry.champion(self.name)
        return found.version if found else None

    @property
    def challenger(self) -> str | None:
        found = self.registry.challenger(self.name)
        return found.version if found else None

    @property
    def trail(self) -> list[tuple[str, str, str | None]]:
        rows = promotion.history(self.registry, self.catalog, self.name)
        return [(row.action, row.version, row.before) for row in rows]

    def back(self, leaving: str | None = None) -> DecisionRow:
        return promotion.rollback(
            self.registry, self.catalog, self.name, who="ana", reason="wrong masks", leaving=leaving
        )

    def by_hand(self, version: str) -> DecisionRow:
        return promotion.promote(self.registry, self.catalog, self.name, version, who="ana", reason="looked at it")


@pytest.fixture
def nights(registry: Registry, catalog: Catalog, tmp_path: Path) -> Nights:
    return Nights(registry, catalog, tmp_path, next(_names))


def test_the_first_night_promotes_and_every_row_and_alias_says_so(nights: Nights) -> None:
    done = nights.night(1)
    assert done.decision.action == "promoted"
    assert nights.champion == "1"
    assert nights.challenger is None
    assert nights.trail == [("promoted", "1", None)]
    row = nights.catalog.get(PackageRow, done.version.package)
    assert row
    assert (row.version, row.run) == ("1", done.version.run_id)
    (audit,) = promotion.history(nights.registry, nights.catalog, nights.name)
    assert audit.package == done.version.package
    assert audit.evaluation
    assert audit.figures["metric"] == "dice"
    assert audit.who == "nocturne"


def test_a_better_model_takes_over_and_a_doubtful_one_stays_challenger(nights: Nights) -> None:
    nights.night(1)
    assert nights.night(2, gain=0.02, half=0.01).decision.action == "promoted"
    doubtful = nights.night(3, gain=0.02, half=0.03)
    assert doubtful.decision.action == "kept"
    assert (nights.champion, nights.challenger) == ("2", "3")
    assert doubtful.version.aliases == ("challenger",)
    assert nights.trail == [("promoted", "1", None), ("promoted", "2", "1"), ("kept", "3", "2")]


def test_a_first_model_below_the_floor_leaves_nothing_serving(nights: Nights) -> None:
    nights.rules = "[promote]\nfloor = 0.9"
    nights.night(1)
    nights.night(1)
    assert (nights.champion, nights.challenger) == (None, "1")
    assert nights.trail == [("kept", "1", None)]
    nights.night(2, dice=0.95)
    assert (nights.champion, nights.challenger) == ("2", "1")


def test_doing_it_again_leaves_one_row(nights: Nights) -> None:
    for number, half in ((1, 0.0), (2, 0.01), (3, 0.05)):
        first = nights.night(number, half=half)
        again = nights.night(number, half=half)
        assert again == first
    assert [action for action, _, _ in nights.trail] == ["promoted", "promoted", "kept"]


def test_a_night_without_new_data_changes_nothing(nights: Nights) -> None:
    nights.night(1)
    nights.night(2)
    before = nights.trail
    assert nights.night(2).decision.action == "promoted"
    assert nights.trail == before


def test_a_persons_no_keeps_what_the_gate_would_promote_and_the_trail_says_who(nights: Nights) -> None:
    nights.night(1)
    no = Word(approved=False, who="ben", reason="misses the left lobe")
    assert nights.night(2, word=no).decision.reasons[0] == "declined by ben: misses the left lobe"
    assert nights.night(2, word=no) == nights.night(2, word=no)
    assert (nights.champion, nights.challenger) == ("1", "2")
    assert nights.trail == [("promoted", "1", None), ("kept", "2", "1")]
    assert promotion.history(nights.registry, nights.catalog, nights.name)[-1].who == "ben"


def test_a_persons_yes_is_recorded_and_cannot_overrule_the_gate(nights: Nights) -> None:
    yes = Word(approved=True, who="ana", reason="looked at it")
    nights.night(1, word=yes)
    doubtful = nights.night(2, half=0.05, word=yes)
    assert (nights.champion, nights.challenger) == ("1", "2")
    assert "ana" not in str(doubtful.decision.reasons)
    first, second = promotion.history(nights.registry, nights.catalog, nights.name)
    assert (first.who, second.who) == ("ana", "nocturne")
    assert first.reasons[0] == "approved by ana: looked at it"


def test_no_answer_is_told_as_such_and_not_as_a_persons(nights: Nights) -> None:
    nights.night(1)
    nights.night(2, word=Word(approved=False, who=NOBODY, reason="nobody answered within 12 hours"))
    last = promotion.history(nights.registry, nights.catalog, nights.name)[-1]
    assert (last.action, last.who, last.reasons[0]) == ("kept", "nocturne", "nobody answered within 12 hours")


def test_a_policy_that_wants_a_person_is_not_satisfied_without_one(nights: Nights) -> None:
    nights.rules = "[promote]\napproval = true"
    kept = nights.night(1)
    assert (kept.decision.action, nights.champion) == ("kept", None)
    assert f"nocturne models promote {nights.name}" in kept.decision.reasons[0]
    assert kept.decision.figures["checks"][-1]["rule"] == "approval"
    yes = Word(approved=True, who="ana", reason="looked at it")
    assert nights.night(2, word=yes).decision.action == "promoted"
    last = promotion.history(nights.registry, nights.catalog, nights.name)[-1]
    assert (last.who, last.figures["checks"][-1]["passed"]) == ("ana", True)


def test_the_recipes_policy_of_today_decides_on_a_package_of_yesterday(nights: Nights) -> None:
    package, folder = nights.package(1)
    strict, evaluation = Promote(floor=0.9), an_evaluation(package, 0.8)
    for policy, action in ((strict, "kept"), (None, "promoted")):
        said = promotion.preview(nights.registry, nights.catalog, package, evaluation, policy=policy)
        done = promotion.register(nights.registry, nights.catalog, package, folder, evaluation, policy=policy)
        assert (said.action, done.decision.action) == (action, action)
    assert nights.trail == [("kept", "1", None), ("promoted", "1", None)]


def test_asking_what_the_gate_would_say_changes_nothing(nights: Nights) -> None:
    package, _ = nights.package(1)
    said = promotion.preview(nights.registry, nights.catalog, package, an_evaluation(package, 0.8))
    assert said.action == "promoted"
    assert promotion.serving(nights.registry, nights.catalog, nights.name) is None
    assert nights.catalog.count(DecisionRow, DecisionRow.name == nights.name) == 0
    nights.night(1)
    again = promotion.preview(nights.registry, nights.catalog, package, an_evaluation(package, 0.8))
    assert again.action == "kept"  # it serves: nobody need be asked


def crash(monkeypatch: pytest.MonkeyPatch, step: str) -> Callable[[], None]:
    """From now on MLflow cannot be reached for `step`; call the result to heal it."""
    patch = pytest.MonkeyPatch()

    def away(*_: object, **__: object) -> None:
        raise ServiceUnavailableError("MLflow does not answer")

    patch.setattr(Registry, step, away)
    return patch.undo


@pytest.mark.parametrize("step", ["set_champion", "set_applied_decision", "clear_challenger", "challenger"])
def test_a_crash_between_row_and_alias_is_healed_by_the_next_call(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    nights.night(1)
    nights.night(2, half=0.05)
    assert (nights.champion, nights.challenger) == ("1", "2")
    heal = crash(monkeypatch, step)
    try:
        with pytest.raises(ServiceUnavailableError):
            nights.by_hand("2")
    finally:
        heal()
    assert nights.trail == [("promoted", "1", None), ("kept", "2", "1"), ("promoted", "2", "1")]
    assert (nights.champion, nights.challenger) == ("2", None)


def test_a_retried_registration_after_a_crash_finds_its_row(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    nights.night(1)
    heal = crash(monkeypatch, "set_champion")
    try:
        with pytest.raises(ServiceUnavailableError):
            nights.night(2)
    finally:
        heal()
    assert nights.night(2).decision.action == "promoted"
    assert nights.trail == [("promoted", "1", None), ("promoted", "2", "1")]
    assert nights.champion == "2"


def test_rolling_back_goes_one_champion_back_each_time(nights: Nights) -> None:
    for number in (1, 2, 3):
        nights.night(number)
    assert nights.back().version == "2"
    assert nights.back().version == "1"
    with pytest.raises(NotFoundError, match="no earlier champion") as caught:
        nights.back()
    assert caught.value.reason == "no-earlier-champion"
    assert nights.champion == "1"
    assert nights.trail[3:] == [("rolled-back", "2", "3"), ("rolled-back", "1", "2")]
    last = promotion.history(nights.registry, nights.catalog, nights.name)[-1]
    assert (last.who, last.reasons) == ("ana", ["wrong masks"])


def test_a_retried_rollback_goes_back_once(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2, 3):
        nights.night(number)
    heal = crash(monkeypatch, "set_champion")
    try:
        with pytest.raises(ServiceUnavailableError):
            nights.back(leaving="3")
    finally:
        heal()
    assert nights.back(leaving="3").version == "2"
    assert nights.champion == "2"
    with pytest.raises(NotFoundError, match="does not serve"):
        nights.back(leaving="1")


def test_what_was_rolled_back_does_not_come_back_by_itself(nights: Nights) -> None:
    nights.night(1)
    nights.night(2)
    nights.back()
    again = nights.night(2)
    assert again.decision.action == "kept"
    assert "ana took version 2 out of service" in again.decision.reasons[0]
    assert nights.champion == "1"
    nights.by_hand("2")
    assert nights.champion == "2"
    assert nights.night(3).decision.action == "promoted"
    assert nights.back().version == "2"


def test_promoting_what_serves_already_leaves_no_row(nights: Nights) -> None:
    nights.night(1)
    assert nights.by_hand("1").version == "1"
    assert len(nights.trail) == 1


def test_a_decision_by_hand_needs_a_name_and_a_reason(nights: Nights) -> None:
    nights.night(1)
    with pytest.raises(RecipeError):
        promotion.promote(nights.registry, nights.catalog, nights.name, "1", who="ana", reason=" ")
    with pytest.raises(RecipeError):
        promotion.rollback(nights.registry, nights.catalog, nights.name, who="", reason="because")


def test_an_alias_moved_in_mlflow_is_taken_into_the_trail(nights: Nights) -> None:
    nights.night(1)
    nights.night(2, half=0.05)
    nights.registry.set_champion(nights.name, "2")
    assert nights.trail[-1] == ("promoted", "2", "1")
    assert nights.champion == "2"
    assert nights.back().version == "1"


def test_an_alias_removed_in_mlflow_stops_the_serving_until_the_next_model(nights: Nights) -> None:
    nights.night(1)
    nights.registry._client.delete_registered_model_alias(nights.name, "champion")
    assert nights.trail[-1] == ("retired", "1", "1")
    assert nights.night(1).decision.action == "kept"
    with pytest.raises(NotFoundError):
        nights.back()
    assert nights.champion is None
    assert nights.night(2).decision.action == "promoted"
    assert nights.trail[-1] == ("promoted", "2", None)


def test_a_registry_that_was_lost_is_filled_again(nights: Nights) -> None:
    nights.night(1)
    nights.night(2)
    nights.registry._client.delete_registered_model(nights.name)
    done = nights.night(3)
    assert (done.decision.action, done.version.version) == ("promoted", "1")
    assert nights.trail[-2:] == [("lost", "2", "2"), ("promoted", "1", None)]


def test_a_champion_that_changed_meanwhile_must_be_judged_first(nights: Nights) -> None:
    nights.night(1)
    package, folder = nights.package(2)
    evaluation = an_evaluation(package)
    (first,) = nights.registry.versions(nights.name)
    champion = an_evaluation(first.package)
    comparison = a_comparison(champion, evaluation, 0.01, 0.02, 0.03)
    nights.night(3)
    done = promotion.register(
        nights.registry, nights.catalog, package, folder, evaluation, champion=champion, comparison=comparison
    )
    assert done.decision.action == "kept"
    assert "judge the champion again first" in done.decision.reasons[0]
    assert nights.trail[-1] == ("kept", "3", "2")
    assert nights.champion == "2"


def test_of_two_that_promote_at_once_both_are_in_the_trail_and_alias_and_trail_agree(nights: Nights) -> None:
    nights.night(1)
    for number in (2, 3):
        nights.night(number, half=0.05)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(nights.by_hand, ("2", "3")))
    moves = [(version, before) for action, version, before in nights.trail if action == "promoted"]
    assert moves[1:] in ([("2", "1"), ("3", "2")], [("3", "1"), ("2", "3")])
    assert nights.champion == moves[-1][0]


def test_only_what_the_catalog_knows_is_registered(nights: Nights) -> None:
    folder = nights.folder / "unknown"
    package = a_package(folder, name=nights.name, number=99)
    evaluation = an_evaluation(package)
    with pytest.raises(NotFoundError):
        promotion.register(nights.registry, nights.catalog, package, folder, evaluation)
    with pytest.raises(PackageError):
        promotion.register(nights.registry, nights.catalog, package, folder, an_evaluation("another"))
    with pytest.raises(NotFoundError):
        promotion.history(nights.registry, nights.catalog, nights.name)
