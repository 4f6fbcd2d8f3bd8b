"""A night on a catalog with a million series: every query of it, on a PostgreSQL of its own; and building datasets.

    python benchmarks/catalog.py [--rows N] [--within MILLISECONDS] [--url URL] [--no-night]

Starts PostgreSQL in a temporary folder and fills its catalog with what a hospital has after some years
(tests/tasks/stores/crowd.py): N series with their studies, volumes, labels, predictions, results and messages. Then it
looks at every statement that the code sends, as the database's client sees it (with what the machine does besides):
in a whole night (`flows.retrain`, with new studies, on a recipe that means a few of all series), in what runs all day,
and where datasets of 2 % and of 20 % of all series are built, split, corrected, watched and reported. Answers of many
rows are fetched in parts of 2,000: each part is judged. A statement that took too long is sent again four times, and
the median counts: other work on the machine tells on any of them once. `--url` takes a catalog that was filled before.
"""

from __future__ import annotations

import argparse
import getpass
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from _recorded import Asked, Recorder  # noqa: E402

from models.recipe import Recipe  # noqa: E402
from tasks.stores.catalog import ROWS_AT_ONCE, Catalog  # noqa: E402
from tasks.stores.house import Stores  # noqa: E402
from tests.tasks.stores.asking import build, day, looks, origins, recipe_of, report  # noqa: E402
from tests.tasks.stores.crowd import CHEST, LIVER, Crowd  # noqa: E402

SHARES = (1, 2, 5, 10, 20)
"""Of twenty parts of the radiographs: datasets of so many."""
NIGHT = """
name = "night"
kind = "segmentation"
images.modality = "CT"
images.description = "portal venous 5.0|ABD PV"
labels.source = "SEG"
labels.classes = ["Liver", "Lesion"]
network.dimensions = 3
network.features = [8, 16]
promote.floor = 0.0
evaluate.bootstrap = 100

[train]
epochs = 1
steps_per_epoch = 2
batch_size = 2
patch_size = [16, 32, 32]
precision = "fp32"
compile = false
validations = 1
"""


