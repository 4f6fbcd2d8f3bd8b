"""Dice, HD95 and surface Dice of 100 cases of 160³ voxels, as evaluation computes them, beside what a user would pick.

    python benchmarks/metrics.py [--cases N] [--side N] [--threads N]

Every turn is a case of its own, from label maps to figures: ours (which gives IoU, ASSD, volumes and accuracy too),
MONAI's functions, and plain scipy (surfaces by erosion, distances by one transform of the whole grid per mask). The
masks are an organ, a smaller one and a lesion with ragged predictions and a false finding here and there. All figures
of all cases are compared.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from _turns import Goal, arguments, table, turns
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray
from scipy import ndimage
from threadpoolctl import threadpool_limits
from torch.nn.functional import interpolate

from models.geometry import Geometry
from tasks.evaluate.segmentation import SegmentationSample, score_sample

Labels = NDArray[np.uint8]
Figures = NDArray[np.float64]
"""(class, figure): Dice, HD95 and surface Dice."""
Judgement = Callable[[Labels, Labels], Figures]

NAMES = ("organ", "small organ", "lesion")
SPACING, TOLERANCE, PERCENTILE = (2.0, 0.9, 0.9), 2.0, 95.0
FIGURES = ("Dice", "HD95, mm", "surface Dice")
SHAPES = (  # centre and radii in halves of the side
    ((0.0, -0.2, -0.25), (0.6, 0.5, 0.45)),
    ((0.1, 0.3, 0.5), (0.3, 0.2, 0.2)),
    ((-0.1, -0.1, -0.3), (0.14, 0.12, 0.12)),
)


def case(side: int, seed: int) -> tuple[Labels, Labels]:
    """A truth, and a prediction whose border wanders about a voxel or two off, in (z, y, x)."""
    rng = np.random.default_rng(seed)
    axis = np.linspace(-1, 1, side, dtype=np.float32)
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij", sparse=True)
    form, wrong, ragged = (noise(rng, side, cells) for cells in (6, 10, 36))
    truth, prediction = np.zeros((2, side, side, side), np.uint8)
    for number, (middle, radii) in enumerate(SHAPES, start=1):
        c, r = np.array(middle) + rng.normal(0, 0.04, 3), np.array(radii) * rng.uniform(0.8, 1.2, 3)
        depth = 1 - np.sqrt(((z - c[0]) / r[0]) ** 2 + ((y - c[1]) / r[1]) ** 2 + ((x - c[2]) / r[2]) ** 2)
        depth = depth + 0.12 * form
        truth[depth > 0] = number
        prediction[depth + 0.06 * wrong + 0.03 * ragged > 0] = number
    if seed % 3 == 0:  # a false finding
        low = rng.integers(0, side * 3 // 4, 3)
        prediction[tuple(slice(n, n + side // 20) for n in low)] = 1 + seed % len(SHAPES)
    return truth, prediction


def noise(rng: np.random.Generator, side: int, cells: int) -> NDArray[np.float32]:
    """Smooth, of deviation near 1."""
    coarse = torch.from_numpy(rng.normal(size=(1, 1, cells, cells, cells)).astype(np.float32))
    return interpolate(coarse, (side, side, side), mode="trilinear")[0, 0].numpy()


# -- the contestants --------------------------------------------------------------------------------------------


def ours(truth: Labels, prediction: Labels) -> Figures:
    sample = SegmentationSample("P", "case", None, truth, prediction, Geometry.from_spacing(truth.shape, SPACING))
    scores = score_sample(sample, NAMES, TOLERANCE).scores
    return np.array([(s.dice, s.hd95_mm, s.surface_dice) for s in scores])


def monai(truth: Labels, prediction: Labels) -> Figures:
    real, guessed = one_hot(truth), one_hot(prediction)
    found = [function(guessed, real) for function in MONAI.values()]
    return np.stack([values[0].numpy() for values in found], axis=1).astype(np.float64)


def monai_alone(function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> Judgement:
    return lambda truth, prediction: function(one_hot(prediction), one_hot(truth)).numpy()


MONAI = {  # its defaults but for the percentile; the spacing is given
    "Dice": partial(compute_dice, include_background=False),
    "HD95": partial(compute_hausdorff_distance, percentile=PERCENTILE, spacing=SPACING),
    "surface Dice": partial(compute_surface_dice, class_thresholds=[TOLERANCE] * len(NAMES), spacing=SPACING),
}


def one_hot(labels: Labels) -> torch.Tensor:
    return torch.from_numpy(np.stack([labels == number for number in range(len(NAMES) + 1)])[None])


def scipy(truth: Labels, prediction: Labels) -> Figures:
    """As in many a paper's code: no crop, one transform of the whole grid for each mask."""
    return np.array([by_transform(truth == number, prediction == number) for number in range(1, len(NAMES) + 1)])


