"""The catalog's and the vault's tables. Every identifier but the vault's ciphertext is a pseudonym or a content key."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column
from sqlalchemy.types import TypeDecorator


class _Utc(TypeDecorator[datetime]):
    """In UTC, and aware of it, on every database: SQLite forgets the zone, PostgreSQL answers in its own."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def now() -> datetime:
    """The present, in UTC."""
    return datetime.now(UTC)


class Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
    """Rows are dataclasses; names of constraints are stable so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        dict[str, Any]: JSON,
        list[Any]: JSON,
        datetime: _Utc,
        bytes: LargeBinary,
        str: String,
    }


def _partial(name: str, *columns: str, where: str, lite: str = "") -> Index:
    """An index of the few rows that are looked for again and again. `lite`: as SQLite has it, without booleans."""
    return Index(name, *columns, postgresql_where=text(where), sqlite_where=text(lite or where))


class StudyRow(Base):
    """A study that has been seen."""

    __tablename__ = "studies"
    study: Mapped[str] = mapped_column(primary_key=True)  # pseudonymous Study Instance UID
    patient: Mapped[str] = mapped_column(index=True)
    study_date: Mapped[str] = mapped_column(default="")  # YYYYMMDD, shifted
    created_at: Mapped[datetime] = mapped_column(default_factory=now)


class SeriesRow(Base):
    """A series whose instances were ingested: one row per set of instances."""

    __tablename__ = "series"
    series: Mapped[str] = mapped_column(primary_key=True)  # content key of (series UID, instance digests)
    series_uid: Mapped[str] = mapped_column(index=True)  # pseudonymous
    study: Mapped[str] = mapped_column(ForeignKey("studies.study"), index=True)
    patient: Mapped[str] = mapped_column(index=True)
    modality: Mapped[str]
    description: Mapped[str] = mapped_column(default="")
    instances: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(default_factory=now)


class VolumeRow(Base):
    """A volume in the volume store."""

    __tablename__ = "volumes"
    __table_args__ = (Index("ix_volumes_modality_description", "modality", "description"),)
    volume: Mapped[str] = mapped_column(primary_key=True)
    series: Mapped[str] = mapped_column(ForeignKey("series.series"), index=True)
    series_uid: Mapped[str] = mapped_column(index=True)
    study: Mapped[str] = mapped_column(ForeignKey("studies.study"), index=True)
    patient: Mapped[str] = mapped_column(index=True)
    modality: Mapped[str]
    unit: Mapped[str]
    frame_of_reference: Mapped[str | None] = mapped_column(index=True)
    shape_z: Mapped[int]
    shape_y: Mapped[int]
    shape_x: Mapped[int]
    spacing_z: Mapped[float]
    spacing_y: Mapped[float]
    spacing_x: Mapped[float]
    geometry: Mapped[dict[str, Any]]  # models.geometry.Geometry.to_json
    channels: Mapped[int] = mapped_column(default=1)
    description: Mapped[str] = mapped_column(default="")
    manufacturer: Mapped[str] = mapped_column(default="")
    model_name: Mapped[str] = mapped_column(default="")
    slice_thickness: Mapped[float | None] = mapped_column(default=None)
    notes: Mapped[list[Any]] = mapped_column(default_factory=list)
    # models.clinical.CHARACTERISTICS of the header, by keyword; None: taken in before they were kept
    characteristics: Mapped[dict[str, Any] | None] = mapped_column(default=None)
    created_at: Mapped[datetime] = mapped_column(default_factory=now)


class ClinicalRow(Base):
    """What a table says of a patient or a study, beside images."""

    __tablename__ = "clinical"
    clinical: Mapped[str] = mapped_column(primary_key=True)  # content key of (name, patient or study)
    name: Mapped[str] = mapped_column(index=True)  # the table's
    patient: Mapped[str | None] = mapped_column(default=None, index=True)  # None: the study's alone is known
    study: Mapped[str | None] = mapped_column(default=None, index=True)  # None: true of all the patient's studies
    content: Mapped[dict[str, Any]] = mapped_column(default_factory=dict)  # column, in lower case → text
    created_at: Mapped[datetime] = mapped_column(default_factory=now)


class LabelRow(Base):
    """The truth about a volume, a study or a patient: a mask in the volume store, or a class."""

    __tablename__ = "labels"
    __table_args__ = (Index("ix_labels_source_name", "source", "name"),)
    label: Mapped[str] = mapped_column(primary_key=True)
    patient: Mapped[str] = mapped_column(index=True)
    source: Mapped[str]  # SEG, RTSTRUCT, NIfTI, CSV
    study: Mapped[str | None] = mapped_column(default=None, index=True)
    series_uid: Mapped[str | None] = mapped_column(default=None, index=True)  # CSV: the image series it names
    volume: Mapped[str | None] = mapped_column(ForeignKey("volumes.volume"), default=None, index=True)
    name: Mapped[str] = mapped_column(default="", index=True)  # the label set of a CSV
    value: Mapped[str | None] = mapped_column(default=None)  # CSV: the class
    segments: Mapped[list[Any]] = mapped_column(default_factory=list)  # masks: number, name, code, voxels
    source_digest: Mapped[str] = mapped_column(default="", index=True)  # of the file it was read from
    notes: Mapped[list[Any]] = mapped_column(default_factory=list)
    created_at: Mapped[datetime] = mapped_column(default_factory=now, index=True)


class QuarantineRow(Base):
    """Something set aside, with its reason. Resolved when the same subject is ingested after all."""

    __tablename__ = "quarantine"
    # What was resolved is kept, and is most of it.
    __table_args__ = (_partial("ix_quarantine_open", "created_at", where="resolved_at IS NULL"),)
    entry: Mapped[str] = mapped_column(primary_key=True)  # content key of (subject, reason, digests)
    stage: Mapped[str]
    subject: Mapped[str] = mapped_column(index=True)  # series key, label key or file digest
    reason: Mapped[str] = mapped_column(index=True)
    what: Mapped[str]
    patient: Mapped[str | None] = mapped_column(default=None)
    study: Mapped[str | None] = mapped_column(default=None)
    modality: Mapped[str] = mapped_column(default="")
    hint: Mapped[str] = mapped_column(default="")
    instances: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[datetime] = mapped_column(default_factory=now)
    resolved_at: Mapped[datetime | None] = mapped_column(default=None)


class SplitRow(Base):
    """The side a patient is on, for good."""

    __tablename__ = "splits"
    patient: Mapped[str] = mapped_column(primary_key=True)
    split: Mapped[str]
    stratum: Mapped[str]
    origin: Mapped[str]  # drawn, imported
    created_at: Mapped[datetime] = mapped_column(default_factory=now)


class DatasetRecord(Base):
    """A dataset manifest in the dataset store."""

    __tablename__ = "datasets"
    dataset: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)
    kind: Mapped[str]
    classes: Mapped[list[Any]]
    counts: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default_factory=now)


class PlanRow(Base):
    """A plan and the fingerprint it was made from."""

    __tablename__ = "plans"
    plan: Mapped[str] = mapped_column(primary_key=True)  # content key of (dataset, recipe)
    dataset: Mapped[str] = mapped_column(ForeignKey("datasets.dataset"), index=True)
    document: Mapped[dict[str, Any]]
    fingerprint: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default_factory=now)


class PackageRow(Base):
    """A model package in the package store."""

    __tablename__ = "packages"
    package: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(index=True)  # the recipe's
    dataset: Mapped[str] = mapped_column(ForeignKey("datasets.dataset"), index=True)
    weights_sha256: Mapped[str]
    version: Mapped[str | None] = mapped_column(default=None)  # in the registry
    run: Mapped[str | None] = mapped_column(default=None)  # MLflow's run
    created_at: Mapped[datetime] = mapped_column(default_factory=now)


class EvaluationRow(Base):
    """One package judged on one dataset's test split."""

    __tablename__ = "evaluations"
    evaluation: Mapped[str] = mapped_column(primary_key=True)
    package: Mapped[str] = mapped_column(ForeignKey("packages.package"), index=True)
    dataset: Mapped[str] = mapped_column(ForeignKey("datasets.dataset"), index=True)
    metric: Mapped[str]
    value: Mapped[float]
    low: Mapped[float | None]
    high: Mapped[float | None]
    created_at: Mapped[datetime] = mapped_column(default_factory=now)


