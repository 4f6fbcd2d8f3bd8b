"""All stores of one installation, opened when first used."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import SettingsError
from models.hashing import content_key
from models.pseudonyms import Pseudonymizer
from models.refs import BatchRef

if TYPE_CHECKING:
    from tasks.stores.catalog import Catalog
    from tasks.stores.datasets import DatasetStore
    from tasks.stores.evaluations import EvaluationStore
    from tasks.stores.package_store import PackageStore
    from tasks.stores.prepared import PreparedStore
    from tasks.stores.registry import Registry
    from tasks.stores.spool import Spool
    from tasks.stores.transforms import TransformStore
    from tasks.stores.vault import Vault
    from tasks.stores.volumes import VolumeStore


_MADE_WITH = "secret"
"""Beside this name the catalog keeps the public name of the secret that its pseudonyms are made with."""


@dataclass(frozen=True, slots=True)
class DaskTls:
    """Files (PEM) by which a Dask scheduler and its clients know each other."""

    ca: Path
    cert: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Locations:
    """Where the parts lie and what opens them: plain values, read from the settings by the flows."""

    home: Path
    database: str = field(repr=False)
    volumes: str
    prepared: str
    datasets: str
    evaluations: str
    packages: str
    spool: Path
    tracking: str = field(repr=False)
    secret: bytes = field(repr=False)
    vault_key: bytes = field(repr=False)
    older_vault_keys: tuple[bytes, ...] = field(default=(), repr=False)  # they open what they sealed
    dask_address: str = ""
    dask_tls: DaskTls | None = None
    dask_unencrypted: bool = False
    workers: int = 0
    memory_gb: float = 0.0
    training_processes: int = 0


class Stores:
    """What every door is handed. Opens nothing until it is asked for; pickles as its locations."""

    def __init__(self, locations: Locations) -> None:
        self.locations = locations

    def __reduce__(self) -> tuple[object, ...]:
        return Stores, (self.locations,)

    @property
    def workers(self) -> int:
        """Threads for CPU work on this machine."""
        return self.locations.workers or len(os.sched_getaffinity(0))

    @property
    def workspace(self) -> Path:
        """A folder for work that may be interrupted: checkpoints, exports."""
        return self.locations.home / "work"

    @cached_property
    def pseudonymizer(self) -> Pseudonymizer:
        """This installation's pseudonyms."""
        return Pseudonymizer(self.locations.secret)

    @cached_property
    def catalog(self) -> Catalog:
        """The SQL record of what is known. Raises SettingsError where its pseudonyms are another secret's."""
        from tasks.stores.catalog import Catalog

        catalog = Catalog(self.locations.database)
        known = catalog.marked(_MADE_WITH)
        if known is None:
            catalog.mark(_MADE_WITH, self.pseudonymizer.key_id)
        elif known != self.pseudonymizer.key_id:
            # One patient under two pseudonyms could be learnt from and judged by.
            catalog.close()
            raise SettingsError(
                f"its pseudonyms were made with secret {known}, this one is {self.pseudonymizer.key_id}",
                where="catalog",
                hint="restore the file `secret` or NOCTURNE_SECRET; `nocturne keys renew` begins anew with another",
                reason="another-secret",
            )
        return catalog

    @cached_property
    def vault(self) -> Vault:
        """Original identifiers, sealed."""
        from tasks.stores.vault import Vault

        return Vault(self.catalog, self.locations.vault_key, *self.locations.older_vault_keys)

    @cached_property
    def spool(self) -> Spool:
        """Original instances, as received."""
        from tasks.stores.spool import Spool

        return Spool(self.locations.spool, self.pseudonymizer)

    @cached_property
    def volumes(self) -> VolumeStore:
        """Volumes and masks."""
        from tasks.stores.volumes import VolumeStore

        return VolumeStore(self.locations.volumes, scratch=self._scratch)

    @cached_property
    def prepared(self) -> PreparedStore:
        """The network's input: a cache that can be made again."""
        from tasks.stores.prepared import PreparedStore

        return PreparedStore(Path(self.locations.prepared))

    @cached_property
    def transforms(self) -> TransformStore:
        """What registration found out."""
        from tasks.stores.transforms import TransformStore

        return TransformStore(Path(self.locations.prepared))

    @cached_property
    def datasets(self) -> DatasetStore:
        """Dataset manifests."""
        from tasks.stores.datasets import DatasetStore

        return DatasetStore(self.locations.datasets, scratch=self._scratch)

    @cached_property
    def evaluations(self) -> EvaluationStore:
        """Evaluations with their tables, pictures and reports."""
        from tasks.stores.evaluations import EvaluationStore

        return EvaluationStore(self.locations.evaluations, scratch=self._scratch)

    @cached_property
    def packages(self) -> PackageStore:
        """Model packages."""
        from tasks.stores.package_store import PackageStore

        return PackageStore(self.locations.packages, scratch=self._scratch)

    @cached_property
    def registry(self) -> Registry:
        """Registered versions and their aliases."""
        from tasks.stores.registry import Registry

        return Registry(self.locations.tracking, str(self.locations.home / "mlartifacts"))

    def seal_batch(self, paths: Sequence[Path]) -> BatchRef:
        """A reference to places to ingest from. Paths may name patients, so they lie in the vault."""
        places = sorted({str(path.absolute()) for path in paths})
        key = content_key("batch", [self.pseudonymizer.uid(place) for place in places])
        self.vault.put("batch", key, places)
        return BatchRef.to(key)

    def open_batch(self, batch: BatchRef) -> list[str]:
        """The batch's paths."""
        return list(self.vault.get("batch", batch.key))

    @property
    def _scratch(self) -> Path:
        return self.locations.home / "scratch"
