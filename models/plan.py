"""What a recipe becomes once the data has been looked at: every number that preparing, training and applying needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from models.clinical import as_number, same_value
from models.hashing import content_key
from models.recipe import Augment, Detection, FilterStep, Kind, Loss, Start, Synthesis

FloatTriple = tuple[float, float, float]
IntTriple = tuple[int, int, int]
Activation = Literal["softmax", "sigmoid"]

_FAR = 5.0  # standard deviations


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IntensityStats(_Part):
    """Of the sampled (foreground, where there is a mask) voxels of one channel, in the image's unit."""

    mean: float
    std: float
    minimum: float
    maximum: float
    median: float
    p005: float
    p995: float


class ChannelLevels(_Part):
    """Percentiles of one channel's voxels ≠ 0 over the whole image, in its unit."""

    p05: float
    median: float
    p95: float


class CaseFacts(_Part):
    """What the fingerprint keeps of one training case. What has a default is not known of older ones."""

    volume: str
    shape: IntTriple
    spacing: FloatTriple
    cropped_shape: IntTriple
    class_voxels: tuple[int, ...] = ()
    median: float
    iqr: float
    orientation: str = ""  # tasks.imaging.facts
    levels: tuple[ChannelLevels, ...] = ()


class Outlier(_Part):
    """A case far from the rest, and in what."""

    volume: str
    measure: str
    value: float
    expected: str


class Fingerprint(_Part):
    """The training split in numbers (nnU-Net's sense)."""

    dataset: str
    modality: str
    cases: tuple[CaseFacts, ...]
    intensities: tuple[IntensityStats, ...]
    crop_ratio: float
    class_counts: tuple[int, ...] = ()
    outliers: tuple[Outlier, ...] = ()
    modalities: tuple[str, ...] = ()  # of the channels, where a case is made of several series

    def modality_of(self, channel: int) -> str:
        """The channel's modality, where channels have their own."""
        return self.modalities[channel] if channel < len(self.modalities) else self.modality


class Normalisation(_Part):
    """One channel's intensity mapping.

    `ct`: clip to [low, high], then (x − mean)/std. `zscore`: per image (inside nonzero if `masked`).
    `percentile`: per image from percentiles [low, high] to [0, 1]. `minmax`: per image to [0, 1].
    `window`: clip to [low, high], to [0, 1]. `none`: as it is.
    """

    scheme: Literal["ct", "zscore", "percentile", "minmax", "window", "none"]
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    std: float = 1.0
    masked: bool = False


class PreparePlan(_Part):
    """From a volume to the network's grid and values. Prepared arrays are keyed by it."""

    dimensions: Literal[2, 3]
    spacing: FloatTriple | None  # (z, y, x) mm; None: the image's own grid is kept
    size: IntTriple | None = None  # classification: every image is brought to this grid
    anisotropic: bool = False  # z apart: nearest along z after in-plane cubic
    crop: Literal["nonzero", "none"] = "none"
    channels: int = 1
    steps: tuple[FilterStep, ...] = ()
    normalisation: tuple[Normalisation, ...]

    @property
    def key(self) -> str:
        """Content hash."""
        return content_key("prepare", self.model_dump(mode="json"))


class NetworkPlan(_Part):
    """One entry of the network table with its arguments."""

    name: str
    dimensions: Literal[2, 3]
    in_channels: int
    out_channels: int
    features: tuple[int, ...]
    strides: tuple[IntTriple, ...] = ()  # per level, (z, y, x); 2-D networks ignore z
    kernels: tuple[IntTriple, ...] = ()
    dropout: float = 0.0
    deep_supervision: bool = False
    stochastic_depth: float = 0.0
    size: IntTriple | None = None  # the input's, where it is always the same: networks with position embeddings need it
    variables: int = 0  # clinical numbers that join in the head
    latent: int = 64  # numbers that a generator makes an image from
    told: int = 0  # classes of a coarser segmentation, which is the input's last channel: see `models.networks.told`
    told_regions: bool = False  # that segmentation's values are bits


