"""Regions, which of them touch, and what a graph of them learns."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.networks import build
from models.networks.graph import RegionGraph, contacts, region_means, supervoxels
from models.networks.sets import Messages
from models.plan import NetworkPlan
from tests.models.networks.learning import accuracy_after


def plan(dimensions: int = 2, **changes: object) -> NetworkPlan:
    values = {
        "name": "graph",
        "dimensions": dimensions,
        "in_channels": 1,
        "out_channels": 2,
        "features": (8, 12),
        "strides": ((1, 1, 1), (1, 1, 1)),
    }
    return NetworkPlan.model_validate(values | changes)


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class TestRegions:
    @pytest.mark.parametrize("size", [(16, 12), (7, 5), (1, 1), (9, 14, 11), (1, 8, 8), (3, 3, 3)])
    def test_every_voxel_is_in_one_near_it(self, size: tuple[int, ...]) -> None:
        labels, count = supervoxels(seeded(2, 1, *size))
        assert labels.shape == (2, *size)
        assert int(labels.min()) >= 0
        assert int(labels.max()) < count
        where = torch.stack(torch.meshgrid(*[torch.arange(float(n)) for n in size], indexing="ij"))
        centres, sizes = region_means(where.expand(2, *where.shape), labels, count)
        assert sizes.sum(1).tolist() == [labels[0].numel()] * 2
        far = (where.flatten(1).T - centres.gather(1, labels.flatten(1)[..., None].expand(-1, -1, len(size)))).abs()
        assert float(far.max()) <= 12

    def test_a_border_between_two_tissues_is_followed(self) -> None:
        image = torch.zeros(1, 1, 16, 16)
        image[..., 6:] = 5.0  # not where the grid of seeds has its own border
        labels, count = supervoxels(image)
        means, sizes = region_means(image, labels, count)
        values = means[sizes > 0]
        assert float(torch.minimum(values, 5 - values).max()) < 1e-4

    def test_an_image_without_contrast_keeps_the_grid(self) -> None:
        labels, count = supervoxels(torch.ones(1, 1, 8, 8))
        assert count == 4
        assert labels[0, ::4, ::4].flatten().tolist() == [0, 1, 2, 3]
        assert torch.bincount(labels.flatten()).tolist() == [16] * 4

    def test_what_shares_a_face_touches(self) -> None:
        labels = torch.tensor([[[0, 0, 1], [0, 2, 2]], [[3, 3, 3], [3, 3, 3]]])
        edges, faces = contacts(labels, 4)
        found = dict(zip(map(tuple, edges.T.tolist()), faces.tolist(), strict=True))
        assert found == {(0, 1): 1, (1, 0): 1, (0, 2): 2, (2, 0): 2, (1, 2): 1, (2, 1): 1}

    def test_means_carry_the_gradient(self) -> None:
        features = seeded(1, 2, 4, 4).requires_grad_()
        labels, count = supervoxels(seeded(1, 1, 4, 4))
        means, sizes = region_means(features, labels, count)
        means[sizes > 0].sum().backward()
        assert features.grad is not None
        assert (features.grad > 0).all()


def test_a_node_hears_its_neighbours_alone() -> None:
    torch.manual_seed(0)
    messages = Messages(4)
    nodes, edges = seeded(3, 4), torch.tensor([[0, 1], [1, 0]])
    changed = nodes.clone()
    changed[0] += 1
    before, after = messages(nodes, edges, torch.ones(2)), messages(changed, edges, torch.ones(2))
    assert not torch.allclose(before[1], after[1])
    assert torch.equal(before[2], after[2])


def two_tone(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Class 1: the bright and the dark square touch; class 0: they lie apart. Each alone tells nothing."""
    images = 0.3 * torch.randn(count, 1, 16, 16, generator=generator)
    targets = torch.arange(count) % 2
    for index, touching in enumerate(targets.tolist()):
        y = int(torch.randint(0, 12, (1,), generator=generator))
        x = int(torch.randint(0, 4, (1,), generator=generator))
        images[index, 0, y : y + 4, x : x + 4] += 3
        x += 4 if touching else 8
        images[index, 0, y : y + 4, x : x + 4] -= 3
    return images, targets


def test_learns_what_touches() -> None:
    torch.manual_seed(0)
    assert accuracy_after(build(plan()), two_tone, steps=120) >= 0.85


@pytest.mark.parametrize("dimensions", [2, 3])
def test_twice_is_the_same_to_the_bit(dimensions: int) -> None:
    images = seeded(2, 1, *(6, 13, 9)[-dimensions:])
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        network = build(plan(dimensions))
        network(images).square().sum().backward()
        found.append([p.grad for p in network.parameters()])
    assert all(a is not None and torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_an_image_does_not_hear_the_others_of_its_batch() -> None:
    torch.manual_seed(0)
    network = build(plan()).eval()
    images = seeded(3, 1, 12, 10)
    with torch.inference_mode():
        torch.testing.assert_close(network(images)[1:2], network(images[1:2]))


def test_attention_lies_on_the_regions() -> None:
    torch.manual_seed(0)
    network = build(plan(3))
    assert isinstance(network, RegionGraph)
    images = seeded(2, 1, 6, 12, 8)
    weights, (_, there, labels) = network.attention(images), network.nodes(images)
    assert weights.shape == (2, 6, 12, 8)
    means, _ = region_means(weights[:, None], labels, there.shape[1])
    torch.testing.assert_close(means.sum((1, 2)), torch.ones(2))
