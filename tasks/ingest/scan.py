"""A scan: every file below some paths, told apart into images, labels and the rest, and grouped into series."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from models.errors import BadInputError, HeaderError, NotFoundError
from models.hashing import content_key
from models.pseudonyms import Pseudonymizer
from models.series import InstanceHeader, Kind, ScannedSeries, Source
from tasks.ingest.headers import DicomdirError, NotDicomError, read_header
from tasks.ingest.sources import archive_kind, members, reaching, read_source, resolve_dicomdir, walk
from tasks.progress import stage

_STORAGE: Final = "1.2.840.10008.5.1.4.1.1."
_SECONDARY_CAPTURE: Final = _STORAGE + "7"
_LABEL_CLASSES: Final[dict[str, Kind]] = {
    _STORAGE + "66.4": "SEG",
    _STORAGE + "66.7": "SEG",
    _STORAGE + "481.3": "RTSTRUCT",
}
_OTHER_NUMBERS: Final = (
    *("9.", "11.", "30", "66", "67", "68.", "77.1.6", "78.", "79.", "80.", "88."),
    *("104.", "200.", "481."),
)
_OTHER_CLASSES: Final = tuple(_STORAGE + number for number in _OTHER_NUMBERS)
_OTHER_MODALITIES: Final = frozenset(
    {"AU", "DOC", "ECG", "FID", "HD", "KO", "M3D", "PLAN", "PR", "REG", "RTDOSE", "RTIMAGE", "RTPLAN", "RTRECORD"}
    | {"RWV", "SM", "SR", "STAIN", "TEXTUREMAP"}
)
_SINGLE_SHOT: Final = frozenset({"CR", "DX", "MG", "IO", "PX", "RG", "US", "XA", "RF"})
"""Modalities whose images also travel as Secondary Capture, as public X-ray collections do."""
_CHUNK: Final = 32
_BATCH: Final = 8192


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that belongs to no series, by the digest of its bytes, and why."""

    digest: str
    error: BadInputError


@dataclass(slots=True)
class Scan:
    """What a scan found. `series` and `labels` hold identities."""

    series: list[ScannedSeries] = field(default_factory=list)
    labels: list[ScannedSeries] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    files: int = 0
    instances: int = 0
    not_dicom: int = 0
    not_images: int = 0


_Found = InstanceHeader | Problem | list[Source] | Literal["not-dicom", "dicomdir"]


