"""From what a model said to the objects that are sent: read from the stores, made in memory, never kept on disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from typing import Final

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import ComprehensiveSRStorage, SecondaryCaptureImageStorage, SegmentationStorage

from models.errors import NocturneError, NotFoundError, PermanentError
from models.package import ModelPackage
from tasks.deliver.content import Kind, Maker, Names, Subject, encoded, said_of
from tasks.deliver.identity import origin_of
from tasks.deliver.overview import overview
from tasks.deliver.report import report
from tasks.deliver.segmentation import segmentation, structures
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.tables import AnalysisRow, PredictionRow, VolumeRow

SOP_CLASSES: Final[Mapping[Kind, str]] = {
    "seg": str(SegmentationStorage),
    "sr": str(ComprehensiveSRStorage),
    "sc": str(SecondaryCaptureImageStorage),
}


@dataclass(frozen=True)
class Result:
    """One object to be sent. It holds an identity: it is never logged and never named by anything but its kind."""

    kind: Kind
    dataset: Dataset = field(repr=False)

    @property
    def sop_class(self) -> str:
        """SOP Class UID."""
        return str(self.dataset.SOPClassUID)

    @property
    def uid(self) -> str:
        """SOP Instance UID."""
        return str(self.dataset.SOPInstanceUID)

    @cached_property
    def content(self) -> bytes:
        """The DICOM file."""
        return encoded(self.dataset)

    def parsed(self) -> Dataset:
        """The data set of just these bytes, as senders want it."""
        return pydicom.dcmread(BytesIO(self.content))


def make(stores: Stores, analysis: AnalysisRow, *, pictures: bool) -> list[Result]:
    """All objects of an analysis: per volume a segmentation where structures were found, a report, and a picture.

    Doing it again gives the same bytes. Raises NotFoundError where a store no longer has what they are made of,
    PermanentError where they cannot be made.
    """
    package = read_description(stores.packages.local(analysis.package))
    made: list[Result] = []
    for place, (prediction, volume) in enumerate(_said_of_what(stores, analysis)):
        subject = _subject(stores, analysis, package, prediction, volume, place)
        try:
            made += _of(stores, subject, package, prediction, volume, pictures=pictures)
        except NocturneError as error:
            raise error.at(volume.volume) from None
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            # Not its text, which may quote the original header.
            raise PermanentError(
                f"no result can be made for this image ({type(error).__name__})",
                where=volume.volume,
                hint="its original header or its mask is unusual: please report it",
                reason="cannot-encode",
            ) from None
    return made


def known_uids(stores: Stores, analysis: AnalysisRow) -> dict[str, tuple[str, str]]:
    """By pseudonym the (SOP class, SOP instance) of everything that an analysis may have sent, without making it."""
    names = _names(stores, analysis)
    found = {}
    for _, volume in _said_of_what(stores, analysis):
        for kind, sop_class in SOP_CLASSES.items():
            uid = names.uid(kind, volume.volume)
            found[stores.pseudonymizer.uid(uid)] = sop_class, uid
    return found


def _of(
    stores: Stores,
    subject: Subject,
    package: ModelPackage,
    prediction: PredictionRow,
    volume: VolumeRow,
    *,
    pictures: bool,
) -> list[Result]:
    if not package.plan.segments and package.plan.kind != "detection":
        return [Result("sr", report(subject, None, structures=False, several=package.plan.several))]
    found = structures(subject.said, stores.volumes.open_mask(prediction.prediction))
    if found is None:
        return [Result("sr", report(subject, None, structures=True))]
    if package.plan.segments:
        drawn = segmentation(subject, found)
        made = [Result("seg", drawn), Result("sr", report(subject, drawn, structures=True))]
    else:
        # A box is no segmentation: its place is told in the report alone.
        made = [Result("sr", report(subject, None, structures=True, boxes=found))]
    if pictures:
        made.append(Result("sc", overview(subject, found, stores.volumes.open(volume.volume))))
    return made


def _subject(
    stores: Stores,
    analysis: AnalysisRow,
    package: ModelPackage,
    prediction: PredictionRow,
    volume: VolumeRow,
    place: int,
) -> Subject:
    return Subject(
        volume=volume.volume,
        place=place,
        origin=origin_of(stores, volume),
        names=_names(stores, analysis),
        maker=Maker(
            analysis.name, analysis.model_version or analysis.package[:12], analysis.package, analysis.created_at
        ),
        said=said_of(prediction.result["findings"], package.recipe.deliver),
        familiar=bool(prediction.result.get("familiar", True)),
    )


def _names(stores: Stores, analysis: AnalysisRow) -> Names:
    return Names(stores.pseudonymizer, analysis.version, analysis.package)


def _said_of_what(stores: Stores, analysis: AnalysisRow) -> Iterator[tuple[PredictionRow, VolumeRow]]:
    for key in analysis.predictions:
        prediction = stores.catalog.get(PredictionRow, key)
        volume = stores.catalog.get(VolumeRow, prediction.volume) if prediction else None
        if prediction is None or volume is None:
            raise NotFoundError("its prediction is no longer in the catalog", where=key)
        yield prediction, volume
