"""Ingest: from files to de-identified volumes with their catalog rows, one series at a time.

What is bad goes to quarantine with its reason and is returned, not raised; what may heal is raised. Doing it again
finds it done: a series is keyed by its instances' digests, a volume by its series.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy import update
from sqlalchemy.orm import Session

from models.errors import BadInputError, HeaderError, MemoryExhaustedError
from models.hashing import content_key
from models.pseudonyms import Pseudonymizer
from models.refs import SeriesRef, VolumeRef
from models.series import InstanceHeader, ScannedSeries, Source
from models.volume import Volume
from tasks.ingest.deidentify import Deidentifier, to_attributes
from tasks.ingest.frames import full_header
from tasks.ingest.headers import header_bytes
from tasks.ingest.pixels import Intake
from tasks.ingest.rows import circumstances, identities, names_of, places_of, problem_row, refused_row, volume_row
from tasks.ingest.scan import Scanner, workers_for
from tasks.ingest.sources import reaching
from tasks.ingest.stack import Refused, Stack, stacks_of
from tasks.ingest.table import check_instances
from tasks.ingest.voxels import values_of
from tasks.stores.catalog import Catalog, by_parts
from tasks.stores.tables import Base, QuarantineRow, SeriesRow, StudyRow, VolumeRow, now
from tasks.stores.vault import Vault
from tasks.stores.volumes import VolumeStore

INGEST_VERSION: Final = 1
"""Part of every volume's key: raise it when the same files come to mean other voxels."""
SCANNED, INGESTED, ORIGINALS = "scan", "ingested", "series"
_FUNCTIONAL_GROUPS: Final = (0x52009229, 0x52009230)
_KEYS_PER_PUT: Final = 200


@dataclass(frozen=True, slots=True)
class IngestRules:
    """What a recipe allows: modalities without Burned In Annotation whose pixels show no names, and colour."""

    allow_without_burned_in: frozenset[str] = frozenset()
    colour: bool = False


