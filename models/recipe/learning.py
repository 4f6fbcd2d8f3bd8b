"""How a model learns: network, budget and optimisation, augmentation, and where it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, Self

from pydantic import Field, model_validator

from models.recipe.base import Auto, Count, NotNegative, Part, Positive, PositiveRange, Range, Share, Size

Loss = Literal["auto", "dice_ce", "ce", "focal", "dice_focal", "tversky", "dice_ce_boundary", "bce", "dice_bce"]


CONFIGURATIONS: Final[Mapping[str, Mapping[str, object]]] = {
    "2d": {"dimensions": 2, "resolution": "full"},
    "full": {"resolution": "full"},
    "low": {"resolution": "low"},
    "cascade": {"resolution": "cascade"},
    "3d_fullres": {"dimensions": 3, "resolution": "full"},
    "3d_lowres": {"dimensions": 3, "resolution": "low"},
    "3d_cascade_fullres": {"dimensions": 3, "resolution": "cascade"},
}
"""What `network.select` may name besides networks: nnU-Net's configurations, and this recipe's words for them."""


class Network(Part):
    """Which network; "auto" chooses by kind and shape."""

    name: str = "auto"
    dimensions: Auto | Literal[2, 3] = "auto"
    features: Auto | tuple[int, ...] = Field("auto", description="channels per level")
    dropout: float = Field(0.0, ge=0, lt=1)
    stochastic_depth: float = Field(0.0, ge=0, lt=1, description="chance that the last residual unit is skipped")
    resolution: Literal["auto", "full", "low", "cascade"] = Field(
        "auto",
        description="3-D segmentation, and detection by components: on the full resolution's grid; on a coarser one, "
        "of which a patch shows at least a quarter of the median case; or on the coarser one first and then on the "
        "full one, told what the first network found (nnU-Net's cascade; each stage has half of the minutes, and all "
        "of the epochs). auto: a cascade where the largest patch that memory holds shows less than a quarter of the "
        "median training case and the minutes are enough for both stages; else full",
    )
    select: tuple[str, ...] = Field(
        (),
        description="several configurations to choose from, as nnU-Net does: networks' names, resolutions (2d, "
        "3d_fullres, 3d_lowres, 3d_cascade_fullres; or full, low, cascade), or both (unet/cascade). Each is "
        "cross-validated by patient (train.folds of at least 2) in its part of the minutes, or for all of the epochs, "
        "and the one with the best mean validation figure is the model; or the best two together, where they are "
        "better still. The table's other keys hold for each of them",
    )

    def candidates(self) -> dict[str, Network]:
        """What `select` names, by its names: each as a network of its own."""
        return {name: self._as(name) for name in self.select}

    def _as(self, candidate: str) -> Network:
        name, _, resolution = candidate.rpartition("/")
        changes = CONFIGURATIONS.get(resolution, {"name": resolution})
        return self.model_copy(update={"select": (), **({"name": name} if name else {}), **changes})

    @model_validator(mode="after")
    def _several(self) -> Self:
        if len(self.select) == 1 or len(set(self.select)) < len(self.select):
            raise ValueError("select: at least two configurations, each named once; for one alone leave it out")
        for candidate in self.select:
            name, slash, resolution = candidate.rpartition("/")
            if not resolution or (slash and (not name or resolution not in CONFIGURATIONS)):
                known = ", ".join(CONFIGURATIONS)
                raise ValueError(f"select: {candidate!r} is no network/resolution; resolutions are {known}")
        return self


class Train(Part):
    """The budget and the optimisation. Give `minutes` or `epochs`; with both, the first reached ends it."""

    minutes: float | None = Field(None, gt=0)
    epochs: int | None = Field(None, ge=1)
    steps_per_epoch: Auto | Count = "auto"
    batch_size: Auto | Count = "auto"
    patch_size: Auto | Size = "auto"
    optimiser: Literal["auto", "sgd", "adamw"] = "auto"
    learning_rate: Auto | Positive = "auto"
    weight_decay: Auto | NotNegative = "auto"
    schedule: Literal["auto", "poly", "cosine", "constant"] = "auto"
    warmup: float = Field(0.02, ge=0, lt=1, description="share of the budget over which the rate rises")
    loss: Loss = "auto"
    class_weights: Auto | tuple[float, ...] = Field(
        (),
        description="weights of the classes in the loss (masks: background first; regions and several classes: of "
        "their positives); auto: by their rarity, in place of class_balance",
    )
    tversky: tuple[float, float] = Field(
        (0.3, 0.7), description="loss = tversky: weights of false positives and of false negatives"
    )
    class_balance: bool = Field(True, description="classification: sample the classes equally often")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of a target that is spread over all classes")
    mixup: float = Field(0.0, ge=0, description="classification: alpha of mixup's Beta distribution; 0: none")
    cutmix: float = Field(0.0, ge=0, description="classification: alpha of cutmix's Beta distribution; 0: none")
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
    folds: int = Field(
        1,
        ge=1,
        le=10,
        description="cross-validation: this many models, each on all but one part of the patients that are not tested "
        "on, applied together; they share the minutes, and each has all of the epochs",
    )

    @property
    def limit_minutes(self) -> float | None:
        """The time budget: `minutes`, or an hour where the recipe gives neither minutes nor epochs."""
        return 60.0 if self.minutes is None and self.epochs is None else self.minutes


class Augment(Part):
    """Probabilities and ranges, nnU-Net's by default; 0 switches one off."""

    rotation: Share = 0.2
    rotation_degrees: float = Field(30.0, ge=0, le=180)
    scaling: Share = 0.2
    scaling_range: PositiveRange = Field(
        (0.7, 1.4), description="share of the patch that is looked at; above 1: smaller"
    )
    shift: Share = 0.0
    shift_fraction: float = Field(0.1, ge=0, le=0.5, description="of the patch, per axis")
    elastic: Share = 0.0
    elastic_magnitude: float = Field(3.0, ge=0, description="voxels")
    flip: tuple[Literal["z", "y", "x"], ...] | Auto = "auto"
    noise: Share = 0.1
    noise_variance: float = Field(0.1, ge=0, description="largest standard deviation, as nnU-Net means it")
    blur: Share = Field(0.2, description="of samples; each channel of such a one by half a chance")
    blur_sigma: PositiveRange = (0.5, 1.0)
    brightness: Share = 0.15
    brightness_range: Range = (0.75, 1.25)
    contrast: Share = 0.15
    contrast_range: Range = (0.75, 1.25)
    low_resolution: Share = Field(0.25, description="as blur")
    low_resolution_range: PositiveRange = (0.5, 1.0)
    gamma: Share = 0.3
    gamma_inverted: Share = 0.1
    gamma_range: PositiveRange = (0.7, 1.5)
    cascade_morphology: Share = Field(
        0.4, description="a cascade: what the first stage found grows or shrinks by up to 8 voxels"
    )
    cascade_dropped: Share = Field(
        0.2, description="a cascade: a small component of what the first stage found is lost"
    )

    @classmethod
    def none(cls) -> Self:
        """Images as they are."""
        return cls(
            rotation=0,
            scaling=0,
            noise=0,
            blur=0,
            brightness=0,
            contrast=0,
            low_resolution=0,
            gamma=0,
            gamma_inverted=0,
            cascade_morphology=0,
            cascade_dropped=0,
        )


