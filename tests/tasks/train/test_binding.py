"""A model and the champions of other recipes in one package: checked, averaged alike, found again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from models.errors import RecipeError
from models.geometry import Geometry
from models.hashing import content_key
from models.package import ModelPackage
from models.plan import Fingerprint, VariablePlan
from models.recipe import Recipe
from models.refs import PackageRef, PlanRef
from tasks.imaging.predictor import Predictor
from tasks.stores.house import Stores
from tasks.stores.packages import read_description, read_package
from tasks.stores.prepared import About, prepared_keys
from tasks.stores.tables import DatasetRecord, PackageRow, PlanRow
from tasks.train.binding import bind_packages, bound, by_itself, check_partner, train_together
from tests.tasks.imaging.test_ensemble import changed, described, image, weights_of
from tests.tasks.predict.samples import a_package, stores_at
from tests.tasks.train.samples import World, balls, pictures

GRID = Geometry.from_spacing((12, 20, 16), (1.0, 1.0, 1.0))


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return stores_at(tmp_path)


def named(recipe: Recipe, name: str, *others: str) -> Recipe:
    return Recipe.model_validate(recipe.model_dump() | {"name": name, "infer": {"ensemble": others}})


def planned(stores: Stores, world: World) -> PlanRef:
    """As the night leaves it: dataset, plan and prepared cases in their stores."""
    rows = tuple(
        dataclasses.replace(row, volume=content_key(row.volume), label=content_key("label", row.volume))
        for row in world.dataset.rows
    )
    dataset = dataclasses.replace(world.dataset, rows=rows)
    stores.datasets.write(dataset)
    cases = {content_key(name): case for name, case in world.store.cases.items()}
    for (volume, _), key in prepared_keys(dataset, world.recipe, world.plan.prepare).items():
        case = cases[volume]
        assert case.mask is not None
        whole = tuple((0, n) for n in case.mask.shape)
        stores.prepared.write(key, case.image, case.mask, About(volume, GRID, GRID, whole))  # type: ignore[arg-type]
    key = content_key("plan", dataset.key, world.recipe.learning_key)
    seen = Fingerprint(dataset=dataset.key, modality="MR", cases=(), intensities=(), crop_ratio=1.0)
    stores.catalog.add(
        DatasetRecord(
            dataset=dataset.key, name=dataset.name, kind=dataset.kind, classes=list(dataset.classes), counts={}
        ),
        PlanRow(
            plan=key,
            dataset=dataset.key,
            document=world.plan.model_dump(mode="json"),
            fingerprint=seen.model_dump(mode="json"),
        ),
    )
    return PlanRef.to(key)


def test_two_nights_of_two_recipes(stores: Stores) -> None:
    """Folds of one recipe, then another that is applied together with it, on another grid."""
    first = balls(train=4, validation=2, epochs=1, folds=2)
    first = dataclasses.replace(first, recipe=named(first.recipe, "first"))
    champion = train_together(stores, first.recipe, planned(stores, first))
    assert [m.name for m in read_description(stores.packages.local(champion.key)).members] == ["0", "1"]

    second = balls(train=4, validation=2, epochs=1, dimensions=2)
    second = dataclasses.replace(
        second,
        recipe=named(second.recipe, "second", "first"),
        plan=changed(second.plan, prepare={"spacing": (1.0, 1.2, 1.2)}),
    )
    ref = planned(stores, second)
    together = train_together(stores, second.recipe, ref, None, (champion,))
    package, weights = read_package(stores.packages.local(together.key))
    assert [m.name for m in package.members] == ["0-second", "1-first-0", "1-first-1"]
    assert [m.weight for m in package.members] == [1, 0.5, 0.5]
    assert [m.package == champion.key for m in package.members] == [False, True, True]
    assert package.recipe == second.recipe
    assert any("together with first" in note for note in package.training.notes)
    row = stores.catalog.get(PackageRow, together.key)
    assert row is not None
    assert (row.name, row.weights_sha256) == ("second", package.weights_sha256)

    predictor = Predictor(package, weights, "cpu")
    assert [round(part.share, 6) for part in predictor.parts] == [0.5, 0.5]
    assert predictor.segment(image(0, GRID.shape), GRID).labels.shape == GRID.shape

    assert train_together(stores, second.recipe, ref, None, (champion,)) == together
    own = by_itself(stores, together)
    assert own != together
    # Named no longer, it is its own model again, which need not be trained anew.
    assert train_together(stores, named(second.recipe, "second"), ref, together) == own
    assert bind_packages(stores, second.recipe, together, (champion,)) == together


def test_another_champion_makes_another_package_and_trains_nothing(stores: Stores) -> None:
    own = a_package(stores, balls(), "own")
    recipe = named(balls().recipe, "own", "a")
    partners = [a_package(stores, of("a"), name) for name in ("old", "new")]
    keys = {bind_packages(stores, recipe, own, (partner,)).key for partner in partners}
    assert len(keys) == 2
    assert own.key not in keys


def of(name: str, world: World | None = None, **plan: object) -> World:
    world = world or balls()
    return dataclasses.replace(world, recipe=named(world.recipe, name), plan=world.plan.model_copy(update=plan))


def overlapping(name: str) -> World:
    """Its structures may overlap: an output for each, none for the background."""
    world = of(name, regions=True)
    network = world.plan.network.model_copy(update={"out_channels": len(world.plan.classes)})
    return of(name, world, network=network)


def package_of(world: World, **changes: object) -> ModelPackage:
    return described(world, **{"key": f"k-{world.recipe.name}", **changes})


class TestBound:
    def test_each_recipe_counts_the_same_and_brings_its_temperature(self) -> None:
        own, other = package_of(of("own"), temperature=2.0), package_of(of("other"), temperature=3.0)
        weights = [weights_of({"": own.plan}, seed) for seed in (1, 2)]
        package, together = bound("k", own.recipe, (own, weights[0]), [(other, weights[1])])
        assert [m.temperature for m in package.members] == [2.0, 3.0]
        assert package.temperature == 1.0
        assert len(together) == len(weights[0]) + len(weights[1])
        whole = Predictor(package, together, "cpu", precision="fp32")
        assert len(whole.parts) == 1

    def test_members_of_members_keep_their_parts(self) -> None:
        inner, _ = bound(
            "k1",
            of("b").recipe,
            (package_of(of("b"), temperature=2.0), weights_of({"": balls().plan})),
            [(package_of(of("c")), weights_of({"": balls().plan}))],
        )
        held = weights_of(inner.plans)
        package, weights = bound(
            "k2", of("a").recipe, (package_of(of("a")), weights_of({"": balls().plan})), [(inner, held)]
        )
        assert [m.name for m in package.members] == ["0-a", "1-b-0-b", "1-b-1-c"]
        assert [m.weight for m in package.members] == [1, 0.5, 0.5]
        assert [m.temperature for m in package.members] == [1, 2, 1]
        assert [m.package for m in package.members] == ["k-a", "k1", "k1"]
        assert [m.recipe for m in package.members] == ["a", "b", "c"]
        Predictor(package, weights, "cpu")
        with pytest.raises(RecipeError, match="holds a model of c itself"):
            check_partner(of("c").recipe, balls().plan, inner)

    def test_what_was_chosen_is_the_middle_of_what_each_chose(self) -> None:
        world = pictures()
        packages = [
            package_of(of("own", world), threshold=0.2),
            package_of(of("b", world), threshold=0.5),
            package_of(of("c", world), threshold=0.8),
        ]
        loaded = [(p, weights_of({"": p.plan})) for p in packages]
        assert bound("k", packages[0].recipe, loaded[0], loaded[1:])[0].threshold == pytest.approx(0.5)
        kept = [("ball",), ("ball", "core"), ()]
        packages = [package_of(of(n), keep_largest=k) for n, k in zip("abc", kept, strict=True)]
        loaded = [(p, weights_of({"": p.plan})) for p in packages]
        assert bound("k", packages[0].recipe, loaded[0], loaded[1:])[0].keep_largest == ("ball",)


class TestRefusals:
    @pytest.mark.parametrize(
        ("other", "says"),
        [
            (of("b", classes=("core", "ball")), "classes of b are core, ball"),
            (of("b", pictures()), "kinds"),
            (of("b", channels=("PET", "CT")), "channels of b are PET, CT"),
            (overlapping("b"), "activations"),
            (of("b", variables=(VariablePlan(name="age", kind="number"),)), "b is told age"),
        ],
    )
    def test_another_question(self, other: World, says: str) -> None:
        with pytest.raises(RecipeError, match=says) as refused:
            check_partner(named(balls().recipe, "a"), balls().plan, package_of(other))
        assert refused.value.where == "infer.ensemble"

    @pytest.mark.parametrize(
        ("names", "found"), [(("a",), True), (("b", "b"), True), (("b",), False)], ids=["itself", "twice", "none"]
    )
    def test_names_that_mean_nothing(self, stores: Stores, names: tuple[str, ...], found: bool) -> None:
        others = tuple(PackageRef.to("p") if found else None for _ in names)
        with pytest.raises(RecipeError) as refused:
            train_together(stores, named(balls().recipe, "a", *names), PlanRef.to("p"), None, others)
        assert refused.value.where == "infer.ensemble"

    def test_it_is_said_before_anything_is_learnt(self, stores: Stores) -> None:
        world = balls(epochs=1)
        world = dataclasses.replace(world, recipe=named(world.recipe, "a", "b"))
        ref, other = planned(stores, world), a_package(stores, of("b", classes=("x", "y")), "b")
        with pytest.raises(RecipeError, match="classes"):
            train_together(stores, world.recipe, ref, None, (other,))
        assert not list(stores.workspace.rglob("*.safetensors"))


def test_naming_others_is_not_learning_otherwise() -> None:
    recipe = balls().recipe
    assert named(recipe, recipe.name, "b").learning_key == recipe.learning_key
    assert named(recipe, recipe.name, "b").key != recipe.key
