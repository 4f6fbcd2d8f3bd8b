"""Registering, promoting and rolling back, each with its row in the audit trail.

The row is the commit, as everywhere: it is written first; then MLflow's alias follows, and MLflow is told the row's
number. A process killed in between leaves a row that MLflow has not been told of, and the next call of any function
here moves the alias after it. An alias that was moved or removed in MLflow itself, by hand, is told from that by the
number, and gets a row of its own. One process at a time does any of this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from models.approval import NOBODY, Word, unasked
from models.errors import NotFoundError, PackageError, RecipeError
from models.evaluation import Comparison, Evaluation
from models.package import ModelPackage
from models.recipe import Promote
from tasks.register.gate import Decision, decide
from tasks.register.rules import Check
from tasks.stores.catalog import Catalog
from tasks.stores.registry import CHAMPION, RegisteredVersion, Registry
from tasks.stores.tables import DecisionRow, PackageRow

PROMOTED: Final = "promoted"
KEPT: Final = "kept"
ROLLED_BACK: Final = "rolled-back"
RETIRED: Final = "retired"  # the alias was removed in MLflow: nothing serves
LOST: Final = "lost"  # the version itself is gone from MLflow
_MOVES = (PROMOTED, ROLLED_BACK, RETIRED, LOST)


@dataclass(frozen=True, slots=True)
class Registration:
    """What became of a package: its version and the gate's word on it. `number` is the audit row's."""

    version: RegisteredVersion
    decision: Decision
    number: int


def register(
    registry: Registry,
    catalog: Catalog,
    package: ModelPackage,
    folder: Path,
    evaluation: Evaluation,
    *,
    champion: Evaluation | None = None,
    comparison: Comparison | None = None,
    card: str = "",
    document: str = "",
    report: Path | None = None,
    tags: Mapping[str, str] | None = None,
    who: str = "nocturne",
    word: Word | None = None,
    policy: Promote | None = None,
) -> Registration:
    """Register the package, let the gate decide, and let it serve or stay challenger.

    `card` is its model card as Markdown, `document` the same as JSON.
    `champion` is the serving package's evaluation on the same dataset and `comparison` their paired differences.
    `policy` is the recipe's of today, where that is not the one that the package was trained under. `word` is a
    person's, where one was asked: what the gate would promote is promoted or kept as it says; a policy that wants one
    is not satisfied without. Doing it again with the same evaluations and the same champion finds the same row.
    Raises NotFoundError for a package that the catalog does not know, PackageError for an evaluation of another
    package, RecipeError for a policy that does not fit the model.
    """
    if evaluation.package != package.key:
        raise PackageError("the evaluation is of another package", where=package.key, reason="wrong-evaluation")
    if catalog.get(PackageRow, package.key) is None:
        raise NotFoundError("the catalog does not know this package", where=package.key)
    scalars = evaluation.scalars()
    version = registry.log_package(
        package, folder, metrics=scalars, report=report, card=card, document=document, tags=tags
    )
    catalog.change(PackageRow, PackageRow.package == package.key, version=version.version, run=version.run_id)
    with _settled(registry, catalog, version.name):
        current = registry.champion(version.name)
        policy = policy or package.recipe.promote
        decision = _verdict(catalog, package, policy, evaluation, current, champion, comparison)
        if decision.action == PROMOTED and (word is not None or policy.approval):
            word = word or unasked(version.name)
            decision, who = _as_told(decision, word), who if word.who == NOBODY else word.who
        row = _record(catalog, _row(version, decision, current, evaluation.digest, who))
        _apply(registry, row)
    decided = Decision(PROMOTED if row.action == PROMOTED else KEPT, tuple(row.reasons), row.figures)
    return Registration(registry.version(version.name, version.version), decided, row.number)


def preview(
    registry: Registry,
    catalog: Catalog,
    package: ModelPackage,
    evaluation: Evaluation,
    *,
    champion: Evaluation | None = None,
    comparison: Comparison | None = None,
    policy: Promote | None = None,
) -> Decision:
    """What the gate would say now, before anybody is asked. Records nothing and moves nothing."""
    current = serving(registry, catalog, package.recipe.name)
    return _verdict(catalog, package, policy or package.recipe.promote, evaluation, current, champion, comparison)


def serving(registry: Registry, catalog: Catalog, name: str) -> RegisteredVersion | None:
    """The version that serves by the audit trail; None without a champion, and for a model not yet registered."""
    try:
        with _settled(registry, catalog, name):
            return registry.champion(name)
    except NotFoundError:
        return None


def promote(registry: Registry, catalog: Catalog, name: str, version: str, *, who: str, reason: str) -> DecisionRow:
    """Let `version` serve because a person says so. Where it serves already, the row that made it so is returned."""
    _asked(who, reason)
    with _settled(registry, catalog, name):
        target, current = registry.version(name, version), registry.champion(name)
        if current and current.version == target.version and (last := last_move(catalog, name)):
            return last
        if not target.package:
            raise PackageError("this version was not made by Nocturne and cannot serve", where=f"{name} {version}")
        return _carried_out(registry, catalog, PROMOTED, target, current, who=who, reason=reason)


def rollback(
    registry: Registry, catalog: Catalog, name: str, *, who: str, reason: str, leaving: str | None = None
) -> DecisionRow:
    """Let the champion before this one serve again. Once more goes one further back.

    `leaving` is the version that is to stop serving, as the caller saw it: where it serves no longer, because an
    earlier try of the same call got through, that try's row is returned. Raises NotFoundError without a champion
    before this one.
    """
    _asked(who, reason)
    with _settled(registry, catalog, name):
        current, last = registry.champion(name), last_move(catalog, name)
        if leaving is not None and (current is None or current.version != leaving):
            if last is not None and last.action == ROLLED_BACK and last.before == leaving:
                return last
            raise NotFoundError(
                f"version {leaving} does not serve now", where=name, hint="look at `nocturne models show`"
            )
        line = _line_of_champions(_trail(catalog, name))
        if current is None or len(line) < 2:
            raise NotFoundError(
                "there is no earlier champion to go back to",
                where=name,
                hint="promote a version by its number instead",
                reason="no-earlier-champion",
            )
        target = registry.version(name, line[-2])
        return _carried_out(registry, catalog, ROLLED_BACK, target, current, who=who, reason=reason)


def earlier(registry: Registry, catalog: Catalog, name: str) -> Iterator[RegisteredVersion]:
    """The champions before the one that serves, the last one first: what rolling back once and again would lead to.

    Raises NotFoundError for an unknown model, and where one of them is no longer in MLflow.
    """
    for version in reversed(_line_of_champions(history(registry, catalog, name))[:-1]):
        yield registry.version(name, version)


def last_move(catalog: Catalog, name: str) -> DecisionRow | None:
    """The row of the audit trail that the champion alias follows; None for a model without one."""
    with catalog.reading() as session:
        return session.scalars(_moves(name).limit(1)).first()


def history(registry: Registry, catalog: Catalog, name: str) -> tuple[DecisionRow, ...]:
    """The audit trail, oldest first. Raises NotFoundError for an unknown model."""
    with _settled(registry, catalog, name):
        return tuple(_trail(catalog, name))


# -- inside -----------------------------------------------------------------------------------------------------


@contextmanager
def _settled(registry: Registry, catalog: Catalog, name: str) -> Iterator[None]:
    """Alone, with alias and trail in agreement. Waits for whoever decides on a model just now."""
    with catalog.alone("decisions"):
        _heal(registry, catalog, name)
        yield


def _verdict(
    catalog: Catalog,
    package: ModelPackage,
    policy: Promote,
    evaluation: Evaluation,
    current: RegisteredVersion | None,
    champion: Evaluation | None,
    comparison: Comparison | None,
) -> Decision:
    """The gate's, unless a person has taken this package out of service."""
    return _rolled_back(catalog, package) or decide(
        policy,
        challenger=evaluation,
        champion_package=current.package if current else None,
        champion=champion,
        comparison=comparison,
    )