class Scanner:
    """Scans with a few threads: reading headers is mostly waiting for the disk."""

    def __init__(self, pseudonymizer: Pseudonymizer, *, workers: int) -> None:
        self._pseudonymizer, self._workers = pseudonymizer, workers

    def scan(self, paths: Sequence[str]) -> Scan:
        """Everything at or below `paths`. Raises NotFoundError for a path that does not exist."""
        result, headers = Scan(), list[InstanceHeader]()
        given = {str(Path(path).absolute()) for path in paths}
        with ThreadPoolExecutor(self._workers) as pool, stage("scan", unit="files") as running:
            pending = walk(paths)
            while batch := list(islice(pending, _BATCH)):
                result.files += len(batch)
                running.advance(len(batch))
                while batch:
                    batch = self._sort(self._probe(batch, pool), result, headers, given=given)
            self._group(headers, result)
        return result

    def _probe(self, sources: Sequence[Source], pool: ThreadPoolExecutor) -> list[tuple[Source, _Found]]:
        chunks = [sources[n : n + _CHUNK] for n in range(0, len(sources), _CHUNK)]
        return [pair for part in pool.map(self._probe_all, chunks) for pair in part]

    def _probe_all(self, sources: Sequence[Source]) -> list[tuple[Source, _Found]]:
        return [(source, self._probe_one(source)) for source in sources]

    def _probe_one(self, source: Source) -> _Found:
        try:
            with reaching():
                return read_header(source)
        except DicomdirError:
            return "dicomdir"
        except NotDicomError:
            return self._unfold(source)
        except BadInputError as error:
            return Problem(_digest(source), error)
        except NotFoundError as error:
            if not os.path.lexists(source.path):
                # Gone since the walk saw it: a receiver renames what it has finished.
                return "not-dicom"
            # Its bytes cannot be hashed and its path may name a patient: a keyed hash of that.
            hidden = self._pseudonymizer.uid(content_key(source.path, source.member))
            return Problem(hidden, HeaderError(error.what, reason="unreadable"))

    def _unfold(self, source: Source) -> _Found:
        """The members of an archive; archives inside archives are left alone."""
        if source.member is not None:
            return "not-dicom"
        try:
            with reaching():
                return members(source.path) if archive_kind(source.path) else "not-dicom"
        except BadInputError as error:
            return Problem(_digest(source), error)

    def _sort(
        self, found: Iterable[tuple[Source, _Found]], result: Scan, headers: list[InstanceHeader], *, given: set[str]
    ) -> list[Source]:
        """Count what was found; returns what is to be looked at in turn."""
        more: list[Source] = []
        for source, what in found:
            if isinstance(what, InstanceHeader):
                headers.append(what)
            elif isinstance(what, Problem):
                result.problems.append(what)
            elif isinstance(what, list):
                more += what
            elif what == "dicomdir":
                result.not_images += 1
                if source.path in given and source.member is None:
                    more += self._listed(source, result)
            else:
                result.not_dicom += 1
        return more

    def _listed(self, source: Source, result: Scan) -> list[Source]:
        """What a DICOMDIR that was named itself lists; in a tree it is walked anyway."""
        try:
            found, missing = resolve_dicomdir(source.path)
        except BadInputError as error:
            result.problems.append(Problem(_digest(source), error))
            return []
        if missing:
            gaps = HeaderError(f"{missing} of the files it lists are missing", reason="dicomdir-missing-files")
            result.problems.append(Problem(_digest(source), gaps))
        result.files += len(found)
        return found

    def _group(self, headers: list[InstanceHeader], result: Scan) -> None:
        groups: dict[tuple[str, str, Kind], list[InstanceHeader]] = defaultdict(list)
        for header in headers:
            kind = kind_of(header)
            if kind is None:
                result.not_images += 1
            else:
                groups[header.study_uid, header.series_uid, kind].append(header)
        result.instances = len(headers)
        for (study, series, kind), found in groups.items():
            instances = tuple(_unique(found))
            scanned = ScannedSeries(
                key=self._key(series, kind, instances),
                kind=kind,
                modality=instances[0].modality,
                study_uid=study,
                series_uid=series,
                instances=instances,
            )
            (result.series if kind == "image" else result.labels).append(scanned)

    def _key(self, series: str, kind: Kind, instances: Sequence[InstanceHeader]) -> str:
        """Changes with the set of instances, their sizes and times: a series that grew is another one to ingest."""
        parts = sorted([h.sop_uid, h.size, h.modified] for h in instances)
        # UIDs are hashed once under the secret: a key must not be a guess at them.
        return content_key("scan", kind, self._pseudonymizer.uid(series), self._pseudonymizer.uid(content_key(parts)))


def kind_of(header: InstanceHeader) -> Kind | None:
    """Image, SEG or RTSTRUCT; None for what is neither (reports, presentation states, screen shots, doses, …)."""
    sop_class, modality = header.sop_class, header.modality
    if label := _LABEL_CLASSES.get(sop_class):
        return label
    if not sop_class and modality in ("SEG", "RTSTRUCT"):
        return "SEG" if modality == "SEG" else "RTSTRUCT"
    if sop_class.startswith(_OTHER_CLASSES) or modality in _OTHER_MODALITIES:
        return None
    if sop_class and not sop_class.startswith(_STORAGE):
        return None
    if (sop_class == _SECONDARY_CAPTURE or sop_class.startswith(f"{_SECONDARY_CAPTURE}.")) and (
        modality not in _SINGLE_SHOT
    ):
        return None
    return "image" if header.has_pixels or header.rows else None


def _unique(headers: list[InstanceHeader]) -> list[InstanceHeader]:
    """Without copies: of instances of one UID and one content the first stays. Others stay, and will be refused."""
    by_uid: dict[str, list[InstanceHeader]] = defaultdict(list)
    for header in headers:
        by_uid[header.sop_uid].append(header)
    kept = []
    for same in by_uid.values():
        if len(same) > 1:
            same = list({_digest(h.source): h for h in reversed(same)}.values())[::-1]
        kept += same
    return kept


def _digest(source: Source) -> str:
    """SHA-256 of an instance's bytes; of a member that cannot be read: of its archive's and its name."""
    if source.member is not None:
        try:
            return hashlib.sha256(read_source(source)).hexdigest()
        except BadInputError:
            return content_key(_digest(Source(source.path)), source.member)
    with reaching(), Path(source.path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def workers_for(asked: int) -> int:
    """`asked`, or as many as there are processors, up to 8."""
    return asked if asked > 0 else min(8, len(os.sched_getaffinity(0)))
