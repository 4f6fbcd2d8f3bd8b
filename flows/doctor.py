"""Is this installation fit to work, and what to do where it is not?"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import socket
import stat
import sys
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from flows.environment import open_stores
from flows.views import astray
from models.errors import IntegrityError, NocturneError, NotFoundError
from models.settings import SETTINGS_FILE, Settings
from tasks.stores.account import account
from tasks.stores.house import Stores
from tasks.stores.leftovers import sweep_leftovers
from tasks.stores.places import Place
from tasks.stores.tables import DatasetRecord, EvaluationRow, LabelRow, PackageRow, PredictionRow, VolumeRow

_LEAST_FREE_GB = 10
_BROKEN = {"fastapi": ((0, 139), (0, 151)), "sqlalchemy": ((2, 0), (2, 1)), "torch": ((2, 6), (99, 0))}
"""Ranges outside which a dependency is known to fail: Prefect's server, its scheduler, unsafe weights loading."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at."""

    name: str
    found: str
    advice: str = ""
    failed: bool = False

    @property
    def mark(self) -> str:
        """For a table."""
        return "FAIL" if self.failed else "note" if self.advice else "ok"


def examine(settings: Settings, *, repair: bool = False) -> list[Check]:
    """Every check; none raises."""
    checks = [_python(), *_packages(), _device(settings), _home(settings), _space(settings.home)]
    try:
        stores = open_stores(settings)
    except NocturneError as error:
        return [*checks, _failure("secrets", error)]
    checks += [_secret(settings.home / name) for name in ("secret", "vault.key") if (settings.home / name).exists()]
    checks += _settings_file(settings.home / SETTINGS_FILE)
    for name, look in (("catalog", _catalog), ("registry", _registry), ("account", _account)):
        checks.append(_guarded(name, look, stores))
    checks += [_service("Prefect API", os.environ.get("PREFECT_API_URL", "")), _service("Dask", settings.dask_address)]
    if not any(check.failed and check.name == "catalog" for check in checks):
        checks += list(_stored(stores, repair=repair))
    return checks


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    good = (3, 11) <= sys.version_info < (3, 14)
    return Check("Python", version, "" if good else "install Python 3.11, 3.12 or 3.13", failed=not good)


def _packages() -> Iterator[Check]:
    for name, (least, below) in _BROKEN.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Check(name, "not installed", "run `make setup`", failed=True)
            continue
        number = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in version.split(".")[:2])
        good = least <= number < below
        wanted = f">={'.'.join(map(str, least))},<{'.'.join(map(str, below))}"
        yield Check(name, version, "" if good else f"install {name}{wanted}: see constraints.txt", failed=not good)


def _device(settings: Settings) -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check("device", f"CPU, {len(os.sched_getaffinity(0))} cores", "no GPU: training keeps to the CPU budget")
    names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    return Check("device", f"{torch.cuda.device_count()} GPU ({', '.join(sorted(names))})")


def _home(settings: Settings) -> Check:
    home = settings.home
    try:
        home.mkdir(parents=True, exist_ok=True)
        probe = home / ".doctor"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return Check("home", str(home), f"cannot be written ({error.strerror}): set NOCTURNE_HOME", failed=True)
    return Check("home", str(home))


def _space(home: Path) -> Check:
    folder = next(p for p in (home, *home.parents) if p.exists())
    free = shutil.disk_usage(folder).free / 1e9
    low = free < _LEAST_FREE_GB
    return Check("free space", f"{free:.0f} GB", f"less than {_LEAST_FREE_GB} GB: free some" if low else "", failed=low)


def _secret(path: Path) -> Check:
    mode = stat.S_IMODE(path.stat().st_mode)
    wide = bool(mode & 0o077)
    return Check(f"{path.name} file", f"mode {mode:04o}", f"chmod 600 {path}" if wide else "", failed=wide)


def _settings_file(path: Path) -> Iterator[Check]:
    """A file that may hold passwords. One that others have to read, as a container's, keeps them elsewhere."""
    if path.exists():
        mode = stat.S_IMODE(path.stat().st_mode)
        advice = f"others may read it: chmod 600 {path}, or keep passwords in the environment" if mode & 0o077 else ""
        yield Check(path.name, f"mode {mode:04o}", advice)


def _catalog(stores: Stores) -> Check:
    kind = stores.catalog.engine.dialect.name
    return Check("catalog", f"{kind}, schema {stores.catalog.version()}")


def _registry(stores: Stores) -> Check:
    names = stores.registry.names()
    return Check("registry", f"{len(names)} model{'s' if len(names) != 1 else ''}")


