"""Networks that are applied together: the mean of their probabilities, each weighed and at its own temperature.

Members that see the same prepared image go over it side by side, tile by tile, and cost no more memory than one.
Others have their own grid: their probabilities meet on the image's own, a few slices at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.errors import PackageError
from models.networks import build
from models.package import Member, ModelPackage
from models.plan import Activation, Plan

Float32 = NDArray[np.float32]


@dataclass
class Part:
    """The networks that see the same prepared image, as one. `plan` says how it is made and gone over.

    `low` is a cascade's first stage: what it finds is the last channel of what `network` takes.
    """

    plan: Plan
    network: nn.Module
    share: float  # of the parts' mean; all shares add up to 1
    low: Part | None = None


class Together(nn.Module):
    """Several networks as one, whose probabilities are the weighted mean of theirs; takes what they take.

    Its logits are those of the mean: what makes probabilities of logits, a mean over mirrored copies, or a sliding
    window need not know that there are several.
    """

    def __init__(
        self,
        networks: Iterable[nn.Module],
        weights: Sequence[float],
        temperatures: Sequence[float],
        activation: Activation = "softmax",
    ) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.shares = [weight / sum(weights) for weight in weights]
        self.temperatures, self.activation = tuple(temperatures), activation

    def forward(self, *inputs: Any) -> Tensor:
        """(b, c, …) → logits (b, k, …), float32."""
        total: Tensor | None = None
        for network, share, temperature in zip(self.networks, self.shares, self.temperatures, strict=True):
            logits = network(*inputs).float() / temperature
            said = (logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(1)) * share
            total = said if total is None else total.add_(said)
        if total is None:
            raise ValueError("an ensemble of nothing")
        # A probability of 0 becomes −∞, and 0 again.
        return total.logit() if self.activation == "sigmoid" else total.log()


def load_parts(package: ModelPackage, weights: Mapping[str, Tensor], device: torch.device) -> list[Part]:
    """The package's networks on `device`, to evaluate. Raises PackageError where the weights do not fit them."""
    networks = {
        prefix: _load(package, plan, weights, prefix).to(device).eval() for prefix, plan in package.plans.items()
    }
    if not package.members:
        return [Part(package.plan, networks[""], 1.0)]
    return _parts(package, package.answering, networks)


def _parts(package: ModelPackage, members: Sequence[Member], networks: Mapping[str, nn.Module]) -> list[Part]:
    seeing: dict[object, list[Member]] = {}
    for member in members:
        plan = member.plan or package.plan
        # Boxes are no probabilities of places: they meet when they are found, not before.
        apart = plan.kind == "detection" and not plan.segments
        seeing.setdefault(member.name if apart else (_sight(plan), member.low), []).append(member)
    whole = sum(member.weight for member in members)
    return [
        Part(
            several[0].plan or package.plan,
            _joined(package, several, networks),
            sum(m.weight for m in several) / whole,
            _low(package, several[0].low, networks),
        )
        for several in seeing.values()
    ]


def _low(package: ModelPackage, names: Sequence[str], networks: Mapping[str, nn.Module]) -> Part | None:
    """The members `names` as one. Raises PackageError where they do not see the same."""
    parts = _parts(package, [member for member in package.members if member.name in names], networks)
    if len(parts) > 1:
        raise PackageError("the networks of the first stage have different grids", where=package.key)
    return parts[0] if parts else None


def averaged(streams: Sequence[Iterator[Float32]], shares: Sequence[float]) -> Iterator[Float32]:
    """The weighted mean of arrays that come in step; each is taken, weighed and forgotten before the next is made."""
    while True:
        total: Float32 | None = None
        for stream, share in zip(streams, shares, strict=True):
            part = next(stream, None)
            if part is None:
                return
            part *= np.float32(share)
            total = part if total is None else np.add(total, part, out=total)
        if total is None:
            return
        yield total


def nowhere(plan: Plan) -> Float32:
    """(k,) What is said of voxels that no network sees: background."""
    said = np.zeros(plan.network.out_channels, np.float32)
    if plan.activation == "softmax":
        said[0] = 1
    return said


def _sight(plan: Plan) -> object:
    """What must be the same for two networks to go over an image side by side."""
    infer = plan.infer
    return (
        plan.prepare.key, plan.network.dimensions, infer.tile, infer.overlap, infer.mirror_axes, plan.variables,
    )  # fmt: skip


def _joined(package: ModelPackage, members: Sequence[Member], networks: Mapping[str, nn.Module]) -> nn.Module:
    several = [networks[f"{member.name}."] for member in members]
    if len(several) == 1 and members[0].temperature == 1:
        return several[0]
    weights, temperatures = [m.weight for m in members], [m.temperature for m in members]
    return Together(several, weights, temperatures, package.plan.activation)


def _load(package: ModelPackage, plan: Plan, weights: Mapping[str, Tensor], prefix: str) -> nn.Module:
    network = build(plan.network)
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    try:
        network.load_state_dict(own)
    except RuntimeError as error:
        raise PackageError(f"the weights do not fit the network: {error}", where=package.key) from None
    return network
