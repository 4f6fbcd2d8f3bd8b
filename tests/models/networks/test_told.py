from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.networks import build
from models.networks.told import Told
from models.plan import NetworkPlan


class Seen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("regions", "value", "maps"), [(False, 2, [0, 1, 0]), (False, 0, [0, 0, 0]), (True, 5, [1, 0, 1])]
)
def test_a_segmentation_becomes_a_map_for_each_class(regions: bool, value: int, maps: list[int]) -> None:
    told = Told(Seen(), 1, 3, regions=regions)
    images = torch.cat((torch.full((2, 1, 4, 4, 4), 0.5), torch.full((2, 1, 4, 4, 4), float(value))), dim=1)
    got = told(images)
    assert got.shape == (2, 4, 4, 4, 4)
    assert got[1, :, 0, 0, 0].tolist() == [0.5, *maps]
    assert told(images[:, :1])[0, :, 0, 0, 0].tolist() == [0.5, 0, 0, 0]


def test_the_network_sees_the_maps_beside_the_image() -> None:
    torch.manual_seed(0)
    plan = NetworkPlan(name="unet", dimensions=3, in_channels=2, out_channels=3, features=(4, 8), told=2)
    network = build(plan).eval()
    image = torch.zeros(1, 2, 8, 8, 8)
    nothing, something = (network(torch.cat((image, torch.full_like(image[:, :1], v)), 1)) for v in (0.0, 2.0))
    assert torch.equal(network(image), nothing)
    assert nothing.shape == (1, 3, 8, 8, 8)
    assert not torch.allclose(nothing, something)
