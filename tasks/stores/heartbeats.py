"""Signs of life of the processes that run all the time: one small file each, in the home folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_FOLDER = "run"


@dataclass(frozen=True, slots=True)
class Sign:
    """A process's last sign of life: how long ago, and what it told. `alive`: its process still exists."""

    name: str
    age: float
    alive: bool
    figures: Mapping[str, int]
    trouble: str


class Heartbeat:
    """Written by one process under its name."""

    def __init__(self, home: Path, name: str) -> None:
        self.name = name
        self._file = home / _FOLDER / f"{name}.json"
        self._file.parent.mkdir(parents=True, exist_ok=True)

    def beat(self, figures: Mapping[str, int], trouble: str = "") -> None:
        """Tell that all is well, or what is wrong."""
        sign = {"pid": os.getpid(), "at": time.time(), "figures": dict(figures), "trouble": trouble}
        part = self._file.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(sign), encoding="utf-8")
        part.replace(self._file)

    def end(self) -> None:
        """It stops because it was asked to."""
        self._file.unlink(missing_ok=True)


def signs(home: Path) -> list[Sign]:
    """Of all processes that have not been ended in order."""
    found = []
    for file in sorted((home / _FOLDER).glob("*.json")):
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue
        age = max(0.0, time.time() - float(told["at"]))
        found.append(Sign(file.stem, age, _exists(int(told["pid"])), told["figures"], told["trouble"]))
    return found


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
