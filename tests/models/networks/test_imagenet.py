"""Checkpoints made with torchvision fit by name and shape."""

from __future__ import annotations

import pytest
import torch

from models.networks import NETWORKS, build
from models.plan import NetworkPlan


def published(name: str, **changes: object) -> torch.nn.Module:
    values = {"name": name, "dimensions": 2, "in_channels": 3, "out_channels": 1000}
    values["features"] = NETWORKS[name].own_widths
    return build(NetworkPlan.model_validate(values | changes))


@pytest.mark.parametrize(
    ("name", "parameters", "tensors", "some"),
    [
        (
            "resnet18",
            11_689_512,
            122,
            {"conv1.weight": (64, 3, 7, 7), "layer2.0.downsample.0.weight": (128, 64, 1, 1), "fc.bias": (1000,)},
        ),
        ("resnet34", 21_797_672, 218, {"layer3.5.bn2.running_var": (256,)}),
        (
            "resnet50",
            25_557_032,
            320,
            {"layer1.0.conv3.weight": (256, 64, 1, 1), "layer4.0.downsample.1.weight": (2048,)},
        ),
        (
            "densenet121",
            7_978_856,
            727,
            {
                "features.conv0.weight": (64, 3, 7, 7),
                "features.denseblock3.denselayer24.norm1.weight": (992,),
                "features.denseblock4.denselayer16.conv2.weight": (32, 128, 3, 3),
                "features.transition2.conv.weight": (256, 512, 1, 1),
                "features.norm5.num_batches_tracked": (),
                "classifier.weight": (1000, 1024),
            },
        ),
    ],
)
def test_names_and_shapes_are_torchvisions(
    name: str, parameters: int, tensors: int, some: dict[str, tuple[int, ...]]
) -> None:
    network = published(name)
    state = network.state_dict()
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert len(state) == tensors
    assert {key: tuple(state[key].shape) for key in some} == some


def test_a_picture_ends_a_thirty_second_as_wide() -> None:
    network = published("resnet18", features=(4, 4, 4, 4))
    assert [m.shape[-1] for m in network.maps(torch.zeros(1, 3, 224, 224))] == [56, 28, 14, 7]


def test_small_pictures_keep_their_size_in_the_stem() -> None:
    small = ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2))
    for name in ("resnet18", "densenet121"):
        features = tuple(max(4, w // 16) for w in NETWORKS[name].own_widths)
        plain, coarse = (published(name, features=features, strides=s) for s in (small, ()))
        assert plain.state_dict().keys() == coarse.state_dict().keys()
        found = dict(plain.named_modules())["conv1" if name == "resnet18" else "features.conv0"]
        assert found(torch.zeros(1, 3, 28, 28)).shape[-1] == 28


def test_a_segmentations_backbone_has_the_same_names() -> None:
    backbone = published("deeplabv3plus", out_channels=2).state_dict()
    theirs = published("resnet50").state_dict()
    own = {key.removeprefix("network.backbone."): t for key, t in backbone.items() if ".backbone." in key}
    assert {k: t.shape for k, t in theirs.items() if not k.startswith("fc.")} == {k: t.shape for k, t in own.items()}
