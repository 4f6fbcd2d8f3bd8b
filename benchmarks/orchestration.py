"""A thousand small series through the ingest flow, and the same work without Prefect.

    python benchmarks/orchestration.py [--series 1000]

Both are processes of their own with a new home: `nocturne ingest` with its embedded server, and the same work called
directly on as many threads. A series has one instance, so that what goes on between series weighs the most.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

from _processes import whole
from _studies import write_studies
from _turns import Taken, arguments, table, turns

TARGET_SECONDS = 20.0
FLOW, DIRECT = "`nocturne ingest`, the flow on its embedded server", "the same work without Prefect"
_WITHOUT = "--without-prefect"


def main() -> None:
    """Take turns, each in a new home; then look whether all homes hold the same volumes."""
    parser = arguments(__doc__)
    parser.set_defaults(repeat=2)
    parser.add_argument("--series", type=int, default=1000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = write_studies(folder / "studies", range(given.series), slices=1) / "images"
        homes = (folder / f"home-{number}" for number in count())
        nocturne, direct = ("-m", "flows", "ingest", images), (__file__, _WITHOUT, images)
        contestants = {FLOW: lambda: whole(next(homes), *nocturne), DIRECT: lambda: whole(next(homes), *direct)}
        found = turns(contestants, given.repeat)
        kept = {_volumes(home) for home in folder.glob("home-*")}
    if len(kept) != 1:
        raise SystemExit("the two ways did not end with the same volumes")
    wall, cpu = (_over(found[FLOW], found[DIRECT], what) for what in ("seconds", "cpu_seconds"))
    reached = "reached" if wall <= TARGET_SECONDS else "**not reached**"
    print(f"{given.series:,} series of one instance, whole processes in new homes, equal volumes in all of them.\n")
    print(
        table(
            found, remarks={name: f"{them.middle('cpu_seconds'):.0f}" for name, them in found.items()}, remark="CPU s"
        )
    )
    print(
        f"\nThe flow takes {wall:.1f} s more (to reach: at most {TARGET_SECONDS:.0f} s: {reached}); CPU: {cpu:.1f} s."
    )


def _over(ours: Taken, bare: Taken, what: str) -> float:
    """How much more ours took than its neighbour, the median over the turns."""
    return statistics.median(getattr(a, what) - getattr(b, what) for a, b in zip(ours.turns, bare.turns, strict=True))


def without_prefect(images: Path) -> None:
    """What the flow's doors do, on as many threads as the flow has, in this process's home."""
    from flows.environment import open_stores
    from tasks.ingest.run import Ingestor, IngestRules

    stores = open_stores()
    args = (stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer)
    room = Ingestor(*args, IngestRules(), workers=stores.workers)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(room.ingest, room.scan([str(images)]).series))


def _volumes(home: Path) -> frozenset[str]:
    return frozenset(path.name for path in (home / "volumes").glob("*/*"))


if __name__ == "__main__":
    without_prefect(Path(sys.argv[-1])) if _WITHOUT in sys.argv else main()
