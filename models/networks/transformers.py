"""Transformers of MONAI's: ViT, UNETR and Swin UNETR, for images of any size.

Position embeddings are made for the plan's size and interpolated to others. MONAI's parameter names are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.networks.blocks.patchembedding import PatchEmbeddingBlock
from monai.networks.nets.swin_unetr import SwinUNETR
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.vit import ViT
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from models.errors import RecipeError
from models.networks.blocks import INTERPOLATION, Padded, StochasticDepth, depth_rates, in_dimensions, pad, uncast
from models.plan import NetworkPlan

LAYERS = 12
HEAD_WIDTH = 64
TOKEN = 16
"""Voxels along each axis that become one token: always in UNETR; in ViT where the plan has no stride."""
SWIN_HEADS = (3, 6, 12, 24)
SWIN_LEVELS = 6


def build_vit(plan: NetworkPlan) -> nn.Module:
    """The plan's one width is the tokens', its one stride their size (Dosovitskiy et al. 2021)."""
    token = in_dimensions(plan.strides[0], plan.dimensions) if plan.strides else (TOKEN,) * plan.dimensions
    width = plan.features[0]
    grid = _grid(plan, token)
    heads = _heads(width)
    network = ViT(
        in_channels=plan.in_channels,
        img_size=tuple(n * t for n, t in zip(grid, token, strict=True)),
        patch_size=token,
        hidden_size=width,
        mlp_dim=4 * width,
        num_layers=LAYERS,
        num_heads=heads,
        classification=True,
        num_classes=plan.out_channels,
        dropout_rate=plan.dropout,
        spatial_dims=plan.dimensions,
        post_activation="none",
        qkv_bias=True,
    )
    network.patch_embedding = _Tokens(plan, token, grid, width, heads)
    return _Classifier(_settled(network, plan), token)


def build_unetr(plan: NetworkPlan) -> nn.Module:
    """The plan's first width is the decoder's at full size, its last one the tokens' (Hatamizadeh et al. 2022)."""
    token = (TOKEN,) * plan.dimensions
    network = _UNETR(plan, _grid(plan, token))
    _settled(network.vit, plan)
    return Padded(network, [token])


def build_swin_unetr(plan: NetworkPlan) -> nn.Module:
    """Widths double: the plan's first one, a multiple of 12, says how wide it is (Hatamizadeh et al. 2022)."""
    with _Reckoned():
        network = SwinUNETR(
            in_channels=plan.in_channels,
            out_channels=plan.out_channels,
            feature_size=plan.features[0],
            num_heads=SWIN_HEADS,
            drop_rate=plan.dropout,
            dropout_path_rate=plan.stochastic_depth,
            spatial_dims=plan.dimensions,
        )
    return Padded(network, [(2,) * plan.dimensions] * (SWIN_LEVELS - 1))


class _Reckoned(TorchFunctionMode):
    """MONAI reckons rates by `linspace`, which must have values where the weights have shapes alone (device meta)."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.linspace:
            given["device"] = "cpu"
        return func(*args, **given)


def _heads(width: int) -> int:
    """About HEAD_WIDTH channels each."""
    return math.gcd(width, max(1, round(width / HEAD_WIDTH)))


def _grid(plan: NetworkPlan, token: tuple[int, ...]) -> tuple[int, ...]:
    """Tokens along each axis of the plan's size."""
    if plan.size is None:
        raise RecipeError(f"{plan.name} needs to know the size of its patches", where="network.name")
    return tuple(-(-n // t) for n, t in zip(in_dimensions(plan.size, plan.dimensions), token, strict=True))


def _settled(network: ViT, plan: NetworkPlan) -> ViT:
    """Without what is never used, with PyTorch's attention, and with stochastic depth."""
    blocks: Iterable[Any] = network.blocks
    for block, rate in zip(blocks, depth_rates(plan, LAYERS), strict=True):
        block.norm_cross_attn = nn.Identity()
        # MONAI would drop attention weights in evaluation as well; the outputs' dropout remains.
        block.attn.use_flash_attention, block.attn.dropout_rate = True, 0.0
        block.attn.drop_output = nn.Sequential(block.attn.drop_output, StochasticDepth(rate))
        block.mlp.drop2 = nn.Sequential(block.mlp.drop2, StochasticDepth(rate))
    return network


class _Tokens(PatchEmbeddingBlock):
    """MONAI's, with embeddings that follow the image's size."""

    def __init__(
        self, plan: NetworkPlan, token: tuple[int, ...], grid: tuple[int, ...], width: int, heads: int
    ) -> None:
        super().__init__(
            in_channels=plan.in_channels,
            img_size=tuple(n * t for n, t in zip(grid, token, strict=True)),
            patch_size=token,
            hidden_size=width,
            num_heads=heads,
            dropout_rate=plan.dropout,
            spatial_dims=plan.dimensions,
        )
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, …) → tokens (b, n, width)."""
        maps = self.patch_embeddings(x)
        positions: Tensor = self.position_embeddings
        if tuple(maps.shape[2:]) != self.grid:
            made = positions.transpose(1, 2).unflatten(2, self.grid)
            mode = INTERPOLATION[len(self.grid)]
            with uncast(x):
                fitted = functional.interpolate(made, maps.shape[2:], mode=mode, align_corners=False)
            positions = fitted.flatten(2).transpose(1, 2)
        tokens: Tensor = self.dropout(maps.flatten(2).transpose(1, 2) + positions)
        return tokens


class _Classifier(nn.Module):
    """The logits alone, of an image that is filled up to whole tokens."""

    def __init__(self, network: ViT, token: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.token = network, token

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, …) → logits (b, classes)."""
        logits: Tensor = self.network(pad(x, self.token, self.token))[0]
        return logits


class _UNETR(UNETR):
    """MONAI's, whose feature maps follow the image's size."""

    def __init__(self, plan: NetworkPlan, grid: tuple[int, ...]) -> None:
        width = plan.features[-1]
        super().__init__(
            in_channels=plan.in_channels,
            out_channels=plan.out_channels,
            img_size=tuple(n * TOKEN for n in grid),
            feature_size=plan.features[0],
            hidden_size=width,
            mlp_dim=4 * width,
            num_heads=_heads(width),
            dropout_rate=plan.dropout,
            spatial_dims=plan.dimensions,
        )
        self.vit.patch_embedding = _Tokens(plan, (TOKEN,) * plan.dimensions, grid, width, _heads(width))

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, …) → logits (b, k, …)."""
        grid = tuple(n // TOKEN for n in x.shape[2:])

        def maps(tokens: Tensor) -> Tensor:
            return tokens.transpose(1, 2).unflatten(2, grid)

        last, hidden = self.vit(x)
        y = self.decoder5(maps(last), self.encoder4(maps(hidden[9])))
        y = self.decoder4(y, self.encoder3(maps(hidden[6])))
        y = self.decoder3(y, self.encoder2(maps(hidden[3])))
        logits: Tensor = self.out(self.decoder2(y, self.encoder1(x)))
        return logits
