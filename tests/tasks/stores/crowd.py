"""A hospital's catalog after some years, of any size: rows as they would be, of patients who never were.

Of `series` series a fifth are chest radiographs with a class each, and 2 % CT of the liver with a mask each, half a
percent of the patients without a side yet; two models have learnt from them every night and said something of every
image. The rest is what else a PACS holds. Instances stand for those of the last night alone: of older ones only the
counts in `series` are made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice, product
from typing import Any, Final

from sqlalchemy import Table, text

from tasks.stores.catalog import Catalog
from tasks.stores.tables import Base

LIVER: Final = "liver"
CHEST: Final = "chest"
NIGHTS: Final = 30
"""Versions that each of the two models has had."""
_DAYS: Final = 1000
_END: Final = datetime(2026, 10, 1, tzinfo=UTC)
_REGIONS = ("Abdomen", "Thorax", "Head", "Neck", "Pelvis", "Spine", "Knee", "Shoulder", "Heart", "Vessels")
_VARIANTS = tuple(f"{step} mm {kernel} {phase}" for step, kernel, phase in product((1, 2, 5), "abcde", ("", "c.m.")))
_MAKERS = (("SIEMENS", "Force"), ("GE MEDICAL SYSTEMS", "Revolution"), ("Philips", "Ingenia"))

Value = str | int | float | bytes | None
Row = tuple[Value, ...]


@dataclass(frozen=True)
class Crowd:
    """How many series there are, and from them everything else."""

    series: int

    @property
    def studies(self) -> int:
        """Of four series each."""
        return self.series // 4

    @property
    def patients(self) -> int:
        """Of two studies each."""
        return self.series // 8

    def fill(self, catalog: Catalog, told: Callable[[str, int], object] = lambda table, rows: None) -> int:
        """Write every row, past the constraints and the indexes, which are made again; returns how many.

        A PostgreSQL database is then looked at by VACUUM and ANALYZE, as its autovacuum would; SQLite has none.
        """
        done = 0
        write = _copy if catalog.engine.dialect.name == "postgresql" else _insert
        for name, rows in self._tables():
            number = write(catalog, Base.metadata.tables[name], rows)
            told(name, number)
            done += number
        settle(catalog)
        return done

    # -- what is what -------------------------------------------------------------------------------------------

    def modality(self, study: int) -> str:
        """Of the study's series."""
        place = study % 20
        return "CT" if place < 9 else "MR" if place < 16 else "DX"

    def is_liver(self, number: int) -> bool:
        """Whether the series is one of the liver's."""
        study, place = divmod(number, 4)
        return place == 1 and study % 20 < 9 and study // 20 % 45 < 8

    def is_chest(self, number: int) -> bool:
        """Whether the series is a radiograph of the chest."""
        return self.modality(number // 4) == "DX"

    def meant(self) -> Iterator[tuple[str, int]]:
        """The model and the number of each series that one learns from."""
        for number in range(self.series):
            if self.is_liver(number):
                yield LIVER, number
            elif self.is_chest(number):
                yield CHEST, number

    def description(self, number: int) -> str:
        """Some hundred of them; of radiographs twenty, each of a twentieth of all."""
        if self.is_liver(number):
            return "Liver portal venous"
        if self.is_chest(number):
            return f"Chest {number // 80 % 20:02d}"
        return f"{_REGIONS[number * 7 % 10]} {_VARIANTS[number * 13 % len(_VARIANTS)]}"

    def moment(self, number: int) -> str:
        """When series `number` came."""
        return _text(_END - timedelta(days=_DAYS * (1 - number / self.series)))

    # -- tables -------------------------------------------------------------------------------------------------

    def _tables(self) -> Iterator[tuple[str, Iterable[Row]]]:
        yield "studies", ((uid("study", s), patient(s), "20250101", self.moment(4 * s)) for s in range(self.studies))
        yield "series", map(self._series, range(self.series))
        yield "volumes", map(self._volume, range(self.series))
        yield "clinical", map(self._clinical, range(self.patients))
        yield "labels", (self._label(*one) for one in self.meant())
        yield "splits", self._splits()
        yield "quarantine", map(self._quarantined, range(self.series // 100))
        yield from self._models()
        yield "predictions", (self._prediction(*one) for one in self.meant())
        yield "corrections", self._corrections()
        yield "study_versions", map(self._version, range(self.studies))
        yield "arrivals", map(self._arrival, range(self.studies))
        yield "analyses", map(self._analysis, self._judged())
        yield "deliveries", map(self._delivery, self._judged())
        yield "commitments", map(self._commitment, self._judged())
        yield "outbox", self._outbox()
        yield "instances", map(self._instance, range(self.series))
        yield "seen", ((key("seen", n), "export", self.moment(n)) for n in range(self.series))
        yield "vault", self._sealed()

    def _series(self, n: int) -> Row:
        study = n // 4
        return (
            *(key("series", n), uid("series", n), uid("study", study), patient(study), self.modality(study)),
            *(self.description(n), 120, self.moment(n)),
        )

    def _volume(self, n: int) -> Row:
        study = n // 4
        modality = self.modality(study)
        depth = 1 if modality == "DX" else 40 + n * 11 % 200
        return (
            *(key("volume", n), key("series", n), uid("series", n), uid("study", study), patient(study), modality),
            *("HU" if modality == "CT" else "", uid("frame", study), depth, 512, 512, 2.5, 0.8, 0.8, _GEOMETRY, 1),
            *(self.description(n), *_MAKERS[n % 3], 2.5, "[]", _CHARACTERISTICS, self.moment(n)),
        )

    def _clinical(self, p: int) -> Row:
        return key("clinical", p), "history", patient(2 * p), None, '{"smoker": "no"}', _text(_END)

    def _label(self, model: str, n: int) -> Row:
        study, mask = n // 4, model == LIVER
        return (
            *(key("label", n), patient(study), "SEG" if mask else "CSV", uid("study", study), uid("series", n)),
            *(key("volume", n) if mask else None, "" if mask else "findings"),
            *(None if mask else ("normal", "effusion", "pneumonia")[n % 3], _SEGMENTS if mask else "[]"),
            *(key("file", n), "[]", self.moment(n)),
        )

    def _splits(self) -> Iterator[Row]:
        placed = {patient(n // 4): model for model, n in self.meant()}
        for number, (name, model) in enumerate(placed.items()):
            if number % 200:
                split = ("validation", "test")[number % 2] if number % 5 == 0 else "train"
                yield name, split, "SEG: Liver" if model == LIVER else "normal", "drawn", _text(_END)

    def _quarantined(self, n: int) -> Row:
        return (
            *(
                key("quarantine", n),
                "ingest",
                key("series", n),
                "missing-slices",
                "a slice is missing",
                patient(n // 4),
            ),
            *(uid("study", n // 4), "CT", "", 100, self.moment(n), None if n % 10 == 0 else _text(_END)),
        )

    def _models(self) -> Iterator[tuple[str, Iterable[Row]]]:
        nights = [(model, night) for model in (LIVER, CHEST) for night in range(NIGHTS)]
        at = {(m, n): _text(_END - timedelta(days=NIGHTS - n)) for m, n in nights}
        kinds = {LIVER: ("segmentation", '["Liver"]'), CHEST: ("classification", '["effusion","normal","pneumonia"]')}
        counts = '{"train": [8, 8], "validation": [1, 1], "test": [1, 1]}'
        yield "datasets", [(key("dataset", m, n), m, *kinds[m], counts, at[m, n]) for m, n in nights]
        yield "plans", [(key("plan", m, n), key("dataset", m, n), "{}", "{}", at[m, n]) for m, n in nights]
        packages = [(package(m, n), m, key("dataset", m, n), key("weights", m, n), str(n), None) for m, n in nights]
        yield "packages", [(*row, at[one]) for row, one in zip(packages, nights, strict=True)]
        of_both = [(key("evaluation", m, n), package(m, n), key("dataset", m, n)) for m, n in nights]
        judged = zip(of_both, nights, strict=True)
        yield "evaluations", [(*row, "dice", 0.9, 0.88, 0.92, at[one]) for row, one in judged]
        decided = enumerate(zip(of_both, nights, strict=True), 1)
        yield (
            "decisions",
            [
                (number, m, "promoted", package(m, n), str(n), str(n - 1), row[0], "[]", "{}", "nocturne", at[m, n])
                for number, (row, (m, n)) in decided
            ],
        )
        alerts = [(m, n) for m, n in nights if n % 10 == 0]
        yield (
            "alerts",
            [
                (key("alert", *o), o[0], package(*o), "input", "spacing", "ks", 0.1, 0.05, 30, "", at[o], at[o])
                for o in alerts
            ],
        )

    def _prediction(self, model: str, n: int) -> Row:
        said = (key("prediction", n), package(model, self._night(n)), key("volume", n), _RESULT, 1.5)
        return (*said, _FACTS.replace("VOLUME", key("volume", n)), 0.1, _later(self.moment(n)))

    def _night(self, n: int) -> int:
        """The version that served when series `n` came."""
        return min(NIGHTS - 1, n * NIGHTS // self.series)

    def _corrections(self) -> Iterator[Row]:
        for number, n in enumerate(n for model, n in self.meant() if model == LIVER):
            if number % 10 == 0:
                of = (key("prediction", n), key("label", n), package(LIVER, self._night(n)))
                yield (key("correction", n), *of, "same-image", "[]", 0.9, _later(self.moment(n)))

    def _version(self, s: int) -> Row:
        at = self.moment(4 * s)
        digests = json.dumps([key("instance", 4 * s + place) for place in range(4)])
        outcome = "failed" if s % 5000 == 17 else "delivered" if self.modality(s) == "DX" else "nothing-fits"
        return (
            *(key("version", s), uid("study", s), 1, digests, "quiet", "[]", "listener", at, at, at, "run", outcome),
            *("", True),
        )

    def _arrival(self, s: int) -> Row:
        at = self.moment(4 * s)
        return uid("study", s), "listener", at, at, None, 0, 0, 1, 480

    def _judged(self) -> Iterator[int]:
        """One series of each study that was analysed."""
        return (n for model, n in self.meant() if model == LIVER or n % 4 == 0)

    def _analysis(self, n: int) -> Row:
        s, model = n // 4, LIVER if self.is_liver(n) else CHEST
        made = [n] if model == LIVER else range(4 * s, 4 * s + 4)
        predictions = json.dumps([key("prediction", one) for one in made])
        of = (key("analysis", n), key("version", s), uid("study", s), package(model, self._night(n)), model)
        return (*of, str(self._night(n)), "champion", predictions, "predicted", "", 2.0, self.moment(n))

    def _delivery(self, n: int) -> Row:
        objects = json.dumps([{"kind": kind, "uid": uid(kind, n)} for kind in ("seg", "sr")])
        at, of = self.moment(n), (key("delivery", n), key("analysis", n), uid("study", n // 4), "pacs")
        return (*of, "committed", objects, "", at, at, at)

    def _commitment(self, n: int) -> Row:
        return uid("transaction", n), key("delivery", n), self.moment(n), self.moment(n), "[]"

    def _outbox(self) -> Iterator[Row]:
        for s in range(self.studies):
            at = self.moment(4 * s)
            told = json.dumps({"version": key("version", s), "study": uid("study", s), "number": 1, "why": "quiet"})
            yield f"arrived-{key('version', s)}", "event", told, at, 1, "", at, at
        for n in self._judged():
            told = json.dumps({"analysis": key("analysis", n), "destination": "pacs"})
            yield key("delivery", n), "delivery", told, self.moment(n), 1, "", self.moment(n), self.moment(n)

    def _instance(self, n: int) -> Row:
        study = self.studies - 1 - n // 400
        kind = "1.2.840.10008.5.1.4.1.1.2"
        place = (uid("series", 4 * study + n // 100 % 4), uid("study", study))
        return key("instance", n), uid("sop", n), *place, kind, "CT", 526_000, "listener", _text(_END)

    def _sealed(self) -> Iterator[Row]:
        """The originals of each series, and that its files were taken in."""
        for kind in ("series", "ingested"):
            for n in range(self.series):
                place = n + 1 if kind == "series" else self.series + n + 1
                yield place, kind, key(kind, n), "00000000", b"n" * 12, b"sealed" * 40, self.moment(n)


def key(*parts: object) -> str:
    """As a content key: 32 hexadecimal digits that lie anywhere."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def uid(*parts: object) -> str:
    """As a pseudonymous UID."""
    return f"2.25.{int(key(*parts), 16)}"


def patient(study: int) -> str:
    """Whose study it is."""
    return f"P-{key('patient', study // 2)}"


def package(model: str, night: int) -> str:
    """The model's package of that night."""
    return key("package", model, night)


def settle(catalog: Catalog) -> None:
    """What PostgreSQL's own housekeeping does at times."""
    if catalog.engine.dialect.name == "sqlite":
        return
    with catalog.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


def _copy(catalog: Catalog, table: Table, rows: Iterable[Row]) -> int:
    """Into PostgreSQL: past foreign keys; indexes are dropped, and made again once all is there.

    The table is emptied first: what is written to it in the same transaction needs no log (`wal_level = minimal`).
    """
    number = 0
    with catalog.engine.begin() as connection:
        indexes = connection.execute(_INDEXES, {"table": table.name}).all()
        for setting in ("session_replication_role = replica", "maintenance_work_mem = '256MB'", "TimeZone = 'UTC'"):
            connection.execute(text(f"SET LOCAL {setting}"))
        unique = connection.execute(_UNIQUE, {"table": table.name}).all()
        connection.execute(text(f"TRUNCATE {table.name} CASCADE"))
        for name, _ in unique:
            connection.execute(text(f'ALTER TABLE {table.name} DROP CONSTRAINT "{name}"'))
        for name, _ in indexes:
            connection.execute(text(f'DROP INDEX "{name}"'))
        columns = ", ".join(f'"{column.name}"' for column in table.columns)
        raw = connection.connection.cursor()
        with raw.copy(f"COPY {table.name} ({columns}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
                number += 1
        for name, definition in unique:
            connection.execute(text(f'ALTER TABLE {table.name} ADD CONSTRAINT "{name}" {definition}'))
        for _, definition in indexes:
            connection.execute(text(definition))
        for column in table.primary_key.columns:
            if column.autoincrement is True:
                held = f"pg_get_serial_sequence('{table.name}', '{column.name}')"
                connection.execute(text(f"SELECT setval({held}, {max(number, 1)})"))
    return number


def _insert(catalog: Catalog, table: Table, rows: Iterable[Row]) -> int:
    """Into SQLite: past foreign keys."""
    number = 0
    places = ", ".join("?" * len(table.columns))
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    with catalog.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        connection.commit()
        statement, rest = f"INSERT INTO {table.name} ({columns}) VALUES ({places})", iter(rows)  # noqa: S608
        while part := list(islice(rest, 5000)):
            connection.exec_driver_sql(statement, part)
            number += len(part)
        connection.commit()
        connection.exec_driver_sql("PRAGMA foreign_keys=ON")
    return number


_INDEXES: Final = text(
    "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename = :table AND indexname "
    "NOT IN (SELECT conname FROM pg_constraint)"
)
_UNIQUE: Final = text(
    "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'u' AND conrelid = (:table)::regclass"
)


def _text(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S.%f}"


def _later(moment: str) -> str:
    """Some minutes after that."""
    return _text(datetime.fromisoformat(moment) + timedelta(minutes=5))


def _json(value: Any) -> str:
    return json.dumps(value)


_GEOMETRY: Final = _json({"shape": [1, 1, 1], "affine": [[0.0] * 4] * 4, "frame_of_reference": None})
_CHARACTERISTICS: Final = _json({"PatientSex": "F", "PatientAge": "061Y", "SITE": "a", "CONTRAST": "yes"})
_SEGMENTS: Final = _json([{"number": 1, "name": "Liver", "code": None, "voxels": 120_000}])
_RESULT: Final = _json(
    {"findings": [{"class_name": "Liver", "called": True, "volume_ml": 1500.0, "confidence": 0.93, "lesions": []}]}
)
_FACTS: Final = _json(
    {
        "volume": "VOLUME",
        "shape": [80, 512, 512],
        "spacing": [2.5, 0.8, 0.8],
        "cropped_shape": [80, 400, 500],
        "median": 40.0,
        "iqr": 30.0,
        "orientation": "HPL",
        "levels": [{"p05": -900.0, "median": 40.0, "p95": 200.0}],
    }
)
