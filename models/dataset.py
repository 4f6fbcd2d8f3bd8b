"""An immutable, content-hashed list of (volume, label, split), and how patients get their split."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from models.hashing import content_key
from models.recipe import Kind, Split

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """One case. `target` is the class index of a classified image, −1 for a mask or several classes.

    `channels` are the volumes beside `volume` of a case of many channels, in the recipe's order, "" where one is
    missing. `classes` says of each class whether an image that may be of several shows it. `clinical` are the values
    of the dataset's variables, "" where one is missing.
    """

    patient: str
    study: str
    series: str
    volume: str
    label: str
    split: SplitName
    target: int
    modality: str
    manufacturer: str
    model_name: str
    shape_z: int
    shape_y: int
    shape_x: int
    spacing_z: float
    spacing_y: float
    spacing_x: float
    channels: tuple[str, ...] = ()
    classes: tuple[int, ...] = ()
    clinical: tuple[str, ...] = ()
    synthetic: bool = False

    @property
    def spacing(self) -> tuple[float, float, float]:
        """(z, y, x) mm."""
        return self.spacing_z, self.spacing_y, self.spacing_x

    @property
    def shape(self) -> tuple[int, int, int]:
        """(z, y, x)."""
        return self.shape_z, self.shape_y, self.shape_x

    def plain(self) -> dict[str, Any]:
        """By name, as `dataclasses.asdict` gives it; all values are plain, so that nothing has to be copied."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Dataset:
    """Rows in canonical order, with the classes that targets and masks mean."""

    name: str
    kind: Kind
    classes: tuple[str, ...]
    rows: tuple[DatasetRow, ...]
    variables: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(sorted(self.rows, key=lambda r: (r.patient, r.volume, r.label))))

    @property
    def key(self) -> str:
        """Content hash over kind, classes, variables and rows."""
        rows = [row.plain() for row in self.rows]
        return content_key("dataset", self.kind, list(self.classes), list(self.variables), rows)

    def split(self, name: SplitName) -> tuple[DatasetRow, ...]:
        """The rows of one split."""
        return tuple(row for row in self.rows if row.split == name)

    def counts(self) -> dict[SplitName, tuple[int, int]]:
        """(patients, cases) of each split."""
        return {s: (len({r.patient for r in self.split(s)}), len(self.split(s))) for s in SPLITS}


def assign_splits(
    strata: Mapping[str, str],
    placed: Mapping[str, tuple[str, SplitName]],
    shares: Split,
    draw: Callable[[str], float],
) -> dict[str, SplitName]:
    """The splits of patients seen for the first time.

    `strata` maps each new patient (pseudonym) to its stratum (its class, say); `placed` maps patients placed on
    earlier nights to (stratum, split) and is never changed. Within a stratum each split's quota is its share of all
    patients so far by largest remainders, the last seats given so that the whole cohort keeps the shares too; who
    fills which seat is drawn by `draw`, a keyed hash of the pseudonym to [0, 1).
    """
    new_by_stratum: dict[str, list[str]] = defaultdict(list)
    for patient, stratum in strata.items():
        if patient not in placed:
            new_by_stratum[stratum].append(patient)
    taken: Counter[tuple[str, SplitName]] = Counter(placed.values())
    total: Counter[SplitName] = Counter(split for _, split in placed.values())
    chosen: dict[str, SplitName] = {}
    # The largest stratum first: its rounding is set before the small ones have to make up for it.
    for stratum in sorted(new_by_stratum, key=lambda s: (-len(new_by_stratum[s]), s)):
        patients = sorted(new_by_stratum[stratum], key=lambda p: (draw(p), p))
        present = {s: taken[stratum, s] for s in SPLITS}
        seats = _seats(len(patients), present, total, shares)
        deck = [s for s in SPLITS for _ in range(seats[s])]
        for patient, split in zip(patients, deck, strict=True):
            chosen[patient] = split
            total[split] += 1
    return chosen


def _seats(
    new: int, present: Mapping[SplitName, int], total: Mapping[SplitName, int], shares: Split
) -> dict[SplitName, int]:
    """How many of `new` patients of a stratum go to each split."""
    seats: Counter[SplitName] = Counter()
    cohort = sum(total.values())
    for filled in range(1, new + 1):
        stratum_size = sum(present.values()) + filled

        def lack(s: SplitName, size: int = stratum_size, everyone: int = cohort + filled) -> tuple[float, float, int]:
            share = getattr(shares, s)
            own = share * size - present[s] - seats[s]
            whole = share * everyone - total[s] - seats[s]
            return round(own + 1e-3 * whole, 9), share, -SPLITS.index(s)

        seats[max(SPLITS, key=lack)] += 1
    return {s: seats[s] for s in SPLITS}
