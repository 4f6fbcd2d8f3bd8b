"""Images and clinical variables in one head: every classifier of the table can have it."""

from __future__ import annotations

import pytest
import torch

from models.networks import NETWORKS, build
from models.networks.fusion import Fusion
from models.plan import NetworkPlan

SMALL = ("cnn", "resnet")


def plan(name: str, **changes: object) -> NetworkPlan:
    values = {"name": name, "dimensions": 2, "in_channels": 1, "out_channels": 3, "features": (4, 8), "variables": 5}
    return NetworkPlan.model_validate(values | changes)


@pytest.mark.parametrize("name", SMALL)
def test_the_variables_reach_the_classes_and_learn(name: str) -> None:
    torch.manual_seed(0)
    network = build(plan(name))
    images, told = torch.randn(2, 1, 20, 17), torch.randn(2, 5, requires_grad=True)
    logits = network(images, told)
    assert logits.shape == (2, 3)
    logits.sum().backward()
    assert told.grad is not None
    assert (told.grad != 0).any()
    assert all(p.grad is not None for p in network.parameters())
    network.eval()
    with torch.inference_mode():
        assert torch.equal(network(images), network(images, torch.zeros(2, 5)))
        assert not torch.equal(network(images), network(images, torch.ones(2, 5)))
        with torch.autocast("cpu", torch.bfloat16):
            assert network(images, torch.ones(2, 5)).isfinite().all()


def test_the_same_seed_gives_the_same_weights_and_others_load_them() -> None:
    networks = []
    for _ in range(2):
        torch.manual_seed(4)
        networks.append(build(plan("cnn")))
    first, second = (network.state_dict() for network in networks)
    assert all(torch.equal(first[name], second[name]) for name in first)
    build(plan("cnn")).load_state_dict(first)


def test_no_network_of_the_table_needs_to_know() -> None:
    assert any("classification" in entry.kinds for entry in NETWORKS.values())
    assert isinstance(build(plan("cnn")), Fusion)
    assert not isinstance(build(plan("cnn", variables=0)), Fusion)
