"""From a scanned label series to masks in the volume store and rows in the catalog."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.errors import BadInputError, HeaderError, LabelError, MemoryExhaustedError, NotFoundError
from models.hashing import content_key
from models.pseudonyms import Pseudonymizer
from models.refs import LabelRef, SeriesRef
from models.series import InstanceHeader, ScannedSeries
from models.volume import Mask
from tasks.ingest.labels.match import find_volume
from tasks.ingest.labels.parts import PlacedLabel
from tasks.ingest.labels.returned import Ours, returned
from tasks.ingest.labels.rtstruct import read_rtstruct
from tasks.ingest.labels.seg import read_seg
from tasks.ingest.sources import read_source
from tasks.stores.catalog import Catalog
from tasks.stores.results import keep_returned
from tasks.stores.tables import LabelRow, QuarantineRow, VolumeRow, now
from tasks.stores.vault import Vault
from tasks.stores.volumes import VolumeStore

VERSION = 1
"""Counts up whenever the same file would give another mask than before."""

STAGE = "labels"
_DONE = "labelled"


@dataclass(frozen=True, slots=True)
class LabelOutcome:
    """What became of one label series. `quarantined`: the reasons. `existed`: nothing was left to do."""

    ref: SeriesRef
    labels: tuple[LabelRef, ...]
    quarantined: tuple[str, ...]
    existed: bool


class LabelIngestor:
    """Puts SEG and RTSTRUCT on their images. `words` are further harmless words in structures' names."""

    def __init__(
        self,
        catalog: Catalog,
        vault: Vault,
        volumes: VolumeStore,
        pseudonymizer: Pseudonymizer,
        *,
        words: frozenset[str] = frozenset(),
    ) -> None:
        self._catalog, self._vault, self._volumes = catalog, vault, volumes
        self._pseudonymizer = pseudonymizer
        self._words = words
        self._rules = content_key(VERSION, sorted(words))

    def ingest(self, ref: SeriesRef) -> LabelOutcome:
        """Each instance of a scanned label series becomes a label, or goes to quarantine with its reason.

        Our own results, which a PACS sends us again, are passed over. Raises TransientError where trying again may
        help, NotFoundError where the vault has no record of the scan.
        """
        try:
            return self._ingest(ref)
        except MemoryExhaustedError:
            raise
        except MemoryError:
            raise MemoryExhaustedError("too little memory for this label", where=ref.key) from None

    def _ingest(self, ref: SeriesRef) -> LabelOutcome:
        series = ScannedSeries.from_json(self._vault.get("scan", ref.key))
        patient = self._patient(series.instances[0])
        images = self._catalog.count(VolumeRow, VolumeRow.patient == patient)
        if (done := self._remembered(ref, images)) is not None:
            return done
        labels: list[str] = []
        entries: dict[str, str] = {}
        new = 0
        ours = Ours.of(self._catalog, self._pseudonymizer.uid(series.study_uid))
        for header in series.instances:
            if header.sop_uid and self._pseudonymizer.uid(header.sop_uid) in ours.objects:
                continue
            digest = ""
            try:
                content = _read(header)
                digest = hashlib.sha256(content).hexdigest()
                key, made = self._one(series, content, digest, ours)
                labels.append(key)
                new += made
            except BadInputError as error:
                part = digest or self._pseudonymizer.uid(header.sop_uid)
                entries[self._set_aside(series, patient, error, part)] = error.reason
        settle(self._catalog, self._pseudonymizer.uid(series.series_uid), list(entries))
        labels = list(dict.fromkeys(labels))
        if not entries:
            self._vault.put(_DONE, ref.key, {"labels": labels, "images": images, "rules": self._rules})
        refs = tuple(map(LabelRef.to, labels))
        return LabelOutcome(ref, refs, tuple(dict.fromkeys(entries.values())), existed=not new and not entries)

    def _remembered(self, ref: SeriesRef, images: int) -> LabelOutcome | None:
        """The outcome of the very same files, unless the patient has further images by now: one may fit better."""
        record = self._vault.get_many(_DONE, [ref.key]).get(ref.key)
        if record is None or (record["images"], record["rules"]) != (images, self._rules):
            return None
        if self._catalog.count(LabelRow, LabelRow.label.in_(record["labels"])) < len(record["labels"]):
            return None
        if not all(map(self._volumes.exists, record["labels"])):
            return None
        return LabelOutcome(ref, tuple(map(LabelRef.to, record["labels"])), (), existed=True)

    def _one(self, series: ScannedSeries, content: bytes, digest: str, ours: Ours) -> tuple[str, bool]:
        label = self._parsed(series, content, self._words | ours.words)
        match = find_volume(label, self._catalog)
        key = content_key("label", match.volume.volume, digest, self._rules)
        if self._catalog.get(LabelRow, key) and self._volumes.exists(key):
            return key, False
        # Only a flat image's label needs the image's instances.
        flat = not label.belonging.frames
        instances = self._volumes.open(match.volume.volume).about["instances"] if flat else ()
        mask = label.mask(match.geometry, instances)
        keep_returned(self._vault, key, returned(content, ours.objects, self._pseudonymizer))
        store_mask(self._catalog, self._volumes, key, mask, match.volume, digest, match.notes)
        return key, True

    def _parsed(self, series: ScannedSeries, content: bytes, words: frozenset[str]) -> PlacedLabel:
        match series.kind:
            case "SEG":
                return read_seg(content, self._pseudonymizer, words=words)
            case "RTSTRUCT":
                return read_rtstruct(content, self._pseudonymizer, words=words)
            case _:
                raise LabelError(f"a series of {series.modality} is no label", reason="not-a-label")

    def _set_aside(self, series: ScannedSeries, patient: str | None, error: BadInputError, part: str) -> str:
        return quarantine(
            self._catalog,
            self._pseudonymizer.uid(series.series_uid),
            part,
            error,
            patient=patient,
            study=self._pseudonymizer.uid(series.study_uid),
            modality=series.modality,
        )

    def _patient(self, header: InstanceHeader) -> str | None:
        try:
            return self._pseudonymizer.patient(header.patient_id or header.study_uid)
        except HeaderError:
            return None


