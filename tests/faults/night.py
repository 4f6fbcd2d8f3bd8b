"""A night on a small cohort, as a user would start it: a process of its own that can be killed and looked at."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

RECIPE = """
name = "small"
kind = "segmentation"
images.modality = "CT"
labels.source = "SEG"
labels.classes = ["Liver", "Lesion"]
network.dimensions = 3
network.features = [8, 16, 32]
promote.floor = 0.0
evaluate.bootstrap = 200
infer.overlap = 0.25

[train]
epochs = 6
steps_per_epoch = 5
batch_size = 2
patch_size = [16, 32, 32]
precision = "fp32"
compile = false
validations = 3
checkpoint_minutes = 0.002
"""

STORES = ("volumes", "prepared", "datasets", "packages", "evaluations", "work", "scratch", "mlartifacts")
_RUN = re.compile(r"[0-9a-f]{32}")
TABLES = ("series", "volumes", "labels", "splits", "datasets", "plans", "packages", "evaluations", "decisions")
_LONGEST_SECONDS = 1800.0


@dataclass(frozen=True)
class Home:
    """One installation's home folder, seen from outside."""

    folder: Path
    cohort: Path

    @property
    def environment(self) -> dict[str, str]:
        """Equal secrets make equal pseudonyms, so that two homes can be compared."""
        return {
            **os.environ,
            "NOCTURNE_HOME": str(self.folder),
            "NOCTURNE_SECRET": "5a" * 32,
            "OMP_NUM_THREADS": "1",
            "PYTHONHASHSEED": "0",
        }

    def start(self, gate: str = "") -> subprocess.Popen[str]:
        """Begin the night; it does not get past `gate` (see `held`)."""
        recipe = self.folder / "small.toml"
        recipe.parent.mkdir(parents=True, exist_ok=True)
        recipe.write_text(RECIPE, encoding="utf-8")
        program = ["tests.faults.held", gate] if gate else ["flows"]
        command = [sys.executable, "-m", *program, "retrain", str(recipe), "--from", str(self.cohort)]
        return subprocess.Popen(
            command,
            env=self.environment,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def finish(self, gate: str = "") -> str:
        """Run the night to its end; returns what it printed."""
        night = self.start(gate)
        told, _ = night.communicate(timeout=_LONGEST_SECONDS)
        assert night.returncode == 0, told
        return told

    def kill_when(self, ready: Callable[[Home], bool], gate: str) -> None:
        """Begin the night, and kill it and all its children with SIGKILL as soon as `ready`: before `gate`."""
        night = self.start(gate)
        deadline = time.monotonic() + _LONGEST_SECONDS
        while not ready(self):
            assert night.poll() is None, f"the night ended before it could be killed:\n{night.communicate()[0]}"
            assert time.monotonic() < deadline, "the night never came to the point where it was to be killed"
            time.sleep(0.01)
        os.killpg(night.pid, signal.SIGKILL)
        night.communicate()

    def rows(self, table: str) -> list[dict[str, object]]:
        """All rows of a catalog table; none before the catalog is there."""
        file = self.folder / "catalog.db"
        if not file.exists():
            return []
        engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": 120})
        try:
            with engine.connect() as connection:
                return [dict(row) for row in connection.execute(text(f"SELECT * FROM {table}")).mappings()]  # noqa: S608
        except OperationalError as error:
            if "no such table" in str(error):
                return []
            raise
        finally:
            engine.dispose()

    def written(self) -> dict[str, set[object]]:
        """Every catalog row by its key and the moment it was written: a stage done twice would show."""
        return {table: {(next(iter(row.values())), row["created_at"]) for row in self.rows(table)} for table in TABLES}

    def published(self, store: str) -> dict[str, int]:
        """The published folders of a store, with the moment each was made."""
        root = self.folder / store
        return {
            entry.name: entry.stat().st_mtime_ns
            for fan in (root.iterdir() if root.exists() else ())
            if fan.is_dir() and not fan.name.startswith(".")
            for entry in fan.iterdir()
        }

    def checkpoints(self) -> list[Path]:
        """Whatever training has saved so far."""
        return [p for p in (self.folder / "work" / "train").glob("*/checkpoints/**/*") if p.is_file()]

    def files(self) -> set[str]:
        """All files and empty folders of the stores and the work folder, by path; MLflow's names for runs are drawn."""
        found = (p for store in STORES for p in (self.folder / store).rglob("*") if p.is_file() or not any(p.iterdir()))
        return {_RUN.sub("*", str(path.relative_to(self.folder))) for path in found}

    def hashes(self) -> dict[str, str]:
        """What a night is to come to, however often it was killed: contents by path, keys and decisions by table.

        What killed ones left half made is no part of it; a sweep takes that away (`files`).
        """
        files = [p for store in ("volumes", "prepared", "datasets") for p in (self.folder / store).rglob("*")]
        files += (self.folder / "packages").rglob("*.safetensors")
        told = {str(p.relative_to(self.folder)): _digest(p) for p in files if p.is_file() and ".staging" not in p.parts}
        for table, column in (("splits", "split"), ("packages", "weights_sha256"), ("evaluations", "value")):
            told[table] = str(sorted((next(iter(row.values())), row[column]) for row in self.rows(table)))
        told["decisions"] = str([(r["action"], r["package"], r["version"]) for r in self.rows("decisions")])
        return told

    def age(self) -> None:
        """As if all that lies there had been written two days ago."""
        then = time.time() - 48 * 3600
        for path in self.folder.rglob("*"):
            os.utime(path, (then, then), follow_symlinks=False)


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Standing:
    """What had been finished when a night was killed: nothing of it may go, or be made again."""

    rows: dict[str, set[object]]
    made: dict[str, dict[str, int]]

    @classmethod
    def of(cls, home: Home) -> Standing:
        """At this moment."""
        return cls(home.written(), {store: home.published(store) for store in ("volumes", "prepared", "packages")})

    def holds(self, later: Standing, moment: str) -> None:
        """Raises AssertionError where something is missing or was made again."""
        for table, rows in self.rows.items():
            assert rows <= later.rows[table], f"{table} written again after {moment}"
        for store, kept in self.made.items():
            assert kept.items() <= later.made[store].items(), f"{store} made again after {moment}"
