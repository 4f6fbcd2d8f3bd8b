"""10, 100 and 1,000 small studies: the first night's data stages, and a night with nothing new.

    python benchmarks/growth.py [--sizes 10 100 1000] [--slices 8]

The stages are ingest (scan, checks, volumes), dataset, plan (fingerprint) and prepared arrays: each size in a process
of its own with a new home. Then a model learns for two steps, untimed, and `retrain` runs again. A study's cost is told
from one size to the next, which leaves out what starting takes.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from _studies import CLASSES, TABLE, write_studies
from _turns import ROOT, arguments

WITHIN, NIGHT_SECONDS = 1.10, 10.0
STAGES = ("ingest", "dataset", "plan", "prepare")
RECIPE = f"""
name = "growth"
kind = "classification"
images.modality = "CT"
labels.source = "CSV"
labels.name = "growth"
labels.classes = [{", ".join(f'{{ name = "{one}", match = "{one}" }}' for one in CLASSES)}]
evaluate.bootstrap = 100
network.features = [4, 8]
train.epochs = 1
train.steps_per_epoch = 2
train.precision = "fp32"
train.compile = false
train.validations = 1
"""
Told = Mapping[str, Any]


def main() -> None:
    """Every size in turn, then nights at the largest."""
    parser = arguments(__doc__)
    parser.set_defaults(repeat=3)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--slices", type=int, default=8)
    given = parser.parse_args()
    sizes = sorted(given.sizes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {}
        for size in sizes:
            studies = write_studies(folder / f"studies-{size}", range(size), given.slices)
            # What starting takes, more one time than another, hides what a few studies cost: the least of several.
            times = 1 if size == sizes[-1] else 2 * given.repeat
            runs = [_apart("stages", folder / f"home-{size}-{number}", studies) for number in range(times)]
            found[size] = min(runs, key=lambda told: told["cpu"])
            print(f"{size} studies: {found[size]}", file=sys.stderr)
        home = folder / f"home-{sizes[-1]}-0"
        first, *nights = (_apart("night", home) for _ in range(1 + given.repeat))
    print(f"Studies of {given.slices} × 32 × 32; seconds of one process with its workers.\n")
    print(_stages(found))
    print(f"\n{_nights(first, nights, sizes[-1])}")


def _stages(found: Mapping[int, Told]) -> str:
    head = ["studies", *STAGES, "together", "CPU s", "CPU ms a study more", "peak MB"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    slopes: list[float] = []
    before: tuple[int, float] | None = None
    for size, told in found.items():
        slopes += [(told["cpu"] - before[1]) / (size - before[0])] if before else []
        slope = f"{1000 * slopes[-1]:.1f}" if slopes else ""
        figures = [*(told[stage] for stage in STAGES), sum(told[stage] for stage in STAGES), told["cpu"]]
        cells = [f"{size:,}", *(f"{figure:.1f}" for figure in figures), slope, f"{told['peak_mb']:.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
        before = size, told["cpu"]
    peaks = [told["peak_mb"] for told in found.values()]
    verdicts = [
        *([_verdict("a study more costs", slopes[-1] / slopes[-2])] if len(slopes) > 1 else []),
        *([_verdict("peak memory", peaks[-1] / peaks[-2])] if len(peaks) > 1 else []),
    ]
    between = f"The last size beside the one before it: {'; '.join(verdicts)}."
    return "\n".join([*lines, "", between])


def _verdict(what: str, times: float) -> str:
    return f"{what} × {times:.2f} (at most {WITHIN:g}: {'reached' if times <= WITHIN else '**not reached**'})"


def _nights(first: Told, nights: Sequence[Told], size: int) -> str:
    flow, whole, cpu = (sorted(night[key] for night in nights)[len(nights) // 2] for key in ("flow", "whole", "cpu"))
    reached = "reached" if flow <= NIGHT_SECONDS else "**not reached**"
    return "\n".join(
        [
            f"| {size:,} studies | flow `retrain`, s | whole process, s | CPU s | peak MB |",
            "|---|---|---|---|---|",
            f"| the night that learns | {first['flow']:.1f} | {first['whole']:.1f} | {first['cpu']:.1f} "
            f"| {first['peak_mb']:.0f} |",
            f"| **a night with nothing new**, median of {len(nights)} | {flow:.1f} | {whole:.1f} | {cpu:.1f} "
            f"| {nights[-1]['peak_mb']:.0f} |",
            "",
            f"To reach: a night with nothing new in less than {NIGHT_SECONDS:g} s: {reached}.",
        ]
    )


# -- in processes of their own -----------------------------------------------------------------------------------


def _apart(what: str, home: Path, *more: Path) -> Told:
    mine = {"NOCTURNE_HOME": str(home), "PYTHONPATH": str(ROOT)}
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, __file__, f"--{what}", *map(str, more)],
        env={**os.environ, **mine},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**told, "whole": time.perf_counter() - begun}


def stages(folder: Path) -> dict[str, float]:
    """What the night's doors do with data, stage by stage."""
    from flows.environment import open_stores, prepare_environment
    from models.recipe import Recipe
    from models.settings import Settings
    from tasks.ingest.build import build_dataset
    from tasks.ingest.labels.table import import_csv
    from tasks.ingest.run import Ingestor, IngestRules
    from tasks.preprocess.stored import plan_training, prepare_planned

    settings = Settings.load()
    prepare_environment(settings)
    stores, recipe, seconds = open_stores(settings), Recipe.parse(RECIPE, where="growth"), dict[str, float]()

    def timed(stage: str, work: Callable[[], Any]) -> Any:
        begun = time.perf_counter()
        done = work()
        seconds[stage] = time.perf_counter() - begun
        return done

    def ingest() -> None:
        args = (stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer)
        room = Ingestor(*args, IngestRules(), workers=stores.workers)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(room.ingest, room.scan([str(folder / "images")]).series))

    timed("ingest", ingest)
    import_csv(folder / TABLE, name="growth", catalog=stores.catalog, pseudonymizer=stores.pseudonymizer)
    args = (recipe, stores.catalog, stores.datasets, stores.pseudonymizer, stores.volumes)
    dataset = timed("dataset", lambda: build_dataset(*args)).ref
    plan = timed("plan", lambda: plan_training(stores, recipe, dataset))
    timed("prepare", lambda: prepare_planned(stores, recipe, plan))
    return seconds


def night() -> dict[str, float]:
    """`retrain` with what is there, from its call to its end."""
    from flows.commands.shared import ready

    ready()
    from flows.embedded import embedded_server

    with embedded_server():
        from flows.retrain import retrain
    from models.recipe import Recipe

    begun = time.perf_counter()
    retrain(Recipe.parse(RECIPE, where="growth"))
    return {"flow": time.perf_counter() - begun}


def _child(what: Callable[[], dict[str, float]]) -> None:
    with redirect_stdout(sys.stderr):
        told = what()
    mine, below = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    cpu = sum(one.ru_utime + one.ru_stime for one in (mine, below))
    print(json.dumps({**told, "cpu": cpu, "peak_mb": mine.ru_maxrss / 1024, "worker_mb": below.ru_maxrss / 1024}))


if __name__ == "__main__":
    if "--stages" in sys.argv:
        _child(lambda: stages(Path(sys.argv[-1])))
    elif "--night" in sys.argv:
        _child(night)
    else:
        main()
