"""A model package: weights as safetensors and one JSON that says everything needed to run them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import PackageError
from models.plan import NetworkPlan, Plan
from models.recipe import Recipe

WEIGHTS_FILE = "weights.safetensors"
PACKAGE_FILE = "package.json"
CARD_FILE = "card.md"
TRANSFER_FILE = "transfer.json"
"""Beside the weights of a model that did not start from scratch: what became of each layer."""

_LONGEST_SIDE = 8192  # voxels of a patch, a tile or a whole image along one axis
_MOST_VOXELS = 2**31
_MOST_LEVELS = 16
_MOST_CHANNELS = 2**16
_MOST_KERNEL = 64


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Configuration(_Part):
    """One of several that a training chose from, or two of them together: how good it was in cross-validation."""

    names: tuple[str, ...]
    metric: str
    figure: float  # the folds' mean
    folds: tuple[float, ...]
    seconds: float  # that learning took
    chosen: bool = False


class TrainingRecord(_Part):
    """What the training was and cost."""

    steps: int
    epochs: int
    seconds: float
    stopped_by: Literal["epochs", "minutes", "patience"]
    device: str
    precision: str
    batch_size: int  # after out-of-memory halvings
    processes: int = 1  # that learnt together, each from its part of a batch
    parameters: int
    best_metric: float
    best_step: int
    history: tuple[tuple[int, float, float], ...] = ()  # (step, mean training loss since the last, validation metric)
    notes: tuple[str, ...] = ()
    folds: tuple[TrainingRecord, ...] = ()  # of each; the rest is then their sum or mean
    configurations: tuple[Configuration, ...] = ()  # what was chosen from, the best first
    low: TrainingRecord | None = None  # of a cascade's first stage; steps, seconds and parameters are then the sum


class Member(_Part):
    """One of several networks that are applied together. Its weights bear `name` and a full stop as prefix."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    plan: Plan | None = None  # None: the package's own
    weight: float = Field(1.0, gt=0)  # in the mean of the members' probabilities, relative to the others'
    temperature: float = Field(1.0, gt=0)  # its logits are divided by it before that
    package: str = ""  # the package that it was copied from
    recipe: str = ""  # that package's recipe's name
    low: tuple[str, ...] = ()  # the members whose joint segmentation it is told; these say nothing else


class Environment(_Part):
    """The software that made it."""

    nocturne: str
    code: str  # git commit, or "unknown"
    python: str
    torch: str
    platform: str


class ModelPackage(_Part):
    """`package.json`. The weights' digest ties the two files together."""

    format: Literal[1] = 1
    key: str  # content key of (dataset, recipe's learning key, seed)
    recipe: Recipe
    plan: Plan
    dataset: str
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    training: TrainingRecord
    environment: Environment
    threshold: float | None = None  # binary classification: chosen on validation
    keep_largest: tuple[str, ...] = ()  # classes of which only the largest component is kept
    temperature: float = Field(1.0, gt=0)  # of the mean of all probabilities; chosen on validation
    thresholds: tuple[float, ...] = ()  # several classes at once: each one's, chosen on validation
    members: tuple[Member, ...] = ()  # none: a single network, whose weights have no prefix
    started_from: str = ""  # the package or the file's digest that the weights came from
    fingerprint: dict[str, Any] = Field(default_factory=dict)  # intensities and spacing, for out-of-distribution checks

    @model_validator(mode="after")
    def _knows_its_members(self) -> Self:
        known = {member.name: member for member in self.members}
        for member in self.members:
            if any(name not in known or known[name].low for name in member.low):
                raise ValueError(
                    f"members: {member.name} is told by members that are not there, or are told themselves"
                )
        return self

    @model_validator(mode="after")
    def _claims_what_can_be(self) -> Self:
        """What a description asks for is made before anything shows that it lies: its sizes are bounded here."""
        for plan in self.plans.values():
            for wrong in _impossible(plan):
                raise ValueError(f"plan: {wrong}")
        return self

    @property
    def answering(self) -> tuple[Member, ...]:
        """The members whose probabilities count, without those that only tell others."""
        telling = {name for member in self.members for name in member.low}
        return tuple(member for member in self.members if member.name not in telling)

    @property
    def plans(self) -> dict[str, Plan]:
        """Each network's plan, by the prefix of its weights' names."""
        return {f"{member.name}.": member.plan or self.plan for member in self.members} or {"": self.plan}

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """Read `package.json`. Raises PackageError."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_input=False, include_context=False)[0]
            told = ": ".join(part for part in (".".join(map(str, first["loc"])), first["msg"]) if part)
            raise PackageError(
                f"{PACKAGE_FILE} is not a model package: {told}",
                hint="the package may come from another version; register it again or roll back",
            ) from None


def _impossible(plan: Plan) -> Iterator[str]:
    """What of a plan no network could be, and what its parts say of each other that is not so."""
    network = plan.network
    sizes = {"train.patch_size": plan.train.patch_size, "infer.tile": plan.infer.tile}
    sizes |= {"prepare.size": plan.prepare.size or (1, 1, 1), "network.size": network.size or (1, 1, 1)}
    for name, size in sizes.items():
        if not all(1 <= n <= _LONGEST_SIDE for n in size) or math.prod(size) > _MOST_VOXELS:
            yield f"{name} is {' x '.join(map(str, size))} voxels"
    if not all(math.isfinite(mm) and mm > 0 for mm in plan.prepare.spacing or ()):
        yield "prepare.spacing is no length"
    if not 0 <= plan.infer.overlap < 1:
        yield f"infer.overlap is {plan.infer.overlap}"
    yield from _unbuildable(network)
    if len({*plan.classes}) != len(plan.classes) or not plan.classes:
        yield "classes are none, or one of them is there twice"
    # A background beside them, where each voxel is of one class; a generator's outputs are images.
    outputs = len(plan.classes) + (plan.segments and not plan.regions)
    if plan.kind != "synthesis" and network.out_channels != outputs:
        yield f"the network has {network.out_channels} outputs, its classes need {outputs}"


def _unbuildable(network: NetworkPlan) -> Iterator[str]:
    counts = {"in_channels": network.in_channels, "out_channels": network.out_channels, "latent": network.latent}
    for name, count in [*counts.items(), *(("features", count) for count in network.features)]:
        if not 1 <= count <= _MOST_CHANNELS:
            yield f"network.{name} is {count}"
    if max(len(network.features), len(network.strides), len(network.kernels)) > _MOST_LEVELS:
        yield f"the network has more than {_MOST_LEVELS} levels"
    if not all(1 <= n <= _MOST_KERNEL for step in (*network.strides, *network.kernels) for n in step):
        yield "network.strides or network.kernels are out of bounds"
    if not 0 <= network.variables <= _MOST_CHANNELS or not 0 <= network.told <= _MOST_CHANNELS:
        yield "network.variables or network.told are out of bounds"