def by_transform(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> tuple[float, float, float]:
    edge_a, edge_b = (mask ^ ndimage.binary_erosion(mask) for mask in (a, b))
    to_a, to_b = (ndimage.distance_transform_edt(~edge, sampling=SPACING) for edge in (edge_a, edge_b))
    there, back = to_b[edge_a], to_a[edge_b]
    dice = 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))
    near = np.count_nonzero(there <= TOLERANCE) + np.count_nonzero(back <= TOLERANCE)
    hd95 = max(np.percentile(there, PERCENTILE), np.percentile(back, PERCENTILE))
    return dice, hd95, near / (len(there) + len(back))


@dataclass
class Judge:
    """Each call judges the next case (the first one twice: `turns` warms up with it) and keeps the figures."""

    judge: Judgement
    cases: list[tuple[Labels, Labels]]
    found: list[Figures] = field(default_factory=list)

    def __call__(self) -> None:
        self.found.append(self.judge(*self.cases[max(0, len(self.found) - 1)]))

    @property
    def figures(self) -> Figures:
        """(case, class, figure)."""
        return np.stack(self.found[1:])


def agreement(one: Judge, other: Judge) -> str:
    """The largest difference in each figure."""
    assert np.isfinite(one.figures).all()
    apart = np.abs(one.figures - other.figures).max(axis=(0, 1))
    return ", ".join(f"{name} {value:.1e}" for name, value in zip(FIGURES, apart, strict=True))


def spread(figures: Figures) -> Iterator[str]:
    for number, name in enumerate(FIGURES):
        low, middle, high = np.percentile(figures[..., number], (0, 50, 100))
        yield f"{name} {low:.3g} to {high:.3g} (median {middle:.3g})"


def main() -> None:
    """Two tables: all cases against MONAI, twenty against scipy, which takes a minute for them."""
    parser = arguments(__doc__)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--side", type=int, default=160)
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")  # MONAI's, of its own arguments
    cases = [case(given.side, seed) for seed in range(given.cases)]
    some = cases[:: max(1, len(cases) // 20)]
    with threadpool_limits(given.threads):
        contestants = {"Nocturne": Judge(ours, cases), "MONAI": Judge(monai, cases)}
        found = turns(contestants, len(cases))
        fewer = {"Nocturne, all of them": Judge(ours, some), "scipy, all of them": Judge(scipy, some)}
        alone = {f"MONAI, {name} alone": Judge(monai_alone(function), some) for name, function in MONAI.items()}
        plain = turns({**fewer, **alone}, len(some))
    print(
        f"{len(cases)} cases of {given.side}³ voxels of {SPACING} mm, {len(NAMES)} classes, {given.threads} thread(s):"
        f" {'; '.join(spread(contestants['Nocturne'].figures))}\n"
    )
    print(table(found, [Goal("MONAI", 3)], unit="ms a case", scale=1000))
    floats = "(it computes in float32, the percentile too)"
    print(f"\nLargest difference from MONAI: {agreement(*contestants.values())} {floats}.\n")
    print(f"Of {len(some)} of them:\n\n" + table(plain, [Goal("scipy, all of them", 3)], unit="ms a case", scale=1000))
    print(f"\nLargest difference from scipy: {agreement(*fewer.values())}.")


if __name__ == "__main__":
    main()
