"""What the lineage reads besides the catalog's columns: manifests of datasets and descriptions of packages, in part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from models.errors import NotFoundError, PackageError
from tasks.stores.catalog import Catalog
from tasks.stores.house import Stores
from tasks.stores.packages import read_description

FILES_LOOKED_AT: Final = 100
"""Of manifests and descriptions, the newest: where all of them are not asked for."""


@dataclass(frozen=True, slots=True)
class Described:
    """Of a package: its plan's recipe, and the packages that its weights came from."""

    recipe: str = ""
    origins: frozenset[str] = frozenset()


@dataclass
class Reader:
    """One question's reading; what was read once is kept until it is answered. `complete`: look at everything."""

    stores: Stores
    complete: bool
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What is known of delivered objects, by their pseudonyms: they have no rows of their own."""
    _members: dict[str, tuple[frozenset[str], frozenset[str]]] = field(default_factory=dict)
    _described: dict[str, Described] = field(default_factory=dict)

    @property
    def catalog(self) -> Catalog:
        """The catalog."""
        return self.stores.catalog

    @property
    def files(self) -> int | None:
        """How many manifests or descriptions are looked at in search of one."""
        return None if self.complete else FILES_LOOKED_AT

    def members(self, dataset: str) -> tuple[frozenset[str], frozenset[str]]:
        """A dataset's volumes and labels; none where its manifest is gone."""
        if dataset not in self._members:
            try:
                found = self.stores.datasets.members(dataset)
            except NotFoundError:
                found = frozenset(), frozenset()
            self._members[dataset] = found
        return self._members[dataset]

    def described(self, package: str) -> Described:
        """What a package says of itself; nothing where its folder is gone."""
        if package not in self._described:
            try:
                told = read_description(self.stores.packages.local(package))
            except (NotFoundError, PackageError):
                self._described[package] = Described()
            else:
                origins = {told.started_from, *(member.package for member in told.members)} - {""}
                self._described[package] = Described(told.plan.recipe, frozenset(origins))
        return self._described[package]
