"""How clinical variables become numbers, from what the training split knows of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.clinical import as_number, same_value
from models.dataset import DatasetRow
from models.plan import VariablePlan
from models.recipe import Variable

MOST_VALUES = 32
"""Categories of one variable: rarer ones count as missing."""


def plan_variables(variables: Sequence[Variable], rows: Sequence[DatasetRow]) -> tuple[VariablePlan, ...]:
    """By mean and deviation, or by the values that occur; `rows` are the training cases."""
    # A synthetic case has no patient of whom something is known.
    texts = [[row.clinical[place] for row in rows if row.clinical] for place in range(len(variables))]
    return tuple(
        _categories(variable, told) if variable.kind == "category" else _number(variable.name, told)
        for variable, told in zip(variables, texts, strict=True)
    )


def _number(name: str, texts: Sequence[str]) -> VariablePlan:
    known = [value for text in texts if (value := as_number(text)) is not None]
    if not known:
        return VariablePlan(name=name, kind="number")
    # A variable that is the same for all tells nothing: it is left unscaled.
    return VariablePlan(name=name, kind="number", mean=float(np.mean(known)), std=float(np.std(known)) or 1.0)


def _categories(variable: Variable, texts: Sequence[str]) -> VariablePlan:
    counts: dict[str, int] = {}
    for text in sorted(filter(None, (text.strip() for text in texts))):
        known = next((value for value in counts if same_value(value, text)), text)
        counts[known] = counts.get(known, 0) + 1
    often = sorted(counts, key=lambda value: (-counts[value], value))[:MOST_VALUES]
    return VariablePlan(name=variable.name, kind="category", values=variable.values or tuple(sorted(often)))
