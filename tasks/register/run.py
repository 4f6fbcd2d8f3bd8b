"""Registering from the stores: the package, its evaluation and the champion's, read by reference."""

from __future__ import annotations

from models.approval import Word
from models.errors import NotFoundError
from models.evaluation import Comparison
from models.recipe import Promote, Recipe
from models.refs import DatasetRef, EvaluationRef, PackageRef
from models.registration import Registered, Serving
from tasks.register import promotion, sound
from tasks.register.card import gather, markdown
from tasks.register.rules import check_policy
from tasks.stores import proof
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.registry import RegisteredVersion


def champion(stores: Stores, name: str) -> PackageRef | None:
    """The package that serves, if any."""
    version = sound.sound_champion(stores, name)
    return PackageRef.to(version.package) if version and version.package else None


def resolve(stores: Stores, name: str, which: str) -> PackageRef:
    """The package of a version's number, or of the champion or challenger, proven to be what was registered.

    Of the champion, the one before it where it is damaged. Raises NotFoundError, IntegrityError, PackageError.
    """
    version = _resolved(stores, name, which)
    if damage := sound.damage_of(stores, version):
        raise damage
    return PackageRef.to(version.package)


def resolve_version(stores: Stores, name: str, which: str) -> str:
    """The version's number, of the same. Raises NotFoundError."""
    return _resolved(stores, name, which).version


def _resolved(stores: Stores, name: str, which: str) -> RegisteredVersion:
    version: RegisteredVersion | None
    if which == "champion":
        version = sound.sound_champion(stores, name)
    elif which == "challenger":
        version = stores.registry.challenger(name)
    else:
        version = stores.registry.version(name, which)
    if version is None or not version.package:
        known = ", ".join(stores.registry.names()) or "none yet"
        raise NotFoundError(
            f"no {which} of this model" if which in ("champion", "challenger") else f"no version {which}",
            where=name,
            hint=f"registered models: {known}; see `nocturne models show {name}`",
        )
    return version


def serving(stores: Stores, names: tuple[str, ...], *, shadow: bool) -> tuple[Serving, ...]:
    """The champions of those models (all that have one, where none is named); with `shadow`, challengers after them.

    Raises NotFoundError for a named model that does not exist.
    """
    known = stores.registry.names()
    if missing := [name for name in names if name not in known]:
        raise NotFoundError(
            f"no such model: {', '.join(missing)}",
            where="arrivals",
            hint=f"registered models: {', '.join(known) or 'none yet'}; correct `models` under [arrivals]",
        )
    champions, shadows = [], []
    for name in names or known:
        version = sound.sound_champion(stores, name)
        challenger = _sound_challenger(stores, name) if shadow else None
        if not names and any(v and _makes_images(stores, v.package) for v in (version, challenger)):
            continue  # it says nothing of a study
        if version and version.package:
            champions.append(Serving(name=name, version=version.version, package=PackageRef.to(version.package)))
        if challenger and challenger.package and not (version and version.package == challenger.package):
            package = PackageRef.to(challenger.package)
            shadows.append(Serving(name=name, version=challenger.version, package=package, role="shadow"))
    return (*champions, *shadows)


def _sound_challenger(stores: Stores, name: str) -> RegisteredVersion | None:
    """One that is damaged does not run: the champion does not wait for it."""
    challenger = stores.registry.challenger(name)
    if challenger is None or not challenger.package:
        return None
    if damage := sound.damage_of(stores, challenger):
        sound.tell_damage(stores, challenger, damage, "the challenger does not run beside the champion")
        return None
    return challenger


def _makes_images(stores: Stores, package: str) -> bool:
    return bool(package) and read_description(stores.packages.local(package)).plan.kind == "synthesis"


def register(
    stores: Stores,
    package: PackageRef,
    evaluation: EvaluationRef,
    champion_evaluation: EvaluationRef | None,
    comparison: Comparison | None,
    word: Word | None = None,
    policy: Promote | None = None,
) -> Registered:
    """Log the package with its card, decide, and move the alias; again, it finds the same decision.

    `policy` is the recipe's of today; without it, the one that the package was trained under.
    """
    proof.seal(stores, package)
    folder = stores.packages.local(package.key)
    described, judged = read_description(folder), stores.evaluations.read(evaluation.key)
    dataset = stores.datasets.read(described.dataset)
    before = stores.evaluations.read(champion_evaluation.key) if champion_evaluation else None
    card = gather(described, judged, dataset, comparison=comparison)
    done = promotion.register(
        stores.registry,
        stores.catalog,
        described,
        folder,
        judged,
        champion=before,
        comparison=comparison,
        card=markdown(card),
        document=card.to_json(),
        word=word,
        policy=policy,
    )
    return Registered(
        name=done.version.name,
        version=done.version.version,
        package=package,
        action=done.decision.action,
        reasons=done.decision.reasons,
        page=done.version.page,
        run_page=done.version.run_page,
        run_id=done.version.run_id,
    )


def would_serve(
    stores: Stores,
    package: PackageRef,
    evaluation: EvaluationRef,
    champion_evaluation: EvaluationRef | None,
    comparison: Comparison | None,
    policy: Promote | None = None,
) -> bool:
    """Whether the gate would promote the package now, if nobody objects. Changes nothing."""
    decision = promotion.preview(
        stores.registry,
        stores.catalog,
        read_description(stores.packages.local(package.key)),
        stores.evaluations.read(evaluation.key),
        champion=stores.evaluations.read(champion_evaluation.key) if champion_evaluation else None,
        comparison=comparison,
        policy=policy,
    )
    return decision.action == promotion.PROMOTED


def check(stores: Stores, recipe: Recipe, dataset: DatasetRef) -> None:
    """Whether the recipe's policy can be carried out at all: known before anything is learnt. Raises RecipeError."""
    check_policy(recipe.promote, recipe.kind, stores.datasets.read(dataset.key).classes)


def rollback(stores: Stores, name: str, *, who: str, reason: str, leaving: str | None = None) -> str:
    """Let the champion before this one serve again; returns its version. See `promotion.rollback`."""
    row = promotion.rollback(stores.registry, stores.catalog, name, who=who, reason=reason, leaving=leaving)
    return row.version


def serving_version(stores: Stores, name: str) -> str:
    """The number of the version that serves. Raises NotFoundError without one, or for an unknown model."""
    return resolve_version(stores, name, "champion")
