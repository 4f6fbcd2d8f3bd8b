"""How good a model is: what is told to the registry, to the promotion gate and to the report.

An undefined figure (an AUC without both classes) is absent rather than NaN, so that everything here is plain JSON.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from models.errors import NotFoundError
from models.hashing import content_key
from models.recipe import Kind

Outcome = Literal["found", "missed", "invented", "absent"]
CurveName = Literal["roc", "precision-recall", "calibration", "froc"]
Finite = Annotated[float, Field(allow_inf_nan=False)]

PRIMARY: Final[dict[Kind, str]] = {
    "segmentation": "dice",
    "classification": "auc",
    "detection": "froc",
    "synthesis": "fidelity",
}


class _Noun(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Interval(_Noun):
    """A figure with its 95 % interval; `n` is the number of patients behind it.

    `low` and `high` are None where there is no interval to speak of: with a single patient.
    """

    value: Finite
    low: Finite | None
    high: Finite | None
    n: int = Field(ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if (self.low is None) != (self.high is None):
            raise ValueError("an interval has both ends or none")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"the interval's ends are in the wrong order: {self.low} > {self.high}")
        return self


class MetricSummary(_Noun):
    """One metric over the cases: of one class, or of all of them together (`class_name` None)."""

    metric: str
    class_name: str | None = None
    interval: Interval


class Curve(_Noun):
    """Points of a curve, in order.

    roc: x false-positive rate, y true-positive rate · precision-recall: x recall, y precision · calibration: x mean
    probability in a bin, y share of positives in it · froc: x false positives an image, y sensitivity.
    """

    name: CurveName
    class_name: str
    x: tuple[Finite, ...]
    y: tuple[Finite, ...]


class ConfusionMatrix(_Noun):
    """`counts[i][j]` cases of class i (truth) that were called class j."""

    class_names: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]

    @model_validator(mode="after")
    def _square(self) -> Self:
        size = len(self.class_names)
        if len(self.counts) != size or any(len(row) != size for row in self.counts):
            raise ValueError(f"a confusion matrix of {size} classes is {size} × {size}")
        return self


class Subgroup(_Noun):
    """The figures of the test cases that share something: `attribute` sex, `group` F. Small ones are shown too."""

    attribute: str
    group: str
    n_patients: int = Field(ge=1)
    n_cases: int = Field(ge=1)
    metrics: tuple[MetricSummary, ...] = ()


class Agreement(_Noun):
    """Bland and Altman (Lancet 1986) on predicted minus true volumes: the mean difference and where 95 % of them lie.

    `points` are (mean of both, difference) of each case, in millilitres.
    """

    class_name: str
    bias: Interval
    lower: Interval
    upper: Interval
    points: tuple[tuple[Finite, Finite], ...]


class PairedTest(_Noun):
    """Whether two versions differ on the same patients, by two two-sided p values.

    `adjusted` is the larger of them, so that both have to agree, after Holm over the classes. `wilcoxon` is None where
    no patient differs, and for what is no mean over patients (an AUC).
    """

    metric: str
    class_name: str | None = None
    wilcoxon: Finite | None
    bootstrap: Finite
    adjusted: Finite


class Cost(_Noun):
    """What one test case cost: time on `device`, and the weights' size."""

    seconds_median: Finite
    seconds_longest: Finite
    megabytes: Finite
    device: str


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One class in one case. Definitions and edge cases: `tasks.imaging.scores.score_case`."""

    class_name: str
    outcome: Outcome
    dice: float
    iou: float
    pixel_accuracy: float
    surface_dice: float
    hd95_mm: float
    assd_mm: float
    volume_truth_ml: float
    volume_prediction_ml: float
    volume_error_ml: float
    volume_absolute_error_ml: float
    volume_error_relative: float


@dataclass(frozen=True, slots=True)
class SegmentationCase:
    """One volume: its scores by class, and the share of its voxels that bear the right label."""

    patient: str
    case: str
    scores: tuple[ClassScores, ...]
    pixel_accuracy: float

    @property
    def dice(self) -> float:
        """Mean over the classes: the case's share in the primary metric."""
        return sum(s.dice for s in self.scores) / len(self.scores)


@dataclass(frozen=True, slots=True)
class LesionScore:
    """One lesion, true or marked, or that a case has neither (`outcome` absent).

    Where `outcome` is found a mark and a lesion are one row. `confidence` is the mark's, `diameter_mm` that of a ball
    of the true lesion's volume, `distance_mm` between the centres, `box_iou` the boxes' overlap; NaN where there is no
    mark, or no lesion. Whether a mark hits is `tasks.imaging.detection.match`'s word.
    """

    patient: str
    case: str
    class_name: str
    number: int
    outcome: Outcome
    confidence: float
    volume_truth_ml: float
    volume_prediction_ml: float
    diameter_mm: float
    distance_mm: float
    box_iou: float


