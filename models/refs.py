"""What passes through doors: small references, never arrays and never identities."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, StringConstraints

Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]


class Ref(BaseModel):
    """A reference to one stored thing, by its content key."""

    model_config = ConfigDict(frozen=True)
    key: Key

    @classmethod
    def to(cls, key: str) -> Self:
        """The reference to `key`; a malformed key (a path, say) is refused."""
        return cls(key=key)

    def __str__(self) -> str:
        return self.key


class BatchRef(Ref):
    """A list of places to ingest from, sealed in the vault because paths may name patients."""


class SeriesRef(Ref):
    """A scanned series, waiting to be ingested; its headers are sealed in the vault."""


class StudyRef(Ref):
    """A study, by its pseudonymous key."""


class StudyVersionRef(Ref):
    """A study as it was when it was held to be whole: one set of instances, by their content key."""


class AnalysisRef(Ref):
    """What one package said of one study version."""


class DeliveryRef(Ref):
    """The results of one analysis on their way to one destination."""


class VolumeRef(Ref):
    """A de-identified image in the volume store."""


class CaseRef(VolumeRef):
    """A volume with those beside it that are its further channels, "" where one is missing."""

    channels: tuple[Key | Literal[""], ...] = ()


class LabelRef(Ref):
    """A label in the catalog (and, for masks, in the volume store)."""


class CorrectionRef(Ref):
    """A label that corrected a prediction, and how far the prediction was from it."""


class DatasetRef(Ref):
    """An immutable dataset manifest, by its content hash."""


class PlanRef(Ref):
    """A stored plan, by its content hash."""


class PreparedRef(Ref):
    """All prepared arrays of one dataset under one plan."""


class PackageRef(Ref):
    """A model package, by its content key."""


class EvaluationRef(Ref):
    """The evaluation of one package on one dataset."""
