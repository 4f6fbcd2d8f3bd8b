"""The version that serves, if it is still what was registered; else it is mended, or the champion before it serves.

A damaged package is first looked for where it may still be whole: in the store, where this machine has a copy of its
own, and in the registry. Where it is nowhere, the model is rolled back, with a row in the audit trail as by hand, so
that everything which asks for the champion gets the same answer. An alert and its event tell of either.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from models.errors import IntegrityError, NocturneError, NotFoundError, PackageError, PermanentError
from models.package import PACKAGE_FILE, WEIGHTS_FILE
from models.refs import PackageRef
from tasks.register import promotion
from tasks.stores import alerts, proof
from tasks.stores.house import Stores
from tasks.stores.registry import RegisteredVersion

WHO: Final = "nocturne"
DAMAGE: Final = (IntegrityError, PackageError, NotFoundError)

_log = logging.getLogger(__name__)


def sound_champion(stores: Stores, name: str) -> RegisteredVersion | None:
    """The version that serves, proven; None without a champion.

    Raises IntegrityError, PackageError or NotFoundError, naming the package, where no champion of any time is sound.
    """
    version = promotion.serving(stores.registry, stores.catalog, name)
    if version is None or not version.package:
        return version
    if (damage := damage_of(stores, version)) is None:
        _settle(stores, version)
        return version
    return _stand_in(stores, version, damage)


def damage_of(stores: Stores, version: RegisteredVersion) -> NocturneError | None:
    """What is wrong with a version's package; None where it is sound, or has been mended just now."""
    ref = PackageRef.to(version.package)
    try:
        proof.prove(stores, ref)
    except DAMAGE as error:
        if not _mended(stores, version):
            return error
        told = f"version {version.version}: {error.what}; it was mended from a whole copy and serves"
        _tell(stores, version, told, mended=True)
    return None


def tell_damage(stores: Stores, version: RegisteredVersion, damage: NocturneError, but: str) -> None:
    """Let people know: what is wrong, what happens instead, and what to do."""
    again = f"`nocturne models promote {version.name} {version.version}`"
    hint = f"restore package {version.package[:12]} from a backup, then {again}"
    _tell(stores, version, f"version {version.version}: {damage.what}; {but}; {hint}")


def _stand_in(stores: Stores, version: RegisteredVersion, damage: NocturneError) -> RegisteredVersion:
    """The last champion before `version` that is sound, serving from now on. Raises `damage` where there is none."""
    name, steps = version.name, 0
    for earlier in promotion.earlier(stores.registry, stores.catalog, name):
        steps += 1
        if damage_of(stores, earlier) is None:
            break
    else:
        tell_damage(stores, version, damage, "no version before it is whole: nothing serves")
        raise damage
    # Told first: a process that is killed in between tells it again, and rolls back then.
    tell_damage(stores, version, damage, f"version {earlier.version} serves instead")
    leaving = version.version
    for _ in range(steps):
        reason = f"version {leaving} is damaged: {damage.what}"
        try:
            row = promotion.rollback(stores.registry, stores.catalog, name, who=WHO, reason=reason, leaving=leaving)
        except NotFoundError:
            break  # somebody else has moved the alias meanwhile
        leaving = row.version
    found = promotion.serving(stores.registry, stores.catalog, name)
    return found if found is not None and found.package else earlier


def _mended(stores: Stores, version: RegisteredVersion) -> bool:
    """Whether a whole copy has taken the place of the damaged package."""
    ref = PackageRef.to(version.package)
    try:
        with stores.catalog.alone(f"package {ref.key[:12]}"):
            if stores.packages.fetch_anew(ref.key) and _holds(stores, ref):
                return True
            with _copy_from_the_registry(stores, version, ref) as staged:
                proof.check(stores, ref, staged)
                stores.packages.replace(staged, ref.key)
        return _holds(stores, ref)
    except PermanentError as error:
        _log.warning("package %s is damaged and cannot be mended: %s", ref.key, error)
        return False


def _holds(stores: Stores, ref: PackageRef) -> bool:
    try:
        proof.prove(stores, ref)
    except DAMAGE:
        return False
    return True


@contextmanager
def _copy_from_the_registry(stores: Stores, version: RegisteredVersion, ref: PackageRef) -> Iterator[Path]:
    """A staged folder with the registry's files of the package: it has others beside them."""
    wanted = proof.files_of(stores, ref) or {PACKAGE_FILE, WEIGHTS_FILE}
    with TemporaryDirectory() as scratch, stores.packages.staging() as staged:
        folder = stores.registry.fetch(version.name, version.version, Path(scratch))
        for file in sorted(wanted):
            if (folder / file).is_file():
                shutil.copyfile(folder / file, staged / file)
        yield staged


def _tell(stores: Stores, version: RegisteredVersion, told: str, *, mended: bool = False) -> None:
    _log.warning("%s %s", version.name, told)
    last = promotion.last_move(stores.catalog, version.name)
    alerts.tell_damage(
        stores.catalog,
        version.name,
        version.package,
        version.version,
        told,
        since=last.number if last else 0,
        mended=mended,
    )


def _settle(stores: Stores, version: RegisteredVersion) -> None:
    """What was damaged is over once it is whole and serves, or another version was promoted instead."""
    if any(row.kind == alerts.FILES for row in alerts.open_alerts(stores.catalog, version.name)):
        last = promotion.last_move(stores.catalog, version.name)
        promoted = last.created_at if last and last.action == promotion.PROMOTED else None
        alerts.settle_damage(stores.catalog, version.name, version.package, promoted)
