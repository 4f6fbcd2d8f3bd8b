"""A model package: weights as safetensors and one JSON that says everything needed to run them."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.errors import PackageError
from models.plan import Plan
from models.recipe import Recipe

WEIGHTS_FILE = "weights.safetensors"
PACKAGE_FILE = "package.json"
CARD_FILE = "card.md"
TRANSFER_FILE = "transfer.json"
"""Beside the weights of a model that did not start from scratch: what became of each layer."""


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
    def parse(cls, text: str) -> Self:
        """Read `package.json`. Raises PackageError."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise PackageError(
                f"package.json is not a model package: {'.'.join(map(str, first['loc']))}: {first['msg']}",
                hint="the package may come from another version; register it again or roll back",
            ) from None
