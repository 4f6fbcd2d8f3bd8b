"""What a classifying package looked at in one case, and whether that tells anything about what it has learnt.

A map that says something must change when what was learnt is taken away (Adebayo et al. 2018): each is made again with
shuffled weights, and its rank correlation with those is told beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.geometry import Geometry
from tasks.imaging.ensemble import Part, Together
from tasks.imaging.predictor import Predictor
from tasks.imaging.prepare import prepare_image
from tasks.imaging.saliency import Float32, alike, answers, gradient_maps, has_places, occlusion, peaked, shuffled

Method = Literal["grad-cam", "guided-grad-cam", "occlusion"]

TOLD: Final[Mapping[Method, str]] = {
    "grad-cam": "Grad-CAM",
    "guided-grad-cam": "Guided Grad-CAM",
    "occlusion": "Occlusion",
}
WITHOUT_PLACE: Final[Mapping[str, str]] = {
    "cnn_lstm": "slices are summed up one by one and then read in order",
    "cnn_gru": "slices are summed up one by one and then read in order",
    "mil": "slices are summed up one by one and then weighed",
    "graph": "regions decide, which are no map",
    "patient_attention": "series are summed up one by one and then weighed",
    "patient_graph": "series are summed up one by one and then hear each other",
}
"""Networks of which Grad-CAM would say nothing, and why: occlusion is asked alone."""
MEMBERS = 3
"""Of an ensemble, the weightiest, whose maps are averaged."""
DRAWS = 2
"""Sets of shuffled weights."""
ALIKE = 0.5
"""The rank correlation from which on a map shows the image rather than what was learnt."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A case as a network sees it: `images` (c, z, y, x), or of a patient (n, c, z, y, x), on `geometry`.

    `clinical` (1, v) are the plan's numbers, None without variables.
    """

    images: Tensor
    geometry: Geometry
    clinical: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Explained:
    """By method, what spoke for a class: (z, y, x) float32 on the prepared grid, 1 where it spoke most, 0 throughout
    where nothing did. Of a patient, in `series` (from 0), without which the class loses most.

    `correlations` are with the maps of shuffled weights; a method is absent where there is nothing to compare. `fall`
    is how much of the class's probability is lost at most where one part is covered.
    """

    maps: Mapping[Method, Float32]
    correlations: Mapping[Method, float]
    fall: float
    series: int = 0


class Explainer:
    """Explains what a classifying package says.

    Of networks that see differently prepared images the weightiest are explained. `reason` says why there is no
    Grad-CAM; it is empty where there is one, and known for good once a case has been explained.
    """

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor
        self.part = max(predictor.parts, key=lambda part: part.share)
        self.plan = self.part.plan
        self.reason = WITHOUT_PLACE.get(self.plan.network.name, "")

    @property
    def methods(self) -> tuple[Method, ...]:
        """What it makes maps by."""
        return ("occlusion",) if self.reason else ("grad-cam", "guided-grad-cam", "occlusion")

    def prepared(self, images: Sequence[tuple[NDArray[Any], Geometry]], clinical: Sequence[str] = ()) -> Subject:
        """A case of one image ([c,] z, y, x), or of a patient's. Raises PixelError where one does not fit the plan."""
        made = [prepare_image(array, geometry, self.plan.prepare) for array, geometry in images]
        arrays = [torch.from_numpy(one.array).to(self.predictor.device) for one in made]
        together = torch.stack(arrays) if self.plan.of == "patient" else arrays[0]
        return Subject(together, made[0].geometry, self.predictor.numbers(self.plan, clinical))

    def explain(self, case: Subject, target: int, seed: int = 0) -> Explained:
        """What spoke for class `target`. Deterministic: weights are shuffled from `seed`."""
        flat = self.plan.network.dimensions == 2
        images = case.images[..., 0, :, :] if flat else case.images
        series = self._weightiest(images, case.clinical, target) if self.plan.of == "patient" else 0
        among = (images, series) if self.plan.of == "patient" else None
        image = (images[series] if among else images)[None]
        members = [(self._asked(network, case.clinical, among), share) for network, share in _members(self.part)]
        if not self.reason and not has_places(members[0][0], image):
            self.reason = "the last map of so small an image has a single voxel"
        maps = self._maps(members, image, target, self.methods)
        # Where there is Grad-CAM, occlusion would cost most of all and tell the least: it asks the model itself.
        checked = [m for m in self.methods if (m != "occlusion" or self.reason) and np.ptp(maps[m]) > 0]
        others = (
            self._maps([(shuffled(network, seed + draw), share) for network, share in members], image, target, checked)
            for draw in range(DRAWS if checked else 0)
        )
        likeness = [{m: alike(maps[m], other[m]) for m in checked} for other in others]
        return Explained(
            {m: peaked(values)[None] if flat else peaked(values) for m, values in maps.items()},
            {m: float(np.mean([found[m] for found in likeness])) for m in checked},
            float(maps["occlusion"].max()),
            series,
        )

    def _asked(self, network: nn.Module, clinical: Tensor | None, among: tuple[Tensor, int] | None) -> _Asked:
        return _Asked(network, clinical, among, centred=self.plan.activation == "softmax")

    def _weightiest(self, images: Tensor, clinical: Tensor | None, target: int) -> int:
        """Of a patient's series, that without which the class's probability falls most."""
        if len(images) < 2:
            return 0
        network = self._asked(_members(self.part)[0][0], clinical, None)
        without = [images.clone() for _ in images]
        for index, some in enumerate(without):
            some[index] = torch.nan
        with torch.no_grad():
            left = [float(answers(network, some[None], self.plan.activation)[0, target]) for some in without]
        return int(np.argmin(left))

    def _maps(
        self, members: Sequence[tuple[nn.Module, float]], image: Tensor, target: int, methods: Sequence[Method]
    ) -> dict[Method, Float32]:
        """The members' mean of each: of those by gradients, whose scale means nothing, from 0 to 1 each."""
        found: dict[Method, Float32] = {}
        for network, share in members:
            made: dict[Method, Float32] = {}
            if "grad-cam" in methods:
                made["grad-cam"], made["guided-grad-cam"] = map(peaked, gradient_maps(network, image, target))
            if "occlusion" in methods:
                made["occlusion"] = occlusion(network, image, target, self.plan.activation)
            for method, values in made.items():
                found[method] = found.get(method, np.float32(0)) + np.float32(share) * values
        return found


