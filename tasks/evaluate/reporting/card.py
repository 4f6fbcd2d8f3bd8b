"""The dataset card: who is in which split, from which scanners, and how large the labels are.

After Gebru et al., "Datasheets for datasets", CACM 2021: composition and collection, as far as the records tell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from models.clinical import as_number
from models.dataset import SPLITS, Dataset, DatasetRow, SplitName
from models.package import ModelPackage
from models.plan import CaseFacts
from models.report import DataCard, Exclusion, Measure, Spread, Tally

NOT_TOLD = "not told"
_SEXES = {"F": "female", "M": "male", "O": "other"}

Characteristics = Mapping[str, Mapping[str, str]]
"""By volume: what the image's header says of its patient, by keyword."""


def card(
    dataset: Dataset,
    package: ModelPackage | None = None,
    cases: pd.DataFrame | None = None,
    characteristics: Characteristics | None = None,
    exclusions: Sequence[Exclusion] = (),
) -> DataCard:
    """The card of one dataset. Label sizes are known of the cases that `package` saw and of those judged (`cases`)."""
    known = characteristics or {}
    return DataCard(
        name=dataset.name,
        classes=dataset.classes,
        tallies=tuple(_tallies(dataset, known)),
        measures=tuple(_measures(dataset, package, cases, known)),
        exclusions=tuple(exclusions),
    )


def _tallies(dataset: Dataset, known: Characteristics) -> Iterator[Tally]:
    yield _tally("all", "", dataset.rows)
    if any(row.synthetic for row in dataset.rows):
        yield _tally("made", "made images", (row for row in dataset.rows if row.synthetic))
    real = [row for row in dataset.rows if not row.synthetic]
    groups: dict[str, dict[str, list[DatasetRow]]] = defaultdict(lambda: defaultdict(list))
    for row in real:
        groups["modality"][row.modality].append(row)
        groups["scanner"][" ".join(filter(None, (row.manufacturer, row.model_name))) or NOT_TOLD].append(row)
        sex = known.get(row.volume, {}).get("PatientSex", "").strip().upper()
        groups["sex"][_SEXES.get(sex, sex) or NOT_TOLD].append(row)
        for name in _classes_of(dataset, row):
            groups["class"][name].append(row)
    if set(groups["sex"]) == {NOT_TOLD}:
        del groups["sex"]
    for attribute, values in groups.items():
        for value in sorted(values, key=lambda v: (v == NOT_TOLD, -len(values[v]), v)):
            yield _tally(attribute, value, values[value])


def _classes_of(dataset: Dataset, row: DatasetRow) -> Sequence[str]:
    """Of a classified image."""
    if row.target >= 0:
        return (dataset.classes[row.target],)
    if row.classes:
        return [name for name, there in zip(dataset.classes, row.classes, strict=True) if there] or ("none of them",)
    return ()


def _tally(attribute: str, value: str, rows: Iterable[DatasetRow]) -> Tally:
    by_split: dict[SplitName, list[str]] = {split: [] for split in SPLITS}
    for row in rows:
        by_split[row.split].append(row.patient)
    return Tally(
        attribute=attribute,
        value=value,
        patients={split: len(set(patients)) for split, patients in by_split.items()},
        cases={split: len(patients) for split, patients in by_split.items()},
    )


def _measures(
    dataset: Dataset, package: ModelPackage | None, cases: pd.DataFrame | None, known: Characteristics
) -> Iterator[Measure]:
    for name in dataset.classes:
        sizes = {"train": _seen_volumes(dataset, package, name), "test": _judged_volumes(cases, name)}
        yield from _measure(f"volume of {name}, where there", "mL", sizes)
    rows = [row for row in dataset.rows if not row.synthetic]
    for index, axis in enumerate("zyx"):
        yield from _measure(f"voxel size {axis}", "mm", _by_split(rows, [row.spacing[index] for row in rows]))
    for index, axis in enumerate("zyx"):
        yield from _measure(f"extent {axis}", "voxels", _by_split(rows, [row.shape[index] for row in rows]))
    patients = list({row.patient: row for row in reversed(rows)}.values())
    ages = [as_number(known.get(row.volume, {}).get("PatientAge", "")) for row in patients]
    aged = [(row, age) for row, age in zip(patients, ages, strict=True) if age is not None]
    yield from _measure("age of the patient", "years", _by_split([r for r, _ in aged], [a for _, a in aged]))


def _by_split(rows: Sequence[DatasetRow], values: Sequence[float]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {split: [] for split in SPLITS}
    for row, value in zip(rows, values, strict=True):
        found[row.split].append(value)
    return found


def _measure(what: str, unit: str, splits: Mapping[str, Sequence[float]]) -> Iterator[Measure]:
    """Nothing where nothing is known."""
    spreads: dict[SplitName, Spread] = {}
    for split in SPLITS:
        if values := splits.get(split):
            low, median, high = (float(v) for v in np.percentile(values, [0, 50, 100]))
            spreads[split] = Spread(n=len(values), low=low, median=median, high=high)
    if spreads:
        yield Measure(what=what, unit=unit, splits=spreads)


def _seen_volumes(dataset: Dataset, package: ModelPackage | None, name: str) -> list[float]:
    """Millilitres of a class in the training cases that bear it, from the package's fingerprint."""
    if package is None or name not in package.plan.classes:
        return []
    index, trained = package.plan.classes.index(name), {row.volume for row in dataset.split("train")}
    facts = [CaseFacts.model_validate(case) for case in package.fingerprint.get("cases", ())]
    return [
        case.class_voxels[index] * float(np.prod(case.spacing)) / 1000
        for case in facts
        if case.volume in trained and index < len(case.class_voxels) and case.class_voxels[index]
    ]


def _judged_volumes(cases: pd.DataFrame | None, name: str) -> list[float]:
    """Millilitres of a class in the test cases that bear it."""
    if cases is None or "volume_truth_ml" not in cases:
        return []
    sums = cases[cases["class_name"] == name].groupby("case")["volume_truth_ml"].sum()
    return [float(volume) for volume in sums[sums > 0]]
