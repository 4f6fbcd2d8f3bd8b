"""The report on one run, as data: what the page shows and `report.json` holds, part by part under the same names.

The page is drawn from this document and the pictures alone, so that both tell the same. Every case lies beside it in
`cases.parquet` (columns: `models.schemas`). Cases and patients go by pseudonym.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from models.dataset import SplitName
from models.evaluation import Comparison, Evaluation, Finite, MetricSummary
from models.package import ModelPackage
from models.plan import Drift

FORMAT: Final = 1
Verdict = Literal["promoted", "kept", "waiting", "refused"]
Figure = Annotated[float, Field(allow_inf_nan=False)] | int | str | bool | None


class _Noun(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Summary(_Noun):
    """In short: the figures that a reader asks for first, a sentence on them, and what else must be known."""

    headlines: tuple[MetricSummary, ...]
    sentence: str
    gain: str = ""  # against the champion
    notes: tuple[str, ...] = ()


class Tally(_Noun):
    """How many patients and cases of each split share something: `attribute` scanner, `value` Acme Pulsar."""

    attribute: str
    value: str
    patients: dict[SplitName, int]
    cases: dict[SplitName, int]


class Spread(_Noun):
    """Of `n` values."""

    n: int = Field(ge=1)
    low: Finite
    median: Finite
    high: Finite


class Measure(_Noun):
    """A property that is a number, in each split where it is known."""

    what: str
    unit: str
    splits: dict[SplitName, Spread]


class Exclusion(_Noun):
    """How many of something (`subject`: series, studies, labels) were set aside for one machine-readable reason."""

    subject: str
    reason: str
    count: int = Field(ge=1)
    meaning: str = ""


class DataCard(_Noun):
    """What was learnt from: who is in which split, from which scanners, with labels of which size, and who is not."""

    name: str
    classes: tuple[str, ...]
    tallies: tuple[Tally, ...]
    measures: tuple[Measure, ...] = ()
    exclusions: tuple[Exclusion, ...] = ()


class Outcomes(_Noun):
    """Of one class: how often it was found, missed, invented (said without being there) or rightly absent.

    Counted are cases; in detection lesions, of which none can be absent.
    """

    class_name: str
    found: int = Field(ge=0)
    missed: int = Field(ge=0)
    invented: int = Field(ge=0)
    absent: int = Field(0, ge=0)


class PictureNote(_Noun):
    """A picture of the page: `alt` says in words what is seen."""

    name: str
    title: str
    alt: str


class Good(_Noun):
    """The evaluation as it is kept, what became of each class, and the same recipe without made images beside it."""

    evaluation: Evaluation
    outcomes: tuple[Outcomes, ...] = ()
    without: Comparison | None = None
    pictures: tuple[PictureNote, ...] = ()


class CaseNote(_Noun):
    """A case worth a look, with the figures that say why."""

    patient: str
    case: str
    class_name: str = ""
    figures: dict[str, Finite]
    told: str = ""


class Fails(_Noun):
    """The worst cases first, the most uncertain first; a subgroup of fewer than `few` patients is small."""

    worst: tuple[CaseNote, ...] = ()
    uncertain: tuple[CaseNote, ...] = ()
    few: int = Field(10, ge=1)


class Alert(_Noun):
    """Something that has moved since a model of this name began to serve, and has not moved back."""

    kind: str
    measure: str
    how: str
    value: Finite
    threshold: Finite
    cases: int
    told: str
    package: str
    since: datetime


class Drifted(_Noun):
    """How far the training cases are from those of the champion's plan, and the open alerts of what was watched."""

    planned: tuple[Drift, ...] = ()
    alerts: tuple[Alert, ...] = ()
    watched: int = Field(0, ge=0)  # predictions of the model's serving versions that were kept


class Check(_Noun):
    """One rule of the policy: its limit, what was found, and whether it is kept (None: it could not be judged)."""

    rule: str
    limit: Figure = None
    value: Figure = None
    passed: bool | None
    told: str = ""


class Decision(_Noun):
    """What became of the version, why, by which rules, and by whom. `number` is the audit trail's."""

    verdict: Verdict
    reasons: tuple[str, ...]
    checks: tuple[Check, ...] = ()
    who: str = ""
    number: int | None = None
    decided_at: datetime | None = None


class Report(_Noun):
    """`report.json`. Its parts bear the names of the page's sections.

    `how` is the package's description without the fingerprint; `champion` the paired differences from it. What is not
    known is None or empty.
    """

    format: Literal[1] = 1
    name: str
    created_at: datetime
    summary: Summary
    data: DataCard | None = None
    how: ModelPackage | None = None
    good: Good
    champion: Comparison | None = None
    fails: Fails = Fails()
    drift: Drifted = Drifted()
    decision: Decision | None = None
    provenance: dict[str, str] = {}

    def to_json(self) -> str:
        """Floats survive exactly."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of `to_json`."""
        return cls.model_validate_json(text)
