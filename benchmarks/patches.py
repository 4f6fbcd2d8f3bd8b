"""Patches with foreground oversampling from prepared cases, beside nnU-Net's loader, MONAI and a bare loop.

    python benchmarks/patches.py [--peers PYTHON] [--threads N] [--repeat N] [--only 3|2]

96³ in batches of 2 and 256² in batches of 12, a third of them around a voxel of the foreground, from 8 cases of
128 × 288 × 288, in one process, from files that lie in the system's cache. nnU-Net reads the blosc2 files that its
preprocessing writes, without its transforms; MONAI crops what `CacheDataset` holds in memory, four crops a draw as in
its tutorials, and once more with the voxels of both kinds cached too; the bare loop maps one .npy a case and copies.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from _turns import Contestant, Goal, Served, Turn, arguments, table, turns

from models.geometry import Geometry
from tasks.stores.prepared import About, PreparedStore
from tasks.train.patches import Cases, PatchSampler

OURS, NNUNET, BARE = "Nocturne", "nnU-Net's loader", "bare numpy memmap loop"
MONAI, MONAI_CACHED = "MONAI CacheDataset, RandCropByPosNegLabeld", "the same, FgBgToIndicesd cached"
GOALS = (Goal(NNUNET, 8), Goal(MONAI, 15), Goal(BARE, 0.9))
PEER = Path(__file__).parent / "peers" / "patches.py"
CASES, SHAPE, OVERSAMPLE = 8, (128, 288, 288), 1 / 3
LONGER = 10  # ours and the bare loop are measured over so many times the work: a turn of theirs is short
CROPS = 4  # of one case that MONAI draws
MANY = 200  # batches of which the contents are looked at

Draw = Callable[[], list[torch.Tensor]]
"""The masks of one batch."""


@dataclass(frozen=True)
class Work:
    """`batches` of `batch` patches a turn."""

    name: str
    patch: tuple[int, int, int]
    batch: int
    batches: int

    @property
    def patches(self) -> int:
        """Of one turn."""
        return self.batch * self.batches


WORKS = (Work("96³", (96, 96, 96), 2, 24), Work("256²", (1, 256, 256), 12, 5))


def case(number: int) -> tuple[np.ndarray, np.ndarray]:
    """A noisy body with a small organ: (1, z, y, x) float16 and (z, y, x) uint8."""
    rng = np.random.default_rng(number)
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32) for n in SHAPE)
    inside = (y[:, None] ** 2 + x**2 < 0.7) & (np.abs(z) < 0.9)[:, None, None]
    at = rng.uniform(-0.4, 0.4, 3)
    organ = (z - at[0])[:, None, None] ** 2 + (y - at[1])[:, None] ** 2 + (x - at[2]) ** 2 < 0.03
    image = inside.astype(np.float32) + organ
    image += 0.2 * rng.standard_normal(SHAPE, dtype=np.float32)
    return image[None].astype(np.float16), inside.astype(np.uint8) + (inside & organ)


class Stage:
    """The same cases as everyone wants to have them."""

    def __init__(self, folder: Path) -> None:
        self.raw, self.maps = folder / "raw", folder / "maps"
        self.raw.mkdir()
        self.maps.mkdir()
        self.store = PreparedStore(folder / "prepared")
        self.keys = [f"{number:032x}" for number in range(CASES)]
        grid = Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0))
        whole = ((0, SHAPE[0]), (0, SHAPE[1]), (0, SHAPE[2]))
        for number, key in enumerate(self.keys):
            image, mask = case(number)
            self.store.write(key, image, mask, About(key, grid, grid, whole))
            np.savez(self.raw / f"{key}.npz", image=image, mask=mask)
            np.save(self.maps / f"{key}-image.npy", image)
            np.save(self.maps / f"{key}-mask.npy", mask)

    def ours(self, work: Work) -> Draw:
        """As the prefetching thread of the training loop calls it."""
        sampler = PatchSampler(Cases(self.store, self.keys), work.patch, OVERSAMPLE, seed=0)
        steps = iter(range(sys.maxsize))
        return lambda: [sampler.batch(next(steps), work.batch).targets]

    def bare(self, work: Work) -> Draw:
        """What one would write by hand."""
        names = [self.maps / key for key in self.keys]
        images = [np.load(f"{name}-image.npy", mmap_mode="r") for name in names]
        masks = [np.load(f"{name}-mask.npy", mmap_mode="r") for name in names]
        places = [[self.store.open(key).locations[value] for value in (1, 2)] for key in self.keys]
        rng, patch, forced = np.random.default_rng(0), work.patch, round(work.batch * (1 - OVERSAMPLE))

        def draw() -> list[torch.Tensor]:
            image = np.empty((work.batch, 1, *patch), np.float16)
            mask = np.empty((work.batch, *patch), np.uint8)
            for index in range(work.batch):
                chosen = int(rng.integers(CASES))
                if index >= forced:
                    voxels = places[chosen][int(rng.integers(2))]
                    middle = voxels[int(rng.integers(len(voxels)))]
                    at = [min(max(int(m) - p // 2, 0), n - p) for m, p, n in zip(middle, patch, SHAPE, strict=True)]
                else:
                    at = [int(rng.integers(n - p + 1)) for n, p in zip(SHAPE, patch, strict=True)]
                z, y, x = (slice(a, a + p) for a, p in zip(at, patch, strict=True))
                image[index] = images[chosen][:, z, y, x]
                mask[index] = masks[chosen][z, y, x]
            return [torch.from_numpy(image), torch.from_numpy(mask)][1:]

        return draw

    def monai(self, work: Work, *, indices: bool) -> Draw:
        """`CROPS` crops of cached tensors, collated."""
        from monai import transforms as mt
        from monai.data.dataset import CacheDataset
        from monai.data.utils import list_data_collate
        from monai.utils.misc import set_determinism

        set_determinism(0)
        # What is no transform of its own would end what is cached.
        chain: list[Callable[..., object]] = [mt.Lambda(load), *([mt.FgBgToIndicesd("label")] if indices else [])]
        known = {"fg_indices_key": "label_fg_indices", "bg_indices_key": "label_bg_indices"} if indices else {}
        crop = mt.RandCropByPosNegLabeld(
            ("image", "label"), "label", work.patch, pos=1, neg=2, num_samples=CROPS, **known
        )
        files = [self.raw / f"{key}.npz" for key in self.keys]
        data = CacheDataset(files, mt.Compose([*chain, crop]), progress=False, num_workers=1)
        rng = np.random.default_rng(0)

        def draw() -> list[torch.Tensor]:
            return [list_data_collate([data[int(rng.integers(CASES))]])["label"][:, 0]]

        return draw


def load(path: Path) -> dict[str, torch.Tensor]:
    """Image and label (1, z, y, x) of a case, as MONAI's transforms pass them on."""
    with np.load(path) as file:
        return {"image": torch.from_numpy(file["image"]).float(), "label": torch.from_numpy(file["mask"])[None]}


