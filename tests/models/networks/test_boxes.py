"""Every network of the table that gives boxes keeps the table's promises; a new entry is tested by being there."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from models.errors import RecipeError
from models.networks import NETWORKS, build
from models.networks.retinanet import anchors, decoded, flattened, pyramid_strides
from models.plan import NetworkPlan

SIZES = {2: (32, 24), 3: (16, 16, 24)}
ODD = {2: (29, 19), 3: (5, 17, 11)}
VARIANTS = [(n, d) for n, e in NETWORKS.items() if "detection" in e.kinds for d in sorted(e.dimensions)]

each = pytest.mark.parametrize(("name", "dimensions"), VARIANTS, ids=lambda v: str(v))


def a_plan(name: str, dimensions: int, **changes: object) -> NetworkPlan:
    values = {"name": name, "dimensions": dimensions, "in_channels": 2, "out_channels": 3, "features": (4, 8, 8, 12)}
    return NetworkPlan.model_validate(values | changes)


@each
@pytest.mark.parametrize("sizes", [SIZES, ODD], ids=["even", "odd"])
def test_every_place_has_an_anchor_inside_the_image(
    name: str, dimensions: int, sizes: dict[int, tuple[int, ...]]
) -> None:
    plan = a_plan(name, dimensions)
    outputs = build(plan)(torch.randn(1, 2, *sizes[dimensions]))
    places = torch.cat(anchors(outputs, pyramid_strides(plan)))
    assert flattened(outputs).shape == (1, len(places), 3 + 2 * dimensions)
    size = torch.tensor(sizes[dimensions])
    # The last place of an odd axis may lie half a stride beyond it.
    assert (places[:, :dimensions] > 0).all()
    assert (places[:, :dimensions] < size + places[:, dimensions:] / 4).all()


@each
def test_learns_with_every_weight(name: str, dimensions: int) -> None:
    network = build(a_plan(name, dimensions, features=(4, 8, 8, 8, 8, 8)))
    sum(level.square().mean() for level in network(torch.randn(2, 2, *SIZES[dimensions]))).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@each
def test_starts_almost_sure_that_there_is_nothing(name: str, dimensions: int) -> None:
    outputs = flattened(build(a_plan(name, dimensions))(torch.randn(1, 2, *SIZES[dimensions])))
    assert outputs[..., :3].sigmoid().max() < 0.1


@each
def test_computes_in_bfloat16(name: str, dimensions: int) -> None:
    network = build(a_plan(name, dimensions))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = network(torch.randn(1, 2, *SIZES[dimensions]))
    flattened(outputs).mean().backward()
    assert torch.isfinite(flattened(outputs)).all()


@each
def test_weights_survive_safetensors(name: str, dimensions: int) -> None:
    first, second = build(a_plan(name, dimensions)).eval(), build(a_plan(name, dimensions)).eval()
    second.load_state_dict(load(save(first.state_dict())))
    images = torch.randn(1, 2, *ODD[dimensions])
    with torch.inference_mode():
        assert torch.equal(flattened(first(images)), flattened(second(images)))


@each
def test_the_same_seed_gives_the_same_weights(name: str, dimensions: int) -> None:
    def weights() -> bytes:
        torch.manual_seed(5)
        return save(build(a_plan(name, dimensions, dropout=0.1)).state_dict())

    assert weights() == weights()


@each
def test_honours_anisotropic_strides(name: str, dimensions: int) -> None:
    plan = a_plan(name, dimensions, strides=((1, 1, 1), (1, 2, 2), (1, 2, 2), (2, 2, 2)))
    thin = {2: (16, 24), 3: (3, 16, 24)}[dimensions]
    outputs = build(plan)(torch.randn(1, 2, *thin))
    assert outputs[0].shape[2:] == tuple(n // s for n, s in zip(thin, pyramid_strides(plan)[0], strict=True))


def test_no_change_is_the_anchor_itself() -> None:
    places = torch.tensor([[10.0, 20.0, 4.0, 8.0]])
    assert decoded(torch.zeros(1, 4), places).tolist() == [[8, 16, 12, 24]]


def test_a_single_level_is_refused() -> None:
    with pytest.raises(RecipeError, match="two levels"):
        build(a_plan("retinanet", 3, features=(8,)))
