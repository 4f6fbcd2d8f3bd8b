"""From the last instance of a study to its SEG in the PACS: the listener, a Prefect server, a worker and Orthanc.

    python benchmarks/arrival.py [--studies 6]

The sender asks for storage commitment, which says that this was all of the study: no quiet time passes. The seconds
count from the answer to that. The first study loads the model; the others count.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tasks.cohort.write import draw_case, write_cohort
from tests.components import part10, phantom_study, running_orthanc, until
from tests.faults.night import Home
from tests.flows.hospital import PATIENCE, Hospital, at_work

SEED = 78
TARGET = 10.0


def main() -> None:
    """Learn one night, start everything, and send studies one after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=6)
    studies = parser.parse_args().studies
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        home = Home(folder / "home", write_cohort(folder / "cohort", patients=10, broken=0).incoming)
        home.finish()
        (folder / "pacs").mkdir()
        with (
            running_orthanc(folder / "pacs", stable_seconds=600) as pacs,
            at_work(Hospital(home, pacs, folder / "inbox")) as hospital,
        ):
            first, *warm = (arrival(hospital, study(folder, number)) for number in range(1, studies + 1))
    reached = "reached" if max(warm) <= TARGET else "**not reached**"
    print("| | s, median (most) | to reach |\n|---|---|---|")
    print(f"| the first study, which loads the model | {first:.1f} | |")
    print(f"| **the next {len(warm)}** | {statistics.median(warm):.1f} ({max(warm):.1f}) | {TARGET:g}: {reached} |")


def arrival(hospital: Hospital, sent: Path) -> float:
    """Seconds from the answer that all of it is safe here to the SEG in the PACS."""
    hospital.send(sent)
    begun = time.monotonic()
    try:
        until(lambda: hospital.segmentation(sent), "the result", PATIENCE)
    except pytest.fail.Exception:
        raise SystemExit(hospital.logs()) from None
    return time.monotonic() - begun


def study(folder: Path, number: int) -> Path:
    """A study of a patient whom the champion has not seen."""
    slices = draw_case(SEED, number).phantom.geometry.shape[0]
    place = folder / f"study-{number}"
    place.mkdir()
    for index, instance in enumerate(phantom_study(number, seed=SEED, slices=slices)):
        (place / f"{index:04}.dcm").write_bytes(part10(instance))
    return place


if __name__ == "__main__":
    main()
