"""Any network of the table, made to learn from images without labels.

Where a network segments, its own output is the image that it restores. Elsewhere the deepest feature map is tapped,
and a linear layer restores the image from it (as in SimMIM, Xie et al. 2022) or its mean is what views are compared by
(SimCLR, Chen et al. 2020). A network whose features are no map (a transformer's, a graph's) is taken by its output.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from models.networks import build
from models.networks.blocks import CONV, INTERPOLATION
from models.plan import NetworkPlan, Plan
from tasks.train.transfer.course import shapes

WIDTH = 256
"""Numbers that a network without a tapped map gives for an image, …"""
MAP_WIDTH = 32
"""… and for a voxel, where it segments."""
PROJECTED = 128
LEAST_REACHED = 0.3
"""Share of the network's numbers that a tapped map must depend on: else it lies before most of the network."""
_TRIED = 2  # images that a network is tried with
_FINEST = {2: 16, 3: 8}  # voxels along an axis that one place of a feature map restores
_COARSE = {2: 16, 3: 8}  # voxels along an axis of the image that one vector restores


class Pupil(nn.Module):
    """`network` under a head that is thrown away. `learnt` names the network's tensors that are worth keeping."""

    def __init__(self, network: NetworkPlan, patch: Sequence[int], *, restores: bool, segments: bool) -> None:
        super().__init__()
        self.restores, self.dimensions = restores, network.dimensions
        self.channels, self.size = network.in_channels, tuple(patch)[3 - network.dimensions :]
        direct = segments and restores
        outputs = network.in_channels if direct else MAP_WIDTH if segments else WIDTH
        own = network.model_copy(update={"out_channels": outputs, "deep_supervision": False, "variables": 0})
        self.network = build(own).eval()  # while it is tried: no chance, and no running statistics
        self.tapped = "" if direct else self._deepest()
        self.head: nn.Module = nn.Identity()
        if not direct:
            self.head = self._restoring() if restores else self._projecting()
        wider = shapes(own.model_copy(update={"out_channels": outputs + 1}))
        heads = {name for name, tensor in self.network.state_dict().items() if wider[name].shape != tensor.shape}
        self.learnt = frozenset(self._reached() - heads)
        self.train()

    def forward(self, images: Tensor) -> Tensor:
        """(b, c, …) → (b, c, …) restored, or (b, 128) projected."""
        features = self._features(images)
        if not self.restores:
            pooled = features.flatten(2).mean(2) if features.ndim > 2 else features
            projected: Tensor = self.head(pooled)
            return projected
        return self._image(self.head(features))

    def kept(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of this module's `state`, the network's tensors that learnt something, by the network's own names."""
        inner = {name.removeprefix("network."): t for name, t in state.items() if name.startswith("network.")}
        return {name: tensor for name, tensor in inner.items() if name in self.learnt}

    # -- features ------------------------------------------------------------------------------------------------

    def _features(self, images: Tensor) -> Tensor:
        if not self.tapped:
            output: Tensor | list[Tensor] = self.network(images)
            return output if isinstance(output, Tensor) else output[0]
        return _tap(self.network, self.tapped, images)

    def _deepest(self) -> str:
        """The name of the module that gives the coarsest feature map; "" where most of the network lies elsewhere."""
        found: list[tuple[int, str]] = []
        calls: Counter[str] = Counter()
        names = {module: name for name, module in self.network.named_modules() if name}

        def look(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
            calls[names[module]] += 1
            # A network over slices has more maps than there are images; a single place is no map.
            if isinstance(output, Tensor) and output.ndim == self.dimensions + 2 and len(output) == _TRIED:
                found.append((math.prod(output.shape[2:]), names[module]))

        handles = [module.register_forward_hook(look) for module in names]
        with torch.no_grad():
            self.network(self._images())
        for handle in handles:
            handle.remove()
        maps = [(places, name) for places, name in found if places > 1 and calls[name] == 1]
        if not maps:
            return ""
        # The last of the coarsest, which is the block that the others are part of.
        name = [name for places, name in maps if places == min(maps)[0]][-1]
        return name if self._share_reached(name) >= LEAST_REACHED else ""

    def _share_reached(self, name: str) -> float:
        """A decoder is not reached, and need not be."""
        with torch.enable_grad():
            _tap(self.network, name, self._images()).float().square().mean().backward()
        reached = sum(p.numel() for p in self.network.parameters() if p.grad is not None)
        self.zero_grad(set_to_none=True)
        return reached / sum(p.numel() for p in self.network.parameters())

    def _reached(self) -> set[str]:
        """The network's tensors that the pupil's output depends on, with the buffers beside them."""
        with torch.enable_grad():
            self(self._images()).float().square().mean().backward()
        modules = {n.rpartition(".")[0] for n, p in self.network.named_parameters() if p.grad is not None}
        self.zero_grad(set_to_none=True)
        return {name for name in self.network.state_dict() if name.rpartition(".")[0] in modules}

    def _images(self) -> Tensor:
        count = _TRIED * self.channels * math.prod(self.size)
        return torch.linspace(-1, 1, count).reshape(_TRIED, self.channels, *self.size)

    # -- heads ---------------------------------------------------------------------------------------------------

    def _restoring(self) -> nn.Module:
        with torch.no_grad():
            features = self._features(self._images())
        if features.ndim == 2:
            return nn.Linear(features.shape[1], self.channels * _COARSE[self.dimensions] ** self.dimensions)
        cells = math.prod(self._ratio(features.shape[2:]))
        return CONV[self.dimensions](features.shape[1], self.channels * cells, 1)

    def _projecting(self) -> nn.Module:
        with torch.no_grad():
            width = self._features(self._images()).shape[1]
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, PROJECTED))

    def _ratio(self, grid: Sequence[int]) -> tuple[int, ...]:
        """Voxels along each axis that one place of the map stands for."""
        finest = _FINEST[self.dimensions]
        return tuple(max(1, min(finest, round(n / g))) for n, g in zip(self.size, grid, strict=True))

    def _image(self, restored: Tensor) -> Tensor:
        """A head's numbers as (b, c, …) of the images' size."""
        b, c, d = len(restored), self.channels, self.dimensions
        if restored.ndim == 2:
            image = restored.view(b, c, *[_COARSE[d]] * d)
        elif restored.shape[1] == c:
            image = restored
        else:
            grid = restored.shape[2:]
            ratio = self._ratio(grid)
            # (b, c, r…, g…) → (b, c, g, r, g, r, …): each place unfolds into its voxels.
            cells = restored.view(b, c, *ratio, *grid)
            order = [axis for i in range(d) for axis in (2 + d + i, 2 + i)]
            sizes = [g * r for g, r in zip(grid, ratio, strict=True)]
            image = cells.permute(0, 1, *order).reshape(b, c, *sizes)
        if image.shape[2:] != self.size:
            image = functional.interpolate(image, self.size, mode=INTERPOLATION[d], align_corners=False)
        return image


class _Reached(Exception):
    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


def _tap(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """What the module `name` gives when the network sees `images`; what comes after it is not computed."""

    def leave(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        raise _Reached(output)

    # Hooked for this call alone: a copy of the network must not answer to the original's hook.
    handle = network.get_submodule(name).register_forward_hook(leave)
    try:
        network(images)
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise RuntimeError(f"the network did not come past {name}")


def pupil_for(plan: Plan) -> Pupil:
    """The pupil of `plan.network`, on `plan.train.patch_size`."""
    restores = plan.train.start.pretraining == "masked"
    return Pupil(plan.network, plan.train.patch_size, restores=restores, segments=plan.segments)
