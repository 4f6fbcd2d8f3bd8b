"""What test cases are told apart by: one group of each attribute for each case.

A case of which something is not recorded is in a group of its own, so that the groups of an attribute together are
all cases. An attribute by which all cases are in one group says nothing, and is left out.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from models.clinical import as_number
from models.recipe import Evaluate

NOT_RECORDED: Final = "not recorded"
OTHER: Final = "other"
EMPTY: Final = "none"
"""The size group of cases in which there is nothing to find."""
MOST_GROUPS: Final = 12
"""Of a text attribute: the largest have a group each, the rest are `other`."""
_FEW_NUMBERS: Final = 6
"""A number with more values than these is cut into thirds."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of a case: "" and None where it is not recorded.

    `site` is a pseudonym, `sex` as DICOM tells it, `size_ml` the true volume of all that was to be found, `clinical`
    other variables by their names in lower case.
    """

    site: str = ""
    manufacturer: str = ""
    model_name: str = ""
    sex: str = ""
    contrast: str = ""
    age_years: float | None = None
    slice_thickness_mm: float | None = None
    size_ml: float | None = None
    clinical: Mapping[str, str] = field(default_factory=dict)


def grouped(traits: Mapping[str, Traits], asked: Evaluate) -> dict[str, dict[str, tuple[str, ...]]]:
    """The cases (keys of `traits`) of each group of each attribute that `asked` names and that tells cases apart.

    Bands are in rising order, other groups from the largest to the smallest; `not recorded` is the last.
    """
    found = {}
    for attribute in dict.fromkeys(asked.subgroups):
        groups = _groups(attribute, traits, asked)
        if len(groups) > 1:
            found[attribute] = groups
    return found


def banded(value: float | None, bands: Sequence[float], unit: str) -> str:
    """The band that holds `value`: a band begins with its lower bound ("1.5–3 mm" does not hold 3).

    Years are counted in whole ones: "18–39 years".
    """
    if value is None or not math.isfinite(value):
        return NOT_RECORDED
    return _band_names(bands, unit)[sum(bound <= value for bound in set(bands))]


def _band_names(bands: Sequence[float], unit: str) -> list[str]:
    bounds = sorted(set(bands))
    if not bounds:
        return ["all"]
    whole = unit == "years" and all(float(bound).is_integer() for bound in bounds)
    between = [f"{low:g}–{high - 1 if whole else high:g} {unit}" for low, high in itertools.pairwise(bounds)]
    return [f"under {bounds[0]:g} {unit}", *between, f"{bounds[-1]:g} {unit} and over"]


def _groups(attribute: str, traits: Mapping[str, Traits], asked: Evaluate) -> dict[str, tuple[str, ...]]:
    if attribute in _BANDS:
        value, bands, unit = _BANDS[attribute]
        names = [EMPTY, *_band_names(bands(asked), unit)]
        return _sorted({case: _in_band(attribute, value(t), bands(asked), unit) for case, t in traits.items()}, names)
    if attribute in _TEXTS:
        texts = {case: _TEXTS[attribute](t).strip() for case, t in traits.items()}
    else:
        texts = {case: t.clinical.get(attribute.casefold(), "").strip() for case, t in traits.items()}
    numbers = {case: as_number(text) for case, text in texts.items()}
    known = {n for n in numbers.values() if n is not None}
    if attribute not in _TEXTS and len(known) > _FEW_NUMBERS and _all_numbers(texts, numbers):
        return _thirds(numbers)
    counts = Counter(texts.values())
    frequent = [text for text, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if text]
    kept = frequent if len(frequent) <= MOST_GROUPS else frequent[: MOST_GROUPS - 1]
    told = {case: (text if text in kept else OTHER) if text else NOT_RECORDED for case, text in texts.items()}
    return _sorted(told, [*kept, OTHER])


def _in_band(attribute: str, value: float | None, bands: Sequence[float], unit: str) -> str:
    return EMPTY if attribute == "size" and value == 0 else banded(value, bands, unit)


def _all_numbers(texts: Mapping[str, str], numbers: Mapping[str, float | None]) -> bool:
    return all(numbers[case] is not None for case, text in texts.items() if text)


def _thirds(numbers: Mapping[str, float | None]) -> dict[str, tuple[str, ...]]:
    """Groups of about as many cases each."""
    known = sorted(n for n in numbers.values() if n is not None)
    low, high = known[len(known) // 3], known[2 * len(known) // 3]
    names = [f"under {low:g}", f"{low:g} to under {high:g}", f"{high:g} and over"]
    told = {c: NOT_RECORDED if n is None else names[(n >= low) + (n >= high)] for c, n in numbers.items()}
    return _sorted(told, names)


def _sorted(told: Mapping[str, str], order: Sequence[str]) -> dict[str, tuple[str, ...]]:
    members: defaultdict[str, list[str]] = defaultdict(list)
    for case, group in told.items():
        members[group].append(case)
    return {group: tuple(members[group]) for group in [*order, NOT_RECORDED] if group in members}


_TEXTS: Final[Mapping[str, Callable[[Traits], str]]] = {
    "site": lambda t: t.site,
    "manufacturer": lambda t: t.manufacturer,
    "model_name": lambda t: t.model_name,
    "sex": lambda t: t.sex,
    "contrast": lambda t: t.contrast,
}
_BANDS: Final[Mapping[str, tuple[Callable[[Traits], float | None], Callable[[Evaluate], Sequence[float]], str]]] = {
    "age": (lambda t: t.age_years, lambda asked: asked.age_bands, "years"),
    "slice_thickness": (lambda t: t.slice_thickness_mm, lambda asked: asked.thickness_bands_mm, "mm"),
    "size": (lambda t: t.size_ml, lambda asked: asked.size_bands_ml, "ml"),
}
ATTRIBUTES: Final = (*_TEXTS, *_BANDS)
"""What cases can be told apart by, beside clinical variables."""
