"""How a model is applied, judged, promoted, and how its results are written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from models.recipe.base import Auto, Part


class Infer(Part):
    """How the model is applied."""

    overlap: float = Field(0.5, ge=0, lt=1, description="share of a tile that the next one covers again")
    mirror: bool = Field(False, description="average over mirrored copies (test-time augmentation)")
    keep_largest: Auto | bool = Field("auto", description="largest component per class, if validation Dice rises")
    calibrate: bool = Field(True, description="scale probabilities by a temperature chosen on validation (Guo 2017)")
    ensemble: tuple[str, ...] = Field(
        (), description="other recipes of the same classes, whose champions are averaged with this model"
    )


class Evaluate(Part):
    """How the test split is judged."""

    surface_tolerance_mm: float = Field(2.0, gt=0)
    bootstrap: int = Field(2000, ge=100)
    threshold: Auto | float = Field(
        "auto", description="two classes, and lesions: called from this probability on; chosen on validation, or given"
    )
    positive: str | None = Field(None, description="binary classification: the positive class (default: the last)")
    subgroups: tuple[str, ...] = Field(
        ("site", "manufacturer", "model_name", "sex", "age", "slice_thickness", "size", "contrast"),
        description="what test patients are judged apart by; a clinical variable's name is allowed too",
    )
    age_bands: tuple[float, ...] = Field((18, 40, 60, 80), description="years at which a new age group begins")
    thickness_bands_mm: tuple[float, ...] = Field((1.5, 3, 5), description="slice thickness: where a group begins")
    size_bands_ml: tuple[float, ...] = Field((1, 10, 100), description="a case's true volume: where a group begins")
    explained: int = Field(6, ge=0, description="test cases for which maps show what the network looked at")


class Promote(Part):
    """When a new model may serve: the policy that the gate carries out."""

    metric: Literal["auto", "dice", "auc", "froc", "average_precision"] = "auto"
    floor: float = Field(0.0, description="the first champion's least value of the metric")
    margin: float = Field(0.0, ge=0, description="how much worse the paired 95 % interval's lower end may be")
    class_floors: dict[str, float] = Field({}, description="by class: the metric's least value, for every version")
    subgroup_floor: float | None = Field(None, description="the metric's least value in any subgroup")
    subgroup_patients: int = Field(10, ge=1, description="a subgroup of fewer test patients is shown, not judged")
    regression: float | None = Field(
        None, ge=0, description="how far the metric may fall, on average, in any class or subgroup"
    )
    seconds: float | None = Field(None, gt=0, description="the longest median time for one test case")
    megabytes: float | None = Field(None, gt=0, description="the largest that the weights may be")
    approval: bool = Field(False, description="a person is asked before a version is promoted")


class Watch(Part):
    """How a serving model is watched: its last predictions beside what it was made and judged on."""

    window: int = Field(50, ge=5, description="how many of the last predictions are looked at")
    least: int = Field(20, ge=5, description="with fewer nothing is said")
    p: float = Field(0.001, gt=0, lt=0.5, description="alert below this p value, over all measures together")
    psi: float = Field(0.25, gt=0, description="and from this population stability index on")
    quality: float = Field(0.05, gt=0, description="alert where corrections show the metric this much lower")


class Code(Part):
    """A coded concept (PS3.3 8.8), SNOMED CT unless said otherwise."""

    value: str = Field(min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)
    scheme: str = Field("SCT", min_length=1, max_length=16)


class Coded(Part):
    """What a class is, for those who read results: its property type, and its category (default: anatomical)."""

    type: Code
    category: Code = Code(value="123037004", meaning="Anatomical structure")


class Deliver(Part):
    """How results are written. Classes without codes are sent as tissue under their own label."""

    codes: dict[str, Coded] = Field({}, description="per class, by its name")
    min_confidence: float = Field(0.0, ge=0, le=1, description="below this a structure or class is not reported")


class Detection(Part):
    """Lesions as boxes with a confidence; the truth are the components of the masks."""

    method: Literal["auto", "components", "retinanet"] = Field(
        "auto", description="components of a segmentation, or a one-stage detector"
    )
    min_volume_ml: float = Field(0.0, ge=0, description="smaller lesions do not count, neither true nor found")
    hit: Literal["centre", "iou"] = Field(
        "centre", description="when a lesion is found: a centre lies in it, or the boxes overlap"
    )
    hit_iou: float = Field(0.1, gt=0, le=1, description="hit = iou: the boxes' intersection over union from which on")
    most: int = Field(50, ge=1, le=255, description="lesions reported in one image at most")

    @property
    def segments(self) -> bool:
        """Whether the network gives each voxel a class, from which lesions are made."""
        return self.method != "retinanet"


class Synthesis(Part):
    """A generator and a discriminator that make images of a class."""

    loss: Literal["hinge", "wgan-gp"] = "hinge"
    latent: int = Field(64, ge=8, description="numbers that an image is made from")
    discriminator_steps: int = Field(2, ge=1, description="for each step of the generator")


class Synthetic(Part):
    """Images that a synthesis recipe's champion adds to the training split, marked as synthetic."""

    source: str = Field(description="the synthesis recipe's name")
    per_class: dict[str, int] = Field(description="how many, by class")
