"""Pictures of what a model saw: where it is unsure of its most uncertain case, what it looked at in a few others.

They cost passes over the image again, so only a few cases have them: `evaluate.explained` of the recipe.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.errors import MemoryExhaustedError
from models.evaluation import Picture
from models.geometry import Geometry
from models.plan import Plan
from models.volume import Volume
from tasks.evaluate import pictures
from tasks.imaging.device import memory_told
from tasks.imaging.explainer import ALIKE, TOLD, Explained, Explainer, Method
from tasks.imaging.predictor import Predictor
from tasks.imaging.uncertainty import case_uncertainty, uncertainty_map

Rank = Literal["wrong", "unsure", "right"]
Images = Sequence[tuple[NDArray[Any], Geometry]]

RANKS: Final[tuple[Rank, ...]] = ("wrong", "unsure", "right")
"""In the order in which cases are taken, one of each in turn."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A segmented case and how unsure of it the model is, from 0 to 1; labels (z, y, x)."""

    patient: str
    volume: Volume
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    uncertainty: float


def uncertainty_picture(predictor: Predictor, case: Doubtful, class_names: Sequence[str]) -> tuple[Picture, ...]:
    """The case's map, where memory suffices."""
    volume = case.volume
    try:
        found = uncertainty_map(predictor, volume.array, volume.geometry)
    except MemoryExhaustedError as error:
        _log.warning("there is no uncertainty map: %s", error)
        return ()
    image = volume.array if volume.channels > 1 else volume.array[np.newaxis]
    crop = pictures.crop_of(
        image.astype(np.float32),
        case.truth,
        case.prediction,
        volume.geometry.spacing,
        regions=predictor.package.plan.regions,
        maps=[found.entropy] if found.disagreement is None else [found.entropy, found.disagreement],
    )
    return (pictures.uncertainty(crop, case.patient, class_names, case.uncertainty, found.voices),)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A case to explain: its place in the table, `rank` and `number` among those of the rank, from 1.

    `target` is the class that is explained: that which was called, or else the likeliest.
    """

    place: int
    rank: Rank
    number: int
    target: int
    called: str
    truth: str
    patient: str
    probability: float


def chosen(frame: pd.DataFrame, plan: Plan, class_names: Sequence[str], most: int) -> list[Chosen]:
    """Up to `most` cases of a classification's per-case table: the surest that are wrong, the least sure, and the
    surest that are right, one of each in turn.
    """
    size = len(class_names)
    chances, truth, called = (
        frame[column].to_numpy().reshape(-1, size) for column in ("probability", "truth", "predicted")
    )
    patients, cases = (frame[column].to_numpy().reshape(-1, size)[:, 0] for column in ("patient", "case"))
    doubts = np.array([case_uncertainty(plan, row) for row in chances])
    right = (truth == called).all(axis=1)
    surest = sorted(range(len(cases)), key=lambda i: (doubts[i], cases[i]))
    waiting: dict[Rank, list[int]] = {
        "wrong": [i for i in surest if not right[i]],
        "unsure": surest[::-1],
        "right": [i for i in surest if right[i]],
    }
    picked = _in_turn(waiting, min(most, len(cases)))

    def names(which: NDArray[np.bool_]) -> str:
        return ", ".join(name for name, there in zip(class_names, which, strict=True) if there) or "none"

    made = []
    for rank in RANKS:
        for number, place in enumerate(picked[rank], 1):
            row = chances[place]
            target = int(np.argmax(np.where(called[place], row, -1) if called[place].any() else row))
            told = names(called[place]), names(truth[place])
            made.append(Chosen(place, rank, number, target, *told, str(patients[place]), float(row[target])))
    return made


def saliency_pictures(
    predictor: Predictor,
    cases: Sequence[Chosen],
    images: Callable[[int], tuple[Images, Sequence[str]]],
    *,
    seed: int = 0,
) -> list[Picture]:
    """What spoke for the class that was called, in each of `cases`; `images` gives those of the case at a place, and
    its clinical values. Where memory does not suffice, there are none.
    """
    explainer = Explainer(predictor)
    told: list[tuple[Chosen, Explained, pictures.Crop]] = []
    try:
        with memory_told(predictor.package.key):
            told.extend((case, *_explained(explainer, case, *images(case.place), seed)) for case in cases)
    except MemoryExhaustedError as error:
        _log.warning("maps of what the model looked at are lacking: %s", error)
    note = _trust(explainer, [found for _, found, _ in told])
    return [
        pictures.saliency(
            pictures.Explanation(
                rank=case.rank,
                number=case.number,
                patient=case.patient,
                truth=case.truth,
                called=case.called,
                probability=case.probability,
                crop=crop,
                methods=tuple(TOLD[method] for method in found.maps),
                note=f"{_told(found)} {note}".strip(),
            )
        )
        for case, found, crop in told
    ]


def _in_turn(waiting: Mapping[Rank, list[int]], most: int) -> dict[Rank, list[int]]:
    """One of each rank after the other, none twice."""
    picked: dict[Rank, list[int]] = {rank: [] for rank in RANKS}
    taken: set[int] = set()
    while len(taken) < most:
        for rank in RANKS:
            place = next((i for i in waiting[rank] if i not in taken), None)
            if place is not None and len(taken) < most:
                taken.add(place)
                picked[rank].append(place)
    return picked


def _explained(
    explainer: Explainer, case: Chosen, images: Images, clinical: Sequence[str], seed: int
) -> tuple[Explained, pictures.Crop]:
    subject = explainer.prepared(images, clinical)
    found = explainer.explain(subject, case.target, seed)
    shown = subject.images[found.series] if explainer.plan.of == "patient" else subject.images
    return found, pictures.flat_crop(shown.cpu().numpy(), subject.geometry.spacing, list(found.maps.values()))


def _trust(explainer: Explainer, told: Sequence[Explained]) -> str:
    """Whether the maps hang on what was learnt, over all cases: their mean rank correlation with shuffled weights."""
    values: dict[Method, list[float]] = {}
    for found in told:
        for method, value in found.correlations.items():
            values.setdefault(method, []).append(value)
    means = {TOLD[method]: float(np.mean(several)) for method, several in values.items()}
    good = [f"{name} {mean:.2f}" for name, mean in means.items() if mean < ALIKE]
    bad = [f"{name} {mean:.2f}" for name, mean in means.items() if mean >= ALIKE]
    said = [f"There is no Grad-CAM: of this network, {explainer.reason}."] if explainer.reason else []
    if good:
        said.append(f"With shuffled weights the map changes (rank correlation {', '.join(good)}), as it should.")
    if bad:
        said.append(
            f"Do not trust it: with shuffled weights the map stays much the same (rank correlation {', '.join(bad)}), "
            "so it shows the image rather than what was learnt."
        )
    return " ".join(said)


def _told(found: Explained) -> str:
    """What the maps' scale does not say."""
    empty = [TOLD[method] for method, values in found.maps.items() if not values.any()]
    said = [f"Nothing speaks for the class by {' and '.join(empty)}."] if empty else []
    if "Occlusion" not in empty:
        said.append(f"Where one part is covered, at most {found.fall:.0%} of probability is lost.")
    return " ".join(said)
