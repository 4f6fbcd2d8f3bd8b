"""The registry: model packages as MLflow runs and versions, and the aliases that say which of them serves.

A package is kept as plain files (safetensors, JSON, Markdown) beside its metrics; nothing that MLflow would unpickle.
Every call goes through one client with its own URI: MLflow's global state is neither read nor set.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from models.card import CARD_DOCUMENT
from models.errors import (
    IntegrityError,
    NocturneError,
    NotFoundError,
    PackageError,
    ServiceUnavailableError,
    SettingsError,
    StoreBusyError,
)
from models.package import CARD_FILE, WEIGHTS_FILE, ModelPackage
from tasks.stores.locks import who_holds
from tasks.stores.tracking import database_lock, make_database, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
CHALLENGER = "challenger"

_PACKAGE_TAG = "nocturne.package"
_DECISION_TAG = "nocturne.decision"
_WEIGHTS_TAG = "nocturne.weights_sha256"
_FOLDER = "package"
_REPORT_FOLDER = "report"
_MANIFEST = "MLmodel"
_SAFE_SUFFIXES = frozenset({".safetensors", ".json", ".md"})
_LONGEST_PARAM = 500  # MLflow before 2.8 refuses more
_LONGEST_DESCRIPTION = 5000  # the registry's column
_PARAMS_AT_ONCE = 100
_METRICS_AT_ONCE = 1000
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",  # else every start waits for a network that a hospital does not have
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",  # 7 by default, four minutes: the task's own retries come on top
}
_log = logging.getLogger(__name__)
_opening = threading.Lock()
_registering = threading.Lock()


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """One version of one model. `package` is its content key, `aliases` what it is called now.

    A version that was made in MLflow by hand has no package, and perhaps no run.
    """

    name: str
    version: str
    run_id: str
    package: str
    experiment_id: str
    aliases: tuple[str, ...] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    created: datetime | None = None

    @property
    def page(self) -> str:
        """Path of its page in MLflow's UI, to be put behind the server's address."""
        return f"#/models/{self.name}/versions/{self.version}"

    @property
    def run_page(self) -> str:
        """Path of its run's page: parameters, curves, report."""
        return f"#/experiments/{self.experiment_id}/runs/{self.run_id}"


