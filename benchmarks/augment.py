"""nnU-Net's augmentation of batches with their labels, beside batchgeneratorsv2 and MONAI.

    python benchmarks/augment.py [--peers PYTHON] [--threads N] [--repeat N] [--device cpu|cuda] [--quick]

Two sizes: 2 × 96³ and 12 × 256². Every library draws anew in each turn. batchgeneratorsv2 runs the list that nnU-Net's
trainer builds; MONAI the transforms of its own that come closest, those that act on half of the channels with half the
probability. Then one image is augmented many times by ours and by nnU-Net's list, and the distributions of what came
out are compared. Both get the patch itself: nnU-Net's loader hands its transforms a larger one, to turn in.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _device import device_argument, named, settled
from _moments import NAMES, moments
from _turns import Contestant, Goal, Served, arguments, table, turns
from torch import Tensor

from models.recipe import Augment
from tasks.train.augment import augmented

OURS, NNUNET, MONAI = "Nocturne", "nnU-Net (batchgeneratorsv2)", "MONAI"
GOALS = (Goal(NNUNET, 3), Goal(MONAI, 3))
PEER = Path(__file__).parent / "peers" / "augment.py"


@dataclass(frozen=True)
class Work:
    """One size: `rounds` batches of `count` patches a turn; `small` patches to compare distributions on."""

    name: str
    count: int
    size: tuple[int, ...]
    small: tuple[int, ...]
    rounds: int
    degrees: float

    @property
    def flips(self) -> tuple[str, ...]:
        """Every axis."""
        return ("z", "y", "x")[3 - len(self.size) :]

    @property
    def augment(self) -> Augment:
        """nnU-Net turns by ±30° in three dimensions and all the way round in two."""
        return Augment(rotation_degrees=self.degrees)

    def batch(self, size: Sequence[int], count: int) -> tuple[Tensor, Tensor]:
        """A body and an organ, noisy, that do not touch the border: images (b, 1, …) and masks (b, …)."""
        rng = np.random.default_rng(len(size))
        axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
        body = np.max([np.abs(a) for a in axes], axis=0) < 0.85
        organ = np.sqrt(sum((a - 0.2 * i) ** 2 for i, a in enumerate(axes))) < 0.4
        noise = rng.normal(0, 0.3, (count, *size))
        images = (body * (0.5 + noise) + organ).astype(np.float32)[:, None]
        masks = np.broadcast_to((body + organ).astype(np.uint8), (count, *size))
        return torch.from_numpy(images), torch.from_numpy(masks.copy())


WORKS = (
    Work("2 × 96³", 2, (96, 96, 96), (48, 48, 48), 16, 30.0),
    Work("12 × 256²", 12, (256, 256), (128, 128), 8, 180.0),
)


def ours(work: Work, device: torch.device) -> Contestant:
    """As the training loop calls it; another seed in every step."""
    images, masks = (t.to(device) for t in work.batch(work.size, work.count))
    seeds = itertools.count()

    def run() -> None:
        for _ in range(work.rounds):
            augmented(images, masks, work.augment, work.flips, next(seeds))
        settled(device)

    return run


def monai(work: Work) -> Contestant:
    """Its dictionary transforms, sample by sample, then stacked."""
    from monai import transforms as mt
    from monai.utils.misc import set_determinism

    set_determinism(0)
    d, limit, both = len(work.size), np.deg2rad(work.degrees), ("image", "label")
    turn = [(-limit, limit)] * (d if d == 3 else 1)
    chain = mt.Compose(
        [
            mt.RandAffined(
                both,
                prob=1 - 0.8 * 0.8,  # turned, scaled, or both
                rotate_range=turn,
                scale_range=[(-0.3, 0.4)] * d,
                mode=("bilinear", "nearest"),
                padding_mode="border",
            ),
            mt.RandGaussianNoised("image", prob=0.1, std=0.1),
            mt.RandGaussianSmoothd("image", (0.5, 1), (0.5, 1), (0.5, 1), prob=0.1),
            mt.RandScaleIntensityd("image", factors=0.25, prob=0.15),
            mt.RandScaleIntensityFixedMeand("image", factors=0.25, preserve_range=True, prob=0.15),
            mt.RandSimulateLowResolutiond("image", 0.125, "nearest", "trilinear" if d == 3 else "bilinear", (0.5, 1)),
            mt.RandAdjustContrastd("image", prob=0.1, gamma=(0.7, 1.5), invert_image=True, retain_stats=True),
            mt.RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
            *[mt.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in range(d)],
        ]
    )
    images, masks = work.batch(work.size, work.count)
    samples = [{"image": image, "label": mask[None]} for image, mask in zip(images, masks, strict=True)]

    def run() -> None:
        for _ in range(work.rounds):
            done: list[dict[str, Any]] = [chain(dict(sample)) for sample in samples]
            torch.stack([s["image"] for s in done])
            torch.stack([s["label"] for s in done])

    return run


@contextlib.contextmanager
def nnunet(work: Work, peers: Path, threads: int, draws: int) -> Iterator[Served]:
    """In its own environment, on the same batch."""
    with tempfile.TemporaryDirectory() as folder:
        files = list[Path]()
        for size, count in ((work.size, work.count), (work.small, 1)):
            images, masks = work.batch(size, count)
            files.append(Path(folder) / f"{len(files)}.npz")
            np.savez(files[-1], images=images.numpy(), masks=masks.numpy())
        numbers = {"rounds": work.rounds, "draws": draws, "degrees": work.degrees, "threads": threads}
        options = [part for name, value in numbers.items() for part in (f"--{name}", value)]
        with Served(peers, PEER, *files, *options) as served:
            yield served


def drawn_moments(work: Work, draws: int) -> np.ndarray:
    """(draws, moments) of ours."""
    images, masks = work.batch(work.small, 1)
    found = []
    for seed in range(draws):
        after, labels = augmented(images, masks, work.augment, work.flips, 10_000 + seed)
        assert labels is not None
        found.append(moments(images[0, 0].numpy(), masks[0].numpy(), after[0, 0].numpy(), labels[0].numpy()))
    return np.array(found)


def compared(work: Work, mine: np.ndarray, theirs: np.ndarray) -> str:
    """A row for each moment: both means and spreads, and the largest distance between the distribution functions."""
    # What two samples of one distribution exceed once in a hundred times.
    bound = 1.63 * np.sqrt(1 / len(mine) + 1 / len(theirs))
    size = " × ".join(map(str, work.small))
    lines = [
        f"One image of {size}, {len(mine):,} draws of each: mean (standard deviation) over the draws. The distance is "
        f"Kolmogorov and Smirnov's; two samples of one distribution exceed {bound:.3f} once in a hundred times.",
        "",
        "| | Nocturne | nnU-Net | distance |",
        "|---|---|---|---|",
    ]
    for name, a, b in zip(NAMES, mine.T, theirs.T, strict=True):
        figures = [f"{v.mean():.4f} ({v.std():.4f})" for v in (a, b)]
        lines.append(f"| {name} | {' | '.join(figures)} | {distance(a, b):.3f} |")
    return "\n".join(lines)


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Of the two empirical distribution functions, at the most."""
    at = np.concatenate((a, b))
    shares = [np.searchsorted(np.sort(v), at, side="right") / len(v) for v in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def measured(work: Work, peers: Path | None, threads: int, repeat: int, draws: int, device: torch.device) -> None:
    """One size: times, then distributions."""
    print(f"Moments of {work.name}", file=sys.stderr)
    contestants: dict[str, Contestant] = {OURS: ours(work, device)}
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(nnunet(work, peers, threads, draws)) if peers else None
        if served:
            contestants[NNUNET] = served
        contestants[MONAI] = monai(work)
        found = turns(contestants, repeat)
    samples = work.count * work.rounds
    remarks: Mapping[str, str] = {name: f"{samples / taken.middle():,.0f}" for name, taken in found.items()}
    where = f" Ours{named(device)}; the others have no such path." if named(device) else ""
    print(f"### {work.name}, with labels\n\n{samples} samples a turn, {threads} thread(s).{where}\n")
    print(table(found, GOALS, remarks=remarks, remark="samples/s"), end="\n\n")
    if served:
        print(compared(work, drawn_moments(work, draws), np.array(served.about["moments"])), end="\n\n")


def main() -> None:
    parser = arguments(__doc__)
    device_argument(parser)
    parser.add_argument("--quick", action="store_true", help="few draws to compare")
    parser.add_argument("--only", choices=[str(len(w.size)) for w in WORKS], help="three dimensions, or two")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for work in WORKS:
        if given.only in (None, str(len(work.size))):
            draws = 100 if given.quick else 1000
            measured(work, given.peers, given.threads, given.repeat, draws, given.device)


if __name__ == "__main__":
    main()
