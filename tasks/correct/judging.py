"""How far a prediction was from a label, by its model's kind. A kind is added by one function and one entry."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from models.package import ModelPackage
from models.recipe import Kind, LabelClass
from models.volume import Segment
from tasks.correct.pairs import Pair
from tasks.imaging.masks import Map, belongs, map_of
from tasks.imaging.scores import score_case
from tasks.imaging.words import class_of, says
from tasks.stores.house import Stores
from tasks.stores.volumes import StoredMask

_INSIDE: Final = 127


@dataclass(frozen=True, slots=True)
class Judged:
    """A row for each class, and how good the whole was, from 0 to 1."""

    scores: tuple[dict[str, Any], ...]
    value: float


def _mask_speaks(package: ModelPackage, pair: Pair, *, referenced: bool) -> bool:
    """Whether a mask is about what was predicted.

    One that names our own object is where it has any of the model's classes: what is gone from it was taken away. Any
    other must have all that the model found, or else it is about something else.
    """
    if package.recipe.labels.source == "CSV" or pair.label.source == "CSV":
        return False
    there = [Segment(int(s["number"]), str(s["name"]), s["code"]) for s in pair.label.segments]
    found = {str(f["class_name"]) for f in pair.prediction.result["findings"] if f["called"]}
    named = {one.name for one in _classes(package) if any(belongs(segment, one) for segment in there)}
    return bool(named) and (referenced or found <= named)


def _mask(stores: Stores, package: ModelPackage, pair: Pair) -> Judged:
    """Dice and its kin of each class, as in an evaluation; `value` is their mean Dice."""
    classes, asked, regions = _classes(package), package.recipe.labels, package.plan.regions
    drawn, said = stores.volumes.open_mask(pair.label.label), stores.volumes.open_mask(pair.prediction.prediction)
    truth = map_of(drawn.read(), classes, asked.fraction, regions=regions)
    tolerance = package.recipe.evaluate.surface_tolerance_mm
    scores, _ = score_case(
        truth,
        _as_map(said, package),
        drawn.geometry.spacing,
        package.plan.classes,
        tolerance,
        voxel_mm3=drawn.geometry.voxel_volume,
        regions=regions,
    )
    return Judged(tuple(_plain(asdict(one)) for one in scores), float(np.mean([one.dice for one in scores])))


def _as_map(said: StoredMask, package: ModelPackage) -> Map:
    """As it was stored. Read structure by structure: a model may know a hundred."""
    labels = np.zeros(said.geometry.shape, np.uint8)
    for place, segment in enumerate(said.segments):
        index = package.plan.classes.index(segment.name)
        there = said.read_segment(place) > _INSIDE
        if package.plan.regions:
            labels[there] |= np.uint8(1 << index)
        else:
            labels[there] = index + 1
    return labels


def _class_speaks(package: ModelPackage, pair: Pair, *, referenced: bool) -> bool:
    """Whether a table's value is of the label set that the model learnt from, and means one of its classes."""
    asked, label = package.recipe.labels, pair.label
    if asked.source != "CSV" or label.source != "CSV" or asked.name not in (None, label.name):
        return False
    return package.plan.several or class_of(Segment(0, label.value or ""), _classes(package)) is not None


def _class(stores: Stores, package: ModelPackage, pair: Pair) -> Judged:
    """Truth, call, probability and squared error of each class; `value` is 1 where all calls are right."""
    classes, value = _classes(package), pair.label.value
    if package.plan.several:
        truth = [says(value, wanted) for wanted in classes]
    else:
        meant = class_of(Segment(0, value or ""), classes)
        truth = [index == meant for index in range(len(classes))]
    said = {str(finding["class_name"]): finding for finding in pair.prediction.result["findings"]}
    rows = tuple(
        {
            "class_name": name,
            "truth": is_so,
            "predicted": bool(said[name]["called"]),
            "probability": float(said[name]["confidence"]),
            "brier": (float(said[name]["confidence"]) - is_so) ** 2,
        }
        for name, is_so in zip(package.plan.classes, truth, strict=True)
    )
    return Judged(rows, float(all(row["truth"] == row["predicted"] for row in rows)))


def _classes(package: ModelPackage) -> tuple[LabelClass, ...]:
    return package.recipe.labels.meaning(package.plan.classes)


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    """NaN is no JSON: what is not defined is null."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}


@dataclass(frozen=True, slots=True)
class Judge:
    """`speaks`: whether a label is about what a prediction says at all; `score`: how far the two are apart."""

    speaks: Callable[..., bool]
    score: Callable[[Stores, ModelPackage, Pair], Judged]


JUDGES: Final[Mapping[Kind, Judge]] = {
    "segmentation": Judge(_mask_speaks, _mask),
    "classification": Judge(_class_speaks, _class),
}
"""Boxes and made images are not corrected by labels."""