def timed(draw: Draw, batches: int, times: int = 1) -> Contestant:
    """So many batches, over `times` the work."""

    def run() -> Turn:
        begun, worked = time.perf_counter(), time.process_time()
        for _ in range(batches * times):
            draw()
        return Turn((time.perf_counter() - begun) / times, (time.process_time() - worked) / times)

    return run


def shown(draw: Draw, batches: int) -> float:
    """Share of patches that show the organ."""
    masks = torch.cat([mask for _ in range(batches) for mask in draw()])
    return float((masks.flatten(1) > 1).any(1).float().mean())


@contextlib.contextmanager
def nnunet(stage: Stage, work: Work, peers: Path, threads: int) -> Iterator[Served]:
    """In its own environment."""
    numbers = {"batch": work.batch, "batches": work.batches, "looked": MANY, "threads": threads}
    options = [part for name, value in numbers.items() for part in (f"--{name}", value)]
    with Served(peers, PEER, stage.raw, "--patch", ",".join(map(str, work.patch)), *options) as served:
        yield served


def measured(stage: Stage, work: Work, peers: Path | None, threads: int, repeat: int) -> None:
    """One size of patch."""
    draws = {
        OURS: stage.ours(work),
        MONAI: stage.monai(work, indices=False),
        MONAI_CACHED: stage.monai(work, indices=True),
        BARE: stage.bare(work),
    }
    slow = (MONAI, MONAI_CACHED)
    calls = {n: work.patches // CROPS if n in slow else work.batches for n in draws}
    contestants = {n: timed(draw, calls[n], 1 if n in slow else LONGER) for n, draw in draws.items()}
    organs = {n: shown(draw, calls[n] if n in slow else MANY) for n, draw in draws.items()}
    with contextlib.ExitStack() as stack:
        if peers:
            served = stack.enter_context(nnunet(stage, work, peers, threads))
            contestants[NNUNET] = served
            organs[NNUNET] = float(str(served.about["shown"]))
        found = turns(contestants, repeat)
    remarks = {n: f"{work.patches / taken.middle():,.0f}; {organs[n]:.0%}" for n, taken in found.items()}
    print(f"### {work.name}\n\n{work.patches} patches a turn, from {CASES} cases of {' × '.join(map(str, SHAPE))}.\n")
    print(table(found, GOALS, unit="ms", scale=1000, remarks=remarks, remark="patches/s; with the organ"), end="\n\n")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", choices=["3", "2"], help="three dimensions, or two")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(Path(folder))
        for work in WORKS:
            if given.only in (None, "2" if work.patch[0] == 1 else "3"):
                measured(stage, work, given.peers, given.threads, given.repeat)


if __name__ == "__main__":
    main()
