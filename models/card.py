"""The model card as a document: what a version is, is for, learnt from, can do, and where it must not be trusted.

Its sections are those of Mitchell et al., "Model cards for model reporting", FAT* 2019. Counts and pseudonymous keys
only. The Markdown is drawn from it, so that the two cannot disagree.
"""

from __future__ import annotations

from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from models.errors import PackageError
from models.evaluation import Cost, Interval, MetricSummary, PairedTest, Subgroup
from models.recipe import Kind

CARD_DOCUMENT: Final = "card.json"
"""Beside `card.md` in a registered package."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Details(_Part):
    """Which model it is. `output` says in words what it gives, `started_from` whose weights it began with."""

    name: str
    kind: Kind
    package: str
    network: str
    dimensions: Literal[2, 3]
    parameters: int
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    output: str
    members: int = 1
    started_from: str = ""


class Use(_Part):
    """What it was made for, by whom it is to be used, and what it is not for."""

    primary: str
    users: str
    out_of_scope: tuple[str, ...]


class SplitCount(_Part):
    """How many of a split's patients and cases there are."""

    split: str
    patients: int
    cases: int


class Data(_Part):
    """The dataset. `spacing_mm` is (least, most) along z, y, x; `classes` counts cases, of a classification."""

    dataset: str
    splits: tuple[SplitCount, ...]
    modalities: dict[str, int]
    manufacturers: dict[str, int]
    classes: dict[str, int] = {}
    made_images: int = 0
    spacing_mm: tuple[tuple[float, float], ...]


class Training(_Part):
    """How it was learnt: the plan's choices in words, and what they cost."""

    choices: tuple[tuple[str, str], ...]
    minutes: float
    steps: int
    epochs: int
    stopped_by: str
    device: str
    precision: str
    best_metric: float
    best_step: int
    notes: tuple[str, ...] = ()


class Against(_Part):
    """The paired difference from the champion of the day on the same patients, and what tests say of it."""

    champion: str
    metric: str
    difference: Interval
    tests: tuple[PairedTest, ...] = ()


class AgreementLimits(_Part):
    """Predicted minus true volume in millilitres after Bland and Altman: the mean, and where 95 % of cases lie."""

    class_name: str
    bias: Interval
    lower: Interval
    upper: Interval
    n_cases: int


class Performance(_Part):
    """What was measured on the frozen test split. `thresholds` are, by class, from which probability on it is called.

    `small` is the number of patients below which a subgroup's figures are to be read with caution.
    """

    dataset: str
    n_patients: int
    n_cases: int
    primary: str
    metrics: tuple[MetricSummary, ...]
    thresholds: dict[str, float] = {}
    surface_tolerance_mm: float | None = None
    intervals: str
    against: Against | None = None
    subgroups: tuple[Subgroup, ...] = ()
    small: int
    agreement: tuple[AgreementLimits, ...] = ()
    cost: Cost | None = None


class Provenance(_Part):
    """By what it can be made again."""

    weights_sha256: str
    dataset: str
    recipe: str
    plan: str
    seed: int
    code: str
    nocturne: str
    python: str
    torch: str
    platform: str


class ModelCard(_Part):
    """`card.json`. `hub` are the fields of a Hugging Face model card, where they fit."""

    format: Literal[1] = 1
    details: Details
    use: Use
    factors: tuple[str, ...]
    data: Data
    training: Training
    performance: Performance
    ethics: tuple[str, ...]
    limitations: tuple[str, ...]
    provenance: Provenance
    licence: str
    running: str
    hub: dict[str, Any]

    @property
    def small_subgroups(self) -> tuple[Subgroup, ...]:
        """Those whose figures are to be read with caution."""
        return tuple(g for g in self.performance.subgroups if g.n_patients < self.performance.small)

    def to_json(self) -> str:
        """Floats survive exactly."""
        return self.model_dump_json(indent=1) + "\n"

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """The inverse of `to_json`. Raises PackageError."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise PackageError(f"{CARD_DOCUMENT} is not a model card: {place}: {first['msg']}") from None
