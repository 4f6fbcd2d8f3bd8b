"""To a folder: each object whole or not at all, under a name that is its own UID."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.hospital import Destination
from tasks.deliver.objects import Result
from tasks.deliver.sending import Sent, away
from tasks.stores.places import parts_of, write_synced


class FolderSender:
    """Writes files under a temporary name, synced, then renamed."""

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._folder = Path(destination.path or "")

    def send(self, results: Sequence[Result], *, again: bool) -> Sent:
        """Write what is not there; the same object always has the same name, so a repeat replaces nothing."""
        try:
            # Not its parents: a share that is not mounted must not become a folder of the same name.
            self._folder.mkdir(exist_ok=True)
            for result in results:
                path = self._folder / f"{result.uid}.dcm"
                for part in parts_of(path):  # the hospital's folder: nobody else tidies it after a killed attempt
                    part.unlink(missing_ok=True)
                if not (path.is_file() and path.stat().st_size == len(result.content)):
                    write_synced(path, result.content)
        except OSError as error:
            raise away(
                self._destination,
                f"the folder cannot be written: {error.strerror or type(error).__name__}",
                hint="is it there, mounted, and writable for Nocturne's user?",
            ) from None
        return Sent(accepted=tuple(result.uid for result in results))