def store_mask(
    catalog: Catalog,
    volumes: VolumeStore,
    key: str,
    mask: Mask,
    volume: VolumeRow,
    digest: str,
    notes: tuple[str, ...] = (),
) -> None:
    """Publish a mask, then commit its row."""
    volumes.write_mask(key, mask)
    catalog.add(
        LabelRow(
            label=key,
            patient=volume.patient,
            source=mask.source,
            study=volume.study,
            series_uid=volume.series_uid,
            volume=volume.volume,
            segments=_segments(mask),
            source_digest=digest,
            notes=[*notes, *mask.notes],
        )
    )


def _segments(mask: Mask) -> list[Any]:
    return [
        {"number": s.number, "name": s.name, "code": s.code, "voxels": int(np.count_nonzero(plane >= 128))}
        for s, plane in zip(mask.segments, mask.occupancy, strict=True)
    ]


def quarantine(
    catalog: Catalog,
    subject: str,
    digest: str,
    error: BadInputError,
    *,
    patient: str | None = None,
    study: str | None = None,
    modality: str = "",
) -> str:
    """Set a label aside; returns the entry. One that was resolved and fails again is open again."""
    entry = content_key("quarantine", STAGE, subject, error.reason, digest)
    row = QuarantineRow(
        entry=entry,
        stage=STAGE,
        subject=subject,
        reason=error.reason,
        what=error.what,
        patient=patient,
        study=study,
        modality=modality,
        hint=error.hint or "",
        instances=1,
    )
    if not catalog.add(row):
        catalog.change(QuarantineRow, QuarantineRow.entry == entry, resolved_at=None)
    return entry


def settle(catalog: Catalog, subject: str, still: Collection[str]) -> None:
    """Resolve what was wrong with `subject` before and is not among the entries that are `still` open."""
    catalog.change(
        QuarantineRow,
        QuarantineRow.subject == subject,
        QuarantineRow.stage == STAGE,
        QuarantineRow.resolved_at.is_(None),
        QuarantineRow.entry.not_in(list(still)),
        resolved_at=now(),
    )


def _read(header: InstanceHeader) -> bytes:
    try:
        return read_source(header.source)
    except NotFoundError as error:
        raise LabelError(error.what, reason="source-gone", hint=error.hint) from None
