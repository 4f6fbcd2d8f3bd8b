"""Networks of the table are sized by what they take, not by what the plain U-Net would."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.errors import RecipeError
from models.networks import NETWORKS, build
from models.plan import NetworkPlan, Plan
from tasks.preprocess.budget import Budget
from tasks.preprocess.plan import make_plan
from tasks.preprocess.topology import Topology
from tasks.preprocess.trial import KEPT_PER_ELEMENT, Trial, tried
from tests.models.networks.variants import Variant, planar, variants
from tests.tasks.preprocess.cases import fingerprint, recipe

measured = [v for v in planar(variants()) if v.entry.measured]
by_name = pytest.mark.parametrize("variant", measured, ids=lambda v: v.name)


def kept(plan: NetworkPlan, patch: tuple[int, int, int]) -> float:
    """Elements that a real step keeps for its backward pass, besides the weights."""
    network = build(plan).train()
    weights = {p.data_ptr() for p in network.parameters()}
    found: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        memory = tensor.untyped_storage()
        if memory.data_ptr() not in weights:
            found[memory.data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network(torch.zeros(1, plan.in_channels, *patch[3 - plan.dimensions :]))
    assert logits is not None
    return sum(t.untyped_storage().nbytes() for t in found.values()) / 4


def patch_of(variant: Variant, edge: int) -> tuple[int, int, int]:
    return (1 if variant.dimensions == 2 else edge // 4, edge, edge)


@by_name
def test_a_trial_knows_what_a_real_step_keeps(variant: Variant) -> None:
    patch = patch_of(variant, 32)
    plan = variant.plan(size=patch)
    assert tried(plan, patch).elements * KEPT_PER_ELEMENT == pytest.approx(kept(plan, patch), rel=0.3)


@by_name
def test_from_one_trial_other_patches_are_reckoned(variant: Variant) -> None:
    levels = len(variant.widths)
    strides = ((1, 1, 1), *[(1, 2, 2)] * (levels - 1)) if levels > 1 else ((1, 8, 8),)
    kernels = ((1, 3, 3) if variant.dimensions == 2 else (3, 3, 3),) * levels
    small, large = (Topology(patch_of(variant, edge), strides, kernels) for edge in (64, 96))
    trial = Trial(variant.plan())
    trial.cost(small, variant.widths)
    reckoned = trial.cost(large, variant.widths)
    true = tried(variant.plan(strides=strides, kernels=kernels, size=large.patch), large.patch)
    for one, other in ((reckoned.elements, true.elements), (reckoned.flops, true.flops)):
        assert 1 / 2 < one / other < 2


def planned(name: str, *, dimensions: int = 3, device: str = "cuda", memory: float = 8, **parts: object) -> Plan:
    kind = "segmentation" if "segmentation" in NETWORKS[name].kinds else "classification"
    shape = (120, 300, 300) if dimensions == 3 else (1, 400, 400)
    network = {"name": name, "dimensions": dimensions} | dict(parts.pop("network", {}))  # type: ignore[call-overload]
    values: dict[str, object] = {"train": {"minutes": 1e5}} | parts
    return make_plan(
        recipe(kind, "CT", network=network, **values),  # type: ignore[arg-type]
        fingerprint("CT", shape, (2, 1, 1), 60),
        ("a", "b"),
        memory_gb=memory,
        device=device,
        cores=2,
    )


@pytest.mark.parametrize("name", [n for n, e in NETWORKS.items() if e.own_widths])
def test_a_published_network_has_its_own_widths_and_fits_the_memory(name: str) -> None:
    plan = planned(name)
    assert plan.network.features == NETWORKS[name].own_widths
    cost = tried(plan.network, plan.train.patch_size)
    room = Budget("cuda", 8, None, 1).elements(3, cost.parameters)
    assert cost.elements * plan.train.batch_size < 1.3 * room


@pytest.mark.parametrize("name", ["vnet", "unetr", "swin_unetr", "deeplabv3plus"])
def test_a_patch_is_what_the_networks_own_strides_divide(name: str) -> None:
    plan = planned(name)
    total = math.prod(NETWORKS[name].own_strides)
    assert all(n % total == 0 for n in plan.train.patch_size)
    assert all(n <= m for n, m in zip(planned(name, memory=4).train.patch_size, plan.train.patch_size, strict=True))


def test_heavier_networks_get_smaller_patches() -> None:
    sizes = [math.prod(planned(name).train.patch_size) for name in ("unet", "resenc", "swin_unetr")]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_small_pictures_lose_a_networks_first_strides() -> None:
    def strides(size: tuple[int, int, int], name: str) -> list[int]:
        plan = planned(name, dimensions=2, preprocess={"size": size})
        return [s[-1] for s in plan.network.strides]

    assert strides((1, 224, 224), "resnet50") == [4, 2, 2, 2]
    assert strides((1, 28, 28), "resnet50") == [1, 2, 2, 2]
    assert strides((1, 64, 64), "efficientnet") == [1, 2, 2, 2, 2]
    assert strides((1, 224, 224), "vit") == [16]
    assert strides((1, 28, 28), "vit") == [2]


def test_position_embeddings_are_made_for_the_patch() -> None:
    plan = planned("unetr")
    assert plan.network.size == plan.train.patch_size
    assert planned("swin_unetr").network.size is None


@pytest.mark.parametrize(
    ("name", "parts", "where"),
    [
        ("vnet", {"network": {"stochastic_depth": 0.1}}, "network.stochastic_depth"),
        ("resnet18", {"network": {"features": (8, 16)}}, "network.features"),
        ("swin_unetr", {"network": {"features": (8, 8, 16, 32, 64, 128)}}, "network.features"),
        ("swin_unetr", {"memory": 0.1}, "network.features"),
    ],
)
def test_what_a_network_cannot_be_is_refused(name: str, parts: dict[str, object], where: str) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(name, **parts)  # type: ignore[arg-type]
    assert caught.value.where == where


def test_one_of_another_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match="cannot do segmentation"):
        make_plan(
            recipe(network={"name": "resnet50"}),
            fingerprint("CT", (60, 90, 90), (2, 1, 1), 20),
            ("a",),
            memory_gb=8,
            device="cpu",
        )
