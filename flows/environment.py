"""What must be set before Prefect, MLflow and Dask are imported: no telemetry, loopback, state under the home folder.

A value that the user has set is left alone.
"""

from __future__ import annotations

import os
from pathlib import Path

from models.settings import Settings
from tasks.stores.house import DaskTls, Locations, Stores
from tasks.stores.secrets import load_or_create_secret, secret_from_text, vault_keys

QUIET = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "300",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # By name: of a number, Prefect configures no logging at all, and a run's page has no logs.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "GIT_PYTHON_REFRESH": "quiet",
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "MPLBACKEND": "Agg",
}
"""Of every process that runs flows."""


def prepare_environment(settings: Settings) -> None:
    """Call it before the first import of Prefect, MLflow, Dask or matplotlib."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    user, _, password = settings.mlflow_auth.get_secret_value().partition(":")
    if user:
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", user)
        os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", password)
    prefect_home(settings).mkdir(parents=True, exist_ok=True)  # its server does not make it
    os.environ.setdefault("PREFECT_HOME", str(prefect_home(settings)))
    os.environ.setdefault("MPLCONFIGDIR", str(settings.home / "cache" / "matplotlib"))


def prefect_home(settings: Settings) -> Path:
    """The embedded Prefect server's folder."""
    return settings.home / "prefect"


def open_stores(settings: Settings | None = None) -> Stores:
    """This installation's stores. The first call makes the home folder and its two secrets (mode 0600).

    A process opens them once: its connections to the catalog and the registry serve one run after another.
    """
    settings = settings or Settings.load()
    settings.home.mkdir(parents=True, exist_ok=True)
    secret, keys = settings.secret.get_secret_value(), vault_keys(settings.home, given_vault_key(settings))
    return _kept(
        Locations(
            home=settings.home,
            database=settings.database(),
            volumes=settings.place("volumes"),
            prepared=settings.place("prepared"),
            datasets=settings.place("datasets"),
            evaluations=settings.place("evaluations"),
            packages=settings.place("packages"),
            spool=settings.spool_folder(),
            tracking=settings.tracking(),
            secret=secret_from_text(secret) if secret else load_or_create_secret(settings.home / "secret"),
            vault_key=keys.sealing,
            older_vault_keys=keys.opening,
            dask_address=settings.dask_address,
            dask_tls=_tls(settings),
            dask_unencrypted=settings.dask_unencrypted,
            workers=settings.workers,
            memory_gb=settings.memory_gb,
            training_processes=settings.training_processes,
        )
    )


def given_vault_key(settings: Settings) -> bytes | None:
    """The vault's key, where the environment or the settings' file say it. Raises SettingsError."""
    key = settings.vault_key.get_secret_value()
    return secret_from_text(key, where="vault_key") if key else None


_opened: dict[int, Stores] = {}
"""By process: connections must not be used by one that was forked."""


def _kept(locations: Locations) -> Stores:
    stores = _opened.get(os.getpid())
    if stores is None or stores.locations != locations:
        stores = _opened[os.getpid()] = Stores(locations)
    return stores


def _tls(settings: Settings) -> DaskTls | None:
    files = (settings.dask_tls_ca, settings.dask_tls_cert, settings.dask_tls_key)
    return DaskTls(*(Path(file).expanduser() for file in files)) if all(files) else None