def _account(stores: Stores) -> Check:
    """Whether every study that was received is in one place, and what waits will be seen to."""
    found, lost = account(stores.catalog), astray(stores)
    advice = f"these have no place in it: {'; '.join(f'{study} ({why})' for study, why in lost)}" if lost else ""
    if not found.holds and not lost:
        advice = "a study is counted twice: please report it"
    return Check("account", str(found), advice, failed=bool(advice))


def _service(name: str, url: str) -> Check:
    if not url:
        return Check(name, "embedded")
    try:
        place = urlsplit(url)
        host, port = place.hostname or "", place.port or 443
    except ValueError:
        return Check(name, "its address is none", "write it as http://host:port/api or tls://host:port", failed=True)
    try:
        with socket.create_connection((host, port), timeout=3):
            return Check(name, f"{host}:{port} answers")
    except OSError:
        return Check(name, f"{host}:{port} does not answer", "start it, or unset its address", failed=True)


def _stored(stores: Stores, *, repair: bool) -> Iterator[Check]:
    """Whether the stores hold what the catalog names; with `repair`, every checksum is read and leftovers go."""
    catalog = stores.catalog
    images = {row.volume for row in catalog.find(VolumeRow)}
    masks = {row.label for row in catalog.find(LabelRow, LabelRow.source != "CSV")}
    found = {row.prediction for row in catalog.find(PredictionRow)}
    packages = {row.package for row in catalog.find(PackageRow)}
    evaluations = {row.evaluation for row in catalog.find(EvaluationRow)}
    made: set[str] = set()
    unread: list[str] = []
    if repair:
        made, unread = _made(stores)
        if unread:
            told = f"{len(unread)} damaged: {', '.join(key[:12] for key in unread)}"
            yield Check("datasets", told, "restore them from a backup; leftovers among volumes stay", failed=True)
        yield _damaged("volumes", images, stores.volumes.place, lambda key: stores.volumes.open(key).read())
        yield _damaged("masks", masks | found, stores.volumes.place, lambda key: stores.volumes.open_mask(key).read())
    volumes, everything = stores.volumes.place, images | masks
    advice = "ingest their studies again: what is there is left alone"
    yield _complete(
        "volumes", volumes, everything, None if unread else everything | found | made, advice, repair=repair
    )
    place, advice = stores.packages.place, "restore the folder from a backup, or run `nocturne retrain` again"
    yield _complete("packages", place, packages, packages, advice, repair=repair)
    # Reports lie beside evaluations and are made again when they are asked for.
    advice = "run `nocturne evaluate` again"
    yield _complete("evaluations", stores.evaluations.place, evaluations, None, advice, repair=repair)
    if repair:
        swept = sweep_leftovers(stores)
        yield Check("leftovers elsewhere", f"{swept} removed" if swept else "none")


def _made(stores: Stores) -> tuple[set[str], list[str]]:
    """The made images of all datasets, and the datasets that cannot be read."""
    made: set[str] = set()
    unread: list[str] = []
    for record in stores.catalog.find(DatasetRecord):
        try:
            made |= {row.volume for row in stores.datasets.read(record.dataset).rows if row.synthetic}
        except NotFoundError:
            continue
        except IntegrityError:
            unread.append(record.dataset)
    return made, unread


def _damaged(name: str, keys: Iterable[str], place: Place, read: Callable[[str], object]) -> Check:
    removed = 0
    for key in keys:
        try:
            read(key)
        except IntegrityError:
            place.remove(key)
            removed += 1
        except NotFoundError:
            continue  # told by the next check
    return Check(f"{name}' checksums", f"{removed} damaged, removed" if removed else "all hold")


def _complete(
    name: str, place: Place, needed: set[str], kept: Container[str] | None, advice: str, *, repair: bool
) -> Check:
    present = set(place.keys())
    missing = needed - present
    swept = place.sweep(present if kept is None else kept) if repair else []
    told = f"{len(needed & present)} stored" + (f", {len(swept)} leftovers removed" if swept else "")
    advice = f"{len(missing)} in the catalog are not in the store: {advice}" if missing else ""
    return Check(name, told, advice, failed=bool(missing))


def _guarded(name: str, look: Callable[[Stores], Check], stores: Stores) -> Check:
    try:
        return look(stores)
    except NocturneError as error:
        return _failure(name, error)


def _failure(name: str, error: NocturneError) -> Check:
    return Check(name, error.what, error.hint or "", failed=True)
