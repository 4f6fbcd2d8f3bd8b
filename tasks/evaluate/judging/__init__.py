"""How each kind of model is judged and compared. A kind is added by one module and one entry in `JUDGES`.

A judge's module has `judge` and `compare`, as the protocols say, and `figures` (`FiguresOf`) where subgroups can be
told apart by the per-case table.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

import pandas as pd

from models.dataset import Dataset, DatasetRow
from models.evaluation import Comparison, Evaluation, Picture
from models.package import ModelPackage
from models.recipe import Kind
from models.volume import Volume
from tasks.evaluate.figures import Figures
from tasks.imaging.compose import read_case
from tasks.imaging.predictor import Predictor
from tasks.progress import Stage
from tasks.stores.house import Stores

FiguresOf = Callable[[pd.DataFrame, Evaluation], Figures]
"""The figures of some cases' rows of a per-case table, as that table's evaluation reads them."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Figures, per-case table and pictures of one run, and how long each case's prediction took."""

    evaluation: Evaluation
    cases: pd.DataFrame
    pictures: tuple[Picture, ...]
    seconds: tuple[float, ...] = ()


class Judge(Protocol):
    """Judges a package on test cases."""

    def __call__(
        self,
        stores: Stores,
        package: ModelPackage,
        predictor: Predictor,
        dataset: Dataset,
        rows: tuple[DatasetRow, ...],
        running: Stage,
    ) -> Judged:
        """Advance `running` by one for each of `rows`."""
        ...


class Compare(Protocol):
    """Paired differences from the per-case tables of champion and challenger."""

    def __call__(
        self, champion_cases: pd.DataFrame, challenger_cases: pd.DataFrame, champion: Evaluation, challenger: Evaluation
    ) -> Comparison:
        """Challenger minus champion."""
        ...


def image_of(stores: Stores, package: ModelPackage, row: DatasetRow) -> Volume:
    """A case's image with all its channels."""
    return read_case(stores.volumes, row.volume, row.channels, package.recipe.images.registration, stores.transforms)


JUDGES: Final[Mapping[Kind, str]] = {
    "segmentation": "tasks.evaluate.judging.segmentation",
    "classification": "tasks.evaluate.judging.classification",
    "detection": "tasks.evaluate.judging.detection",
    "synthesis": "tasks.evaluate.judging.synthesis",
}


def judge_for(kind: Kind) -> Judge:
    """The kind's judge."""
    judge: Judge = importlib.import_module(JUDGES[kind]).judge
    return judge


def figures_for(kind: Kind) -> FiguresOf | None:
    """How the kind's figures follow from a per-case table; None where they do not."""
    figures: FiguresOf | None = getattr(importlib.import_module(JUDGES[kind]), "figures", None)
    return figures


def comparison_for(kind: Kind) -> Compare:
    """How two versions of the kind are compared."""
    compare: Compare = importlib.import_module(JUDGES[kind]).compare
    return compare
