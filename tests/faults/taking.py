"""Ingest in a process of its own: `python -m tests.faults.taking HOME FOLDER …` prints a line for each folder: how many
volumes came of it, why files were set aside, and the most memory that the whole process held meanwhile.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tasks.stores.tables import QuarantineRow
from tests.tasks.ingest.synthetic import Room


def main(home: Path, folders: list[Path]) -> None:
    for folder in folders:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
        room = Room.at(home / folder.name)
        volumes = sum(len(outcome.volumes) for outcome in room.ingest(folder))
        reasons = sorted({row.reason for row in room.catalog.find(QuarantineRow)})
        room.catalog.close()
        print(json.dumps([folder.name, volumes, reasons, _peak_mb()]), flush=True)


def _peak_mb() -> float:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
