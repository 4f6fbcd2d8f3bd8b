"""An installation that has delivered a result, and a reader who corrects it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from models.refs import AnalysisRef, CorrectionRef, LabelRef
from tasks.correct.run import correct
from tasks.deliver.objects import make
from tasks.deliver.run import enqueue
from tasks.ingest.labels.run import LabelIngestor, LabelOutcome
from tasks.ingest.run import Ingestor, IngestRules
from tasks.stores.tables import DeliveryRow, PredictionRow, VolumeRow
from tests.tasks.deliver.installation import Installation, stores_at, write_study
from tests.tasks.ingest.labels.conftest import segmentation


@dataclass(frozen=True)
class Reader:
    """Somebody who sees a study with our result in it."""

    installation: Installation
    folder: Path
    slices: list[Dataset]
    analysis: AnalysisRef
    ours: Dataset  # the SEG that we delivered

    @property
    def volume(self) -> VolumeRow:
        """The study's only image."""
        (row,) = self.installation.stores.catalog.find(VolumeRow)
        return row

    @property
    def prediction(self) -> PredictionRow:
        """What was said of it."""
        (row,) = self.installation.stores.catalog.find(PredictionRow)
        return row

    def drawn(self) -> NDArray[np.uint8]:
        """What the model drew, as (slice, y, x, structure) of the image."""
        mask = self.installation.stores.volumes.open_mask(self.prediction.prediction).read()
        return np.moveaxis(mask.occupancy > 127, 0, -1).astype(np.uint8)

    def draw(self, pixels: NDArray[np.uint8], names: Sequence[str] = ("liver", "lesion"), **elements: str) -> Dataset:
        """A segmentation of the study that names nothing of ours."""
        return told(segmentation(self._upwards(), pixels, names=names), **elements)

    def correct(self, pixels: NDArray[np.uint8], **elements: str) -> Dataset:
        """The same, begun from our result."""
        drawn = self.draw(pixels, **elements)
        item = Dataset()
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = self.ours.SOPClassUID, self.ours.SOPInstanceUID
        series = Dataset()
        series.SeriesInstanceUID, series.ReferencedSOPSequence = self.ours.SeriesInstanceUID, [item]
        study = Dataset()
        study.StudyInstanceUID, study.ReferencedSeriesSequence = self.ours.StudyInstanceUID, [series]
        drawn.PredecessorDocumentsSequence = [study]
        return drawn

    def send(self, *objects: Dataset) -> list[LabelOutcome]:
        """Ingest objects of the study, as an arrival does."""
        place = self.folder / generate_uid()
        place.mkdir()
        for ds in objects:
            ds.save_as(place / f"{ds.SOPInstanceUID}.dcm", enforce_file_format=True)
        stores = self.installation.stores
        given = (stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer)
        found = Ingestor(*given, IngestRules(), workers=1).scan([str(place)])
        return [LabelIngestor(*given).ingest(ref) for ref in found.labels]

    def corrections(self, outcomes: Sequence[LabelOutcome]) -> tuple[CorrectionRef, ...]:
        """What these labels correct."""
        return correct(self.installation.stores, labels_of(outcomes))

    def _upwards(self) -> list[Dataset]:
        return sorted(self.slices, key=lambda ds: float(ds.ImagePositionPatient[2]))


def labels_of(outcomes: Sequence[LabelOutcome]) -> tuple[LabelRef, ...]:
    return tuple(label for outcome in outcomes for label in outcome.labels)


def told(ds: Dataset, **elements: str) -> Dataset:
    """With these elements."""
    for name, value in elements.items():
        setattr(ds, name, value)
    return ds


def a_reader(folder: Path) -> Reader:
    """Before a study with our liver and lesion in it, delivered."""
    installation = Installation(stores_at(folder / "home"))
    slices = write_study(folder / "study")
    analysis = installation.analysed(folder / "study")
    (ours,) = deliver(installation, analysis)
    return Reader(installation, folder, slices, analysis, ours)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """In an installation of their own."""
    made = a_reader(tmp_path)
    yield made
    made.installation.stores.catalog.close()


def deliver(installation: Installation, analysis: AnalysisRef) -> list[Dataset]:
    """Write down that its results were sent, as the dispatcher does; returns the segmentations."""
    from models.hospital import Destination

    stores = installation.stores
    pacs = Destination(name="pacs", kind="folder", path=str(stores.locations.home / "out"))
    (delivery,) = enqueue(stores, analysis, [pacs])
    made = make(stores, installation.row(analysis), pictures=False)
    objects = [{"kind": r.kind, "uid": stores.pseudonymizer.uid(r.uid)} for r in made]
    stores.catalog.change(DeliveryRow, DeliveryRow.delivery == delivery.key, objects=objects, state="sent")
    return [result.parsed() for result in made if result.kind == "seg"]
