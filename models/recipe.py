"""What to learn and how: one typed, versioned TOML file.

Everything but `name`, `kind`, the images' modality and the labels' source has a default that works.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from models.errors import RecipeError
from models.hashing import content_key

Kind = Literal["segmentation", "classification"]
Auto = Literal["auto"]
LabelSourceName = Literal["SEG", "RTSTRUCT", "NIfTI", "CSV"]
NormalisationName = Literal["auto", "ct", "zscore", "percentile", "minmax", "window", "none"]
SpacingMm = Annotated[tuple[float, float, float], Field(description="(z, y, x) mm")]
Size = Annotated[tuple[int, int, int], Field(description="(z, y, x) voxels")]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pictured(Protocol):
    """What `Images` asks of an image; a volume's catalog row has it. Thickness and spacing in mm."""

    modality: Any
    description: Any
    channels: Any
    shape_z: Any
    slice_thickness: Any
    spacing_z: Any


class Images(_Part):
    """Which series of a study are meant."""

    modality: tuple[str, ...] = Field(description="Modality (0008,0060); one or several")
    description: str | None = Field(None, description="regular expression that SeriesDescription must match")
    min_slices: int = Field(1, ge=1)
    max_slice_thickness: float | None = Field(None, gt=0, description="mm")
    colour: bool = Field(False, description="accept colour images, as three channels")
    allow_without_burned_in: tuple[str, ...] = Field(
        (), description="modalities (US, SC, XA, CR) accepted although BurnedInAnnotation is absent"
    )

    @field_validator("modality", "allow_without_burned_in", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("description")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    def refusal(self, image: Pictured) -> str | None:
        """Why an image is not meant, or None where it is: one rule for datasets and for predictions."""
        if image.modality not in self.modality:
            return "other-modality"
        if self.description and not re.search(self.description, image.description, re.IGNORECASE):
            return "other-description"
        if image.channels > 1 and not self.colour:
            return "colour"
        if image.shape_z < self.min_slices:
            return "too-few-slices"
        thickness = image.slice_thickness if image.slice_thickness is not None else image.spacing_z
        if self.max_slice_thickness is not None and thickness > self.max_slice_thickness + 1e-3:
            return "slices-too-thick"
        return None


class LabelClass(_Part):
    """One class of the model: segments or CSV values whose name or code matches (case-insensitive, * allowed)."""

    name: str
    match: tuple[str, ...] = ()

    @field_validator("match", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @property
    def patterns(self) -> tuple[str, ...]:
        """What to look for: `match`, or the class's own name."""
        return self.match or (self.name,)

    @classmethod
    def itself(cls, name: str) -> Self:
        """The class that means just `name`, whatever signs are in it."""
        return cls(name=name, match=("".join(f"[{sign}]" if sign in "*?[" else sign for sign in name),))


class Labels(_Part):
    """Where the truth comes from. Without `classes`, every structure or value seen in training is one."""

    source: LabelSourceName
    classes: tuple[LabelClass, ...] = ()
    name: str | None = Field(None, description="CSV: the label set's name, as given to `nocturne labels import`")
    fraction: float = Field(0.5, gt=0, le=1, description="occupancy from which a voxel of a fractional SEG is inside")

    def meaning(self, names: Sequence[str]) -> tuple[LabelClass, ...]:
        """The recipe's classes; where it gives none, each of `names` (a dataset's) means itself."""
        return self.classes or tuple(LabelClass.itself(name) for name in names)

    @field_validator("classes", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple({"name": item} if isinstance(item, str) else item for item in value)
        return value


class Split(_Part):
    """Shares of the patients; a patient once placed never moves."""

    train: Share = 0.7
    validation: Share = 0.1
    test: Share = 0.2

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if abs(self.train + self.validation + self.test - 1) > 1e-6 or min(self.train, self.validation, self.test) <= 0:
            raise ValueError("train, validation and test must be positive and add up to 1")
        return self


class Median(_Part):
    """Median filter over `size` voxels in each slice."""

    step: Literal["median"]
    size: int = Field(3, ge=3, le=15)


class Wavelet(_Part):
    """Wavelet shrinkage (BayesShrink), slice by slice."""

    step: Literal["wavelet"]
    wavelet: str = "db2"
    levels: int | None = Field(None, ge=1, le=8)


class Clahe(_Part):
    """Contrast-limited adaptive histogram equalisation, slice by slice."""

    step: Literal["clahe"]
    clip_limit: float = Field(0.01, gt=0, le=1)
    tiles: int = Field(8, ge=2, le=64)


class Window(_Part):
    """Clip to [center − width/2, center + width/2], in the image's unit."""

    step: Literal["window"]
    center: float
    width: float = Field(gt=0)


FilterStep = Annotated[Median | Wavelet | Clahe | Window, Field(discriminator="step")]


class Preprocess(_Part):
    """How images become the network's input. "auto" follows nnU-Net's published rules."""

    spacing: Auto | SpacingMm = "auto"
    normalise: NormalisationName = "auto"
    percentiles: tuple[float, float] = (0.5, 99.5)
    steps: tuple[FilterStep, ...] = Field((), description="filters before normalisation, in this order")
    crop: Literal["auto", "nonzero", "none"] = "auto"
    size: Auto | Size = Field("auto", description="classification: the fixed input size")
    outliers: Literal["none", "zscore", "iqr"] = Field(
        "iqr", description="cases whose intensities or size lie far from the rest are reported, never dropped"
    )


class Network(_Part):
    """Which network; "auto" chooses by kind and shape."""

    name: str = "auto"
    dimensions: Auto | Literal[2, 3] = "auto"
    features: Auto | tuple[int, ...] = Field("auto", description="channels per level")
    dropout: float = Field(0.0, ge=0, lt=1)


class Train(_Part):
    """The budget and the optimisation. Give `minutes` or `epochs`; with both, the first reached ends it."""

    minutes: float | None = Field(None, gt=0)
    epochs: int | None = Field(None, ge=1)
    steps_per_epoch: Auto | int = "auto"
    batch_size: Auto | int = "auto"
    patch_size: Auto | Size = "auto"
    optimiser: Literal["auto", "sgd", "adamw"] = "auto"
    learning_rate: Auto | float = "auto"
    weight_decay: Auto | float = "auto"
    schedule: Literal["auto", "poly", "cosine", "constant"] = "auto"
    warmup: float = Field(0.02, ge=0, lt=1, description="share of the budget over which the rate rises")
    loss: Literal["auto", "dice_ce", "ce", "focal"] = "auto"
    class_balance: bool = Field(True, description="classification: sample the classes equally often")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    clip: float = Field(12.0, gt=0, description="gradient norm")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights; 0: none")
    oversample_foreground: float = Field(0.33, ge=0, le=1)
    deep_supervision: bool = True
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Auto | bool = "auto"
    patience: int | None = Field(None, ge=1, description="validations without progress after which training stops")
    validations: int = Field(20, ge=1, description="about how many times to validate over the budget")
    checkpoint_minutes: float = Field(1.0, gt=0)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def limit_minutes(self) -> float | None:
        """The time budget: `minutes`, or an hour where the recipe gives neither minutes nor epochs."""
        return 60.0 if self.minutes is None and self.epochs is None else self.minutes


class Augment(_Part):
    """Probabilities and ranges, nnU-Net's by default; 0 switches one off."""

    rotation: Share = 0.2
    rotation_degrees: float = Field(30.0, ge=0, le=180)
    scaling: Share = 0.2
    scaling_range: tuple[float, float] = (0.7, 1.4)
    shift: Share = 0.0
    shift_fraction: float = Field(0.1, ge=0, le=0.5, description="of the patch, per axis")
    elastic: Share = 0.0
    elastic_magnitude: float = Field(3.0, ge=0, description="voxels")
    flip: tuple[Literal["z", "y", "x"], ...] | Auto = "auto"
    noise: Share = 0.1
    noise_variance: float = Field(0.1, ge=0)
    blur: Share = 0.2
    blur_sigma: tuple[float, float] = (0.5, 1.0)
    brightness: Share = 0.15
    brightness_range: tuple[float, float] = (0.75, 1.25)
    contrast: Share = 0.15
    contrast_range: tuple[float, float] = (0.75, 1.25)
    low_resolution: Share = 0.25
    low_resolution_range: tuple[float, float] = (0.5, 1.0)
    gamma: Share = 0.3
    gamma_inverted: Share = 0.1
    gamma_range: tuple[float, float] = (0.7, 1.5)


class Infer(_Part):
    """How the model is applied."""

    overlap: float = Field(0.5, ge=0, lt=1, description="share of a tile that the next one covers again")
    mirror: bool = Field(False, description="average over mirrored copies (test-time augmentation)")
    keep_largest: Auto | bool = Field("auto", description="largest component per class, if validation Dice rises")


class Evaluate(_Part):
    """How the test split is judged."""

    surface_tolerance_mm: float = Field(2.0, gt=0)
    bootstrap: int = Field(2000, ge=100)
    threshold: Auto | float = Field("auto", description="classification: chosen on validation, or given")
    positive: str | None = Field(None, description="binary classification: the positive class (default: the last)")


class Promote(_Part):
    """When a new model may serve."""

    metric: Literal["auto", "dice", "auc"] = "auto"
    floor: float = Field(0.0, description="the first champion's least value of the metric")
    margin: float = Field(0.0, ge=0, description="how much worse the paired 95 % interval's lower end may be")


class Code(_Part):
    """A coded concept (PS3.3 8.8), SNOMED CT unless said otherwise."""

    value: str = Field(min_length=1, max_length=16)
    meaning: str = Field(min_length=1, max_length=64)
    scheme: str = Field("SCT", min_length=1, max_length=16)


class Coded(_Part):
    """What a class is, for those who read results: its property type, and its category (default: anatomical)."""

    type: Code
    category: Code = Code(value="123037004", meaning="Anatomical structure")


class Deliver(_Part):
    """How results are written. Classes without codes are sent as tissue under their own label."""

    codes: dict[str, Coded] = Field({}, description="per class, by its name")
    min_confidence: float = Field(0.0, ge=0, le=1, description="below this a structure or class is not reported")


class Recipe(_Part):
    """One model: what it learns from, how, and when it may serve."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    kind: Kind
    version: Literal[1] = 1
    seed: int = 0
    images: Images
    labels: Labels
    split: Split = Split()
    preprocess: Preprocess = Preprocess()
    network: Network = Network()
    train: Train = Train()
    augment: Augment = Augment()
    infer: Infer = Infer()
    evaluate: Evaluate = Evaluate()
    promote: Promote = Promote()
    deliver: Deliver = Deliver()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind == "segmentation" and self.labels.source == "CSV":
            raise ValueError("labels.source: segmentation learns from SEG, RTSTRUCT or NIfTI; CSV holds classes")
        if self.kind == "classification" and self.labels.source != "CSV":
            raise ValueError("labels.source: classification learns from CSV labels (`nocturne labels import`)")
        return self

    @classmethod
    def parse(cls, text: str, *, where: str = "recipe") -> Self:
        """Read TOML. Raises RecipeError naming each bad key and, for an unknown one, the nearest known key."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"not valid TOML: {error}", where=where) from None
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RecipeError("; ".join(_explain(e) for e in error.errors()), where=where) from None

    @property
    def key(self) -> str:
        """Content hash: two recipes that mean the same have the same key."""
        return content_key("recipe", self.model_dump(mode="json"))

    @property
    def learning_key(self) -> str:
        """As `key`, over what shapes the weights alone: judging or delivering otherwise does not train again."""
        return content_key("learning", self.model_dump(mode="json", exclude={"evaluate", "promote", "deliver"}))


def _explain(error: Any) -> str:
    place = [str(p) for p in error["loc"]]
    dotted = ".".join(place)
    if error["type"] != "extra_forbidden":
        message = str(error["msg"]).removeprefix("Value error, ")
        return f"{dotted}: {message}" if dotted else message
    known = _known_keys(place[:-1])
    near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.4)
    return f"unknown key {dotted!r}" + (f": did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}")


def _known_keys(path: list[str]) -> list[str]:
    """The keys that the recipe knows at `path`; indices and union tags on the way are skipped."""
    models: list[type[BaseModel]] = [Recipe]
    for part in path:
        inner = [m for model in models for m in _models_in(getattr(model.model_fields.get(part), "annotation", None))]
        models = inner or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