class _Asked(nn.Module):
    """A network of one image (b, c, …) alone: what else it takes is given. Its logits are centred where they compete,
    so that a class's score is what speaks for it rather than for the others.
    """

    def __init__(
        self, network: nn.Module, clinical: Tensor | None, among: tuple[Tensor, int] | None, *, centred: bool
    ) -> None:
        super().__init__()
        self.network, self.clinical, self.among, self.centred = network, clinical, among, centred

    def forward(self, images: Tensor) -> Tensor:
        """(b, c, …) → logits (b, classes)."""
        if self.among is not None:
            series, index = self.among
            every = [images if i == index else one.expand_as(images) for i, one in enumerate(series)]
            images = torch.stack(every, dim=1)
        beside = () if self.clinical is None else (self.clinical.expand(len(images), -1),)
        logits: Tensor = self.network(images, *beside).float()
        return logits - logits.mean(dim=1, keepdim=True) if self.centred else logits


def _members(part: Part) -> list[tuple[nn.Module, float]]:
    """Each network with its share, the weightiest first."""
    network = part.network
    if not isinstance(network, Together):
        return [(network, 1.0)]
    several = sorted(zip(network.networks, network.shares, strict=True), key=lambda pair: -pair[1])[:MEMBERS]
    whole = sum(share for _, share in several)
    return [(member, share / whole) for member, share in several]
