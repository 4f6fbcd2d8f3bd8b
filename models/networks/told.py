"""A network that is told what a coarser one found: the second stage of nnU-Net's cascade (Isensee et al. 2021)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.plan import NetworkPlan


class Told(nn.Module):
    """`inner` takes (b, channels + classes, …): the image, and a map for each class, 1 where that was found.

    From outside it is a network of one more channel than the image has, which holds the segmentation itself: 0 the
    background, i + 1 the i-th class; or, of `regions`, bit i. So whatever moves, cuts or flips an image takes it along.
    """

    def __init__(self, inner: nn.Module, channels: int, classes: int, *, regions: bool) -> None:
        super().__init__()
        self.inner, self.channels, self.classes, self.regions = inner, channels, classes, regions

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """(b, channels + 1, …) → as `inner`; without the last channel nothing was found."""
        seen, found = images[:, : self.channels], images[:, self.channels :]
        if not found.shape[1]:
            found = torch.zeros_like(seen[:, :1])
        classes = torch.arange(self.classes, device=images.device).view(1, -1, *[1] * (images.ndim - 2))
        found = found.round().long()
        maps = (found >> classes) & 1 if self.regions else found == classes + 1
        said: Tensor | list[Tensor] = self.inner(torch.cat((seen, maps.to(seen.dtype)), dim=1))
        return said


def build_told(plan: NetworkPlan) -> nn.Module:
    """The plan's network, wide enough for the maps."""
    # Here, because the table names this module.
    from models.networks import build

    inner = plan.model_copy(update={"told": 0, "told_regions": False, "in_channels": plan.in_channels + plan.told})
    return Told(build(inner), plan.in_channels, plan.told, regions=plan.told_regions)
