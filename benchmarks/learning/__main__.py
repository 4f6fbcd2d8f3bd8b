"""Every network beside a baseline, nnU-Net v2 and MONAI: the same cohort, the same split, the same CPU minutes.

    python benchmarks/learning --data FOLDER [--minutes 10 30] [--sets hippocampus pneumonia sarcoma sarcoma_petct]
        [--each 3] [--networks unet …] [--peers PYTHON] [--threads N] [--write]

FOLDER holds the public sets (hippocampus, pneumoniamnist, soft-tissue sarcoma) and `make_dicom.py`. The planned network
learns for the minutes, of CPU time; what that took, the others get. `--each`: and every network by its name for so
many. PYTHON is an environment with nnunetv2 (`make bench-learning` makes one); without it nnU-Net is left out. Results
are kept in `benchmarks/work/learning`, contender by contender, so that an interrupted run goes on; `--write` puts the
tables into the README.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

import baselines  # noqa: E402
import numpy as np  # noqa: E402
from contest import Contest, export_nnunet, images_of, judge_classes, judge_masks, read_mask  # noqa: E402
from table import BEGIN, END, Result, markdown  # noqa: E402

from models.dataset import Dataset  # noqa: E402
from models.networks import NETWORKS  # noqa: E402
from models.recipe import Recipe  # noqa: E402
from tasks.train.validate import choose_threshold  # noqa: E402

SETS = ("hippocampus", "pneumonia", "sarcoma", "sarcoma_petct")


class Bench:
    """One cohort and its contenders; a result that is there is not made again."""

    def __init__(self, name: str, args: argparse.Namespace) -> None:
        self.name, self.args = name, args
        self.contest = Contest(name, args.data, args.work)
        self.stores, ref = self.contest.ingest()
        self.dataset: Dataset = self.stores.datasets.read(ref.key)
        self.recipe: Recipe = self.contest.recipe()

    def beside_others(self, minutes: float) -> list[Result]:
        """Ours first: its CPU time is the others' budget."""
        kept = partial(self._kept, minutes)
        found = [kept("Nocturne", lambda: self._ours("auto", minutes))]
        budget = found[0].cpu_seconds
        if self.recipe.kind == "segmentation" and self.args.peers:
            found.append(kept("nnU-Net v2", lambda: self._peer("nnunet", budget)))
        return [*found, kept("MONAI", lambda: self._peer("monai", budget)), kept("baseline", self._baseline)]

    def each_network(self, minutes: float) -> list[Result]:
        """Every network of the kind by its name, but those for volumes' slices where images are flat, and for patients'
        series where each has one."""
        dimensions = 2 if all(row.shape_z == 1 for row in self.dataset.rows) else 3
        fitting = [
            name
            for name, entry in NETWORKS.items()
            if self.recipe.kind in entry.kinds and dimensions in entry.dimensions and not entry.sets
        ]
        asked = [name for name in fitting if name in self.args.networks]
        return [self._kept(minutes, name, lambda n=name: self._ours(n, minutes)) for name in asked]

    def _kept(self, minutes: float, who: str, make: Callable[[], dict[str, Any]]) -> Result:
        folder = self.args.work / self.name / f"results-{minutes:g}min-{self.args.threads}threads"
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / f"{who.replace(' ', '-')}.json"
        if not place.is_file():
            print(f"{time.strftime('%H:%M')} {self.name}, {minutes:g} minutes: {who}", file=sys.stderr)
            place.write_text(json.dumps(make()))
        return Result(self.name, who, minutes, **json.loads(place.read_text()))

    def _ours(self, network: str, minutes: float) -> dict[str, Any]:
        a = self.args
        command = [HERE / "ours.py", self.name, a.data, a.work, network, minutes, a.threads]
        return _told([sys.executable, *map(str, command)])

    def _peer(self, who: str, budget: float) -> dict[str, Any]:
        folder = self.args.work / self.name / f"{who}-{budget:.0f}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if self.recipe.kind == "classification":
            return self._classifying_peer(folder, budget)
        test = export_nnunet(self.stores, self.dataset, self.recipe, folder)
        if who == "nnunet":
            told = _told([self.args.peers, HERE / "peer_nnunet.py", folder, budget, self.args.threads])
        else:
            script = [HERE / "peer_monai.py", "segmentation", folder, budget, self.args.threads]
            told = _told([sys.executable, *script, len(self.dataset.classes)])
        found = {row.volume: read_mask(folder / "predicted" / f"{name}.nii.gz") for name, row in test.items()}
        shutil.rmtree(folder)
        return told | {"scores": judge_masks(self.stores, self.dataset, self.recipe, found, who).scalars()}

    def _classifying_peer(self, folder: Path, budget: float) -> dict[str, Any]:
        (train, labels), (known, kinds), (test, _) = (
            images_of(self.stores, self.dataset, split) for split in ("train", "validation", "test")
        )
        np.savez(folder / "images.npz", train=train, train_labels=labels, test=np.concatenate([known, test]))
        script = [HERE / "peer_monai.py", "classification", folder, budget, self.args.threads]
        told = _told([sys.executable, *script, len(self.dataset.classes)])
        found = np.load(folder / "predicted.npy")
        chosen = choose_threshold(found[: len(known), 1], kinds == 1)
        return told | {"scores": judge_classes(self.dataset, found[len(known) :], chosen, "monai").scalars()}

    def _baseline(self) -> dict[str, Any]:
        begun = time.process_time()
        stores, dataset, recipe = self.stores, self.dataset, self.recipe
        if recipe.kind == "classification":
            about = "logistic regression on the pixels"
            found, chosen = baselines.logistic(stores, dataset)
            evaluation = judge_classes(dataset, found, chosen, "baseline")
        elif self.name.startswith("sarcoma"):
            about = "30 % of the peak"
            masks = baselines.share_of_peak(stores, dataset, recipe)
            evaluation = judge_masks(stores, dataset, recipe, masks, "baseline")
        else:
            about = "mean shape"
            evaluation = judge_masks(stores, dataset, recipe, baselines.mean_shape(stores, dataset, recipe), "baseline")
        spent = time.process_time() - begun
        return {"steps": 0, "cpu_seconds": spent, "memory_mb": 0, "about": about, "scores": evaluation.scalars()}


def _told(command: list[Any]) -> dict[str, Any]:
    """The last line that a contender prints. A failure shows what it said."""
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"{command[1]} failed:\n{run.stderr[-3000:]}")
    told: dict[str, Any] = json.loads(run.stdout.strip().splitlines()[-1])
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "work" / "learning")
    parser.add_argument("--minutes", type=float, nargs="+", default=[10.0, 30.0])
    parser.add_argument("--each", type=float, default=0.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--peers", type=Path)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    args.data, args.work = args.data.absolute(), args.work.absolute()
    found: list[Result] = []
    for name in args.sets:
        bench = Bench(name, args)
        found += [result for minutes in args.minutes for result in bench.beside_others(minutes)]
        found += bench.each_network(args.each) if args.each else []
    told = markdown(found, args.threads)
    print(told)
    if args.write:
        readme = ROOT / "README.md"
        before, rest = readme.read_text().split(BEGIN)
        readme.write_text(f"{before}{BEGIN}\n{told}{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
