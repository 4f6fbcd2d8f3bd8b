"""Real evaluations with their reports: a few real images of each public set, and networks that learn for a moment."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from models.geometry import Geometry
from models.hashing import content_key
from models.recipe import Recipe
from models.refs import DatasetRef, EvaluationRef, PackageRef
from models.report import Report
from models.volume import Mask, Segment
from tasks.evaluate.run import compare, evaluate_package
from tasks.evaluate.summary import write
from tasks.ingest.build import build_dataset
from tasks.ingest.labels.run import LabelIngestor
from tasks.ingest.labels.table import import_csv
from tasks.ingest.run import Ingestor, IngestRules
from tasks.preprocess.stored import plan_training, prepare_planned
from tasks.register.run import register
from tasks.stores.house import Stores
from tasks.stores.tables import LabelRow, VolumeRow
from tasks.train.stored import train_package
from tests.tasks.predict.samples import a_volume

ROOT = Path(__file__).resolve().parents[2]
SHORT = """
[train]
epochs = {epochs}
steps_per_epoch = 4
batch_size = {batch}
{patch}precision = "fp32"
compile = false
validations = 2
ema = 0
[network]
features = [4, 8]
[evaluate]
bootstrap = 100
explained = 2
"""
VENDORS = ("Siemens", "GE", "Philips")
HIPPOCAMPI, CHESTS, SARCOMAS = 16, 48, 7


@dataclass(frozen=True)
class Told:
    """A night's report."""

    page: Path
    evaluation: EvaluationRef
    run_id: str

    @property
    def report(self) -> Report:
        """The document beside the page."""
        return Report.from_json((self.page.parent / "report.json").read_bytes())


def recipe_of(name: str, *, epochs: int = 2, batch: int = 2, patch: str = "", extra: str = "") -> Recipe:
    """The recipe that comes with the application, with a moment to learn."""
    text = (ROOT / "recipes" / f"{name}.toml").read_text()
    before = text[: text.index("[train]")]
    return Recipe.parse(before + SHORT.format(epochs=epochs, batch=batch, patch=patch) + extra)


def hippocampus(stores: Stores, data: Path) -> None:
    """MR crops with two structures each, as three vendors' scanners might have made them."""
    images = sorted((data / "hippocampus" / "images").glob("*.nii.gz"))[:HIPPOCAMPI]
    for number, path in enumerate(images):
        image, truth = (
            np.asarray(nib.load(file).dataobj).transpose(2, 1, 0)  # type: ignore[attr-defined]
            for file in (path, data / "hippocampus" / "labels" / path.name)
        )
        grid, patient = Geometry.from_spacing(truth.shape, (1.0, 1.0, 1.0)), f"P-{number:03}"
        volume = a_volume(
            stores, image.astype(np.float32), grid, study=f"2.25.{number}", series=f"s{number}", patient=patient
        ).key
        if number == 0:
            continue  # nobody has outlined it
        vendor = VENDORS[number % len(VENDORS)]
        header = {"PatientSex": "FM"[number % 2], "PatientAge": f"{30 + 3 * number:03}Y"}
        stores.catalog.change(
            VolumeRow, VolumeRow.volume == volume, manufacturer=vendor, model_name="One", characteristics=header
        )
        masks = np.stack([truth == value for value in (1, 2)])
        segments = (Segment(1, "Anterior hippocampus"), Segment(2, "Posterior hippocampus"))
        label = content_key("label", number)
        stores.volumes.write_mask(label, Mask(masks.astype(np.uint8) * np.uint8(255), segments, grid, "SEG"))
        told = [
            {"number": s.number, "name": s.name, "code": None, "voxels": int(mask.sum())}
            for s, mask in zip(segments, masks, strict=True)
        ]
        stores.catalog.add(
            LabelRow(label=label, patient=patient, source="SEG", study=f"2.25.{number}", volume=volume, segments=told)
        )


def pneumonia(stores: Stores, data: Path, folder: Path) -> None:
    """Chest X-rays as DICOM, with a table of classes."""
    make = [sys.executable, str(data / "make_dicom.py"), "pneumonia", str(folder), "--limit", str(CHESTS)]
    subprocess.run(make, check=True, capture_output=True, timeout=600)
    _ingest(stores, [folder], IngestRules(allow_without_burned_in=frozenset({"CR"})))
    import_csv(folder / "labels.csv", name="pneumonia", catalog=stores.catalog, pseudonymizer=stores.pseudonymizer)


def sarcoma(stores: Stores, data: Path) -> None:
    """PET with the tumour as RTSTRUCT."""
    folders = sorted((data / "sarcoma").glob("STS_*/PET"), key=lambda f: sum(p.stat().st_size for p in f.rglob("*")))
    _ingest(stores, folders[:SARCOMAS], IngestRules())


def _ingest(stores: Stores, folders: list[Path], rules: IngestRules) -> None:
    images = Ingestor(stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer, rules, workers=1)
    labels = LabelIngestor(stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer)
    found = images.scan([str(folder) for folder in folders])
    for ref in found.series:
        images.ingest(ref)
    for ref in found.labels:
        labels.ingest(ref)


def night(stores: Stores, recipe: Recipe, before: EvaluationRef | None = None) -> Told:
    """Learnt, judged, compared with the version `before`, decided and reported: as the flow does it."""
    dataset = build_dataset(recipe, stores.catalog, stores.datasets, stores.pseudonymizer, stores.volumes).ref
    package = _learnt(stores, recipe, dataset)
    evaluation = evaluate_package(stores, package, dataset)
    comparison = compare(stores, before, evaluation) if before else None
    registered = register(stores, package, evaluation, before, comparison)
    return Told(write(stores, evaluation, before, registered), evaluation, registered.run_id)


def _learnt(stores: Stores, recipe: Recipe, dataset: DatasetRef) -> PackageRef:
    plan = plan_training(stores, recipe, dataset)
    prepare_planned(stores, recipe, plan)
    return train_package(stores, recipe, plan)
