"""Which tensor goes where, and that inflated weights answer as the flat ones did."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.errors import RecipeError
from models.networks import build
from models.plan import NetworkPlan
from tasks.train.transfer.course import shapes
from tasks.train.transfer.matching import adapted, match


def plan(dimensions: int, *, channels: int = 1, classes: int = 2, name: str = "resnet18") -> NetworkPlan:
    return NetworkPlan.model_validate(
        {
            "name": name,
            "dimensions": dimensions,
            "in_channels": channels,
            "out_channels": classes,
            "features": (64, 128, 256, 512),
            "strides": ((1, 4, 4), *[(1 if dimensions == 2 else 2, 2, 2)] * 3),
        }
    )


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    """As torchvision would save a ResNet-18 for colour images and 1000 classes."""
    torch.manual_seed(0)
    return dict(build(plan(2, channels=3, classes=1000)).state_dict())


def test_imagenet_goes_into_a_grey_network_but_for_its_head(imagenet: dict[str, Tensor]) -> None:
    found = match(shapes(plan(2)), imagenet)
    fate = {layer.name: layer for layer in found.layers}
    assert fate["conv1.weight"].how == "inflated"
    assert {name for name, layer in fate.items() if layer.how == "fresh"} == {"fc.weight", "fc.bias"}
    assert "1000 × 512" in fate["fc.weight"].why
    assert torch.allclose(found.tensors["conv1.weight"], imagenet["conv1.weight"].sum(1, keepdim=True))
    assert found.share > 0.99
    assert "2 fresh (fc.weight, fc.bias)" in found.told
    network = build(plan(2))
    network.load_state_dict({**network.state_dict(), **found.tensors})


def test_a_volume_that_is_the_same_in_every_slice_is_answered_as_its_slice_was(imagenet: dict[str, Tensor]) -> None:
    flat, deep = build(plan(2)), build(plan(3))
    flat.load_state_dict({**flat.state_dict(), **match(shapes(plan(2)), imagenet).tensors})
    found = match(shapes(plan(3)), imagenet)
    assert found.share > 0.99
    deep.load_state_dict({**deep.state_dict(), **found.tensors})
    slice_ = torch.rand(1, 1, 64, 64)
    volume = slice_[:, :, None].expand(-1, -1, 40, -1, -1)
    with torch.no_grad():
        shallow = _stem(flat.eval(), slice_)
        middle = _stem(deep.eval(), volume.contiguous())
    assert torch.allclose(middle[:, :, middle.shape[2] // 2], shallow, atol=1e-4)


def _stem(network: nn.Module, images: Tensor) -> Tensor:
    answer: Tensor = network.get_submodule("conv1")(images)
    return answer


@pytest.mark.parametrize("inflation", ["repeat", "centre"])
def test_inflation_keeps_what_a_filter_says_of_equal_slices(inflation: str) -> None:
    weight = torch.rand(4, 2, 3, 3)
    deep = adapted(weight, (4, 2, 3, 3, 3), inflation)  # type: ignore[arg-type]
    assert deep is not None
    assert torch.allclose(deep.sum(2), weight)
    assert (deep[:, :, 0].abs().sum() == 0) == (inflation == "centre")


def test_colour_shares_itself_out_over_several_channels() -> None:
    weight = torch.rand(4, 3, 3, 3)
    wide = adapted(weight, (4, 2, 3, 3))
    assert wide is not None
    assert torch.allclose(wide.sum(1), weight.sum(1))


@pytest.mark.parametrize("shape", [(4, 2, 5, 5), (5, 3, 3, 3), (4, 64, 3, 3), (4, 3), (4, 3, 3)])
def test_what_has_another_meaning_is_left(shape: tuple[int, ...]) -> None:
    assert adapted(torch.rand(4, 3, 3, 3), shape) is None
    assert adapted(torch.rand(4, 3), (4, 3, 3, 3)) is None


@pytest.mark.parametrize("prefix", ["", "module.", "state_dict.model.", "network.", "_orig_mod."])
def test_wrappers_do_not_matter(prefix: str) -> None:
    own = NetworkPlan(name="unet", dimensions=3, in_channels=1, out_channels=2, features=(4, 8), deep_supervision=True)
    torch.manual_seed(1)
    weights = {prefix + name: tensor for name, tensor in build(own).state_dict().items()}
    found = match(shapes(own), weights)
    assert found.share == 1
    bare = {name.removeprefix("network."): tensor for name, tensor in build(own).state_dict().items()}
    assert match(shapes(own), bare).share == 1


def test_an_encoder_is_found_inside_a_larger_network(imagenet: dict[str, Tensor]) -> None:
    larger = {f"backbone.{name}": tensor for name, tensor in imagenet.items()}
    larger |= {f"decoder.{i}.weight": torch.zeros(3, 3) for i in range(20)}
    assert match(shapes(plan(2)), larger).share > 0.99
    inside = {f"encoder.{name}": tensor for name, tensor in shapes(plan(2)).items()}
    assert match(inside, imagenet).share > 0.99


def test_densenets_old_names_are_known() -> None:
    own = plan(2, name="densenet121").model_copy(update={"features": (128, 256, 512, 1024)})
    new = dict(build(own).state_dict())
    old = {
        name.replace(".norm1.", ".norm.1.")
        .replace(".conv1.", ".conv.1.")
        .replace(".norm2.", ".norm.2.")
        .replace(".conv2.", ".conv.2."): tensor
        for name, tensor in new.items()
    }
    assert old.keys() != new.keys()
    assert match(shapes(own), old).share == 1


def test_nothing_that_fits_is_an_error() -> None:
    with pytest.raises(RecipeError, match="none of the 1 tensors fits"):
        match(shapes(plan(2)), {"elsewhere.weight": torch.zeros(3, 3)})
    with pytest.raises(RecipeError, match="none of"):
        match(shapes(plan(2)), {"bn1.weight": torch.ones(64), "bn1.bias": torch.ones(64)})
