"""A segmentation from stored voxels to a label map on the same grid, beside MONAI's and nnU-Net's sliding windows.

    python benchmarks/predict.py [--peers PYTHON] [--threads N] [--repeat N] [--only CASE …] [--quick] [--device cuda]

In one run, each contestant in a process of its own, the same network, tile, overlap and precision: ours is the
predictor as it serves (normalise, tiles, blending, labels, mean confidence); MONAI's is its sliding window as
documented (float32 image, Gaussian weights, argmax); nnU-Net's is its predictor without mirroring, which computes in
float32 on a CPU (in float16 on a GPU) and is given the normalised image. `unet` is dominated by the network, `tiny` by
everything else; `tall` is 1000 × 512 × 512, and takes minutes: `--quick` leaves it out. Memory is the peak beyond what
a process held with its image and network loaded; CPU seconds count where other work runs on the machine, seconds on a
GPU. `warm` is one study of the demo's size through the whole room, catalog and mask included.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _device import device_argument, named
from _served import serve
from _turns import ROOT, Goal, Served, Taken, Turn, arguments, table
from torch import nn

from models.geometry import Geometry
from models.networks import build
from models.package import ModelPackage
from models.plan import NetworkPlan, Normalisation
from tasks.imaging.device import autocast, has_bf16
from tasks.imaging.predictor import Predictor
from tests.tasks.imaging.test_predictor import described
from tests.tasks.train.samples import balls

TILE = (96, 96, 96)
LOW, HIGH, MEAN, STD = -160.0, 240.0, 60.0, 80.0
CLASSES = ("one", "two", "three")
FASTER, LEANER = 1.2, 3.0


@dataclass(frozen=True)
class Case:
    """What is compared. `features`: of a U-Net; without, two convolutions."""

    shape: tuple[int, int, int]
    overlap: float
    features: tuple[int, ...] = ()


CASES = {
    # Tiles lie at 0, 52 and 104 for everybody then.
    "unet": Case((200, 200, 200), 0.455, (16, 32, 64, 128)),
    "tiny": Case((200, 200, 200), 0.455),
    "tall": Case((1000, 512, 512), 0.25),
}


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


def normalised(image: np.ndarray) -> np.ndarray:
    """float32, as nnU-Net does it for CT."""
    values = np.clip(image.astype(np.float32), LOW, HIGH)
    values -= MEAN
    values /= STD
    return values


def network(case: Case) -> nn.Module:
    torch.manual_seed(0)
    channels = 1 + len(CLASSES)
    if case.features:
        plan = NetworkPlan(name="unet", dimensions=3, in_channels=1, out_channels=channels, features=case.features)
        return build(plan).eval()
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.LeakyReLU(0.01), nn.Conv3d(4, channels, 1)).eval()


def package(overlap: float) -> ModelPackage:
    base = described(balls())
    how = Normalisation(scheme="ct", low=LOW, high=HIGH, mean=MEAN, std=STD)
    prepare = base.plan.prepare.model_copy(update={"spacing": None, "normalisation": (how,)})
    infer = base.plan.infer.model_copy(update={"tile": TILE, "overlap": overlap})
    plan = base.plan.model_copy(update={"classes": CLASSES, "prepare": prepare, "infer": infer})
    return base.model_copy(update={"plan": plan})


# -- the contestants, each in a process of its own --------------------------------------------------------------


def ours(case: Case, image: np.ndarray, precision: str, device: torch.device) -> Callable[[], np.ndarray]:
    described = package(case.overlap)
    weights = build(described.plan.network).state_dict()
    predictor = Predictor(described, weights, device.type, precision=precision)  # type: ignore[arg-type]
    predictor.network = network(case).to(device)
    grid = Geometry.from_spacing(image.shape, (1.0, 1.0, 1.0))
    return lambda: predictor.segment(image, grid).labels


def monai(case: Case, image: np.ndarray, precision: str, device: torch.device) -> Callable[[], np.ndarray]:
    from monai.inferers.inferer import SlidingWindowInferer

    at_once = 4 if device.type == "cuda" else 1
    inferer = SlidingWindowInferer(TILE, at_once, case.overlap, mode="gaussian", sigma_scale=0.125)
    net = network(case).to(device)

    def run() -> np.ndarray:
        with torch.inference_mode(), autocast(device, precision):  # type: ignore[arg-type]
            logits = inferer(torch.from_numpy(normalised(image))[None, None].to(device), net)
            return logits.argmax(1)[0].to(torch.uint8).cpu().numpy()

    return run


def child(case: Case, who: str, precision: str, labels: str, device: torch.device) -> None:
    """One contestant, served; its last labels are kept."""
    run = {"ours": ours, "monai": monai}[who](case, volume(case.shape), precision, device)
    found: list[np.ndarray] = []

    def work() -> None:
        found[:] = [run()]

    serve(work)
    np.save(labels, found[0])


# -- the comparison ---------------------------------------------------------------------------------------------


def compare(name: str, precision: str, given: argparse.Namespace) -> str:
    """Markdown: time and memory of one case in one precision."""
    case, device, peers = CASES[name], given.device, given.peers
    settings = ["--threads", given.threads, "--device", device]
    me = [sys.executable, __file__, *settings, "--child", name]
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder)
        commands = {
            "Nocturne": [*me, "ours", precision, at / "Nocturne.npy"],
            "MONAI": [*me, "monai", precision, at / "MONAI.npy"],
        }
        if peers is not None and precision == ("bf16" if device.type == "cuda" else "fp32"):
            torch.jit.trace(network(case), torch.zeros(1, 1, *TILE)).save(str(at / "network.pt"))
            np.save(at / "image.npy", normalised(volume(case.shape)))
            told = [at / "network.pt", at / "image.npy", ",".join(map(str, TILE)), case.overlap, 1 + len(CLASSES)]
            script = ROOT / "benchmarks" / "peers" / "predict.py"
            commands["nnU-Net"] = [peers, script, *told, at / "nnU-Net.npy", *settings]
        found: dict[str, list[Turn]] = {who: [] for who in commands}
        for number in range(given.repeat):  # on a CPU a turn is many tiles, and needs no other to warm up
            for who, command in commands.items():
                print(f"{name} {precision} {number + 1}/{given.repeat} {who}", file=sys.stderr)
                with Served(*command) as process:  # one at a time: each holds the image
                    if device.type == "cuda":
                        process()  # kernels are chosen and loaded
                    found[who].append(process())
        labels = {who: np.load(at / f"{who}.npy") for who in commands}
        equal = {who: f"{(them == labels['Nocturne']).mean():.4f}" for who, them in labels.items()}
    return _told(name, precision, {who: Taken(tuple(them)) for who, them in found.items()}, equal, device)


def _told(name: str, precision: str, taken: dict[str, Taken], equal: dict[str, str], device: torch.device) -> str:
    case = CASES[name]
    counted, unit = ("seconds", "s") if device.type == "cuda" else ("cpu_seconds", "CPU s")
    million = sum(p.numel() for p in network(case).parameters()) / 1e6
    what = f"a U-Net of {million:.1f} million parameters" if case.features else "two convolutions"
    peers = [who for who in taken if who != "Nocturne"]
    leaner = [Goal(who, LEANER, "peak_mb") for who in peers] if name == "tall" else []
    goals = [*(Goal(who, FASTER, counted) for who in peers), *leaner]
    size = " × ".join(map(str, case.shape))
    return "\n".join(
        (
            f"\n**{size}, {what}, {precision}{named(device)}**, tile {TILE[0]}³, overlap {case.overlap:g}\n",
            table(taken, goals, what=counted, unit=unit, remarks=equal, remark="equal labels"),
            "",
            table(taken, goals, what="peak_mb", unit="peak MB"),
        )
    )


def warm(repeat: int) -> str:
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
            volume_ref = a_volume(stores, volume(grid.shape), grid, study=study)
            version = a_study(stores, study)
            begun = time.perf_counter()
            analyse(stores, version, ref, [volume_ref], name="balls", model_version="1")
            took.append(time.perf_counter() - begun)
        stores.catalog.close()
    return (
        "\nOne study of 40 × 72 × 72, from its reference to the committed analysis: "
        f"model loaded in {loaded:.2f} s; the first {took[0]:.2f} s; those after it {median(took[1:]):.2f} s."
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(repeat=1)
    parser.add_argument("--only", nargs="+", choices=[*CASES, "warm"], default=[*CASES, "warm"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="default: fp32, and bf16 where it is native")
    device_argument(parser)
    parser.add_argument("--quick", action="store_true", help="without the tall scan")
    parser.add_argument("--child", nargs=4, help="(a contestant: case, name, precision, file for its labels)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.child:
        case, who, precision, labels = given.child
        child(CASES[case], who, precision, labels, given.device)
        return
    print(f"`python benchmarks/predict.py{' --peers PYTHON' if given.peers else ''}` ({given.threads} thread each)")
    precisions = [given.precision] if given.precision else ["fp32", *(["bf16"] if has_bf16(given.device.type) else [])]
    for name in CASES:
        if name in given.only and not (name == "tall" and given.quick):
            for precision in precisions:
                print(compare(name, precision, given), flush=True)
    if "warm" in given.only:
        print(warm(max(3, given.repeat)))


if __name__ == "__main__":
    main()
