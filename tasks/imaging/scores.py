"""How good one segmentation is, class by class: what evaluation and corrections both judge by.

Definitions follow Metrics Reloaded (Maier-Hein et al., Nature Methods 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.evaluation import ClassScores, Outcome
from models.geometry import Triple
from models.volume import inside
from tasks.imaging import masks
from tasks.imaging.surfaces import Flat, surface_distances

Labels = NDArray[np.uint8]


def score_case(
    truth: Labels,
    prediction: Labels,
    spacing: Triple,
    class_names: Sequence[str],
    tolerance_mm: float = 2.0,
    *,
    voxel_mm3: float | None = None,
    regions: bool = False,
) -> tuple[tuple[ClassScores, ...], float]:
    """Scores of each class in one case, and the share of voxels with the right label (of regions: with all right).

    With TP, FP, FN, TN counted over all voxels: Dice = 2TP/(2TP+FP+FN), IoU = TP/(TP+FP+FN), pixel accuracy =
    (TP+TN)/all. HD95, ASSD (mm) and surface Dice as in `surfaces`; volumes in mL, error = prediction − truth, the
    relative error as a share of the truth.

    | truth | prediction | outcome  | Dice, IoU, surface Dice | HD95, ASSD          | relative volume error |
    | yes   | yes        | found    | as defined              | as defined          | as defined            |
    | yes   | empty      | missed   | 0                       | diagonal of the grid| −1                    |
    | empty | yes        | invented | 0                       | diagonal of the grid| NaN                   |
    | empty | empty      | absent   | 1                       | 0                   | NaN                   |

    So a miss costs the worst value instead of dropping out of the mean, and a class rightly left out counts as right.
    By their formulas the figures of an empty mask are undefined; Metrics Reloaded asks for a stated way to aggregate
    them that does not hide failures, and this is ours.
    """
    grid = _Grid.of(truth.shape, spacing, tolerance_mm, voxel_mm3)
    count = len(class_names)
    boxes = map(_union, *(masks.boxes(labels, count, regions=regions) for labels in (truth, prediction)))
    scores = []
    for index, (name, box) in enumerate(zip(class_names, boxes, strict=True)):
        if box is None:
            scores.append(_scores(name, "absent", (0, 0, 0), (1.0, 0.0, 0.0), grid))
        else:
            real, guessed = (inside(labels[box], index, regions=regions) for labels in (truth, prediction))
            scores.append(_score_class(name, real, guessed, grid))
    return tuple(scores), float(np.count_nonzero(truth == prediction) / truth.size)


@dataclass(frozen=True, slots=True)
class _Grid:
    spacing: Triple
    tolerance: float
    voxels: int
    voxel_ml: float
    diagonal: float
    flat: Flat

    @classmethod
    def of(cls, shape: tuple[int, ...], spacing: Triple, tolerance: float, voxel_mm3: float | None) -> _Grid:
        z, y, x = shape
        volume = float(np.prod(spacing)) if voxel_mm3 is None else voxel_mm3
        span = [n * s for n, s in zip(shape, spacing, strict=True) if n > 1]
        diagonal, flat = float(np.linalg.norm(span)), (z == 1, y == 1, x == 1)
        return cls(spacing, tolerance, z * y * x, volume / 1000, diagonal, flat)


def _score_class(name: str, real: NDArray[np.bool_], guessed: NDArray[np.bool_], grid: _Grid) -> ClassScores:
    """Of a class that is in truth, prediction or both; where it is, in its box."""
    both = int(np.count_nonzero(real & guessed))
    counts = both, int(np.count_nonzero(guessed)) - both, int(np.count_nonzero(real)) - both
    outcome: Outcome = "missed" if not guessed.any() else "invented" if not real.any() else "found"
    if outcome != "found":
        return _scores(name, outcome, counts, (0.0, grid.diagonal, grid.diagonal), grid)
    distances = surface_distances(real, guessed, grid.spacing, grid.flat)
    surface = distances.dice(grid.tolerance), distances.hausdorff(95.0), distances.average()
    return _scores(name, outcome, counts, surface, grid)


def _scores(
    name: str, outcome: Outcome, counts: tuple[int, int, int], surface: tuple[float, float, float], grid: _Grid
) -> ClassScores:
    """`counts`: true positives, false positives, false negatives; `surface`: surface Dice, HD95 and ASSD."""
    tp, fp, fn = counts
    real, guessed = (tp + fn) * grid.voxel_ml, (tp + fp) * grid.voxel_ml
    empty = outcome == "absent"
    return ClassScores(
        class_name=name,
        outcome=outcome,
        dice=1.0 if empty else 2 * tp / (2 * tp + fp + fn),
        iou=1.0 if empty else tp / (tp + fp + fn),
        pixel_accuracy=1 - (fp + fn) / grid.voxels,
        surface_dice=surface[0],
        hd95_mm=surface[1],
        assd_mm=surface[2],
        volume_truth_ml=real,
        volume_prediction_ml=guessed,
        volume_error_ml=guessed - real,
        volume_absolute_error_ml=abs(guessed - real),
        volume_error_relative=(guessed - real) / real if real else float("nan"),
    )


def _union(a: tuple[slice, ...] | None, b: tuple[slice, ...] | None) -> tuple[slice, ...] | None:
    """The joint box, None where a class is in neither."""
    if a is None or b is None:
        return a or b
    return tuple(slice(min(p.start, q.start), max(p.stop, q.stop)) for p, q in zip(a, b, strict=True))
