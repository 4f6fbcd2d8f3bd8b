"""A segmentation from stored voxels to a label map on the same grid, beside MONAI's sliding window.

    python benchmarks/predict.py [--threads N] [--repeat N] [--only 200|tall|warm] [--precision fp32|bf16]

In one run, each contender in a process of its own, the same tiny network, tile and overlap: ours is the predictor as
it serves (normalise, tiles, blending, labels, mean confidence); MONAI's is its sliding window as documented (float32
image, Gaussian weights, argmax). `tall` is 1000 × 512 × 512; it also runs ours through another spacing and back. Memory
is the peak beyond what the process held with its volume and network loaded; CPU time counts where other work runs on
the machine. `warm` is one study of the demo's size through the whole room, catalog and mask included. Prints Markdown
tables; read the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.geometry import Geometry
from models.networks import build
from models.package import ModelPackage
from models.plan import Normalisation
from tasks.imaging.device import autocast, has_bf16
from tasks.imaging.predictor import Predictor
from tests.tasks.imaging.test_predictor import described
from tests.tasks.train.samples import balls

TILE = (96, 96, 96)
LOW, HIGH, MEAN, STD = -160.0, 240.0, 60.0, 80.0
CLASSES = ("one", "two", "three")
CASES = {"200": ((200, 200, 200), 0.5), "tall": ((1000, 512, 512), 0.25)}
CONTENDERS = ("ours fp32", "MONAI fp32", "ours bf16", "MONAI bf16")


def volume(shape: tuple[int, int, int]) -> np.ndarray:
    """Smooth structures in noise, HU."""
    rng = np.random.default_rng(0)
    plane = rng.normal(0, 30, shape[1:]).astype(np.int16)
    y, x = np.ogrid[: shape[1], : shape[2]]
    result = np.empty(shape, np.int16)
    for z, out in enumerate(result):
        ring = (y - shape[1] / 2) ** 2 + (x - shape[2] / 2 - 20 * np.sin(z / 30)) ** 2 < (shape[1] / 4) ** 2
        np.add(np.roll(plane, z), np.where(ring, 150, -100), out=out, casting="unsafe")
    return result


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.LeakyReLU(0.01), nn.Conv3d(4, 1 + len(CLASSES), 1)).eval()


def package(overlap: float, spacing: tuple[float, float, float] | None) -> ModelPackage:
    base = described(balls())
    how = Normalisation(scheme="ct", low=LOW, high=HIGH, mean=MEAN, std=STD)
    prepare = base.plan.prepare.model_copy(update={"spacing": spacing, "normalisation": (how,)})
    infer = base.plan.infer.model_copy(update={"tile": TILE, "overlap": overlap})
    plan = base.plan.model_copy(update={"classes": CLASSES, "prepare": prepare, "infer": infer})
    return base.model_copy(update={"plan": plan})


# -- the contenders, each in a process of its own ---------------------------------------------------------------


def ours(
    image: np.ndarray, overlap: float, precision: str, spacing: tuple[float, float, float] | None
) -> Callable[[], np.ndarray]:
    described = package(overlap, spacing)
    weights = build(described.plan.network).state_dict()
    predictor = Predictor(described, weights, "cpu", precision=precision)  # type: ignore[arg-type]
    predictor.network = network()
    grid = Geometry.from_spacing(image.shape, (1.0, 1.0, 1.0))
    return lambda: predictor.segment(image, grid).labels


def monai(image: np.ndarray, overlap: float, precision: str) -> Callable[[], np.ndarray]:
    from monai.inferers.inferer import SlidingWindowInferer

    inferer, net = SlidingWindowInferer(TILE, 1, overlap, mode="gaussian", sigma_scale=0.125), network()

    def run() -> np.ndarray:
        values = np.clip(image.astype(np.float32), LOW, HIGH)
        values -= MEAN
        values /= STD
        with torch.inference_mode(), autocast(torch.device("cpu"), precision):  # type: ignore[arg-type]
            logits = inferer(torch.from_numpy(values)[None, None], net)
            return logits.argmax(1)[0].to(torch.uint8).numpy()

    return run


def child(who: str, case: str) -> None:
    """One contender once: seconds, peak MB beyond the start, and how many voxels each class got."""
    shape, overlap = CASES[case]
    image, (name, precision, *spacing) = volume(shape), who.split()
    other = tuple(map(float, spacing)) or None
    run = ours(image, overlap, precision, other) if name == "ours" else monai(image, overlap, precision)  # type: ignore[arg-type]
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
    before, begun, worked = memory("VmRSS"), time.perf_counter(), time.process_time()
    labels = run()
    seconds, cpu = time.perf_counter() - begun, time.process_time() - worked
    peak = memory("VmHWM") - before  # counting the voxels below takes more than predicting them
    counts = np.bincount(labels.ravel(), minlength=1 + len(CLASSES)).tolist()
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak": peak, "voxels": counts}))


def memory(what: str) -> float:
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(what))
    return int(line.split()[1]) / 1024


# -- the tables -------------------------------------------------------------------------------------------------


def table(case: str, threads: int, repeat: int, precisions: list[str]) -> None:
    contenders = [who for who in CONTENDERS if who.split()[1] in precisions]
    if case == "tall":
        contenders.append(f"ours {precisions[-1]} 1.5 1.5 1.5")
    found: dict[str, list[dict]] = {who: [] for who in contenders}
    for _ in range(repeat):
        for who in contenders:  # in turn, so that a busy machine is busy for all
            command = [sys.executable, __file__, "--threads", str(threads), "--child", who, "--only", case]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[who].append(json.loads(done.stdout.splitlines()[-1]))
    shape, overlap = CASES[case]
    print(f"\n{' × '.join(map(str, shape))}, {1 + len(CLASSES)} classes, tile {TILE[0]}³, overlap {overlap:g}\n")
    print("| | s | CPU s | peak MB | CPU time, MONAI's = 1 | memory, MONAI's = 1 | same voxels per class |")
    print("|---|---|---|---|---|---|---|")
    for who, runs in found.items():
        peer = found[f"MONAI {who.split()[1]}"]
        seconds, cpu, peak = (statistics.median(run[key] for run in runs) for key in ("seconds", "cpu", "peak"))
        theirs = [statistics.median(run[key] for run in peer) for key in ("cpu", "peak")]
        moved = sum(abs(a - b) for a, b in zip(runs[0]["voxels"], peer[0]["voxels"], strict=True)) / 2
        print(
            f"| {who} | {seconds:.1f} | {cpu:.1f} | {peak:.0f} | {cpu / theirs[0]:.2f} | {peak / theirs[1]:.2f} "
            f"| {1 - moved / np.prod(shape):.4f} |"
        )


def warm(repeat: int) -> None:
    """A study of the demo's size, from its reference to the committed analysis."""
    from tasks.predict.run import analyse
    from tasks.predict.warm import predictor_for
    from tests.tasks.predict.samples import a_package, a_study, a_volume, stores_at

    with tempfile.TemporaryDirectory() as folder:
        stores = stores_at(Path(folder))
        begun = time.perf_counter()
        ref = a_package(stores, balls(patch_size=(32, 64, 64)))
        predictor_for(stores, ref)
        loaded, took = time.perf_counter() - begun, []
        for number in range(repeat + 1):
            study = f"2.25.{number}"
            grid = Geometry.from_spacing((40, 72, 72), (1.0, 1.0, 1.0))
            image = volume(grid.shape)
            volume_ref = a_volume(stores, image, grid, study=study)
            version = a_study(stores, study)
            begun = time.perf_counter()
            analyse(stores, version, ref, [volume_ref], name="balls", model_version="1")
            took.append(time.perf_counter() - begun)
        print("\nOne study of 40 × 72 × 72, from its reference to the committed analysis\n")
        print(f"load the model: {loaded:.2f} s; first: {took[0]:.2f} s; warm: {statistics.median(took[1:]):.2f} s")
        stores.catalog.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--only", choices=[*CASES, "warm"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: fp32, and bf16 where it is native")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        child(options.child, options.only)
        return
    precisions = [options.precision] if options.precision else ["fp32", *(["bf16"] if has_bf16("cpu") else [])]
    for case in CASES:
        if options.only in (None, case):
            table(case, options.threads, options.repeat if case != "tall" else 1, precisions)
    if options.only in (None, "warm"):
        warm(options.repeat)


if __name__ == "__main__":
    main()