class DecisionRow(Base):
    """Who or what moved an alias, or why it stayed: the audit trail. Never changed, never deleted."""

    __tablename__ = "decisions"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True, init=False)
    name: Mapped[str] = mapped_column(index=True)
    action: Mapped[str]  # promoted, kept, rolled-back, retired, lost
    package: Mapped[str] = mapped_column(index=True)
    version: Mapped[str]
    before: Mapped[str | None] = mapped_column(default=None)  # the champion's version until then
    evaluation: Mapped[str | None] = mapped_column(default=None)
    reasons: Mapped[list[Any]] = mapped_column(default_factory=list)
    figures: Mapped[dict[str, Any]] = mapped_column(default_factory=dict)
    who: Mapped[str] = mapped_column(default="nocturne")
    created_at: Mapped[datetime] = mapped_column(default_factory=now)


class PredictionRow(Base):
    """What a package said of a volume."""

    __tablename__ = "predictions"
    __table_args__ = (Index("ix_predictions_package_created_at", "package", "created_at"),)
    prediction: Mapped[str] = mapped_column(primary_key=True)
    package: Mapped[str] = mapped_column(ForeignKey("packages.package"))
    volume: Mapped[str] = mapped_column(ForeignKey("volumes.volume"), index=True)
    result: Mapped[dict[str, Any]]  # measurements and confidence, per class
    seconds: Mapped[float] = mapped_column(default=0.0)
    facts: Mapped[dict[str, Any] | None] = mapped_column(default=None)  # models.plan.CaseFacts of the image
    uncertainty: Mapped[float | None] = mapped_column(default=None)  # 0 sure, 1 as unsure as can be
    created_at: Mapped[datetime] = mapped_column(default_factory=now, index=True)