class Evaluation(_Noun):
    """One package judged on one dataset's test patients.

    `threshold` is set for two-class classification and for detection, `positive` for the former,
    `surface_tolerance_mm` for segmentation. Metrics without a class name are over all classes; in two-class
    classification they are the positive class's.
    """

    kind: Kind
    package: str
    dataset: str
    class_names: tuple[str, ...]
    primary: str
    metrics: tuple[MetricSummary, ...]
    curves: tuple[Curve, ...] = ()
    confusion: ConfusionMatrix | None = None
    threshold: Finite | None = None
    thresholds: tuple[Finite, ...] = ()  # several classes at once: each one's
    positive: str | None = None
    surface_tolerance_mm: Finite | None = None
    n_patients: int = Field(ge=1)
    n_cases: int = Field(ge=1)
    subgroups: tuple[Subgroup, ...] = ()
    agreement: tuple[Agreement, ...] = ()
    cost: Cost | None = None
    created_at: datetime | None = None

    @model_validator(mode="after")
    def _has_primary(self) -> Self:
        if not any(m.metric == self.primary and m.class_name is None for m in self.metrics):
            raise ValueError(f"the primary metric {self.primary!r} is not among the metrics")
        return self

    @property
    def primary_interval(self) -> Interval:
        """The figure by which versions are compared."""
        return self.of(self.primary)

    @property
    def digest(self) -> str:
        """Hash of the content; when it was made, and how long that took, is not part of it."""
        return content_key("evaluation", self.model_dump(mode="json", exclude={"created_at", "cost"}))

    def of(self, metric: str, class_name: str | None = None) -> Interval:
        """One metric, of one class or of all. Raises NotFoundError where it is undefined."""
        for summary in self.metrics:
            if summary.metric == metric and summary.class_name == class_name:
                return summary.interval
        raise NotFoundError(f"the evaluation holds no {metric!r} for {class_name or 'all classes'}")

    def scalars(self) -> dict[str, float]:
        """Flat names and values for a tracking server: `dice`, `dice.low`, `dice.high`, `dice/liver`, …"""
        flat: dict[str, float] = {}
        for summary in self.metrics:
            name = summary.metric + (f"/{_plain(summary.class_name)}" if summary.class_name else "")
            flat[name] = summary.interval.value
            if summary.interval.low is not None and summary.interval.high is not None:
                flat |= {f"{name}.low": summary.interval.low, f"{name}.high": summary.interval.high}
        return flat

    def to_json(self) -> str:
        """Floats survive exactly."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of `to_json`."""
        return cls.model_validate_json(text)


class Comparison(_Noun):
    """Challenger minus champion on the same patients.

    `differences` are paired; `n_unmatched` counts the cases that only one of the two was judged on.
    """

    kind: Kind
    dataset: str
    champion: str
    challenger: str
    primary: str
    differences: tuple[MetricSummary, ...]
    tests: tuple[PairedTest, ...] = ()
    subgroups: tuple[Subgroup, ...] = ()  # their metrics are differences too
    n_patients: int = Field(ge=1)
    n_cases: int = Field(ge=1)
    n_unmatched: int = Field(0, ge=0)

    @property
    def primary_difference(self) -> Interval:
        """What the promotion gate looks at."""
        for summary in self.differences:
            if summary.metric == self.primary and summary.class_name is None:
                return summary.interval
        raise NotFoundError(f"the comparison holds no difference of {self.primary!r}")

    def to_json(self) -> str:
        """Floats survive exactly."""
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of `to_json`."""
        return cls.model_validate_json(text)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture that stands by itself: `name` is fit for a file name, `alt` says in words what is seen."""

    name: str
    title: str
    alt: str
    data: bytes
    media_type: Literal["image/svg+xml", "image/png"] = "image/svg+xml"

    @property
    def data_uri(self) -> str:
        """For `<img src=…>`, in pages that may fetch nothing."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode()}"

    @property
    def file_name(self) -> str:
        """`name` with its suffix."""
        return f"{self.name}.{'svg' if self.media_type == 'image/svg+xml' else 'png'}"


def _plain(name: str) -> str:
    """A class's name in the characters that MLflow allows in a metric's."""
    return re.sub(r"[^\w\- .]", "_", name, flags=re.ASCII)