class Start(Part):
    """Where the weights come from, and how much of the old a fine-tuned model sees again."""

    source: Literal["scratch", "weights", "champion", "pretraining"] = Field(
        "scratch", description="fresh weights, a file, the model that serves now, or the unlabelled images"
    )
    weights: str | None = Field(None, description="safetensors, or a torch checkpoint (read without running code)")
    sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="the file's digest, so that the recipe says what it started from",
    )
    inflation: Literal["repeat", "centre"] = Field(
        "repeat", description="weights of 2-D filters in 3-D networks: shared out along z, or in the middle slice alone"
    )
    rate: float = Field(0.1, gt=0, le=1, description="share of the usual learning rate at which carried weights go on")
    budget: float = Field(1 / 3, gt=0, le=1, description="champion: share of the usual budget")
    replay: Share = Field(0.5, description="champion: share of the cases drawn that it has learnt from before")
    pretraining: Literal["masked", "contrastive"] = Field(
        "masked", description="hidden patches are filled in, or two views of one patch recognise each other"
    )
    pretraining_share: float = Field(0.3, gt=0, lt=1, description="of the budget, on the unlabelled images")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if (self.source == "weights") != bool(self.weights) or bool(self.weights) != bool(self.sha256):
            raise ValueError('weights and sha256 are given together, with source = "weights"')
        return self


class Nights(Part):
    """What a night keeps of the nights before."""

    plan: Literal["every-night", "on-drift", "keep"] = Field(
        "every-night", description="when the plan is made anew: always, when the data has drifted from it, or never"
    )