def _as_told(decision: Decision, word: Word) -> Decision:
    """The gate's yes as a person has confirmed or refused it."""
    return decision.with_check(Check("approval", None, None, word.approved, str(word)), str(word))


def _carried_out(
    registry: Registry,
    catalog: Catalog,
    action: str,
    target: RegisteredVersion,
    current: RegisteredVersion | None,
    *,
    who: str,
    reason: str,
) -> DecisionRow:
    row = DecisionRow(
        name=target.name,
        action=action,
        package=target.package,
        version=target.version,
        before=current.version if current else None,
        reasons=[reason],
        who=who,
    )
    row = _record(catalog, row)
    _apply(registry, row)
    return row


def _row(
    version: RegisteredVersion, decision: Decision, current: RegisteredVersion | None, evaluation: str, who: str
) -> DecisionRow:
    return DecisionRow(
        name=version.name,
        action=decision.action,
        package=version.package,
        version=version.version,
        before=current.version if current else None,
        evaluation=evaluation,
        reasons=list(decision.reasons),
        figures=dict(decision.figures),
        who=who,
    )


def _record(catalog: Catalog, row: DecisionRow) -> DecisionRow:
    """Commit the decision, once."""
    with catalog.transaction() as session:
        last = session.scalars(_moves(row.name).limit(1)).first()
        if found := _same(session, last, row):
            return found
        session.add(row)
        session.flush()
        session.expunge(row)
    return row