class CorrectionRow(Base):
    """A prediction that somebody corrected: the label that came back, and how far the prediction was from it."""

    __tablename__ = "corrections"
    correction: Mapped[str] = mapped_column(primary_key=True)  # content key of (prediction, label)
    prediction: Mapped[str] = mapped_column(ForeignKey("predictions.prediction"), index=True)
    label: Mapped[str] = mapped_column(ForeignKey("labels.label"), index=True)
    package: Mapped[str] = mapped_column(ForeignKey("packages.package"), index=True)
    how: Mapped[str]  # referenced: it names our object; same-image: it lies on the image that was predicted
    scores: Mapped[list[Any]] = mapped_column(default_factory=list)  # per class: dice, volumes, …
    value: Mapped[float | None] = mapped_column(default=None)  # the mean of the primary metric over the classes
    created_at: Mapped[datetime] = mapped_column(default_factory=now, index=True)


class AlertRow(Base):
    """Something that moved since a model began to serve. Resolved when it is measured again and has moved back."""

    __tablename__ = "alerts"
    alert: Mapped[str] = mapped_column(primary_key=True)  # content key of (package, measure, first case of the window)
    name: Mapped[str] = mapped_column(index=True)  # the model's
    package: Mapped[str] = mapped_column(ForeignKey("packages.package"), index=True)
    kind: Mapped[str]  # input, output, quality
    measure: Mapped[str]
    how: Mapped[str]  # as models.watching.Shift
    value: Mapped[float]
    threshold: Mapped[float]
    cases: Mapped[int]
    told: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime] = mapped_column(default_factory=now, index=True)
    resolved_at: Mapped[datetime | None] = mapped_column(default=None, index=True)


class InstanceRow(Base):
    """An instance in the spool, by the digest of its bytes: one UID with two contents has two rows."""

    __tablename__ = "instances"
    instance: Mapped[str] = mapped_column(primary_key=True)  # tasks.stores.spool.digest_of
    sop_uid: Mapped[str] = mapped_column(index=True)  # pseudonymous, as all UIDs here
    series_uid: Mapped[str] = mapped_column(index=True)
    study: Mapped[str] = mapped_column(index=True)
    sop_class: Mapped[str]
    modality: Mapped[str] = mapped_column(default="")
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    source: Mapped[str] = mapped_column(default="")  # "listener", or the name of a feed, a folder or a peer
    received_at: Mapped[datetime] = mapped_column(default_factory=now, index=True)


class ArrivalRow(Base):
    """A study on its way in: what `completion` looks at."""

    __tablename__ = "arrivals"
    study: Mapped[str] = mapped_column(primary_key=True)
    source: Mapped[str]  # of the last instance: its completion rule holds
    first_at: Mapped[datetime]  # since the last version
    last_at: Mapped[datetime]
    told_at: Mapped[datetime | None] = mapped_column(default=None)  # the sender said that it is whole
    waiting: Mapped[int] = mapped_column(default=0, index=True)  # instances that no version holds yet
    conflicts: Mapped[int] = mapped_column(default=0)  # UIDs that came with other bytes
    version: Mapped[int] = mapped_column(default=0)  # the last one's number
    instances: Mapped[int] = mapped_column(default=0)  # that ever came


class StudyVersionRow(Base):
    """A study as it was when it was held to be whole. A late instance makes the next one."""

    __tablename__ = "study_versions"
    __table_args__ = (
        Index("ix_study_versions_outcome_completed_at", "outcome", "completed_at"),
        # Where every study stands, without the rows and their long lists.
        _partial("ix_study_versions_latest", "outcome", where="latest", lite="latest = 1"),
        _partial("ix_study_versions_later", "study", where="number > 1"),
    )
    version: Mapped[str] = mapped_column(primary_key=True)  # content key of (study, instance digests)
    study: Mapped[str] = mapped_column(index=True)
    number: Mapped[int]
    instances: Mapped[list[Any]]  # digests, sorted
    why: Mapped[str]  # quiet, told, cap
    flags: Mapped[list[Any]] = mapped_column(default_factory=list)  # conflict
    source: Mapped[str] = mapped_column(default="")
    completed_at: Mapped[datetime] = mapped_column(default_factory=now, index=True)
    started_at: Mapped[datetime | None] = mapped_column(default=None)
    finished_at: Mapped[datetime | None] = mapped_column(default=None, index=True)
    run: Mapped[str] = mapped_column(default="")  # the flow run that has it
    outcome: Mapped[str] = mapped_column(default="")  # tasks.receive.versions.Outcome
    detail: Mapped[str] = mapped_column(default="")
    latest: Mapped[bool] = mapped_column(default=True)  # of its study


