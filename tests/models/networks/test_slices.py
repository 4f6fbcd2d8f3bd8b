"""A volume as a set of slices: any number of them, and what a single slice cannot tell."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.networks import build
from models.networks.slices import AttentiveSlices
from models.plan import NetworkPlan
from tests.models.networks.learning import accuracy_after

DEPTH, SIDE = 9, 10
NAMES = ("cnn_lstm", "cnn_gru", "mil")


def plan(name: str, **changes: object) -> NetworkPlan:
    values = {"name": name, "dimensions": 3, "in_channels": 1, "out_channels": 2, "features": (8, 12)}
    return NetworkPlan.model_validate(values | changes)


def bright_slices(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Class 1 has one slice, anywhere, with a bright square; the mean of the volume hardly shows it."""
    images = 0.7 * torch.randn(count, 1, DEPTH, SIDE, SIDE, generator=generator)
    targets = torch.arange(count) % 2
    for index in torch.nonzero(targets).flatten().tolist():
        z, y, x = (int(torch.randint(n, (1,), generator=generator)) for n in (DEPTH, SIDE - 4, SIDE - 4))
        images[index, 0, z, y : y + 4, x : x + 4] += 2.5
    return images, targets


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(1, 17, 11), (2, 5, 9), (31, 8, 7)])
def test_any_number_of_slices(name: str, size: tuple[int, int, int]) -> None:
    network = build(plan(name))
    logits = network(torch.randn(1, 1, *size))
    assert logits.shape == (1, 2)
    logits.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_one_bright_slice_decides(name: str) -> None:
    torch.manual_seed(0)
    assert accuracy_after(build(plan(name)), bright_slices, steps=60) >= 0.9


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_slices_matters_to_those_that_read_them(name: str) -> None:
    torch.manual_seed(0)
    network = build(plan(name)).eval()
    images = torch.randn(1, 1, 6, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    shuffled = images[:, :, [3, 0, 5, 1, 4, 2]]
    with torch.inference_mode():
        same = torch.allclose(network(images), network(shuffled), atol=1e-5)
    assert same == (name == "mil")


def test_attention_names_the_slice_that_decided() -> None:
    torch.manual_seed(0)
    network = build(plan("mil"))
    assert isinstance(network, AttentiveSlices)
    accuracy_after(network, bright_slices, steps=60)
    images = torch.zeros(DEPTH, 1, DEPTH, SIDE, SIDE)
    for z in range(DEPTH):
        images[z, 0, z, 3:7, 3:7] = 2.5
    weights = network.attention(images)
    torch.testing.assert_close(weights.sum(1), torch.ones(DEPTH))
    assert weights.argmax(1).tolist() == list(range(DEPTH))
