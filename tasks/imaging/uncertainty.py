"""How unsure a model is: of a case in one number, which costs nothing; and voxel by voxel, which costs more passes.

Entropy is divided by the greatest there can be: 0 is sure, 1 says that all answers are as likely. With several voices
(an ensemble's members, or one network on mirrored copies) the entropy of their mean has two parts: what each voice is
unsure of itself, and what they disagree on, which is the mutual information (Gal and Ghahramani 2016; Lakshminarayanan
et al. 2017; Wang et al. 2019 for mirrored copies).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from models.geometry import Geometry
from models.plan import Activation, Plan
from tasks.imaging.calibration import tempered
from tasks.imaging.device import memory_told
from tasks.imaging.ensemble import Part, Together, nowhere
from tasks.imaging.predictor import Predictor
from tasks.imaging.restore import restored, slab_ranges
from tasks.imaging.sliding import mirrored

Float32 = NDArray[np.float32]

VOICES = 8
"""Passes over an image for its map, at most."""
UNKNOWN = 0.5
"""Of a case in which nothing was found, where nothing else is known."""


def case_uncertainty(plan: Plan, said: Sequence[float] | NDArray[Any], *, nearest: float | None = None) -> float:
    """How unsure a model is of one case, from 0 (sure) to 1, from what it has already said; nothing is computed anew.

    `said` is, by the plan's kind: of a segmentation `Segmentation.confidence`; of a classification the calibrated
    probabilities; of a detection the confidence of each lesion that is reported, however few.

    - segmentation: how far the mean confidence lies below 1, over the structures that were found, each counted alike;
      where none was, how near a voxel came to being one (`Segmentation.nearest`; without it, 0.5).
    - classification: the entropy of the probabilities, as a share of the greatest.
    - detection: that of the most doubtful lesion; 0 without one.
    """
    told = np.asarray(said, np.float64)
    if plan.kind == "classification":
        return float(entropy(told, plan.activation))
    if plan.kind == "detection":
        return float(entropy(told[None], "sigmoid").max(initial=0.0)) if told.size else 0.0
    # The least that the likeliest of n answers can have is 1/n: that is where nothing is known.
    span = 1 - 1 / (2 if plan.activation == "sigmoid" else plan.network.out_channels)
    found = told[told > 0]
    if found.size:
        return float(np.clip(np.mean((1 - found) / span), 0, 1))
    return UNKNOWN if nearest is None else float(np.clip(nearest / span, 0, 1))


def entropy(probabilities: ArrayLike, activation: Activation = "softmax", *, axis: int = 0) -> NDArray[np.float64]:
    """Shannon's, as a share of the greatest, over the classes along `axis`; of independent ones the mean."""
    values = np.clip(np.asarray(probabilities, np.float64), 0, 1)
    if activation == "sigmoid":
        return np.asarray((_surprise(values) + _surprise(1 - values)).mean(axis=axis) / np.log(2))
    total = np.maximum(values.sum(axis=axis, keepdims=True), 1e-12)
    return np.asarray(_surprise(values / total).sum(axis=axis) / np.log(max(2, values.shape[axis])))


def disagreement(voices: ArrayLike, activation: Activation = "softmax") -> NDArray[np.float64]:
    """Mutual information of `voices` (voice, class, …), as a share of the greatest entropy: 0 where all agree."""
    told = np.asarray(voices, np.float64)
    alone = np.mean([entropy(voice, activation) for voice in told], axis=0)
    return np.asarray(np.maximum(0, entropy(told.mean(axis=0), activation) - alone))


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Of each voxel (z, y, x) float32 in [0, 1] on the image's own grid: the entropy of what the `voices` say together,
    and how much of it is that they disagree (None with a single voice).
    """

    entropy: Float32
    disagreement: Float32 | None
    voices: int


def uncertainty_map(predictor: Predictor, array: NDArray[Any], geometry: Geometry) -> Uncertainty:
    """Where a segmenting package is unsure of an image ([c,] z, y, x): one pass of the window for each voice.

    Its members are the voices; a package of one network is asked again with each axis mirrored that it was trained to
    be mirrored along. At most VOICES. Raises PixelError where the image does not fit the plan. Memory as `segment`,
    and the maps.
    """
    plan, heard = predictor.package.plan, voices(predictor)
    ranges = slab_ranges(geometry.shape, plan.network.out_channels * len(heard))
    total, apart = np.zeros(geometry.shape, np.float32), np.zeros(geometry.shape, np.float32)
    with memory_told(predictor.package.key):
        streams = [_on_own_grid(predictor, voice, array, geometry, ranges) for voice in heard]
        for (low, high), told in zip(ranges, zip(*streams, strict=True), strict=True):
            mean = sum(voice.share * said for voice, said in zip(heard, told, strict=True))
            total[low:high] = entropy(mean, plan.activation)
            alone = sum(voice.share * entropy(said, plan.activation) for voice, said in zip(heard, told, strict=True))
            apart[low:high] = np.maximum(0, total[low:high] - alone)
    return Uncertainty(total, apart if len(heard) > 1 else None, len(heard))


def voices(predictor: Predictor) -> list[Part]:
    """Who is asked: each member alone, or the one network on mirrored copies; their shares add up to 1."""
    found = [member for part in predictor.parts for member in _members(part)]
    if len(found) == 1:
        found = _copies(found[0])
    found = sorted(found, key=lambda part: -part.share)[:VOICES]
    whole = sum(part.share for part in found)
    return [replace(part, plan=_unmirrored(part.plan), share=part.share / whole) for part in found]


class Mirrored(nn.Module):
    """A network on the mirrored image; what it says is mirrored back."""

    def __init__(self, network: nn.Module, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.axes = network, axes

    def forward(self, images: Tensor) -> Tensor:
        """(b, c, …) → logits (b, k, …)."""
        logits: Tensor = self.network(images.flip(self.axes)).flip(self.axes)
        return logits


def _members(part: Part) -> list[Part]:
    network = part.network
    if not isinstance(network, Together):
        return [part]
    told = zip(network.networks, network.shares, network.temperatures, strict=True)
    return [
        replace(part, network=Together([member], [1.0], [temperature], network.activation), share=part.share * share)
        for member, share, temperature in told
    ]


def _copies(part: Part) -> list[Part]:
    """As it is, and mirrored along one axis each."""
    plan = part.plan
    axes = plan.infer.mirror_axes or plan.train.flip_axes
    flips = [flip for flip in mirrored(axes, flat=plan.infer.tile[0] == 1) if len(flip) < 2]
    return [replace(part, network=Mirrored(part.network, flip) if flip else part.network, share=1.0) for flip in flips]


def _unmirrored(plan: Plan) -> Plan:
    return plan.model_copy(update={"infer": plan.infer.model_copy(update={"mirror_axes": ()})})


def _on_own_grid(
    predictor: Predictor, voice: Part, array: NDArray[Any], geometry: Geometry, ranges: Sequence[tuple[int, int]]
) -> Iterator[Float32]:
    """Calibrated probabilities (k, n, y, x) of each of `ranges`."""
    package = predictor.package
    bands, layout = predictor.bands(voice, array, geometry)
    independent = package.plan.activation == "sigmoid"
    for part in restored(bands, layout.target, layout.crop, geometry, ranges, nowhere(voice.plan)):
        yield tempered(np.maximum(part, 0), package.temperature, independent=independent)


def _surprise(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(-values * np.log(np.maximum(values, 1e-300)))
