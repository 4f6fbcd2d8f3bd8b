"""One network of Nocturne on one cohort: plan, prepare, train, evaluate. A process of its own, so that its CPU time and
memory are its own.

    python ours.py NAME DATA WORK NETWORK MINUTES THREADS [KEY=VALUE …]
"""

from __future__ import annotations

import json
import resource
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from contest import Contest  # noqa: E402

from tasks.evaluate.run import evaluate_package  # noqa: E402
from tasks.ingest.build import build_dataset  # noqa: E402
from tasks.preprocess import stored  # noqa: E402
from tasks.preprocess.dryrun import step_seconds  # noqa: E402
from tasks.preprocess.stored import plan_training, prepare_planned  # noqa: E402
from tasks.stores.packages import read_description  # noqa: E402
from tasks.train import execution, loop  # noqa: E402
from tasks.train.stored import train_package  # noqa: E402


def main() -> None:
    name, data, work, network, minutes, threads, *more = sys.argv[1:]
    torch.set_num_threads(int(threads))
    # The recipe's minutes are minutes of CPU here, as the others' are: what else the machine does costs nobody steps.
    loop.time = execution.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[assignment]
    stored.step_seconds = partial(step_seconds, clock=time.process_time)
    contest = Contest(name, Path(data), Path(work))
    changes = {key: json.loads(value) for key, value in (pair.split("=", 1) for pair in more)}
    recipe = contest.recipe(network__name=network, train__minutes=float(minutes), **changes)
    stores = contest.stores()
    dataset = build_dataset(recipe, stores.catalog, stores.datasets, stores.pseudonymizer).ref
    plan = plan_training(stores, recipe, dataset)
    prepare_planned(stores, recipe, plan)
    begun = time.process_time()
    package = train_package(stores, recipe, plan)
    spent, memory = time.process_time() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    evaluation = stores.evaluations.read(evaluate_package(stores, package, dataset).key)
    described = read_description(stores.packages.local(package.key))
    shape = described.plan.network
    patch = " × ".join(map(str, described.plan.train.patch_size))
    told = {
        "steps": described.training.steps,
        "cpu_seconds": max(spent, described.training.seconds),  # one that was interrupted had learnt before
        "memory_mb": memory,
        "about": f"{shape.name} {shape.dimensions}-D, patch {patch}, batch {described.training.batch_size}",
        "scores": evaluation.scalars(),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
