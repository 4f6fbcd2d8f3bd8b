"""Which tensor of one network goes to which of another: by name and shape, 2-D filters inflated where need be.

Inflation as in Carreira & Zisserman, "Quo vadis, action recognition?", CVPR 2017: a 2-D filter is shared out along the
third axis, so that an image that is the same in every slice gives the same answer.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from models.errors import RecipeError

How = Literal["loaded", "inflated", "fresh"]
Inflation = Literal["repeat", "centre"]
MOST_CHANNELS = 4
"""Input channels up to which a first layer's weights are brought to another number of channels: colour, not maps."""
_LEAST_SHARE = 0.1
"""Of all names: prefixes that fewer have are no wrapper."""
_DEPTH = 4
_OLD_DENSE = re.compile(
    r"(denselayer\d+\.(?:norm|conv))\.([12])\."
)  # torchvision's files still have DenseNet's old names


@dataclass(frozen=True, slots=True)
class Layer:
    """What became of one tensor of the new network. `source` is the name it was found under."""

    name: str
    how: How
    shape: tuple[int, ...]
    numbers: int
    source: str = ""
    why: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """The tensors that carry over, and every layer's fate in the network's order."""

    tensors: Mapping[str, Tensor]
    layers: tuple[Layer, ...]

    @property
    def share(self) -> float:
        """Of the network's numbers, how many are carried over."""
        whole = sum(layer.numbers for layer in self.layers)
        return sum(layer.numbers for layer in self.layers if layer.how != "fresh") / max(1, whole)

    @property
    def told(self) -> str:
        """In a sentence: what was carried over, and what is fresh."""
        count = Counter(layer.how for layer in self.layers)
        parts = [f"{count['loaded']} of {len(self.layers)} tensors carried over ({self.share:.1%} of the numbers)"]
        if count["inflated"]:
            parts.append(f"{count['inflated']} of another shape brought to fit")
        fresh = [layer.name for layer in self.layers if layer.how == "fresh"]
        if fresh:
            more = f" and {len(fresh) - 3} more" if len(fresh) > 3 else ""
            parts.append(f"{len(fresh)} fresh ({', '.join(fresh[:3])}{more})")
        return ", ".join(parts)

    def to_json(self) -> list[dict[str, Any]]:
        """A row per layer."""
        return [
            {"name": one.name, "how": one.how, "shape": list(one.shape), "source": one.source, "why": one.why}
            for one in self.layers
        ]


def match(network: Mapping[str, Tensor], weights: Mapping[str, Tensor], inflation: Inflation = "repeat") -> Match:
    """What of `weights` fits into a network with the state `network`, whatever either's names are wrapped in.

    Raises RecipeError where no weight (norms and biases alone are none) fits.
    """
    weights = {_OLD_DENSE.sub(r"\1\2.", name): tensor for name, tensor in weights.items()}
    inner, outer = _prefixes(network, weights)
    layers, tensors = [], {}
    for name, own in network.items():
        source = outer + name.removeprefix(inner) if name.startswith(inner) else ""
        found = weights.get(source) if source else None
        fitted, how, why = _fitted(found, own, inflation)
        if fitted is not None:
            tensors[name] = fitted.to(own.dtype)
        layers.append(Layer(name, how, tuple(own.shape), own.numel(), source if found is not None else "", why))
    if not any(tensor.ndim > 1 for tensor in tensors.values()):
        raise RecipeError(
            f"none of the {len(weights)} tensors fits the network",
            where="start",
            hint="choose the network (and its features) that the weights were made with",
        )
    return Match(tensors, tuple(layers))


def _fitted(found: Tensor | None, own: Tensor, inflation: Inflation) -> tuple[Tensor | None, How, str]:
    if found is None:
        return None, "fresh", "not among the weights"
    if found.shape == own.shape:
        return found, "loaded", ""
    changed = adapted(found, own.shape, inflation)
    if changed is None:
        return None, "fresh", f"of shape {_shape(found.shape)} there"
    return changed, "inflated", f"from {_shape(found.shape)}"


def adapted(weight: Tensor, shape: Sequence[int], inflation: Inflation = "repeat") -> Tensor | None:
    """A convolution's weight (out, in, [z,] y, x) in another shape; None where that cannot be done.

    Input channels: the sum over them is shared out evenly, so that a grey image is answered as its copy in each colour
    was. Depth: `repeat` shares the filter out along z, `centre` puts it into the middle slice.
    """
    target = tuple(shape)
    # Scalars, biases, matrices and embeddings have one meaning each: they fit or they do not.
    if weight.ndim < 4 or len(target) < weight.ndim or len(target) > 5 or not weight.is_floating_point():
        return None
    if weight.shape[0] != target[0]:
        return None
    if weight.shape[1] != target[1]:
        if max(weight.shape[1], target[1]) > MOST_CHANNELS:
            return None
        weight = (weight.sum(1, keepdim=True) / target[1]).expand(-1, target[1], *weight.shape[2:])
    if len(target) > weight.ndim:
        weight = _deepened(weight, target[2], inflation)
    return weight.contiguous() if tuple(weight.shape) == target else None


def _deepened(weight: Tensor, depth: int, inflation: Inflation) -> Tensor:
    """(o, i, y, x) → (o, i, depth, y, x)."""
    if inflation == "repeat" or depth == 1:
        return weight[:, :, None].expand(-1, -1, depth, -1, -1) / depth
    deep = torch.zeros((*weight.shape[:2], depth, *weight.shape[2:]), dtype=weight.dtype)
    deep[:, :, depth // 2] = weight
    return deep


def _shape(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "a single number"


def _prefixes(network: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> tuple[str, str]:
    """The wrappers' names (of the network's names, of the weights') with which the most numbers find each other."""
    best, chosen = -1, ("", "")
    for inner in _wrappers(network):
        bare = {name.removeprefix(inner): own for name, own in network.items() if name.startswith(inner)}
        for outer in _wrappers(weights):
            fits = sum(own.numel() for name, own in bare.items() if _akin(weights.get(outer + name), own))
            if fits > best:
                best, chosen = fits, (inner, outer)
    return chosen


def _akin(found: Tensor | None, own: Tensor) -> bool:
    """Whether it may fit: shapes alone, nothing is computed."""
    if found is None:
        return False
    if found.shape == own.shape:
        return True
    return found.ndim >= 4 and own.ndim >= found.ndim and found.shape[0] == own.shape[0]


def _wrappers(names: Mapping[str, Tensor]) -> Iterator[str]:
    """ "" and the beginnings that many names share, shortest first."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")[:-1]
        counts.update(".".join(parts[: depth + 1]) + "." for depth in range(min(_DEPTH, len(parts))))
    common = [prefix for prefix, count in counts.items() if count >= max(2, _LEAST_SHARE * len(names))]
    yield from ("", *sorted(common, key=lambda prefix: (prefix.count("."), prefix)))
