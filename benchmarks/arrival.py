"""From the last instance of a study to its SEG in the PACS: the listener, a Prefect server, a worker and Orthanc.

    python benchmarks/arrival.py [--studies 6]

The first study warms the model; the others count. What is printed is the time after the quiet time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tasks.cohort.write import draw_case, write_cohort
from tests.components import part10, phantom_study, running_orthanc
from tests.faults.night import Home
from tests.flows.hospital import Hospital, opened

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
        with running_orthanc(folder / "pacs", stable_seconds=600) as pacs:
            hospital = Hospital(home, pacs, folder / "inbox", quiet_seconds=3.0)
            with opened(hospital):
                seconds = [arrival(hospital, study(folder, number)) for number in range(1, studies + 1)]
    warm = seconds[1:]
    print(f"first study, which loads the model: {seconds[0]:.1f} s after the quiet time")
    told = f"median {statistics.median(warm):.1f} s, at most {max(warm):.1f} s (to reach: {TARGET:.0f} s)"
    print(f"the next {len(warm)}: {told}")


def arrival(hospital: Hospital, sent: Path) -> float:
    """Seconds from the last acknowledged instance to the SEG in the PACS, less the quiet time."""
    hospital.send(sent)
    begun = time.monotonic()
    while hospital.segmentation(sent) is None:
        if time.monotonic() - begun > 300:
            raise SystemExit(hospital.logs())
        time.sleep(0.1)
    return time.monotonic() - begun - hospital.quiet_seconds


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