class TrainPlan(_Part):
    """The optimisation, with nothing left to choose."""

    patch_size: IntTriple
    batch_size: int
    steps_per_epoch: int
    epochs: int | None
    minutes: float | None
    optimiser: Literal["sgd", "adamw"]
    learning_rate: float
    weight_decay: float
    schedule: Literal["poly", "cosine", "constant"]
    warmup: float
    loss: Loss
    class_balance: bool
    label_smoothing: float
    clip: float
    ema: float
    oversample_foreground: float
    precision: Literal["auto", "fp32", "bf16"]
    compile: Literal["auto"] | bool
    patience: int | None
    validations: int
    checkpoint_minutes: float
    device: Literal["auto", "cpu", "cuda"]
    augment: Augment
    flip_axes: tuple[Literal["z", "y", "x"], ...]
    class_weights: tuple[float, ...] = ()
    tversky: tuple[float, float] = (0.3, 0.7)
    mixup: float = 0.0
    cutmix: float = 0.0
    channel_dropout: float = 0.0
    folds: int = 1
    start: Start = Start()
    step_seconds: float | None = None  # of a dry run on the device that the plan was made on


class InferPlan(_Part):
    """How the network is applied to a whole image."""

    tile: IntTriple
    overlap: float
    mirror_axes: tuple[Literal["z", "y", "x"], ...]
    keep_largest: Literal["auto"] | bool


