"""Labels that come back: our own results, seen again, and those in which somebody corrected one of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import pydicom
from pydicom.dataset import Dataset
from sqlalchemy import select

from models.pseudonyms import Pseudonymizer
from tasks.ingest.descriptions import tokens
from tasks.ingest.labels.parts import pseudonyms, readable
from tasks.stores.catalog import Catalog
from tasks.stores.results import Returned, delivered_objects
from tasks.stores.tables import AnalysisRow, DatasetRecord, PackageRow

_MADE: Final = ("StructureSet", "Content", "InstanceCreation")


@dataclass(frozen=True, slots=True)
class Ours:
    """What we have made of a study: objects by their pseudonyms, and the words of the classes that they name."""

    objects: frozenset[str]
    words: frozenset[str]

    @classmethod
    def of(cls, catalog: Catalog, study: str) -> Ours:
        """Of a pseudonymous study; empty where nothing was delivered."""
        objects = delivered_objects(catalog, [study])
        if not objects:
            return cls(frozenset(), frozenset())
        classes = (
            select(DatasetRecord.classes)
            .join(PackageRow, PackageRow.dataset == DatasetRecord.dataset)
            .join(AnalysisRow, AnalysisRow.package == PackageRow.package)
            .where(AnalysisRow.analysis.in_(set(objects.values())))
        )
        with catalog.reading() as session:
            names = [str(name) for told in session.scalars(classes) for name in told]
        return cls(frozenset(objects), frozenset(word for name in names for word in tokens(name)))


def returned(content: bytes, ours: Collection[str], pseudonymizer: Pseudonymizer) -> Returned:
    """What a label's header says of itself and of `ours`. Raises LabelError."""
    with readable("label"):
        header = pydicom.dcmread(BytesIO(content), force=True, stop_before_pixels=True)
        named = pseudonyms(dict.fromkeys(_named(header)), pseudonymizer) if ours else ()
        uid = pseudonymizer.uid(str(header.SOPInstanceUID))
        return Returned(uid, tuple(sorted(uid for uid in named if uid in ours)), _made(header))


def _named(dataset: Dataset) -> Iterator[str]:
    """Every instance that is referred to, however deep: viewers differ in where they say what they began from."""
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from _named(item)
        elif element.keyword == "ReferencedSOPInstanceUID" and element.value:
            yield str(element.value)


def _made(header: Dataset) -> str:
    for part in _MADE:
        if day := str(header.get(f"{part}Date") or ""):
            return day + str(header.get(f"{part}Time") or "")
    return ""
