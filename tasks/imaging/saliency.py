"""Which voxels of an image speak for a class: maps of one network.

Grad-CAM (Selvaraju et al. 2017) weighs the last maps that still have a place by how they raise the class's score;
guided Grad-CAM sharpens it by the gradient at the image, of which the activations let pass only what speaks for the
class (Springenberg et al. 2015). Both are MONAI's, on copies, as its hooks stay behind. Occlusion (Zeiler and Fergus
2014) covers one part after the other and looks how far the probability falls; MONAI's indexes in a way that PyTorch is
about to read otherwise.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np
import torch
from monai.networks.nets.vit import ViT
from monai.visualize.class_activation_maps import GradCAM
from monai.visualize.gradient_based import VanillaGrad
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from models.plan import Activation

Float32 = NDArray[np.float32]

PLACES: Final = {2: 7, 3: 4}
"""Boxes along each axis with which occlusion covers an image, at most, by its dimensions."""
_LEAST = 4
"""Voxels along its longest axis that a map should have, where the network has such a map."""
_COMPARED = 20_000
_VOXELS = 2**20
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SiLU, nn.GELU)


def gradient_maps(network: nn.Module, image: Tensor, target: int) -> tuple[Float32, Float32]:
    """Grad-CAM and guided Grad-CAM of logit `target` for one `image` (1, c, …): (…) each, 0 or more, as they come.

    The network takes (b, c, …) to logits (b, classes), and stays as it is.
    """
    with torch.enable_grad():
        copied = _with_maps(_copied(network), image)
        seen = GradCAM(copied, spatial_layer(copied, image), postprocessing=_as_it_is)
        cam = seen(image.clone().requires_grad_(), class_idx=target)[0, 0]
        gradient = VanillaGrad(_guided(_copied(network)))(image.clone(), target)[0]
    # What is positive at any channel speaks for the class.
    sharp = gradient.clamp_min(0).amax(dim=0) * cam
    return _plain(cam), _plain(sharp)


@torch.no_grad()
def occlusion(network: nn.Module, image: Tensor, target: int, activation: Activation = "softmax") -> Float32:
    """How far the probability of `target` falls where a box over the place is covered with the image's mean: (…), 0 or
    more, of one `image` (1, c, …).

    Boxes overlap by half. There are at most 7 along each axis of a picture, 4 of a volume: 49 or 64 passes at most.
    """
    size = image.shape[2:]
    # Two steps wide: (n − box) / step + 1 boxes are then at most as many as wanted.
    boxes = [min(n, 2 * math.ceil(n / (PLACES[len(size)] + 1))) for n in size]
    places = list(itertools.product(*(_starts(n, box) for n, box in zip(size, boxes, strict=True))))
    fill, before = image.mean(), answers(network, image, activation)[0, target]
    fallen, covers = image.new_zeros(size), image.new_zeros(size)
    at_once = max(1, min(16, _VOXELS // image.numel()))
    for first in range(0, len(places), at_once):
        windows = [
            tuple(slice(start, start + box) for start, box in zip(place, boxes, strict=True))
            for place in places[first : first + at_once]
        ]
        covered = image.repeat(len(windows), *[1] * (image.ndim - 1))
        for one, window in zip(covered, windows, strict=True):
            one[(slice(None), *window)] = fill
        for window, left in zip(windows, answers(network, covered, activation)[:, target], strict=True):
            fallen[window] += before - left
            covers[window] += 1
    return _plain((fallen / covers).clamp_min(0))


def spatial_layer(network: nn.Module, image: Tensor) -> str:
    """The name of the last module whose output has places, for an `image` (1, c, …); rather one of a few voxels or
    more along an axis, where there is one. Raises ValueError for a network without.

    Modules that are used more than once do not count: of which use is what the hooks see?
    """
    sizes = _map_sizes(network, image)
    most = max(sizes.values(), default=0)
    if most < 2:
        raise ValueError("no module of the network gives a map with places")
    return [name for name, longest in sizes.items() if longest >= min(_LEAST, most)][-1]


def has_places(network: nn.Module, image: Tensor) -> bool:
    """Whether there is a `spatial_layer`."""
    return max(_map_sizes(network, image).values(), default=0) > 1


def shuffled(network: nn.Module, seed: int) -> nn.Module:
    """A copy whose weights are the same numbers in another order, each tensor by itself: nothing learnt is left, and
    values stay as large as they were.
    """
    chance = torch.Generator().manual_seed(seed)
    copied = copy.deepcopy(network)
    with torch.no_grad():
        for parameter in copied.parameters():
            order = torch.randperm(parameter.numel(), generator=chance).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view(parameter.shape))
    return copied


def answers(network: nn.Module, images: Tensor, activation: Activation) -> Tensor:
    """Probabilities (b, classes)."""
    logits = network(images).float()
    return logits.sigmoid() if activation == "sigmoid" else logits.softmax(1)


def peaked(values: Float32) -> Float32:
    """From 0 to 1 at the greatest; a map of nothing stays one."""
    most = float(values.max())
    return np.asarray(values / most, np.float32) if most > 0 else values


def alike(one: Float32, other: Float32) -> float:
    """Spearman's rank correlation of two maps of one grid; 0 where one of them is the same everywhere."""
    step = max(1, one.size // _COMPARED)
    a, b = one.ravel()[::step], other.ravel()[::step]
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def _map_sizes(network: nn.Module, image: Tensor) -> dict[str, int]:
    """By name, in the order of use: voxels along the longest axis of the map that a module gives."""
    found: list[tuple[str, int]] = []

    def hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def seen(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor) and output.ndim == image.ndim and len(output) == len(image):
                found.append((name, max(output.shape[2:])))

        return seen

    handles = [module.register_forward_hook(hook(name)) for name, module in network.named_modules() if name]
    try:
        with torch.no_grad():
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    uses = Counter(name for name, _ in found)
    return {name: longest for name, longest in found if uses[name] == 1}


class _Guided(nn.Module):
    """An activation that lets only rising gradients back."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(x)
        if y.requires_grad:
            y.register_hook(lambda gradient: gradient.clamp_min(0))
        return y


class _Mapped(nn.Module):
    """A transformer's norm, whose tokens after the first lie on their grid at `maps` on their way."""

    def __init__(self, norm: nn.Module, grid: tuple[int, ...]) -> None:
        super().__init__()
        self.norm, self.grid, self.maps = norm, grid, nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.norm(tokens)
        first = tokens.shape[1] - math.prod(self.grid)
        laid = self.maps(tokens[:, first:].transpose(1, 2).unflatten(2, self.grid))
        return torch.cat((tokens[:, :first], laid.flatten(2).transpose(1, 2)), dim=1)


def _copied(network: nn.Module) -> nn.Module:
    """To evaluate; nothing works in place, where gradients would be lost."""
    copied = copy.deepcopy(network).eval()
    for module in copied.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    return copied.requires_grad_()


def _guided(network: nn.Module) -> nn.Module:
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _ACTIVATIONS) and not isinstance(parent, _Guided):
                setattr(parent, name, _Guided(child))
    return network


def _with_maps(network: nn.Module, image: Tensor) -> nn.Module:
    """Transformers' tokens have a place too: before the last attention, after which one token alone is listened to."""
    for module in list(network.modules()):
        if isinstance(module, ViT):
            last = module.blocks[-1]
            last.norm1 = _Mapped(last.norm1, _grid(network, module, image))  # type: ignore[assignment, arg-type]
    return network


def _grid(network: nn.Module, transformer: ViT, image: Tensor) -> tuple[int, ...]:
    """Of the tokens that `image` becomes."""
    shapes: list[tuple[int, ...]] = []
    patches = transformer.patch_embedding.patch_embeddings
    handle = patches.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[2:])))
    try:
        with torch.no_grad():
            network(image)
    finally:
        handle.remove()
    return shapes[-1]


def _starts(size: int, box: int) -> list[int]:
    """Of boxes that overlap by half and reach the end."""
    last = size - box
    return sorted({*range(0, last, max(1, box // 2)), last})


def _as_it_is(values: Tensor) -> Tensor:
    return values


def _plain(values: Tensor) -> Float32:
    return np.asarray(values.detach().cpu().float().numpy(), np.float32)