class CursorRow(Base):
    """How far a feed has been read."""

    __tablename__ = "cursors"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]
    changed_at: Mapped[datetime] = mapped_column(default_factory=now)


class SeenRow(Base):
    """Something outside that was taken in and need not be fetched or read again."""

    __tablename__ = "seen"
    token: Mapped[str] = mapped_column(primary_key=True)  # keyed hash of (source, path or UID, size, time)
    source: Mapped[str] = mapped_column(index=True)
    seen_at: Mapped[datetime] = mapped_column(default_factory=now)


class OutboxRow(Base):
    """Something to be told outside, written with what it tells of; done once the other side has acknowledged it."""

    __tablename__ = "outbox"
    # Looked at every second; what was told long ago is nearly all of it.
    __table_args__ = (_partial("ix_outbox_waiting", "kind", "due_at", where="done_at IS NULL"),)
    message: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(index=True)  # event, delivery
    payload: Mapped[dict[str, Any]]  # pseudonyms and keys only
    due_at: Mapped[datetime] = mapped_column(default_factory=now, index=True)
    attempts: Mapped[int] = mapped_column(default=0)
    error: Mapped[str] = mapped_column(default="")  # of the last attempt
    created_at: Mapped[datetime] = mapped_column(default_factory=now)
    done_at: Mapped[datetime | None] = mapped_column(default=None, index=True)


class AnalysisRow(Base):
    """What one package said of one study version."""

    __tablename__ = "analyses"
    analysis: Mapped[str] = mapped_column(primary_key=True)  # content key of (version, package)
    version: Mapped[str] = mapped_column(ForeignKey("study_versions.version"), index=True)
    study: Mapped[str] = mapped_column(index=True)
    package: Mapped[str] = mapped_column(ForeignKey("packages.package"), index=True)
    name: Mapped[str]  # the model's
    model_version: Mapped[str] = mapped_column(default="")  # as registered
    role: Mapped[str] = mapped_column(default="champion")  # champion, shadow
    predictions: Mapped[list[Any]] = mapped_column(default_factory=list)
    outcome: Mapped[str] = mapped_column(default="predicted")  # predicted, nothing-fits, set-aside
    detail: Mapped[str] = mapped_column(default="")
    seconds: Mapped[float] = mapped_column(default=0.0)
    created_at: Mapped[datetime] = mapped_column(default_factory=now, index=True)


class DeliveryRow(Base):
    """Results of one analysis for one destination."""

    __tablename__ = "deliveries"
    delivery: Mapped[str] = mapped_column(primary_key=True)  # content key of (analysis, destination)
    analysis: Mapped[str] = mapped_column(ForeignKey("analyses.analysis"), index=True)
    study: Mapped[str] = mapped_column(index=True)
    destination: Mapped[str]
    state: Mapped[str] = mapped_column(default="waiting", index=True)  # waiting, sent, committed, refused
    objects: Mapped[list[Any]] = mapped_column(default_factory=list)  # {"kind": seg, sr, sc; "uid": pseudonymous}
    detail: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime] = mapped_column(default_factory=now)
    sent_at: Mapped[datetime | None] = mapped_column(default=None)
    committed_at: Mapped[datetime | None] = mapped_column(default=None)


class CommitmentRow(Base):
    """A storage commitment that was asked for; its answer may come on another association."""

    __tablename__ = "commitments"
    transaction: Mapped[str] = mapped_column(primary_key=True)  # pseudonymous transaction UID
    delivery: Mapped[str] = mapped_column(index=True)
    asked_at: Mapped[datetime] = mapped_column(default_factory=now, index=True)
    answered_at: Mapped[datetime | None] = mapped_column(default=None)
    failed: Mapped[list[Any]] = mapped_column(default_factory=list)  # pseudonymous UIDs that are not safe there


class VaultRow(Base):
    """One sealed record. Nothing here is readable without the vault's key."""

    __tablename__ = "vault"
    __table_args__ = (UniqueConstraint("kind", "key"), Index("ix_vault_kind_created_at", "kind", "created_at"))
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True, init=False)
    kind: Mapped[str]
    key: Mapped[str]
    key_id: Mapped[str]  # which vault key sealed it
    nonce: Mapped[bytes]
    sealed: Mapped[bytes]
    created_at: Mapped[datetime] = mapped_column(default_factory=now)
