"""One installation's settings: environment `NOCTURNE_*`, then `nocturne.toml` in the home folder, then defaults.

Only `flows/` reads them; everything below is handed plain values.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from models.errors import SettingsError
from models.hospital import (
    Arrivals,
    Destination,
    Listener,
    Nightly,
    Notify,
    OrthancFeed,
    Peer,
    Services,
    WatchedFolder,
)

HOME_VARIABLE = "NOCTURNE_HOME"
SETTINGS_FILE = "nocturne.toml"


def default_home() -> Path:
    """`NOCTURNE_HOME`, or `~/.nocturne`."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".nocturne").expanduser().absolute()


class Settings(BaseSettings):
    """Where the parts live and what they may use. Empty URLs mean: the embedded default under `home`."""

    model_config = SettingsConfigDict(
        env_prefix="NOCTURNE_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        nested_model_default_partial_update=True,
    )

    home: Path = Field(default_factory=default_home, description="the home folder")
    catalog_url: SecretStr = Field(SecretStr(""), description="SQLAlchemy URL of catalog and vault")
    volumes_url: str = Field("", description="folder or fsspec URL of volumes and masks")
    prepared_url: str = Field("", description="folder of prepared arrays; fast, and shared by all Dask workers")
    datasets_url: str = Field("", description="folder or fsspec URL of dataset manifests")
    evaluations_url: str = Field("", description="folder or fsspec URL of evaluations and reports")
    packages_url: str = Field("", description="folder or fsspec URL of model packages")
    tracking_url: SecretStr = Field(SecretStr(""), description="MLflow tracking and registry URI")
    secret: SecretStr = Field(SecretStr(""), description="pseudonym secret, 64 hex digits; else the file `secret`")
    vault_key: SecretStr = Field(SecretStr(""), description="vault key, 64 hex digits; else the file `vault.key`")
    dask_address: str = Field("", description="address of a Dask scheduler (tls://host:8786); else a local cluster")
    dask_tls_ca: str = Field("", description="PEM file of the authority that signed the scheduler's certificate")
    dask_tls_cert: str = Field("", description="PEM file of our certificate for the scheduler")
    dask_tls_key: str = Field("", description="PEM file of that certificate's key")
    dask_unencrypted: bool = Field(False, description="allow a scheduler on another machine without TLS")
    workers: int = Field(0, ge=0, description="local Dask processes and decoder threads; 0: one per core")
    memory_gb: float = Field(0, ge=0, description="memory a run may plan with; 0: three quarters of what is free")
    training_processes: int = Field(
        0, ge=0, description="processes that share out each training batch; 0: one per CUDA device, else one"
    )
    allow_without_burned_in: tuple[str, ...] = Field(
        (), description="modalities accepted without BurnedInAnnotation, for every ingest"
    )

    spool: str = Field("", description="folder of original instances; on storage that honours fsync")
    listener: Listener = Listener()
    watched: tuple[WatchedFolder, ...] = ()
    orthanc: tuple[OrthancFeed, ...] = ()
    peers: tuple[Peer, ...] = ()
    destinations: tuple[Destination, ...] = ()
    arrivals: Arrivals = Arrivals()
    nightly: Nightly = Nightly()
    notify: Notify = Notify()
    services: Services = Services()
    prefect_url: str = Field("", description="API of the Prefect server; else that of `nocturne up`")
    prefect_auth: SecretStr = Field(SecretStr(""), description="user:password of the Prefect server")
    mlflow_auth: SecretStr = Field(SecretStr(""), description="user:password of the MLflow server")

    @field_validator("prepared_url")
    @classmethod
    def _folder(cls, url: str) -> str:
        """Training maps prepared arrays into memory, which no object store can offer."""
        path = url.removeprefix("file://")
        if "://" in path:
            raise ValueError("name a folder, on this machine or on shared storage: training maps its files into memory")
        return path

    @field_validator("prefect_url", "dask_address")
    @classmethod
    def _without_password(cls, url: str) -> str:
        """These are shown, in messages and on pages."""
        if "@" in url:
            raise ValueError("no user and password in it: prefect_auth and dask_tls_* are there for that")
        return url

    @field_validator("prefect_auth", "mlflow_auth")
    @classmethod
    def _user_and_password(cls, auth: SecretStr) -> SecretStr:
        """As HTTP's Basic scheme sends them."""
        user, _, password = auth.get_secret_value().partition(":")
        if auth.get_secret_value() and not (user and password):
            raise ValueError("write it as user:password")
        return auth

    @model_validator(mode="after")
    def _whole_tls(self) -> Settings:
        if len({bool(self.dask_tls_ca), bool(self.dask_tls_cert), bool(self.dask_tls_key)}) > 1:
            raise ValueError("dask_tls_ca, dask_tls_cert and dask_tls_key go together")
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then the home folder's file."""
        file = TomlConfigSettingsSource(settings_cls, default_home() / SETTINGS_FILE)
        return init_settings, env_settings, file

    @classmethod
    def load(cls) -> Settings:
        """Read them. Raises SettingsError naming each bad key."""
        try:
            return cls()
        except ValidationError as error:
            told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False))
            raise SettingsError(
                told, where="settings", hint=f"see NOCTURNE_* in the environment and {SETTINGS_FILE} in the home folder"
            ) from None

    def database(self) -> str:
        """URL of catalog and vault."""
        return self.catalog_url.get_secret_value() or f"sqlite:///{self.home / 'catalog.db'}"

    def tracking(self) -> str:
        """URI of MLflow's tracking store and registry."""
        return self.tracking_url.get_secret_value() or f"sqlite:///{self.home / 'mlflow.db'}"

    def prefect(self) -> str:
        """URL of the Prefect server's API, as `nocturne up` starts it or as set."""
        return self.prefect_url or f"http://{self.services.host}:{self.services.prefect_port}/api"

    def spool_folder(self) -> Path:
        """The folder of original instances."""
        return Path(self.spool) if self.spool else self.home / "spool"

    def place(self, name: str) -> str:
        """URL of `volumes`, `prepared`, `datasets`, `evaluations` or `packages`."""
        return str(getattr(self, f"{name}_url")) or str(self.home / name)
