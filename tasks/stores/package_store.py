"""Model packages by content key: a folder each, in a folder or an object store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.stores.places import Place, open_place


class PackageStore:
    """Where packages lie. What is in one, and whether it may be trusted, `tasks.stores.packages` knows."""

    def __init__(self, url: str, *, scratch: Path | None = None) -> None:
        self.place: Place = open_place(url, scratch=scratch)

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A new local folder to write a package into, removed at the end unless it was published."""
        with self.place.staging() as folder:
            yield folder

    def publish(self, staged: Path, key: str) -> None:
        """Make the staged package visible under `key`, whole; one that is there already is kept."""
        self.place.publish(staged, key)

    def exists(self, key: str) -> bool:
        """Whether the package is there."""
        return self.place.exists(key)

    def local(self, key: str) -> Path:
        """A local folder with the package. Raises NotFoundError."""
        return self.place.local(key)

    def replace(self, staged: Path, key: str) -> None:
        """Make the staged package visible in place of a damaged one, which goes."""
        self.place.remove(key)
        self.place.publish(staged, key)

    def fetch_anew(self, key: str) -> bool:
        """Drop a copy on this machine of what lies elsewhere; False where the package itself lies here."""
        return self.place.forget(key)
