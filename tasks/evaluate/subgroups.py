"""The figures of test cases apart: by where and how they were made, whose they are, and how much there was to find."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

import pandas as pd

from models.clinical import CONTRAST, SITE, as_number
from models.dataset import Dataset, DatasetRow
from models.evaluation import Evaluation, Subgroup
from models.recipe import Evaluate, Kind
from models.subgroups import ATTRIBUTES, Traits, grouped
from tasks.evaluate.comparison import matched
from tasks.evaluate.figures import Figures
from tasks.evaluate.judging import FiguresOf
from tasks.stores.clinical import any_table, characteristics
from tasks.stores.house import Stores
from tasks.stores.tables import VolumeRow

SHOWN: Final[Mapping[Kind, Collection[str]]] = {
    "segmentation": ("dice", "surface_dice", "hd95_mm", "volume_absolute_error_ml"),
    "classification": ("auc", "sensitivity", "specificity", "accuracy", "brier"),
    "detection": ("froc", "sensitivity", "false_positives"),
}
"""What is told of a group."""


def traits_of(stores: Stores, asked: Evaluate, dataset: Dataset, cases: pd.DataFrame) -> dict[str, Traits]:
    """Of each case of a per-case table, what the catalog and the dataset know of it."""
    wanted = set(cases["case"])
    rows = {row.volume: row for row in dataset.split("test") if row.volume in wanted}
    volumes = _volumes(stores, sorted(rows))
    given = {name.casefold() for name in dataset.variables}
    others = [name for name in asked.subgroups if name not in ATTRIBUTES and name.casefold() not in given]
    with stores.catalog.reading() as session:
        tables = any_table(session, others, list(volumes.values()))
    sizes = _sizes(cases)
    found = {}
    for case, row in rows.items():
        volume = volumes.get(case)
        kept = characteristics(volume, stores.volumes) if volume else {}
        clinical = {name.casefold(): text for name, text in kept.items()} | tables.get(case, {})
        clinical |= zip(map(str.casefold, dataset.variables), row.clinical, strict=False)
        found[case] = _traits(row, volume, kept, clinical, sizes.get(case))
    return found


def subgroups(
    cases: pd.DataFrame, evaluation: Evaluation, figures_of: FiguresOf, traits: Mapping[str, Traits], asked: Evaluate
) -> tuple[Subgroup, ...]:
    """The figures of each group over all classes, with intervals. A figure that is undefined in a group is absent."""
    shown = {evaluation.primary, *SHOWN[evaluation.kind]}
    return tuple(
        _subgroup(
            attribute, group, figures_of(_only(cases, members), evaluation).only(shown, classes=False), asked.bootstrap
        )
        for attribute, groups in grouped(traits, asked).items()
        for group, members in groups.items()
    )


def paired_subgroups(
    champion: tuple[pd.DataFrame, Evaluation],
    challenger: tuple[pd.DataFrame, Evaluation],
    figures_of: FiguresOf,
    traits: Mapping[str, Traits],
    asked: Evaluate,
) -> tuple[Subgroup, ...]:
    """How much higher the primary metric is in each group: challenger minus champion on the cases of both."""
    tables = matched(champion[0], challenger[0])
    primary, common = {challenger[1].primary}, set(tables[0]["case"])
    found = []
    for attribute, groups in grouped({c: t for c, t in traits.items() if c in common}, asked).items():
        for group, members in groups.items():
            before, after = (
                figures_of(_only(table, members), judged).only(primary, classes=False)
                for table, judged in zip(tables, (champion[1], challenger[1]), strict=True)
            )
            found.append(_subgroup(attribute, group, after.since(before), asked.bootstrap))
    return tuple(found)


def _subgroup(attribute: str, group: str, figures: Figures, samples: int) -> Subgroup:
    return Subgroup(
        attribute=attribute,
        group=group,
        n_patients=len(set(figures.patients)),
        n_cases=len(figures.patients),
        metrics=figures.summaries(samples=samples),
    )


def _only(cases: pd.DataFrame, members: Collection[str]) -> pd.DataFrame:
    return cases[cases["case"].isin(members)]


def _volumes(stores: Stores, keys: list[str]) -> dict[str, VolumeRow]:
    return {row.volume: row for row in stores.catalog.among(VolumeRow, VolumeRow.volume, keys)}


def _traits(
    row: DatasetRow, volume: VolumeRow | None, kept: Mapping[str, str], clinical: Mapping[str, str], size: float | None
) -> Traits:
    return Traits(
        site=kept.get(SITE, ""),
        manufacturer=row.manufacturer,
        model_name=row.model_name,
        sex=kept.get("PatientSex", ""),
        contrast=kept.get(CONTRAST, ""),
        age_years=as_number(kept.get("PatientAge", "")),
        slice_thickness_mm=volume.slice_thickness if volume else None,
        size_ml=size,
        clinical=clinical,
    )


def _sizes(cases: pd.DataFrame) -> dict[str, float]:
    """The true volume of all classes or lesions of each case; empty for a table without volumes."""
    if "volume_truth_ml" not in cases:
        return {}
    return {str(case): float(size) for case, size in cases.groupby("case")["volume_truth_ml"].sum().items()}