class Registry:
    """One MLflow tracking store with its model registry. Safe to share between threads; nothing is opened before use.

    `artifact_root` is a folder or an object store's URL. An MLflow server is told of object stores only: it cannot see
    this machine's folders, and keeps the files itself.
    """

    def __init__(self, tracking_uri: str, artifact_root: str = "") -> None:
        self.uri = tracking_uri
        self._remote = tracking_uri.startswith(("http://", "https://"))
        local = bool(artifact_root) and "://" not in artifact_root
        self._artifact_root = ("" if self._remote else _absolute(artifact_root)) if local else artifact_root
        self._opened: MlflowClient | None = None

    # -- writing ------------------------------------------------------------------------------------------------

    def log_package(
        self,
        package: ModelPackage,
        folder: Path,
        *,
        metrics: Mapping[str, float],
        report: Path | None = None,
        card: str = "",
        document: str = "",
        tags: Mapping[str, str] | None = None,
    ) -> RegisteredVersion:
        """Register the package in `folder` under its recipe's name; one that is registered already is returned.

        Beside the package lie its model card as Markdown and the same as a JSON `document`, where they are given.
        A run that a killed process left half written is taken up again. Raises PackageError for a file that is not
        plain data, StoreBusyError and ServiceUnavailableError where trying again may help.
        """
        _refuse_code(folder)
        name = package.recipe.name
        with self._reaching(name), self._alone():
            if found := self._of_package(name, package.key):
                return found
            run = self._run_for(package, tags or {})
            self._log(run, package, metrics)
            self._upload(run.info.run_id, package, folder, report, {CARD_FILE: card, CARD_DOCUMENT: document})
            return self._create_version(run.info.run_id, package, card)

    def attach_report(self, run_id: str, *files: Path) -> None:
        """Keep a report's files among the run's artifacts; the same file again replaces it."""
        with self._reaching(run_id):
            for file in files:
                self._client.log_artifact(run_id, str(file), _REPORT_FOLDER)

    def set_champion(self, name: str, version: str) -> None:
        """Let `version` serve."""
        with self._reaching(name):
            self._client.set_registered_model_alias(name, CHAMPION, version)

    def set_applied_decision(self, name: str, number: int) -> None:
        """Note the audit row that the champion alias now follows."""
        with self._reaching(name):
            self._client.set_registered_model_tag(name, _DECISION_TAG, str(number))

    def set_challenger(self, name: str, version: str) -> None:
        """Mark `version` as the one that wants to serve."""
        with self._reaching(name):
            self._client.set_registered_model_alias(name, CHALLENGER, version)

    def clear_challenger(self, name: str) -> None:
        """No version wants to serve any more."""
        with self._reaching(name):
            self._client.delete_registered_model_alias(name, CHALLENGER)

    # -- reading ------------------------------------------------------------------------------------------------

    def names(self) -> tuple[str, ...]:
        """All models."""
        with self._reaching("registry"):
            return tuple(sorted(m.name for m in _all_pages(self._client.search_registered_models)))

    def champion(self, name: str) -> RegisteredVersion | None:
        """The version that serves, if any. Raises NotFoundError for an unknown model."""
        return self._called(name, CHAMPION)

    def challenger(self, name: str) -> RegisteredVersion | None:
        """The version that wants to serve, if any. Raises NotFoundError for an unknown model."""
        return self._called(name, CHALLENGER)

    def version(self, name: str, version: str) -> RegisteredVersion:
        """One version. Raises NotFoundError."""
        with self._reaching(f"{name} {version}"):
            model = self._client.get_registered_model(name)
            found = self._client.get_model_version(name, version)
            return self._told(found, model.aliases, self._client.get_run(found.run_id) if found.run_id else None)

    def versions(self, name: str) -> tuple[RegisteredVersion, ...]:
        """All versions, the newest first. Raises NotFoundError for an unknown model."""
        with self._reaching(name):
            model = self._client.get_registered_model(name)
            found = _all_pages(self._client.search_model_versions, filter_string=f"name = '{name}'")
            experiment = self._client.get_experiment_by_name(name)
            experiments = [experiment.experiment_id] if experiment else []
            runs = {run.info.run_id: run for run in _all_pages(self._client.search_runs, experiment_ids=experiments)}
            told = [self._told(v, model.aliases, runs.get(v.run_id or "")) for v in found]
        return tuple(sorted(told, key=lambda v: -int(v.version)))

    def package_key(self, name: str, version: str) -> str:
        """The content key of the package behind a version. Raises NotFoundError."""
        return self.version(name, version).package

    def applied_decision(self, name: str) -> int | None:
        """The audit row that the champion alias last followed. Raises NotFoundError for an unknown model."""
        with self._reaching(name):
            told = self._client.get_registered_model(name).tags.get(_DECISION_TAG)
        return int(told) if told else None

    def fetch(self, name: str, which: str, into: Path) -> Path:
        """Download a version's or an alias's package as a new folder in `into`, its weights' digest checked.

        Raises NotFoundError; IntegrityError where the weights are not those that were registered.
        """
        version = self._resolve(name, which)
        target = into / f"{name}-{version.version}"
        with self._reaching(version.package):
            expected = self._client.get_model_version(name, version.version).tags.get(_WEIGHTS_TAG, "")
            if target.is_dir():
                return _checked(target, expected, version.package)
            into.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=into) as scratch:
                folder = Path(self._client.download_artifacts(version.run_id, _FOLDER, scratch))
                (folder / _MANIFEST).unlink(missing_ok=True)
                _checked(folder, expected, version.package).rename(target)
        return target

    # -- inside -------------------------------------------------------------------------------------------------

    @property
    def _client(self) -> MlflowClient:
        if self._opened is None:
            with _opening:
                self._opened = self._opened or _open(self.uri)
        return self._opened

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One registration at a time on one database: MLflow's own inserts collide where two log the same data set."""
        self._opened = self._client  # opening takes the same lock: open it before
        with _registering, database_lock(sqlite_file(self.uri)):
            yield

    @contextmanager
    def _reaching(self, where: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            server = _shown(self.uri) if self._remote else ""
            told = _translated(error, where, server=server, file=sqlite_file(self.uri))
            if told is None:
                raise
            raise told from error

    def _resolve(self, name: str, which: str) -> RegisteredVersion:
        if which.isdigit():
            return self.version(name, which)
        if found := self._called(name, which):
            return found
        raise NotFoundError(f"no version is the {which}", where=name, hint="`nocturne models list` shows what there is")

    def _called(self, name: str, alias: str) -> RegisteredVersion | None:
        with self._reaching(name):
            aliases = self._client.get_registered_model(name).aliases
        return self.version(name, str(aliases[alias])) if alias in aliases else None

    def _of_package(self, name: str, key: str) -> RegisteredVersion | None:
        query = f"name = '{name}' and tag.`{_PACKAGE_TAG}` = '{key}'"
        numbers = sorted(int(v.version) for v in _all_pages(self._client.search_model_versions, filter_string=query))
        if len(numbers) > 1:
            self._discard_versions(name, numbers[1:])
        return self.version(name, str(numbers[0])) if numbers else None

    def _discard_versions(self, name: str, numbers: Sequence[int]) -> None:
        """Made by somebody at the same moment, or because an answer was lost: the lowest number stays."""
        from mlflow import MlflowException

        called = {int(number) for number in self._client.get_registered_model(name).aliases.values()}
        for number in numbers:
            try:
                if number not in called:
                    self._client.delete_model_version(name, str(number))
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise

    def _told(self, version: ModelVersion, aliases: Mapping[str, Any], run: Run | None) -> RegisteredVersion:
        return RegisteredVersion(
            name=version.name,
            version=str(version.version),
            run_id=version.run_id or "",
            package=version.tags.get(_PACKAGE_TAG, ""),
            experiment_id=run.info.experiment_id if run else "",
            aliases=tuple(sorted(alias for alias, at in aliases.items() if str(at) == str(version.version))),
            metrics=dict(run.data.metrics) if run else {},
            created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        )

    def _run_for(self, package: ModelPackage, tags: Mapping[str, str]) -> Run:
        """The package's run: a new one, or the one that a killed process began."""
        experiment = self._experiment(package.recipe.name)
        begun = self._runs_of(experiment, package.key)
        if not begun:
            name = f"{package.recipe.name} {package.key[:8]}"
            made = self._client.create_run(experiment, run_name=name, tags={**_lineage(package), **tags})
            begun = self._runs_of(experiment, package.key) or [made]
        # Where the answer to a request is lost, MLflow's client asks again, and a second run is made.
        for twin in begun[1:]:
            if not twin.data.params:
                self._discard(twin.info.run_id)
        return begun[0]

    def _runs_of(self, experiment: str, key: str) -> list[Run]:
        """The package's runs: first what something was written to, then the oldest."""
        found = _all_pages(
            self._client.search_runs, experiment_ids=[experiment], filter_string=f"tags.`{_PACKAGE_TAG}` = '{key}'"
        )
        return sorted(found, key=lambda run: (not run.data.params, run.info.start_time, run.info.run_id))

    def _discard(self, run_id: str) -> None:
        from mlflow import MlflowException

        try:
            self._client.delete_run(run_id)
        except MlflowException as error:  # it went already, or stays: nothing refers to it
            _log.info("run %s was not discarded: %s", run_id, error)

    def _experiment(self, name: str) -> str:
        from mlflow import MlflowException

        if found := self._client.get_experiment_by_name(name):
            return str(found.experiment_id)
        location = f"{self._artifact_root.rstrip('/')}/{name}" if self._artifact_root else None
        try:
            return str(self._client.create_experiment(name, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._experiment(name)  # made by somebody else meanwhile

    def _log(self, run: Run, package: ModelPackage, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

        run_id, stamp = run.info.run_id, run.info.start_time  # one stamp: logging again after a crash adds nothing
        params = [Param(key, value) for key, value in flat_params(package).items()]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=params[start : start + _PARAMS_AT_ONCE])
        points = [Metric(key, value, stamp, step) for key, value, step in _points(package, metrics)]
        for start in range(0, len(points), _METRICS_AT_ONCE):
            self._client.log_batch(run_id, metrics=points[start : start + _METRICS_AT_ONCE])
        source = json.dumps({"dataset": package.dataset})
        dataset = Dataset(name=package.recipe.name, digest=package.dataset[:36], source_type="nocturne", source=source)
        self._client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])

    def _upload(
        self, run_id: str, package: ModelPackage, folder: Path, report: Path | None, beside: Mapping[str, str]
    ) -> None:
        self._client.log_artifacts(run_id, str(folder), _FOLDER)
        with tempfile.TemporaryDirectory() as scratch:
            _manifest(package).save(Path(scratch, _MANIFEST))
            for name, text in beside.items():
                if text:
                    Path(scratch, name).write_text(text, encoding="utf-8")
            self._client.log_artifacts(run_id, scratch, _FOLDER)
        if report is not None:
            self._client.log_artifact(run_id, str(report), _REPORT_FOLDER)

    def _create_version(self, run_id: str, package: ModelPackage, card: str) -> RegisteredVersion:
        from mlflow import MlflowException

        name = package.recipe.name
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        # Before the version: once that is there, nobody comes back to this run.
        self._client.set_terminated(run_id)
        made = self._client.create_model_version(
            name,
            f"runs:/{run_id}/{_FOLDER}",
            run_id=run_id,
            tags=_lineage(package),
            description=_shortened(card, _LONGEST_DESCRIPTION) or None,
        )
        return self._of_package(name, package.key) or self.version(name, str(made.version))


def flat_params(package: ModelPackage) -> dict[str, str]:
    """Recipe and plan as MLflow parameters: `recipe.train.minutes` = `5`. Long values are cut; the package has all."""
    document = {
        "recipe": package.recipe.model_dump(mode="json", exclude={"name", "version"}),
        "plan": package.plan.model_dump(mode="json", exclude={"recipe", "kind", "seed", "notes"}),
        "training": package.training.model_dump(mode="json", exclude={"history", "notes", "best_metric", "best_step"}),
    }
    return {key: _shortened(value, _LONGEST_PARAM) for key, value in _flattened("", document)}


def _flattened(path: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flattened(f"{path}.{key}" if path else key, inner)
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)


def _points(package: ModelPackage, metrics: Mapping[str, float]) -> Iterator[tuple[str, float, int]]:
    """(name, value, step) of every finite metric and of the training's curves."""
    training = package.training
    for key, value in metrics.items():
        if math.isfinite(value):
            yield re.sub(r"[^\w\-./ ]", "_", key, flags=re.ASCII), value, 0
    for step, loss, metric in training.history:
        for key, value in (("training/loss", loss), ("training/validation", metric)):
            if math.isfinite(value):
                yield key, value, step
    for key, value in (("training/best", training.best_metric), ("training/seconds", training.seconds)):
        if math.isfinite(value):
            yield key, value, training.best_step


def _lineage(package: ModelPackage) -> dict[str, str]:
    """From a version back to everything it came from. Keys and pseudonyms only."""
    return {
        _PACKAGE_TAG: package.key,
        "nocturne.dataset": package.dataset,
        "nocturne.recipe": package.recipe.key,
        "nocturne.plan": package.plan.key,
        _WEIGHTS_TAG: package.weights_sha256,
        "nocturne.kind": package.recipe.kind,
        "nocturne.version": package.environment.nocturne,
        "nocturne.torch": package.environment.torch,
        "mlflow.source.git.commit": package.environment.code,
    }


def _manifest(package: ModelPackage) -> Any:
    """MLflow's `MLmodel`: tells its UI what goes in and comes out; our flavour names no loader."""
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    plan, single = package.plan, np.dtype("float32")
    grid = (-1,) * plan.network.dimensions
    # A detector of boxes gives several levels, each with its own channels and grid.
    shaped = plan.segments or plan.kind == "detection"
    channels = plan.network.out_channels if plan.segments or plan.kind != "detection" else -1
    out = (-1, channels, *(grid if shaped else ()))
    signature = ModelSignature(
        Schema([TensorSpec(single, (-1, plan.network.in_channels, *grid), "image")]),
        Schema([TensorSpec(single, out, "logits")]),
    )
    return Model(flavors={"nocturne": {"package": package.key, "format": package.format}}, signature=signature)


def _refuse_code(folder: Path) -> None:
    """Only plain data goes in or comes out: no link, no pickle, no script."""
    for entry in folder.rglob("*"):
        if entry.is_symlink() or (entry.is_file() and entry.suffix not in _SAFE_SUFFIXES):
            raise PackageError(
                f"a package holds safetensors, JSON and Markdown, not {entry.name!r}",
                hint="remove the file; nothing that could run code is registered or loaded",
                reason="unsafe-package",
            )
    if not (folder / WEIGHTS_FILE).is_file():
        raise PackageError(f"the package has no {WEIGHTS_FILE}", reason="incomplete-package")


def _checked(folder: Path, expected_sha256: str, package: str) -> Path:
    _refuse_code(folder)
    if _sha256(folder / WEIGHTS_FILE) != expected_sha256:
        raise IntegrityError(
            "the registry's weights are not those that were registered",
            where=package,
            hint="the artifact store was changed; the package store still has the package",
        )
    return folder


def _open(uri: str) -> MlflowClient:
    for key, value in _QUIET.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    make_database(uri)
    database = sqlite_file(uri)
    with database_lock(database):  # two processes that both find an empty database would both create its tables
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        if database is not None:
            client.get_experiment_by_name("Default")
            client.search_registered_models(max_results=1)
    return client


def _translated(error: Exception, where: str, *, server: str, file: Path | None) -> Exception | None:
    """The error in our tree, or None where it is none of MLflow's or the network's.

    `server` is its address, if any, `file` its database's, if that is one.
    """
    from mlflow import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import OperationalError
    from sqlalchemy.exc import TimeoutError as PoolTimeout

    if isinstance(error, NocturneError):
        return None
    if isinstance(error, (ConnectionError, TimeoutError, RequestException)):
        return _unreached("MLflow or its artifact store does not answer", where, server)
    if isinstance(error, (OperationalError, PoolTimeout)):
        return _away(str(error), where, file)
    if not isinstance(error, MlflowException):
        return None
    code, told = error.error_code, str(error)
    if code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND") or (code == "INVALID_PARAMETER_VALUE" and "not found" in told):
        return NotFoundError("is not in the registry", where=where, hint="`nocturne models list` shows what there is")
    if code in ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"):
        return SettingsError(
            "MLflow refuses these credentials",
            where="registry",
            hint="set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        )
    if "out-of-date database schema" in told:
        return SettingsError(
            "the tracking database was written by another MLflow version",
            where="registry",
            hint="back it up, then run `mlflow db upgrade` with its URI",
        )
    if code in ("TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED") or "QueuePool limit" in told:
        return _away(told, where, file)
    if "UNIQUE constraint" in told or "duplicate key" in told or "Duplicate entry" in told:
        return StoreBusyError("another process has just registered the same thing", where=where)
    if server and error.get_http_status_code() >= 500:
        return _unreached("MLflow's server does not answer", where, server)
    return None


def _unreached(what: str, where: str, server: str) -> Exception:
    hint = "look at `nocturne status`, and at the log of MLflow's server" if server else None
    return ServiceUnavailableError(what, where=f"{server} ({where})" if server else where, hint=hint)


def _shown(uri: str) -> str:
    """Without a password."""
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()


def _away(told: str, where: str, file: Path | None) -> Exception:
    if any(word in told for word in ("locked", "QueuePool limit", "deadlock", "REQUEST_LIMIT")):
        hint = who_holds(file) if file else None
        return StoreBusyError("MLflow's database is locked by another process", where=where, hint=hint)
    return ServiceUnavailableError("MLflow's database does not answer", where=where)


def _all_pages(search: Any, **query: Any) -> list[Any]:
    """All results of one of the client's paged searches."""
    found: list[Any] = []
    token: str | None = None
    while True:
        page = search(**query, page_token=token) if token else search(**query)
        found += page
        token = page.token
        if not token:
            return found


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
