"""What all contenders learn from and are judged on: one ingested cohort, its frozen split, and the same scores."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from flows.environment import open_stores, prepare_environment
from models.dataset import Dataset, DatasetRow, SplitName
from models.evaluation import Evaluation
from models.recipe import Recipe
from models.refs import DatasetRef
from models.settings import Settings
from tasks.evaluate.classification import evaluate_classification
from tasks.evaluate.segmentation import SegmentationSample, evaluate_segmentation
from tasks.imaging.compose import read_case
from tasks.imaging.masks import label_map
from tasks.ingest.build import build_dataset
from tasks.ingest.labels.run import LabelIngestor
from tasks.ingest.labels.table import import_csv
from tasks.ingest.run import Ingestor, IngestRules
from tasks.stores.house import Stores

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
NNUNET = "Dataset001_Bench"


@dataclass(frozen=True)
class Contest:
    """One recipe's cohort in a home folder of its own."""

    name: str
    data: Path
    work: Path

    @property
    def home(self) -> Path:
        """Where ours learns: both sarcoma recipes in one installation, so that their test patients are the same."""
        return self.work / self.name.partition("_")[0] / "home"

    def recipe(self, **changes: Any) -> Recipe:
        """The recipe in the repository, changed."""
        plain = Recipe.parse((RECIPES / f"{self.name}.toml").read_text(), where=self.name).model_dump()
        for path, value in changes.items():
            *parts, last = path.split("__")
            place = plain
            for part in parts:
                place = place[part]
            place[last] = value
        return Recipe.model_validate(plain)

    def stores(self) -> Stores:
        """Its stores."""
        settings = Settings(home=self.home)
        prepare_environment(settings)
        return open_stores(settings)

    def ingest(self) -> tuple[Stores, DatasetRef]:
        """Everything in, as DICOM; the dataset."""
        stores, recipe, places = self.stores(), self.recipe(), self._dicom()
        rules = IngestRules(frozenset(recipe.images.allow_without_burned_in), recipe.images.colour)
        reader = Ingestor(stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer, rules)
        found = reader.scan([str(place) for place in places])
        for ref in found.series:
            reader.ingest(ref)
        labels = LabelIngestor(stores.catalog, stores.vault, stores.volumes, stores.pseudonymizer)
        for ref in found.labels:
            labels.ingest(ref)
        for place in places:
            if (table := place / "labels.csv").is_file():
                import_csv(
                    table, name=recipe.labels.name or "", catalog=stores.catalog, pseudonymizer=stores.pseudonymizer
                )
        built = build_dataset(recipe, stores.catalog, stores.datasets, stores.pseudonymizer)
        return stores, built.ref

    def _dicom(self) -> list[Path]:
        if self.name.startswith("sarcoma"):
            return [self.data / "sarcoma"]
        out = self.work / self.name / "dicom"
        if not out.exists():
            command = [sys.executable, str(self.data / "make_dicom.py"), self.name, str(out)]
            subprocess.run(command, check=True, capture_output=True)
        return [out]


def image_of(stores: Stores, row: DatasetRow, recipe: Recipe) -> tuple[np.ndarray, Any]:
    """([c,] z, y, x) float32 and its geometry."""
    whole = read_case(stores.volumes, row.volume, row.channels, recipe.images.registration, stores.transforms)
    return whole.array.astype(np.float32), whole.geometry


def truth_of(stores: Stores, row: DatasetRow, recipe: Recipe, dataset: Dataset) -> np.ndarray:
    """(z, y, x) labels."""
    mask = stores.volumes.open_mask(row.label).read()
    return label_map(mask, recipe.labels.meaning(dataset.classes), recipe.labels.fraction)


def export_nnunet(stores: Stores, dataset: Dataset, recipe: Recipe, folder: Path) -> dict[str, DatasetRow]:
    """The cohort as nnU-Net reads it; names of the test cases. Validation is nnU-Net's own validation fold."""
    raw, test = folder / "raw" / NNUNET, dict[str, DatasetRow]()
    splits: dict[str, list[str]] = {"train": [], "val": []}
    channels = 1
    for number, row in enumerate(dataset.rows):
        name, where = f"case_{number:04d}", "Ts" if row.split == "test" else "Tr"
        array, geometry = image_of(stores, row, recipe)
        # A series that a study lacks is NaN to ours, which learns without it; to the others it is empty.
        planes = np.nan_to_num(array[None] if array.ndim == 3 else array)
        channels = len(planes)
        for channel, plane in enumerate(planes):
            _save(raw / f"images{where}" / f"{name}_{channel:04d}.nii.gz", plane, geometry)
        if row.split == "test":
            test[name] = row
        else:
            _save(raw / "labelsTr" / f"{name}.nii.gz", truth_of(stores, row, recipe, dataset), geometry)
            splits["train" if row.split == "train" else "val"].append(name)
    modalities = [c.modality[0] for c in recipe.images.channels] or [recipe.images.modality[0]]
    about = {
        "channel_names": {str(i): modalities[i] for i in range(channels)},
        "labels": {"background": 0, **{name: i + 1 for i, name in enumerate(dataset.classes)}},
        "numTraining": sum(map(len, splits.values())),
        "file_ending": ".nii.gz",
    }
    (raw / "dataset.json").write_text(json.dumps(about))
    (folder / "splits.json").write_text(json.dumps(splits))
    return test


def _save(path: Path, array: np.ndarray, geometry: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.ascontiguousarray(array.transpose(2, 1, 0)), geometry.to_nifti()), path)


def judge_masks(stores: Stores, dataset: Dataset, recipe: Recipe, found: dict[str, np.ndarray], who: str) -> Evaluation:
    """`found` by volume key, (z, y, x) labels on the image's grid: judged as ours are."""

    def samples() -> Any:
        for row in dataset.split("test"):
            truth, geometry = truth_of(stores, row, recipe, dataset), stores.volumes.open(row.volume).read().geometry
            yield SegmentationSample(row.patient, row.volume, None, truth, found[row.volume], geometry)

    return evaluate_segmentation(samples(), dataset.classes, package=who, dataset=dataset.key)[0]


def judge_classes(dataset: Dataset, found: np.ndarray, threshold: float, who: str) -> Evaluation:
    """`found` (n, classes) in the order of the test split: judged as ours are."""
    rows = dataset.split("test")
    return evaluate_classification(
        [row.patient for row in rows],
        [row.volume for row in rows],
        [row.target for row in rows],
        found,
        dataset.classes,
        threshold,
        package=who,
        dataset=dataset.key,
    )[0]


def read_mask(path: Path) -> np.ndarray:
    """(z, y, x) labels of a predicted NIfTI."""
    return np.asarray(nib.Nifti1Image.from_filename(path).dataobj).astype(np.uint8).transpose(2, 1, 0)


def images_of(stores: Stores, dataset: Dataset, split: SplitName) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (n, y, x) and their classes, where all are of one size."""
    rows = dataset.split(split)
    return np.stack([stores.volumes.open(r.volume).read().array[0] for r in rows]), np.array([r.target for r in rows])
