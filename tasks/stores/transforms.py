"""What registration found out, by content key: beside the prepared cases, and made again where it is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.stores.places import write_synced

FOLDER = ".transforms"


class TransformStore:
    """Small JSON files under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root) / FOLDER

    def get(self, key: str) -> dict[str, Any] | None:
        """What was kept, or None where nothing is, or nothing that can be read."""
        try:
            found = json.loads(self._file(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def put(self, key: str, value: dict[str, Any]) -> None:
        """Keep it, whole or not at all."""
        write_synced(self._file(key), json.dumps(value).encode())

    def _file(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.json"
