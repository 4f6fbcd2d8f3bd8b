"""Where the truth comes from, and who is judged on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from models.recipe.base import Part, Share, Texts

LabelSourceName = Literal["SEG", "RTSTRUCT", "NIfTI", "CSV"]

MOST_REGIONS = 8
"""Regions of one model: a voxel of a region map holds a bit for each."""


class LabelClass(Part):
    """One class of the model: segments or CSV values whose name or code matches (case-insensitive, * allowed)."""

    name: str
    match: Texts = ()

    @property
    def patterns(self) -> tuple[str, ...]:
        """What to look for: `match`, and the class's own name, under which our own results come back corrected."""
        return (*self.match, _literal(self.name)) if self.match else (self.name,)

    @classmethod
    def itself(cls, name: str) -> Self:
        """The class that means just `name`, whatever signs are in it."""
        return cls(name=name, match=(_literal(name),))


def _literal(name: str) -> str:
    """A pattern that fits just this name."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in name)


class Labels(Part):
    """Where the truth comes from. Without `classes`, every structure or value seen in training is one."""

    source: LabelSourceName
    classes: tuple[LabelClass, ...] = ()
    name: str | None = Field(None, description="CSV: the label set's name, as given to `nocturne labels import`")
    fraction: float = Field(0.5, gt=0, le=1, description="occupancy from which a voxel of a fractional SEG is inside")

    regions: bool = Field(
        False, description="segmentation: classes may overlap (a tumour's core lies within the whole tumour); at most 8"
    )
    several: bool = Field(
        False,
        description='classification: an image may show several classes ("effusion|nodule"), or none; without '
        "`labels.classes`, every word seen in training is a class",
    )
    none: Texts = Field(
        ("none", "normal", "no finding*"), description="several: words that say that an image shows none of the classes"
    )
    of: Literal["series", "patient"] = Field(
        "series", description="classification: each series is a case, or all of a patient's series are one"
    )

    def meaning(self, names: Sequence[str]) -> tuple[LabelClass, ...]:
        """The recipe's classes; where it gives none, each of `names` (a dataset's) means itself."""
        return self.classes or tuple(LabelClass.itself(name) for name in names)

    @model_validator(mode="after")
    def _few_regions(self) -> Self:
        if self.regions and len(self.classes) > MOST_REGIONS:
            raise ValueError(
                f"regions: at most {MOST_REGIONS} may overlap, not {len(self.classes)}: name fewer classes"
            )
        return self

    @field_validator("classes", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple({"name": item} if isinstance(item, str) else item for item in value)
        return value


class Split(Part):
    """Shares of the patients; a patient once placed never moves."""

    train: Share = 0.7
    validation: Share = 0.1
    test: Share = 0.2

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(self.train + self.validation + self.test - 1) > 1e-6 or min(self.train, self.validation, self.test) <= 0:
            raise ValueError("train, validation and test must be positive and add up to 1")
        return self
