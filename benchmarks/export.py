"""From 25 classes' logits at the network's spacing to labels on the image's own grid, beside nnU-Net's export.

    python benchmarks/export.py [--peers PYTHON] [--threads N] [--repeat N] [--slices N] [--quick]

The image has 1000 × 512 × 512 voxels of 1 × 0.8 × 0.8 mm, the logits 1.5 mm, float16, in a file that both sides map
into memory; smooth organs in a body, with noise. nnU-Net holds all classes on the image's grid at once (13 GB at full
size), so the two are compared on the first SLICES of the image; ours also runs on all of it. Labels alone are compared:
ours also gives the mean confidence. Memory is the peak beyond what a process held before, so that pages of the file
count too. `--quick` leaves the whole image out.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from _served import serve
from _turns import ROOT, Goal, Served, Taken, Turn, arguments, table
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from models.geometry import Geometry
from tasks.imaging.crop import whole_box
from tasks.imaging.restore import Restorer
from tasks.imaging.sliding import PORTION

SHAPE, SPACING, TARGET = (1000, 512, 512), (1.0, 0.8, 0.8), (1.5, 1.5, 1.5)
CLASSES = 25
FASTER, LEANER = 20.0, 5.0


def grids(slices: int) -> tuple[Geometry, Geometry]:
    """The image's first slices, and what the network saw of them."""
    original = Geometry.from_spacing((slices, *SHAPE[1:]), SPACING)
    shape = [round(n * a / b) for n, a, b in zip(original.shape, SPACING, TARGET, strict=True)]
    return original, original.resized(shape)


def write_logits(path: Path, shape: tuple[int, ...]) -> None:
    """Each class a row of ellipsoids along the body, its logit falling off with the distance; some noise."""
    rng = np.random.default_rng(0)
    logits = np.lib.format.open_memmap(path, "w+", np.float16, (CLASSES, *shape))
    y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape[1:])
    noise = np.stack([np.asarray(rng.normal(0, 0.7, shape[1:]), np.float32) for _ in range(4)])
    noise = (noise + np.roll(noise, 1, 1) + np.roll(noise, 1, 2) + np.roll(noise, (1, 1), (1, 2))) / 4
    logits[0] = 0
    for value in range(1, CLASSES):
        angle, away = 2 * np.pi * value / CLASSES, rng.uniform(0.25, 0.7)
        centre, radii = away * np.array([np.sin(angle), np.cos(angle)]), rng.uniform(0.1, 0.3, 2)
        length, start = rng.uniform(40, 120), rng.uniform(0, 60)
        in_plane = ((y[:, None] - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2
        for z in range(shape[0]):
            along = 2 * abs((z + start) % (1.4 * length) - length / 2) / length
            np.multiply(1 - np.sqrt(in_plane + along**2), 10, out=logits[value, z], casting="unsafe")
            logits[value, z] += np.roll(noise[value % 4], z, axis=0)
    logits.flush()


def ours(path: str, slices: int) -> NDArray[np.uint8]:
    """As the predictor does with its bands of probabilities."""
    original, prepared = grids(slices)
    restorer = Restorer(prepared, whole_box(original.shape), original)
    logits = np.load(path, mmap_mode="r")
    plane = logits[0, 0].nbytes
    band = np.empty((CLASSES, PORTION, *logits.shape[2:]), logits.dtype)
    lent = torch.empty(band.shape)
    with Path(path).open("rb") as file:
        for first in range(0, prepared.shape[0], PORTION):
            part = band[:, : min(PORTION, prepared.shape[0] - first)]
            for value, out in enumerate(part):  # read, not mapped: a fault for each page takes ten times as long
                file.seek(logits.offset + (value * logits.shape[1] + first) * plane)
                file.readinto(out)  # type: ignore[arg-type]
            values = lent[:, : part.shape[1]].copy_(torch.from_numpy(part))
            restorer.take(first, values.numpy())
    return restorer.labels


def child(path: str, slices: int, labels: str) -> None:
    """Ours, served; its last labels are kept."""
    found: list[NDArray[np.uint8]] = []

    def work() -> None:
        found[:] = []
        found[:] = [ours(path, slices)]

    with threadpool_limits(torch.get_num_threads()):
        serve(work)
    np.save(labels, found[0])


def taken(commands: dict[str, list[object]], repeat: int) -> dict[str, Taken]:
    """Each in a process of its own, one at a time; a turn is long enough to need no other to warm up."""
    turns: dict[str, list[Turn]] = {who: [] for who in commands}
    for number in range(repeat):
        for who, command in commands.items():
            print(f"{number + 1}/{repeat} {who}", file=sys.stderr)
            with Served(*command) as served:
                turns[who].append(served())
    return {who: Taken(tuple(them)) for who, them in turns.items()}


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(repeat=1)
    parser.add_argument("--slices", type=int, default=200, help="that nnU-Net gets too")
    parser.add_argument("--quick", action="store_true", help="without the whole image")
    parser.add_argument("--child", nargs=3, help="(ours: file of logits, slices, file for labels)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.child:
        path, slices, labels = given.child
        child(path, int(slices), labels)
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), given.threads, given.repeat, given.slices, given.peers, not given.quick)


def compare(folder: Path, threads: int, repeat: int, slices: int, peers: Path | None, whole: bool) -> None:
    logits, me = folder / "logits.npy", [sys.executable, __file__, "--threads", threads, "--child"]
    write_logits(logits, grids(SHAPE[0] if whole else slices)[1].shape)
    small, depth = grids(slices)[0], grids(slices)[1].shape[0]
    commands: dict[str, list[object]] = {"Nocturne": [*me, logits, slices, folder / "Nocturne.npy"]}
    if peers is not None:
        script, texts = ROOT / "benchmarks" / "peers" / "export.py", [small.shape, SPACING, TARGET]
        triples = [",".join(map(str, them)) for them in texts]
        commands["nnU-Net"] = [peers, script, logits, depth, *triples, folder / "nnU-Net.npy", "--threads", threads]
    found = taken(commands, repeat)
    labels = {who: np.load(folder / f"{who}.npy") for who in found}
    equal = {who: f"{(them == labels['Nocturne']).mean():.6f}" for who, them in labels.items()}
    goals = [Goal("nnU-Net", FASTER, "cpu_seconds"), Goal("nnU-Net", LEANER, "peak_mb")]
    print(f"`python benchmarks/export.py{' --peers PYTHON' if peers else ''}` ({threads} thread each)\n")
    print(f"**{_by(small.shape)}, {CLASSES} classes** from logits of {_by(grids(slices)[1].shape)}\n")
    print(table(found, goals, what="cpu_seconds", unit="CPU s", remarks=equal, remark="equal labels"), "\n")
    print(table(found, goals, what="peak_mb", unit="peak MB"))
    if whole:
        turn = taken({"the whole": [*me, logits, SHAPE[0], folder / "whole.npy"]}, repeat)["the whole"]
        print(
            f"\nThe whole {_by(SHAPE)} by Nocturne: {turn.middle():.1f} s, "
            f"{turn.middle('cpu_seconds'):.1f} CPU s, {turn.middle('peak_mb'):,.0f} MB, labels of "
            f"{np.prod(SHAPE) / 2**20:,.0f} MB among them."
        )


if __name__ == "__main__":
    main()
