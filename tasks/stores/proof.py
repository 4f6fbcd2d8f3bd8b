"""Whether a stored package is still what was registered: each of its files, by a digest that lies elsewhere.

The digests are sealed in the vault when a package is registered, so that whoever can change a package's folder, and
even the catalog, cannot make them agree without the vault's key. Of a package that was registered before they were
kept, the catalog has the weights' digest; its description must fit them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from models.errors import IntegrityError, NotFoundError, PackageError
from models.package import WEIGHTS_FILE
from models.refs import PackageRef
from tasks.stores.house import Stores
from tasks.stores.packages import digest, read_description, read_package
from tasks.stores.tables import PackageRow

_KIND: Final = "package"
_HINT: Final = "restore the package from a backup, or roll back to another version"
_MOST: Final = 256

Signature = tuple[tuple[str, int, int, int, int], ...]

_proven: dict[str, Signature] = {}
_lock = threading.Lock()


def seal(stores: Stores, ref: PackageRef) -> None:
    """Keep the digests of a package's files, once. Raises IntegrityError where it is not what was trained."""
    if stores.vault.get_many(_KIND, [ref.key]):
        return
    folder = stores.packages.local(ref.key)
    _fits_the_catalog(stores, ref, folder)
    stores.vault.put(_KIND, ref.key, {"files": _digests(folder)})


def prove(stores: Stores, ref: PackageRef) -> None:
    """That the package may be run. What was proven is proven again only once a file of it has changed.

    Raises NotFoundError, IntegrityError and PackageError, each naming the package and what is wrong with it.
    """
    folder = stores.packages.local(ref.key)
    signature = _signature(folder)
    with _lock:
        if _proven.get(str(folder)) == signature:
            return
    check(stores, ref, folder)
    with _lock:
        while len(_proven) >= _MOST:
            _proven.pop(next(iter(_proven)))
        _proven[str(folder)] = signature


def check(stores: Stores, ref: PackageRef, folder: Path) -> None:
    """As `prove`, of a copy in `folder`, and always from its bytes."""
    record = stores.vault.get_many(_KIND, [ref.key]).get(ref.key)
    if record is None:
        _fits_the_catalog(stores, ref, folder)
        read_package(folder)
        return
    known: Mapping[str, str] = record["files"]
    found = _digests(folder)
    if found == known:
        return
    wrong = sorted(name for name in known.keys() | found.keys() if known.get(name) != found.get(name))
    told = ", ".join(f"{name} {_how(name, known, found)}" for name in wrong)
    raise IntegrityError(f"the package is not what was registered: {told}", where=ref.key, hint=_HINT)


def files_of(stores: Stores, ref: PackageRef) -> frozenset[str]:
    """The names of the files that were sealed; none where they were not."""
    record = stores.vault.get_many(_KIND, [ref.key]).get(ref.key)
    return frozenset(record["files"]) if record else frozenset()


def _how(name: str, known: Mapping[str, str], found: Mapping[str, str]) -> str:
    if name not in found:
        return "is missing"
    return "was changed" if name in known else "was added"


def _fits_the_catalog(stores: Stores, ref: PackageRef, folder: Path) -> None:
    """The description is this package's, and the weights are those that the catalog knows."""
    row = stores.catalog.get(PackageRow, ref.key)
    if row is None:
        raise NotFoundError("the catalog does not know this package", where=ref.key)
    described = read_description(folder)
    if (described.key, described.dataset) != (row.package, row.dataset):
        raise PackageError("package.json describes another package", where=ref.key, hint=_HINT)
    path = folder / WEIGHTS_FILE
    if not path.is_file() or digest(path) != row.weights_sha256:
        raise IntegrityError(f"{WEIGHTS_FILE} is not what was trained", where=ref.key, hint=_HINT)


def _digests(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): digest(path) for path in _files(folder)}


def _signature(folder: Path) -> Signature:
    """Changes with any file's bytes, unless somebody sets back the clock: a file's change time cannot be set."""
    states = [(path.relative_to(folder).as_posix(), path.stat()) for path in _files(folder)]
    return tuple((name, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in states)


def _files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    if links := [path.name for path in found if path.is_symlink() or not path.is_file()]:
        raise PackageError(f"a package holds plain files, not {links[0]!r}", where=folder.name, hint=_HINT)
    return found