class VariablePlan(_Part):
    """How one clinical variable becomes numbers: (x − mean)/std, or one per category; and one that says "missing"."""

    name: str
    kind: Literal["number", "category"]
    mean: float = 0.0
    std: float = 1.0
    values: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many numbers it becomes."""
        return 1 + (len(self.values) if self.kind == "category" else 1)

    def numbers(self, text: str) -> tuple[float, ...]:
        """The numbers of one value; a category that training did not see, and what is no number, count as missing."""
        if self.kind == "category":
            places = (
                [float(same_value(text, value)) for value in self.values] if text.strip() else [0.0] * len(self.values)
            )
            return (*places, float(not any(places)))
        value = as_number(text)
        if value is None:
            return 0.0, 1.0
        # A slip of the pen (7000 for 70.00) must not drown the image.
        return max(-_FAR, min(_FAR, (value - self.mean) / self.std)), 0.0


def clinical_numbers(variables: Sequence[VariablePlan], texts: Sequence[str]) -> tuple[float, ...]:
    """What the network is told of one case; texts that are not there are missing."""
    padded = [*texts, *[""] * (len(variables) - len(texts))]
    return tuple(n for variable, text in zip(variables, padded, strict=True) for n in variable.numbers(text))


class Drift(_Part):
    """One property of the training cases beside what the champion's plan was made for.

    `value` is a distance of its own kind (`how`), and too far above `threshold`.
    """

    measure: str
    how: Literal["factor", "ks", "psi"]  # between medians; Kolmogorov and Smirnov's; population stability index
    value: float
    threshold: float
    told: str = ""

    @property
    def drifted(self) -> bool:
        """Whether it is too far."""
        return self.value > self.threshold


class Plan(_Part):
    """A recipe made concrete for one dataset."""

    recipe: str
    kind: Kind
    seed: int
    classes: tuple[str, ...]  # without background; a mask's value is index + 1, a class's value is its index
    prepare: PreparePlan
    network: NetworkPlan
    train: TrainPlan
    infer: InferPlan
    regions: bool = False  # masks hold bits: class i where value & 2^i; the network's outputs are independent
    several: bool = False  # an image may be of several classes: the network's outputs are independent
    of: Literal["series", "patient"] = "series"
    channels: tuple[str, ...] = ()  # names, where a case is made of several series
    variables: tuple[VariablePlan, ...] = ()
    detection: Detection = Detection()
    synthesis: Synthesis = Synthesis()
    resolution: Literal["full", "low"] = "full"
    low: Plan | None = None  # a cascade's first stage, whose segmentation this plan's network is told
    candidates: tuple[Candidate, ...] = ()  # to be chosen from by cross-validation; this plan is then the first one's
    unlabelled: tuple[tuple[str, ...], ...] = ()  # pretraining's further cases: each one's volumes, the reference first
    made_for: str = ""  # the dataset that it was made for, where it was kept from an earlier night
    drift: tuple[Drift, ...] = ()  # of the training cases from those that the champion's plan was made for
    notes: tuple[str, ...] = ()  # what was decided and why, for the report

    @property
    def grids(self) -> tuple[PreparePlan, ...]:
        """What cases are prepared by: each stage's way, of each candidate, once."""
        plans = [candidate.plan for candidate in self.candidates] or [self]
        ways = [stage.prepare for plan in plans for stage in (plan, plan.low) if stage is not None]
        return tuple({way.key: way for way in ways}.values())

    @property
    def segments(self) -> bool:
        """Whether the network gives each voxel a class: a segmentation, or a detection made of one."""
        return self.kind == "segmentation" or (self.kind == "detection" and self.detection.segments)

    @property
    def key(self) -> str:
        """Content hash."""
        return content_key("plan", self.model_dump(mode="json"))

    @property
    def course_key(self) -> str:
        """As `key`, over what training does alone: not why, and not how far the data has drifted."""
        return content_key("course", self.model_dump(mode="json", exclude={"notes", "drift", "made_for"}))

    @property
    def activation(self) -> Activation:
        """What makes probabilities of the network's outputs: one alone is true, or each by itself."""
        return "sigmoid" if self.regions or self.several else "softmax"

    def rows(self) -> list[tuple[str, Any]]:
        """(what, value) pairs for a table in the terminal, the report or an artifact."""
        p, n, t = self.prepare, self.network, self.train
        budget = " / ".join(
            part
            for part in (f"{t.minutes:g} min" if t.minutes else "", f"{t.epochs} epochs" if t.epochs else "")
            if part
        )
        return [
            ("kind", self.kind),
            ("classes", ", ".join(self.classes)),
            *([("a case", "all series of a patient")] if self.of == "patient" else []),
            ("network", f"{n.name} {n.dimensions}-D, features {'-'.join(map(str, n.features))}"),
            *self._stages(),
            *([("chosen from", ", ".join(one.name for one in self.candidates))] if self.candidates else []),
            ("spacing (z, y, x) mm", " × ".join(f"{s:.3g}" for s in p.spacing) if p.spacing else "as it is"),
            ("size", " × ".join(map(str, p.size)) if p.size else "as it is"),
            ("normalisation", ", ".join(c.scheme for c in p.normalisation)),
            ("filters", ", ".join(s.step for s in p.steps) or "none"),
            ("patch (z, y, x)", " × ".join(map(str, t.patch_size))),
            ("batch", t.batch_size),
            ("loss", t.loss),
            ("optimiser", f"{t.optimiser}, {t.learning_rate:g}, {t.schedule}"),
            ("budget", f"{budget} for each of two stages" if self.low else budget),
        ]

    def _stages(self) -> list[tuple[str, Any]]:
        """What resolutions there are, where it is not the full one alone."""
        if self.low is None:
            return [("resolution", "low")] if self.resolution == "low" else []
        spacing, patch = self.low.prepare.spacing or (), self.low.train.patch_size
        first = f"{' × '.join(f'{s:.3g}' for s in spacing)} mm, patch {' × '.join(map(str, patch))}"
        return [("resolution", "cascade: low, then full"), ("first stage", first)]


class Candidate(_Part):
    """One of several configurations that a training chooses from."""

    name: str
    plan: Plan


Plan.model_rebuild()