def main() -> None:
    """Fill, ask, tell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="series")
    parser.add_argument("--within", type=float, default=100.0, help="milliseconds that a query may take")
    parser.add_argument("--url", help="of a catalog that was filled with as many series before")
    parser.add_argument("--no-night", action="store_true", help="leave out the whole night")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="noct-million-") as name, _database(given.url) as url:
        os.environ |= {"NOCTURNE_HOME": f"{name}/home", "NOCTURNE_CATALOG_URL": url, "NOCTURNE_WORKERS": "2"}
        from flows.environment import open_stores, prepare_environment
        from models.settings import Settings

        prepare_environment(Settings.load())
        crowd, stores = Crowd(given.rows), open_stores()
        size = f"{given.rows:,} series" if given.url else _filled(crowd, stores.catalog)
        asked = dict[str, Recorder]()
        for what, work in _work(stores, crowd, Path(name), night=not given.no_night).items():
            print(what, file=sys.stderr, flush=True)
            asked[what] = Recorder()
            with asked[what].recording():
                work()
        _again(stores.catalog, asked, given.within)
        print(_queries(asked, given.within, size))
        print(_linear(stores))


# -- the database -------------------------------------------------------------------------------------------------


@contextmanager
def _database(url: str | None) -> Iterator[str]:
    """Of a PostgreSQL server in a temporary folder, unless one is given."""
    if url:
        yield url
        return
    from tests.tasks.stores.conftest import Postgres

    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        raise SystemExit("PostgreSQL's server programs are not installed")
    user = "postgres" if os.getuid() == 0 else getpass.getuser()
    folder = Path(tempfile.mkdtemp(prefix="noct-pg-"))
    if os.getuid() == 0:
        shutil.chown(folder, user)
    server = Postgres(programs[-1].parent, folder, user)
    try:
        server.initialise()
        with (folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write("shared_buffers = 1GB\nmax_wal_size = 16GB\ncheckpoint_timeout = 1h\nwal_level = minimal\n")
            settings.write("max_wal_senders = 0\nfull_page_writes = off\n")
        server.start()
        yield server.new_database()
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _filled(crowd: Crowd, catalog: Catalog) -> str:
    begun = time.perf_counter()
    rows = crowd.fill(catalog, lambda table, rows: print(f"{rows:>10,} {table}", file=sys.stderr, flush=True))
    took = time.perf_counter() - begun
    with catalog.engine.connect() as connection:
        size = connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar()
    return f"{crowd.series:,} series, {rows:,} rows in all, {int(size or 0) / 1e9:.1f} GB, filled in {took:.0f} s"


# -- what is asked ------------------------------------------------------------------------------------------------


def _work(stores: Stores, crowd: Crowd, folder: Path, *, night: bool) -> Mapping[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {}
    if night:
        found["a whole night, with new studies"] = lambda: _night(stores, folder / "cohort")
        found["the next night, with nothing new"] = lambda: _night(stores, folder / "cohort")
    found["a day: listener, relay, deliveries, what is stuck"] = lambda: day(stores, crowd)
    for name in (LIVER, CHEST):
        asked = f"a dataset of {_members(crowd, name):,}, built twice"
        found[asked] = lambda name=name: [build(stores, recipe_of(name)) for _ in range(2)]  # type: ignore[misc]
        found[f"{name}: corrections, watching"] = lambda name=name: looks(stores, name)  # type: ignore[misc]
        found[f"{name}: what its report asks"] = lambda name=name: report(stores, recipe_of(name))  # type: ignore[misc]
    found["lineage"] = lambda: origins(stores, crowd)
    return found


def _members(crowd: Crowd, name: str) -> int:
    return sum(model == name for model, _ in crowd.meant())


def _night(stores: Stores, cohort: Path) -> None:
    """As the schedule does it, but for the worker: the flow itself, in this process."""
    from flows.retrain import retrain
    from tasks.cohort.write import write_cohort

    place = write_cohort(cohort, patients=8, broken=1).incoming
    retrain(Recipe.parse(NIGHT, where="night"), stores.seal_batch([place]))


# -- what is told -------------------------------------------------------------------------------------------------


def _again(catalog: Catalog, asked: Mapping[str, Recorder], within: float) -> None:
    """Send what took too long again: the median of five counts."""
    for recorder in asked.values():
        for one in recorder.found():
            statement, parameters = one.slowest
            if one.most > within and statement.lstrip().upper().startswith("SELECT"):
                times = [one.most]
                times += [_first_part(catalog, statement, parameters) for _ in range(4)]
                one.parts[one.parts.index(one.most)] = statistics.median(times)


def _first_part(catalog: Catalog, statement: str, parameters: Any) -> float:
    """Milliseconds until the first rows are there, as `in_parts` fetches them: the slowest part of a long answer."""
    with catalog.engine.connect().execution_options(yield_per=ROWS_AT_ONCE) as connection:
        begun = time.perf_counter()
        connection.exec_driver_sql(statement, parameters).fetchmany(ROWS_AT_ONCE)
        return 1000 * (time.perf_counter() - begun)


def _queries(asked: Mapping[str, Recorder], within: float, size: str) -> str:
    lines = [size, "", f"| | statements (kinds) | median ms | slowest ms, of | rows | all < {within:.0f} ms |"]
    lines.append("|---|---|---|---|---|---|")
    worst = list[Asked]()
    for what, recorder in asked.items():
        found = recorder.found()
        parts = [part for one in found for part in one.parts]
        first, slow = found[0], [one for one in found if one.most > within]
        worst += slow
        cells = [what, f"{len(parts):,} ({len(found)})", f"{statistics.median(parts):.1f}"]
        cells += [f"{first.most:.0f}, {first.place}", f"{first.rows:,}", "**no**" if slow else "yes"]
        lines.append(f"| {' | '.join(cells)} |")
    worst.sort(key=lambda one: -one.most)
    lines += [f"\n{one.place}: {one.most:.0f} ms, {one.rows:,} rows: `{one.statement[:200]}`" for one in worst]
    return "\n".join(lines)


def _linear(stores: Stores) -> str:
    """How long datasets of growing size take to build, and what each case adds."""
    lines = ["", "| dataset | seconds | µs a case |", "|---|---|---|"]
    sizes, times = list[int](), list[float]()
    for share in SHARES:
        begun = time.process_time()
        built = build(stores, recipe_of(CHEST, share))
        times.append(time.process_time() - begun)
        sizes.append(len(built.dataset.rows))
        lines.append(
            f"| {sizes[-1]:,} of {sizes[-1] + len(built.exclusions):,} | {times[-1]:.1f} | "
            f"{1e6 * times[-1] / sizes[-1]:.0f} |"
        )
    slope, intercept = np.polyfit(sizes, times, 1)
    off = max(abs(t - (slope * n + intercept)) / t for n, t in zip(sizes, times, strict=True))
    lines.append(
        f"\nCPU seconds of our process: {intercept:.1f} s + {1e6 * slope:.0f} µs a case, within {100 * off:.0f} %"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
