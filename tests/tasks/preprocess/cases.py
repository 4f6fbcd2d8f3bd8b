"""A small cohort in a volume store, and fingerprints made up for the planner."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from models.geometry import Geometry
from models.hashing import content_key
from models.plan import CaseFacts, Fingerprint, IntensityStats
from models.recipe import Kind, LabelClass, Recipe
from models.volume import Mask, Segment, Volume
from tasks.preprocess.run import Case, Reading
from tasks.stores.volumes import VolumeStore

READING = Reading((LabelClass(name="organ"), LabelClass(name="lesion", match=("les*",))))


def write_cohort(url: Path, count: int, shape: tuple[int, int, int] = (12, 40, 36)) -> list[Case]:
    """Bright organs with a brighter lesion, on slightly different grids."""
    store, cases = VolumeStore(str(url)), []
    for number in range(count):
        rng = np.random.default_rng(number)
        size = tuple(n + int(rng.integers(0, 5)) for n in shape)
        geometry = Geometry.from_spacing(size, (2.0, 0.9, 0.9), (0, 0, number), f"1.2.{number}")
        organ = np.zeros(size, bool)
        organ[3:9, 8:30, 8:28] = True
        lesion = np.zeros(size, bool)
        lesion[5:7, 12:18, 12:18] = True
        array = rng.normal(100, 10, size) + 200 * organ + 300 * lesion
        array[:, :2] = 0
        occupancy = np.stack([organ, lesion]).astype(np.uint8) * 255
        mask = Mask(occupancy, (Segment(1, "Organ"), Segment(2, "Lesion 1")), geometry, "SEG")
        volume, label = content_key("volume", number), content_key("mask", number)
        store.write(volume, Volume(array.astype(np.int16), geometry, "MR"))
        store.write_mask(label, mask)
        cases.append(Case(str(url), volume, label))
    return cases


def fingerprint(
    modality: str,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    cases: int,
    *,
    channels: int = 1,
    crop_ratio: float = 1.0,
) -> Fingerprint:
    """Of `cases` equal cases."""
    facts = tuple(
        CaseFacts(
            volume=content_key(i),
            shape=shape,
            spacing=spacing,
            cropped_shape=shape,
            class_voxels=(100,),
            median=50.0,
            iqr=30.0,
        )
        for i in range(cases)
    )
    stats = IntensityStats(mean=57.3, std=38.2, minimum=-90.0, maximum=310.0, median=55.0, p005=-42.7, p995=161.4)
    return Fingerprint(
        dataset="d", modality=modality, cases=facts, intensities=(stats,) * channels, crop_ratio=crop_ratio
    )


def recipe(kind: Kind = "segmentation", modality: str = "CT", **parts: object) -> Recipe:
    """The shortest recipe, and what is given."""
    source = "SEG" if kind == "segmentation" else "CSV"
    return Recipe.model_validate(
        {"name": "r", "kind": kind, "images": {"modality": modality}, "labels": {"source": source}, **parts}
    )