@dataclass(frozen=True, slots=True)
class ScanReport:
    """What lies below the scanned paths. `not_images`: reports, presentation states, screen shots, …"""

    series: tuple[SeriesRef, ...]
    labels: tuple[SeriesRef, ...]
    files: int
    instances: int
    not_dicom: int
    not_images: int
    quarantined: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one series. `existed`: nothing was left to do. `quarantined`: the reasons."""

    ref: SeriesRef
    volumes: tuple[VolumeRef, ...]
    quarantined: tuple[str, ...]
    existed: bool
    instances: int


class Ingestor:
    """Scans and ingests. Safe to share between threads; `workers` threads each (0: one a processor)."""

    def __init__(
        self,
        catalog: Catalog,
        vault: Vault,
        volumes: VolumeStore,
        pseudonymizer: Pseudonymizer,
        rules: IngestRules,
        *,
        workers: int = 0,
    ) -> None:
        self._catalog, self._vault, self._volumes = catalog, vault, volumes
        self._pseudonymizer, self._rules = pseudonymizer, rules
        self._deidentifier = Deidentifier(pseudonymizer, allow_without_burned_in=rules.allow_without_burned_in)
        self._workers = workers_for(workers)

    # -- scan ---------------------------------------------------------------------------------------------------

    def scan(self, paths: Sequence[str]) -> ScanReport:
        """Find every series at or below `paths`, and seal what was found in the vault.

        Files that belong to no series go to quarantine. Raises NotFoundError for a path that does not exist.
        """
        found = Scanner(self._pseudonymizer, workers=self._workers).scan(paths)
        scanned = [*found.series, *found.labels]
        for start in range(0, len(scanned), _KEYS_PER_PUT):
            part = scanned[start : start + _KEYS_PER_PUT]
            self._vault.put_many(SCANNED, {series.key: series.to_json() for series in part})
        if found.problems:
            self._set_aside([problem_row(problem) for problem in found.problems])
        return ScanReport(
            series=tuple(SeriesRef.to(series.key) for series in found.series),
            labels=tuple(SeriesRef.to(series.key) for series in found.labels),
            files=found.files,
            instances=found.instances,
            not_dicom=found.not_dicom,
            not_images=found.not_images,
            quarantined=len(found.problems),
        )

    # -- ingest -------------------------------------------------------------------------------------------------

    def ingest(self, ref: SeriesRef) -> Outcome:
        """Make the volumes of one scanned series.

        Raises TransientError where trying again may help, NotFoundError where the scan is out of date.
        """
        if (done := self._remembered(ref)) is not None:
            return done
        series = ScannedSeries.from_json(self._vault.get(SCANNED, ref.key))
        try:
            with ThreadPoolExecutor(self._workers) as pool:
                return _SeriesRun(self, ref, series, pool).outcome()
        except MemoryExhaustedError:
            raise
        except MemoryError:
            raise MemoryExhaustedError("too little memory for this series", where=ref.key) from None

    def _remembered(self, ref: SeriesRef) -> Outcome | None:
        """The outcome of the very same files (UIDs, sizes and times), without reading them again."""
        record = self._vault.get_many(INGESTED, [ref.key]).get(ref.key)
        if record is None or record["rules"] != self._rules_key:
            return None
        rows = self._catalog.find(VolumeRow, VolumeRow.series == record["series"])
        known = {row.volume for row in rows if self._volumes.exists(row.volume)}
        if not record["volumes"] or not known.issuperset(record["volumes"]):
            return None
        volumes = tuple(VolumeRef.to(key) for key in record["volumes"])
        return Outcome(ref, volumes, tuple(record["quarantined"]), existed=True, instances=record["instances"])

    @property
    def _rules_key(self) -> str:
        rules = self._rules
        return content_key(INGEST_VERSION, sorted(rules.allow_without_burned_in), rules.colour)

    # -- quarantine ---------------------------------------------------------------------------------------------

    def _set_aside(self, rows: Sequence[QuarantineRow]) -> None:
        """Insert what is new, and open again what was resolved and came back."""
        entries = [row.entry for row in rows]
        self._catalog.add(*rows)
        closed = (QuarantineRow.entry.in_(entries), QuarantineRow.resolved_at.is_not(None))
        if self._catalog.count(QuarantineRow, *closed):
            self._catalog.change(QuarantineRow, *closed, resolved_at=None)

    def _resolve(self, session: Session, subjects: Sequence[str], *, but: Sequence[str]) -> None:
        """Mark earlier entries of these subjects as resolved, but for those that were just made."""
        for part in by_parts(subjects):
            still_open = (
                QuarantineRow.subject.in_(part),
                QuarantineRow.resolved_at.is_(None),
                QuarantineRow.entry.not_in(list(but)),
            )
            session.execute(update(QuarantineRow).where(*still_open).values(resolved_at=now()))


@dataclass(slots=True)
class _Made:
    """New volumes' rows, what was refused, and a header of theirs, original and de-identified."""

    rows: list[VolumeRow] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    headers: tuple[Any, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Done:
    """All volumes of a series, and the reasons and quarantine entries of what is none."""

    volumes: tuple[str, ...]
    reasons: tuple[str, ...]
    entries: tuple[str, ...]


class _SeriesRun:
    """One series on its way through ingest."""

    def __init__(self, ingestor: Ingestor, ref: SeriesRef, series: ScannedSeries, pool: ThreadPoolExecutor) -> None:
        self._room, self._ref, self._series, self._pool = ingestor, ref, series, pool
        self._pseudonyms = {h.sop_uid: ingestor._pseudonymizer.uid(h.sop_uid) for h in series.instances}
        self._names = names_of(series, ingestor._pseudonymizer)
        self._last: tuple[Source, Any, Any] | None = None

    def outcome(self) -> Outcome:
        stacks, refused = stacks_of(self._series)
        intake = Intake(self._series.instances, stacks, self._pool)
        intake.read()
        digests = intake.digests
        key = content_key(self._names.series, sorted(digests[h.source] for h in self._series.instances))
        keys = [content_key(key, number, INGEST_VERSION) for number in range(len(stacks))]
        rows_there = self._room._catalog.find(VolumeRow, VolumeRow.series == key)
        # A volume whose damaged bytes were removed keeps its row, and is written again under the same key.
        known = {row.volume for row in rows_there if self._room._volumes.exists(row.volume)}
        missing = [n for n in range(len(stacks)) if keys[n] not in known]
        made = _Made()
        if missing:
            made = self._make(intake, key, keys, missing)
            known |= {row.volume for row in made.rows}
            refused += made.refused
        rows = {row.entry: row for row in (refused_row(self._names, r, digests) for r in refused)}
        if rows:
            self._room._set_aside(list(rows.values()))
        done = [k for k in keys if k in known]
        reasons = tuple(dict.fromkeys(r.error.reason for r in refused))
        if done:
            self._commit(key, keys, made, intake, _Done(tuple(done), reasons, tuple(rows)))
        existed = bool(done) and not set(done) & {keys[n] for n in missing}
        volumes = tuple(VolumeRef.to(k) for k in done)
        return Outcome(self._ref, volumes, reasons, existed, len(self._series.instances))

    # -- volumes ------------------------------------------------------------------------------------------------

    def _make(self, intake: Intake, key: str, keys: list[str], numbers: list[int]) -> _Made:
        """Publish the volumes of these stacks; their rows are left to be committed."""
        made, wrong = _Made(), self._check_table(intake)
        for number in numbers:
            stack = intake.slots[number].stack
            try:
                self._check_patient()
                dataset, clean = self._headers(stack.slices[0].header)
                volume = self._volume(intake, number, dataset, clean)
                if wrong:
                    raise wrong
            except BadInputError as error:
                made.refused.append(Refused(stack.slices, error))
                continue
            self._room._volumes.write(keys[number], volume)
            known = circumstances(dataset, self._room._pseudonymizer)
            made.rows.append(volume_row(keys[number], key, self._names, volume, clean, stack, known))
            made.headers = made.headers or (dataset, clean)
            intake.slots[number].stored = None
        intake.release()
        return made

    def _headers(self, header: InstanceHeader) -> tuple[Any, Any]:
        """An instance's whole header, original and de-identified. Raises HeaderError.

        The last one is kept: a multi-frame instance may hold hundreds of stacks.
        """
        if self._last is None or self._last[0] != header.source:
            dataset = _header_of(header)
            # Frames have their geometry already; their groups would be most of the stored header.
            for tag in _FUNCTIONAL_GROUPS:
                dataset.pop(tag, None)
            self._last = header.source, dataset, self._room._deidentifier.deidentify(dataset)
        return self._last[1:]

    def _check_patient(self) -> None:
        """Raise HeaderError where another series of the study names another patient."""
        known = self._room._catalog.get(StudyRow, self._names.study)
        if known is not None and known.patient != self._names.patient:
            raise HeaderError(
                "other series of this study name another patient",
                reason="mixed-patients",
                hint="correct the Patient ID at its source",
            )

    def _volume(self, intake: Intake, number: int, dataset: Any, clean: Any) -> Volume:
        """One volume. Raises BadInputError."""
        room, stack = self._room, intake.slots[number].stack
        self._check_privacy(stack, dataset)
        intake.decode(number)
        values = values_of(intake, number, dataset, colour=room._rules.colour)
        frame = stack.slices[0].header.frame_of_reference
        geometry = replace(stack.geometry, frame_of_reference=room._pseudonymizer.uid(frame) if frame else None)
        return Volume(
            array=values.array,
            geometry=geometry,
            modality=self._series.modality,
            unit=values.unit,
            attributes=to_attributes(clean),
            instances=tuple(dict.fromkeys(self._pseudonyms[s.header.sop_uid] for s in stack.slices)),
            notes=stack.notes + values.notes,
        )

    def _check_privacy(self, stack: Stack, dataset: Any) -> None:
        """Raise PrivacyError for the least certain of the instances: their Burned In Annotation may differ."""
        doubts = {"YES": 0, "": 1, "NO": 2}
        worst = min((s.header for s in stack.slices), key=lambda h: doubts.get(h.burned_in, 1))
        first = stack.slices[0].header
        self._room._deidentifier.check_burned_in(dataset if worst.burned_in == first.burned_in else _header_of(worst))

    def _check_table(self, intake: Intake) -> BadInputError | None:
        """The series' instances against their schema."""
        try:
            check_instances(self._series.instances, self._pseudonyms, intake.digests, where=self._names.series)
        except HeaderError as error:
            return error
        return None

    def _commit(self, key: str, keys: list[str], made: _Made, intake: Intake, done: _Done) -> None:
        """One transaction makes the series exist: rows, what the vault keeps of it, and that nothing is left to do."""
        names, room = self._names, self._room
        subjects = [names.series, *(digest[:32] for digest in intake.digests.values())]
        record = {
            "series": key,
            "rules": room._rules_key,
            "volumes": done.volumes,
            "quarantined": done.reasons,
            "instances": len(self._series.instances),
        }
        with room._catalog.transaction() as session:
            if made.headers is not None:
                original, clean = made.headers
                places = {keys[n]: places_of(slots.stack.slices) for n, slots in enumerate(intake.slots)}
                room._vault.seal(session, ORIGINALS, key, identities(self._series, original, places))
                for row in self._rows(key, made, clean):
                    room._catalog.insert(session, row)
            room._resolve(session, subjects, but=done.entries)
            room._vault.seal(session, INGESTED, self._ref.key, record)

    def _rows(self, key: str, made: _Made, clean: Any) -> list[Base]:
        """Study, series and volumes: each after what it refers to."""
        names = self._names
        study = StudyRow(study=names.study, patient=names.patient, study_date=str(clean.get("StudyDate") or ""))
        series = SeriesRow(
            series=key,
            series_uid=names.series,
            study=names.study,
            patient=names.patient,
            modality=names.modality,
            description=str(clean.get("SeriesDescription") or ""),
            instances=len(self._series.instances),
        )
        return [study, series, *made.rows]


def _header_of(header: InstanceHeader) -> Any:
    with reaching():
        return full_header(header_bytes(header))
