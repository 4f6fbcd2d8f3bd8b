"""How a training sets out: with which weights, at which share of the usual rate and budget, on old and new cases."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from models.dataset import DatasetRow
from models.errors import RecipeError
from models.networks import build
from models.package import TRANSFER_FILE
from models.plan import NetworkPlan, Plan, TrainPlan
from tasks.stores.places import write_synced
from tasks.train.learner import Learner
from tasks.train.transfer.matching import Match, match

LEAST_CARRIED = 0.5
"""Share of the network that a champion must bring: with less, a lower rate and a shorter budget would learn nothing."""

CaseKey = tuple[str, str]
"""(volume, label)."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Weights to start from. `key` says which (a package's key, a file's digest), `told` the same in words.

    `known` are the cases that they have learnt from, where that is known; `members` the names of the networks whose
    weights they are, where these are several.
    """

    weights: Mapping[str, Tensor]
    key: str
    told: str
    known: frozenset[CaseKey] = frozenset()
    members: tuple[str, ...] = ()

    def of(self, name: str) -> Origin:
        """For the network called `name`: a fold goes on from its own fold, and never sees what it is judged on."""
        if not self.members:
            return self
        prefix = f"{name if name in self.members else self.members[0]}."
        own = {n.removeprefix(prefix): tensor for n, tensor in self.weights.items() if n.startswith(prefix)}
        return replace(self, weights=own, members=())


@dataclass(frozen=True, slots=True)
class Course:
    """The plan as it is carried out, and what carries over. `key` is empty for a start from scratch."""

    plan: Plan
    match: Match | None = None
    key: str = ""
    notes: tuple[str, ...] = ()

    def begin(self, learner: Learner) -> Learner:
        """Hand the weights over to a fresh learner; the same learner."""
        if self.match is not None:
            learner.begin_from(self.match.tensors, self.plan.train.start.rate)
        return learner

    def write(self, folder: Path) -> None:
        """What became of each layer, as JSON beside the weights; nothing for a start from scratch."""
        if self.match is None:
            return
        table = {
            "source": self.plan.train.start.source,
            "from": self.key,
            "carried": round(self.match.share, 6),
            "layers": self.match.to_json(),
        }
        write_synced(folder / TRANSFER_FILE, (json.dumps(table, indent=1) + "\n").encode())


def chart(plan: Plan, origin: Origin | None) -> Course:
    """The course for `plan`. Raises RecipeError where weights that the recipe names do not fit its network."""
    start = plan.train.start
    if start.source == "scratch":
        return Course(plan)
    if origin is None:
        return Course(plan, notes=("there is no champion yet: from scratch",))
    try:
        found = match(shapes(plan.network), origin.weights, start.inflation)
    except RecipeError:
        if start.source != "champion":
            raise
        return Course(plan, notes=(f"{origin.told} has another network, of which nothing fits: from scratch",))
    if start.source == "champion" and found.share < LEAST_CARRIED:
        return Course(
            plan, notes=(f"{origin.told} has another network, {found.share:.0%} of which fits: from scratch",)
        )
    train = _shortened(plan.train)
    notes = [f"started from {origin.told}: {found.told}", f"carried weights learn at {start.rate:g} of the rate"]
    if train != plan.train:
        notes.append(f"the budget is {_budget(train)} in place of {_budget(plan.train)}")
    return Course(plan.model_copy(update={"train": train}), found, origin.key, tuple(notes))


def shapes(network: NetworkPlan) -> dict[str, Tensor]:
    """The state of a network without its numbers."""
    try:
        with torch.device("meta"):
            return dict(build(network).state_dict())
    except RuntimeError:  # a builder that looks at its own numbers needs some
        with torch.random.fork_rng(devices=[]):
            return dict(build(network).state_dict())


def replayed(rows: Sequence[DatasetRow], known: frozenset[CaseKey], replay: float) -> list[float] | None:
    """How often each case is drawn, so that the share `replay` is of `known` ones; None where all are of one sort."""
    old = [(row.volume, row.label) in known for row in rows]
    if all(old) or not any(old):
        return None
    return [replay / sum(old) if seen else (1 - replay) / (len(old) - sum(old)) for seen in old]


def part(train: TrainPlan, share: float) -> TrainPlan:
    """The same with a share of its budget; an epoch at least."""
    epochs = None if train.epochs is None else max(1, math.ceil(train.epochs * share - 1e-9))
    minutes = None if train.minutes is None else train.minutes * share
    return train.model_copy(update={"epochs": epochs, "minutes": minutes})


def _shortened(train: TrainPlan) -> TrainPlan:
    """What is left of the budget for the labelled cases."""
    start = train.start
    if start.source == "champion":
        return part(train, start.budget)
    return part(train, 1 - start.pretraining_share) if start.source == "pretraining" else train


def _budget(train: TrainPlan) -> str:
    parts = [f"{train.epochs} epochs" if train.epochs else "", f"{train.minutes:g} min" if train.minutes else ""]
    return " or ".join(part for part in parts if part)
