"""Every network of the table keeps the table's promises; a new entry is tested by being there."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from models.errors import RecipeError
from models.networks import build
from models.plan import NetworkPlan
from tests.models.networks.variants import SIZES, Variant, planar, variants

ODD = {2: (29, 19), 3: (5, 17, 11)}
TINY = {2: (3, 2), 3: (1, 2, 3)}
DEPTH = {"stochastic_depth": 0.9}


each = pytest.mark.parametrize("variant", variants(), ids=lambda v: f"{v.name}-{v.dimensions}d")

each_once = pytest.mark.parametrize("variant", planar(variants()), ids=lambda v: v.name)


@each
def test_learns_from_a_batch(variant: Variant) -> None:
    torch.manual_seed(0)
    network = build(variant.plan())
    images = variant.images(SIZES)
    logits = network(images)
    expected = (2, 3, *SIZES[variant.dimensions]) if variant.segments else (2, 3)
    assert logits.shape == expected
    logits.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@each
def test_takes_one_odd_image(variant: Variant) -> None:
    network = build(variant.plan())
    logits = network(variant.images(ODD, batch=1))
    assert logits.shape == ((1, 3, *ODD[variant.dimensions]) if variant.segments else (1, 3))
    assert torch.isfinite(logits).all()


@each
def test_takes_less_than_its_total_stride(variant: Variant) -> None:
    torch.manual_seed(0)
    network = build(variant.plan())
    images = variant.images(TINY, batch=1)
    network(images).float().square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
    with torch.inference_mode():
        first, second = network.eval()(images), network(images)
    assert first.shape == ((1, 3, *TINY[variant.dimensions]) if variant.segments else (1, 3))
    assert torch.equal(first, second)


@each_once
def test_drops_what_it_is_told_to_while_training_alone(variant: Variant) -> None:
    images = variant.images(SIZES)
    for honoured, changes in ((variant.entry.dropout, {"dropout": 0.5}), (variant.entry.stochastic_depth, DEPTH)):
        if honoured:
            torch.manual_seed(0)
            network = build(variant.plan(**changes))
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter += 0.1  # a unit that starts as its shortcut does nothing to skip
            assert not torch.equal(network(images), network(images))
            network.eval()
            with torch.inference_mode():
                assert torch.equal(network(images), network(images))


@each_once
def test_computes_in_bfloat16(variant: Variant) -> None:
    network = build(variant.plan())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(variant.images(SIZES))
    logits.float().mean().backward()
    assert torch.isfinite(logits.float()).all()


@each_once
def test_weights_survive_safetensors(variant: Variant) -> None:
    torch.manual_seed(0)
    first, second = build(variant.plan()).eval(), build(variant.plan()).eval()
    second.load_state_dict(load(save(first.state_dict())))
    images = variant.images(SIZES)
    with torch.inference_mode():
        assert torch.equal(first(images), second(images))


@each
def test_honours_anisotropic_strides_and_kernels(variant: Variant) -> None:
    levels = len(variant.widths)
    plan = variant.plan(
        strides=((1, 1, 1), *[(1, 2, 2)] * (levels - 1)), kernels=((1, 3, 3), *[(3, 3, 3)] * (levels - 1))
    )
    thin = {2: (16, 24), 3: (3, 16, 24)}
    logits = build(plan)(variant.images(thin))
    assert logits.shape[2:] == (thin[variant.dimensions] if variant.segments else ())


def one_a_module(variants: list[Variant]) -> list[Variant]:
    """Tracing takes seconds, and networks of one module are composed alike."""
    return list({v.entry.builder.split(":")[0]: v for v in reversed(variants) if v.entry.compiles}.values())


@pytest.mark.parametrize("variant", one_a_module(planar(variants())), ids=lambda v: v.name)
def test_traced_for_compiling_it_computes_the_same(variant: Variant) -> None:
    """What `torch.compile` may stumble over is the tracing; making code of the trace takes minutes."""
    torch.manual_seed(0)
    network = build(variant.plan()).eval()
    images = variant.images(SIZES)
    torch.compiler.reset()
    with torch.no_grad():
        traced = torch.compile(network, backend="eager")(images)
        assert torch.allclose(traced, network(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_it_learns_the_same(backend: str) -> None:
    torch.manual_seed(0)
    network = build(Variant("cnn", 2).plan())
    images = Variant("cnn", 2).images(SIZES)
    torch.compiler.reset()
    gradients = []
    for forward in (network, torch.compile(network, backend=backend)):
        network.zero_grad()
        forward(images).square().mean().backward()
        gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(network.parameters()))
    for plain, compiled in zip(*gradients, strict=True):
        assert torch.allclose(plain, compiled, rtol=1e-3, atol=1e-5)


@each_once
def test_its_shapes_are_known_without_its_weights(variant: Variant) -> None:
    with torch.device("meta"):
        shapes = build(variant.plan()).state_dict()
    assert all(tensor.is_meta for tensor in shapes.values())
    state = build(variant.plan()).state_dict()
    assert {k: (t.shape, t.dtype) for k, t in state.items()} == {k: (t.shape, t.dtype) for k, t in shapes.items()}


@each_once
def test_the_same_seed_gives_the_same_weights(variant: Variant) -> None:
    def weights() -> bytes:
        torch.manual_seed(5)
        return save(build(variant.plan(dropout=0.1)).state_dict())

    assert weights() == weights()


segmenting = [v for v in variants() if v.segments]


@pytest.mark.parametrize("variant", [v for v in planar(segmenting) if v.entry.deep_supervision], ids=lambda v: v.name)
def test_supervises_coarser_levels_only_while_training(variant: Variant) -> None:
    network = build(variant.plan(deep_supervision=True, features=(4, 8, 8, 12, 12)))
    sizes = {2: (32, 32), 3: (16, 16, 32)}
    heads = network(variant.images(sizes))
    assert len(heads) > 1
    assert heads[0].shape == (2, 3, *sizes[variant.dimensions])
    sum(h.mean() for h in heads).backward()
    assert all(p.grad is not None for p in network.parameters())
    assert isinstance(network.eval()(variant.images(sizes)), Tensor)


@pytest.mark.parametrize("variant", planar(segmenting), ids=lambda v: v.name)
class TestSegmentation:
    def test_an_image_of_a_single_coarsest_voxel_still_has_statistics(self, variant: Variant) -> None:
        network = build(variant.plan())
        tiny = {2: (8, 8), 3: (8, 8, 8)}
        assert network(variant.images(tiny)).shape[2:] == tiny[variant.dimensions]

    def test_zeros_around_do_not_reach_a_full_sized_image(self, variant: Variant) -> None:
        network = build(variant.plan()).eval()
        full = [*network.multiple[:-1], 2 * network.multiple[-1]]
        images = torch.randn(1, 2, *full)
        with torch.inference_mode():
            assert torch.equal(network(images), network.network(images))


def test_a_unet_may_work_on_a_coarser_grid() -> None:
    plan = NetworkPlan(
        name="unet", dimensions=3, in_channels=1, out_channels=2, features=(4, 8), strides=((2, 2, 2), (2, 2, 2))
    )
    assert build(plan)(torch.randn(1, 1, 13, 16, 10)).shape == (1, 2, 13, 16, 10)


def test_a_unet_of_one_level_is_allowed() -> None:
    plan = NetworkPlan(name="unet", dimensions=2, in_channels=1, out_channels=2, features=(4,))
    assert build(plan)(torch.randn(1, 1, 9, 9)).shape == (1, 2, 9, 9)


@pytest.mark.parametrize("stem", [1, 2, 4])
def test_a_classifiers_stem_follows_the_stride(stem: int) -> None:
    plan = NetworkPlan(
        name="resnet",
        dimensions=2,
        in_channels=1,
        out_channels=2,
        features=(8, 16),
        strides=((1, stem, stem), (1, 2, 2)),
    )
    network = build(plan)
    maps = network.stages(torch.randn(1, 1, 64, 64))
    assert maps.shape[2:] == (32 // stem, 32 // stem)


class TestRefusals:
    def test_an_unknown_name_is_met_with_the_nearest(self) -> None:
        plan = NetworkPlan(name="unett", dimensions=2, in_channels=1, out_channels=2, features=(4,))
        with pytest.raises(RecipeError, match="unet"):
            build(plan)

    @pytest.mark.parametrize("changes", [{"features": ()}, {"features": (4, 0)}, {"strides": ((1, 1, 1),) * 3}])
    def test_arguments_that_do_not_fit(self, changes: dict[str, object]) -> None:
        with pytest.raises(RecipeError):
            build(Variant("unet", 2).plan(**changes))


def test_the_table_itself_needs_no_pytorch() -> None:
    code = "import sys, models.networks; assert not {'torch', 'monai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_that_do_not_name_monai_run_without_it() -> None:
    code = (
        "import sys; sys.modules['monai'] = None\n"
        "from models.networks import NETWORKS, build\n"
        "from models.plan import NetworkPlan\n"
        "for name, entry in NETWORKS.items():\n"
        "    if entry.package != 'monai':\n"
        "        widths = tuple(w // 16 for w in entry.own_widths) or (4, 8, 8)\n"
        "        values = dict(dimensions=max(entry.dimensions), in_channels=1, out_channels=2, features=widths)\n"
        "        values['size'] = (16, 16, 16)\n"
        "        build(NetworkPlan(name=name, **values))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
