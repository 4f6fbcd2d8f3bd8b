"""Batch normalisation that bears a batch of one, and networks of others without it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from models.networks.blocks import INSTANCE


class SteadyBatchNorm(_BatchNorm):
    """nn.BatchNorm2d or 3d, by the running statistics where a single element has none of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, …) → the same shape."""
        if self.training and x.numel() == x.shape[1]:
            return functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x)

    def _check_input_dim(self, x: Tensor) -> None:
        """Of any dimensions."""


def steadied(network: nn.Module) -> nn.Module:
    """The network with its batch norms replaced by steady ones of the same names and PyTorch's momentum.

    Some networks ask for a momentum of 0.01: after a short training their statistics would still be the initial ones.
    """
    return _replaced(network, lambda old: SteadyBatchNorm(old.num_features, eps=old.eps))


def instanced(network: nn.Module) -> nn.Module:
    """The network with instance norms in place of its batch norms: a patch is judged alike in any batch."""

    def instance(old: _BatchNorm) -> nn.Module:
        dimensions = 2 if isinstance(old, nn.BatchNorm2d) else 3
        return INSTANCE[dimensions](old.num_features, affine=True)

    return _replaced(network, instance)


def _replaced(network: nn.Module, by: Callable[[_BatchNorm], nn.Module]) -> nn.Module:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, by(child))
    return network
