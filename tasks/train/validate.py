"""Judging on the validation split while training, and what is chosen there once it is over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from models.plan import Plan
from models.volume import inside
from tasks.imaging.device import Precision
from tasks.imaging.restore import EachAlone
from tasks.imaging.sliding import class_probabilities, sliding_window
from tasks.train.patches import Cases, Targets, stacked

Cancelled = Callable[[], bool]
_BATCH = 64
_BATCH_VOXELS = 2**20


LEAST_TO_CHOOSE = 10
"""Validation cases below which the last weights are taken, as nnU-Net does: measured on PET with one such case, the
best moment was step 38 of 1,151 and useless."""


class OverCases:
    """What judgements over cases have in common."""

    cases: Cases

    @property
    def decisive(self) -> bool:
        """Whether there are enough cases to choose weights by."""
        return len(self.cases) >= LEAST_TO_CHOOSE


@dataclass(frozen=True)
class MaskValidation(OverCases):
    """Whole prepared cases by sliding window; the metric is the mean Dice over the classes."""

    cases: Cases
    plan: Plan
    device: torch.device
    name: str = "dice"

    def __call__(self, network: nn.Module, precision: Precision, cancelled: Cancelled) -> float:
        """Mean over classes of the mean Dice over cases. Raises InterruptedError once `cancelled`."""
        classes, regions = len(self.plan.classes), self.plan.regions
        scores = [
            dice(labels, mask, classes, regions=regions)
            for labels, mask in self.labelled(network, precision, cancelled)
        ]
        return mean_of(class_means(scores))

    def labelled(
        self, network: nn.Module, precision: Precision, cancelled: Cancelled
    ) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
        """(predicted labels, true mask) of each case, (z, y, x)."""
        for probabilities, mask in self.predicted(network, precision, cancelled, mirrored=False):
            yield labels_of(probabilities, regions=self.plan.regions), mask

    def predicted(
        self, network: nn.Module, precision: Precision, cancelled: Cancelled, *, mirrored: bool = True
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.uint8]]]:
        """(predicted probabilities (k, z, y, x), true mask (z, y, x)) of each case.

        With `mirrored` as the model will be applied: over mirrored copies too, where the plan says so.
        """
        for index in range(len(self.cases)):
            case = self.cases[index]
            if case.mask is None:
                raise ValueError("a case without a mask cannot validate a segmentation")
            probabilities = sliding_window(
                network,
                torch.from_numpy(np.asarray(case.image, dtype=np.float32)),
                self.plan.infer.tile,
                self.plan.infer.overlap,
                mirror_axes=self.plan.infer.mirror_axes if mirrored else (),
                activation=self.plan.activation,
                precision=precision,
                device=self.device,
                cancelled=cancelled,
            )
            yield probabilities.numpy(), np.asarray(case.mask)


@dataclass(frozen=True)
class ImageValidation(OverCases):
    """Whole images; the metric is the area under the ROC curve, over classes one against the rest.

    `targets` as the sampler's.
    """

    cases: Cases
    targets: Targets
    plan: Plan
    device: torch.device
    name: str = "auc"
    clinical: NDArray[np.float32] | None = None

    def __call__(self, network: nn.Module, precision: Precision, cancelled: Cancelled) -> float:
        """Mean AUC. Raises InterruptedError once `cancelled`."""
        said = self.probabilities(network, precision, cancelled, mirrored=False)
        return mean_auc(said, np.asarray(self.targets))

    def probabilities(
        self, network: nn.Module, precision: Precision, cancelled: Cancelled, *, mirrored: bool = True
    ) -> NDArray[np.float32]:
        """(cases, classes). With `mirrored` as the model will be applied: over mirrored copies too, where the plan
        says so.
        """
        axes = self.plan.infer.mirror_axes if mirrored else ()
        rows: list[NDArray[np.float32]] = []
        voxels = int(np.prod(self.plan.train.patch_size))
        # A patient has many images already.
        size = 1 if self.plan.of == "patient" else max(1, min(_BATCH, _BATCH_VOXELS // voxels))
        for first in range(0, len(self.cases), size):
            if cancelled():
                raise InterruptedError
            several = range(first, min(first + size, len(self.cases)))
            images = torch.from_numpy(stacked([np.asarray(self.cases[i].image) for i in several]))
            images = images.to(self.device).float()
            if self.plan.network.dimensions == 2:
                images = images[..., 0, :, :]
            beside = None if self.clinical is None else torch.from_numpy(self.clinical[list(several)]).to(self.device)
            found = class_probabilities(
                network, images, axes, precision, activation=self.plan.activation, clinical=beside
            )
            rows.append(found.cpu().numpy())
        return np.concatenate(rows)


def labels_of(probabilities: NDArray[np.float32], *, regions: bool) -> NDArray[np.uint8]:
    """A label map of the likeliest classes, or a region map of what is at least as likely as not."""
    return EachAlone().take(iter(probabilities)) if regions else probabilities.argmax(0).astype(np.uint8)


def dice(
    labels: NDArray[np.uint8], mask: NDArray[np.uint8], classes: int, *, regions: bool = False
) -> NDArray[np.float64]:
    """Per class; NaN where a class is in neither."""
    scores = np.full(classes, np.nan)
    for index in range(classes):
        found, truth = (inside(part, index, regions=regions) for part in (labels, mask))
        size = int(found.sum()) + int(truth.sum())
        if size:
            scores[index] = 2 * int((found & truth).sum()) / size
    return scores


def class_means(scores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Per class over the cases that have it; NaN for a class that none has."""
    table = np.asarray(scores)
    present = ~np.isnan(table)
    counts = present.sum(0)
    sums = np.where(present, table, 0.0).sum(0)
    return np.divide(sums, counts, out=np.full(table.shape[1], np.nan), where=counts > 0)


def mean_of(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0


def auc(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """Mann and Whitney's: the share of pairs in the right order, ties half. NaN without both kinds."""
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((ranks[place][positive].sum() - n * (n + 1) / 2) / (n * m))


def mean_auc(probabilities: NDArray[Any], targets: NDArray[np.intp]) -> float:
    """Over the classes that occur, one against the rest; the share of images called rightly where none can be told.

    `targets` are (n,) classes, or (n, k) of 0 and 1.
    """
    classes, several = np.arange(probabilities.shape[1]), targets.ndim == 2
    shown = targets > 0 if several else targets[:, None] == classes
    areas = np.array([auc(probabilities[:, c], shown[:, c]) for c in classes])
    if np.isnan(areas).all():
        called = probabilities >= 0.5 if several else probabilities.argmax(1)[:, None] == classes
        return float((called == shown).all(1).mean())
    return mean_of(areas)


def choose_threshold(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float:
    """The probability from which a case is called positive: greatest sensitivity + specificity (Youden 1950).

    Half-way to the next lower score; 0.5 where validation holds one kind only.
    """
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return 0.5
    values = np.unique(scores)
    gains = [(scores[positive] >= v).sum() / n - (scores[~positive] >= v).sum() / m for v in values]
    best = int(np.argmax(gains))
    return float((values[best] + values[best - 1]) / 2) if best else float(values[0])