def _same(session: Session, last: DecisionRow | None, row: DecisionRow) -> DecisionRow | None:
    """The row that says the same already, since the champion last changed."""
    if last and row.evaluation and (row.evaluation, row.package) == (last.evaluation, last.package):
        return last  # a retry after the promotion itself
    since = select(DecisionRow).where(
        DecisionRow.name == row.name,
        DecisionRow.number > (last.number if last else 0),
        DecisionRow.package == row.package,
        DecisionRow.evaluation == row.evaluation,
        DecisionRow.action == row.action,
    )
    return next((r for r in session.scalars(since) if r.reasons == row.reasons and r.figures == row.figures), None)


def _apply(registry: Registry, row: DecisionRow) -> None:
    """Let MLflow's aliases follow the row. Doing it again changes nothing."""
    if row.action == KEPT:
        current = registry.champion(row.name)
        if current is None or current.version != row.version:
            registry.set_challenger(row.name, row.version)
        return
    if row.action in (PROMOTED, ROLLED_BACK):
        registry.set_champion(row.name, row.version)
        challenger = registry.challenger(row.name)
        if challenger and challenger.version == row.version:
            registry.clear_challenger(row.name)
    registry.set_applied_decision(row.name, row.number)


def _heal(registry: Registry, catalog: Catalog, name: str) -> None:
    """Bring alias and trail together again after a crash, or after somebody moved the alias in MLflow."""
    current, last = registry.champion(name), last_move(catalog, name)
    gone = last is not None and _left_by(last) is not None and not _still_there(registry, last)
    if last is not None and not gone and registry.applied_decision(name) != last.number:
        _apply(registry, last)
        return
    if (current.version if current else None) == _left_by(last):
        return
    action = PROMOTED if current else LOST if gone else RETIRED
    why = f"the alias {CHAMPION!r} was {'moved' if current else 'removed'} in MLflow itself"
    if last is not None and gone:
        why = f"version {last.version} is no longer in MLflow's registry"
    row = DecisionRow(
        name=name,
        action=action,
        package=current.package if current else last.package if last else "",
        version=current.version if current else last.version if last else "",
        before=_left_by(last),
        reasons=[why],
        who="mlflow",
    )
    _apply(registry, _record(catalog, row))


def _still_there(registry: Registry, row: DecisionRow) -> bool:
    try:
        return registry.package_key(row.name, row.version) == row.package
    except NotFoundError:
        return False


def _left_by(last: DecisionRow | None) -> str | None:
    """The version that serves after the trail's last move."""
    return None if last is None or last.action in (RETIRED, LOST) else last.version


def _rolled_back(catalog: Catalog, package: ModelPackage) -> Decision | None:
    """A version that a person took out of service does not come back by itself."""
    out: dict[str, DecisionRow] = {}
    serves = ""
    for row in _trail(catalog, package.recipe.name):
        if row.action in (ROLLED_BACK, RETIRED):
            out[serves] = row
        if row.action in (PROMOTED, ROLLED_BACK):
            serves = row.package
            out.pop(serves, None)
    last = out.get(package.key)
    if last is None:
        return None
    told = f"{last.who} took version {last.before} out of service on {last.created_at:%Y-%m-%d}"
    return Decision(KEPT, (f"{told} ({'; '.join(map(str, last.reasons))}): promote it by hand to let it serve again",))


def _line_of_champions(rows: Sequence[DecisionRow]) -> list[str]:
    """The versions that served, each after the one before; rolling back takes the last away."""
    line: list[str] = []
    for row in rows:
        if row.action == PROMOTED:
            line.append(row.version)
        elif row.action == ROLLED_BACK and line:
            line.pop()
    return line


def _trail(catalog: Catalog, name: str) -> Sequence[DecisionRow]:
    return catalog.find(DecisionRow, DecisionRow.name == name, order_by=DecisionRow.number)


def _moves(name: str) -> Select[tuple[DecisionRow]]:
    moved = select(DecisionRow).where(DecisionRow.name == name, DecisionRow.action.in_(_MOVES))
    return moved.order_by(DecisionRow.number.desc())


def _asked(who: str, reason: str) -> None:
    if not who.strip() or not reason.strip():
        raise RecipeError("a decision by hand needs a name and a reason", reason="no-reason")
