"""A patient's series as one case: how many there are, in which order, and which of them decides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.networks import build
from models.networks.bags import AttentiveSeries
from models.plan import NetworkPlan
from tests.models.networks.learning import accuracy_after

NAMES = ("patient_attention", "patient_graph")
each = pytest.mark.parametrize("name", NAMES)


def plan(name: str, dimensions: int = 2) -> NetworkPlan:
    return NetworkPlan(name=name, dimensions=dimensions, in_channels=1, out_channels=2, features=(8, 12))


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def one_of_several(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Up to four series; class 1 has a bright square in one of them."""
    images = 0.7 * torch.randn(count, 4, 1, 10, 10, generator=generator)
    targets = torch.arange(count) % 2
    for index, positive in enumerate(targets.tolist()):
        series = int(torch.randint(1, 5, (1,), generator=generator))
        images[index, series:] = torch.nan
        if positive:
            n, y, x = (int(torch.randint(n, (1,), generator=generator)) for n in (series, 6, 6))
            images[index, n, 0, y : y + 4, x : x + 4] += 2.5
    return images, targets


@each
@pytest.mark.parametrize("dimensions", [2, 3])
def test_what_is_not_there_changes_nothing(name: str, dimensions: int) -> None:
    torch.manual_seed(0)
    network = build(plan(name, dimensions)).eval()
    size = (5, 11, 7)[-dimensions:]
    images = seeded(2, 4, 1, *size)
    images[0, 2:], images[1, :1] = torch.nan, torch.nan
    with torch.inference_mode():
        together = network(images)
        torch.testing.assert_close(together[:1], network(images[:1, :2]))
        torch.testing.assert_close(together[1:], network(images[1:, 1:]))


@each
def test_the_order_of_series_does_not_matter(name: str) -> None:
    torch.manual_seed(0)
    network = build(plan(name)).eval()
    images = seeded(1, 3, 1, 9, 9)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), network(images[:, [2, 0, 1]]))


@each
def test_a_single_image_is_a_set_of_one(name: str) -> None:
    torch.manual_seed(0)
    network = build(plan(name)).eval()
    images = seeded(2, 1, 9, 9)
    with torch.inference_mode():
        torch.testing.assert_close(network(images), network(images[:, None]))


@each
def test_missing_series_leave_the_gradient_finite(name: str) -> None:
    torch.manual_seed(0)
    network = build(plan(name))
    images = seeded(2, 3, 1, 9, 9)
    images[0, 1:] = torch.nan
    network(images).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@each
def test_one_of_several_series_decides(name: str) -> None:
    torch.manual_seed(0)
    assert accuracy_after(build(plan(name)), one_of_several, steps=80) >= 0.9


def test_attention_names_the_series_that_decided() -> None:
    torch.manual_seed(0)
    network = build(plan("patient_attention"))
    assert isinstance(network, AttentiveSeries)
    accuracy_after(network, one_of_several, steps=80)
    images = torch.zeros(3, 4, 1, 10, 10)
    images[:, 3] = torch.nan
    for n in range(3):
        images[n, n, 0, 3:7, 3:7] = 2.5
    weights = network.attention(images)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert weights.argmax(1).tolist() == [0, 1, 2]
    assert (weights[:, 3] == 0).all()
