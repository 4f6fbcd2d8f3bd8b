"""What a package looked at, and whether that says anything about what it has learnt."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.geometry import Geometry
from models.package import Member
from models.plan import NetworkPlan, VariablePlan
from tasks.imaging.ensemble import Together
from tasks.imaging.explainer import ALIKE, Explainer
from tasks.imaging.predictor import Predictor
from tests.tasks.imaging.test_ensemble import weights_of
from tests.tasks.imaging.test_predictor import described
from tests.tasks.imaging.test_saliency import Bright
from tests.tasks.train.samples import World, picture, pictures
from tests.tasks.train.test_patients import SIDE, patients

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = Geometry.from_spacing((1, 16, 16), (1.0, 1.0, 1.0))


@cache
def learnt() -> Predictor:
    """A network that has learnt what a bright square is, from a few images in a few steps."""
    torch.manual_seed(0)
    world = pictures()
    network = NetworkPlan(name="cnn", dimensions=2, in_channels=1, out_channels=2, features=(8, 16))
    package = described(changed(world, network=network))
    predictor = Predictor(package, weights_of(package.plans), "cpu", precision="fp32")
    images = torch.stack([torch.from_numpy(picture(i, i % 2).image[0].astype(np.float32)) for i in range(48)])
    optimiser = torch.optim.Adam(predictor.network.parameters(), 1e-2)
    for step in range(50):
        chosen = torch.arange(24) + 24 * (step % 2)
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(predictor.network(images[chosen]), chosen % 2)
        loss.backward()
        optimiser.step()
    assert loss < 0.2
    return predictor


def changed(world: World, **changes: object) -> World:
    return World(world.plan.model_copy(update=changes), world.recipe, world.dataset, world.store)


def shown(y: int = 8, x: int = 2, seed: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """An image with a square at this corner, and where it is."""
    image = np.random.default_rng(seed).normal(0, 0.5, (1, 16, 16)).astype(np.float32)
    inside = np.zeros(image.shape, bool)
    inside[:, y : y + 6, x : x + 6] = True
    return image + 2 * inside.astype(np.float32), inside


def test_a_learnt_network_looks_at_the_square_and_not_once_its_weights_are_shuffled() -> None:
    explainer = Explainer(learnt())
    assert explainer.reason == ""
    image, inside = shown()
    found = explainer.explain(explainer.prepared([(image, GRID)]), 1)
    assert list(found.maps) == ["grad-cam", "guided-grad-cam", "occlusion"]
    for method, values in found.maps.items():
        assert values.shape == image.shape
        assert values.max() == pytest.approx(1)
        assert values[inside].mean() > 2 * values[~inside].mean(), method
    assert 0 < found.fall <= 1
    assert set(found.correlations) == {"grad-cam", "guided-grad-cam"}
    assert found.correlations["grad-cam"] < ALIKE


def test_the_same_case_is_explained_the_same_way() -> None:
    explainer = Explainer(learnt())
    case = explainer.prepared([(shown()[0], GRID)])
    one, other = explainer.explain(case, 1, seed=3), explainer.explain(case, 1, seed=3)
    assert one.correlations == other.correlations
    assert all(np.array_equal(one.maps[m], other.maps[m]) for m in one.maps)


class Edges(nn.Module):
    """Has weights, but what it shows hangs on the image alone."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.offset = nn.Identity(), nn.Parameter(torch.linspace(-1, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        total = self.places(x).relu().square().flatten(1).mean(dim=1, keepdim=True)
        return torch.cat((-total, total), dim=1) + self.offset.sum()


def test_a_map_that_does_not_hang_on_the_weights_is_found_out() -> None:
    package = described(pictures())
    predictor = Predictor(package, weights_of(package.plans), "cpu", precision="fp32")
    predictor.network = Edges()
    explainer = Explainer(predictor)
    found = explainer.explain(explainer.prepared([(shown()[0], GRID)]), 1)
    assert found.correlations["grad-cam"] > 0.99 > ALIKE


def test_members_maps_are_averaged() -> None:
    members = tuple(Member(name=str(i)) for i in range(2))
    package = described(pictures(), members=members)
    predictor = Predictor(package, weights_of(package.plans), "cpu", precision="fp32")
    predictor.network = Together([Bright(2), Bright(2)], [1, 3], [1, 1])
    explainer = Explainer(predictor)
    image, inside = shown()
    found = explainer.explain(explainer.prepared([(image, GRID)]), 1)
    assert found.maps["grad-cam"][inside].mean() > 3 * found.maps["grad-cam"][~inside].mean()


def sequence_world() -> World:
    """Three slices, read in order."""
    world = pictures()
    network = NetworkPlan(name="cnn_gru", dimensions=3, in_channels=1, out_channels=2, features=(4, 8))
    prepare = world.plan.prepare.model_copy(update={"dimensions": 3, "size": (3, 16, 16)})
    return changed(world, network=network, prepare=prepare)


def test_networks_without_places_say_so_and_are_asked_by_occlusion() -> None:
    package = described(sequence_world())
    predictor = Predictor(package, weights_of(package.plans), "cpu", precision="fp32")
    explainer = Explainer(predictor)
    assert "one by one" in explainer.reason
    image = np.random.default_rng(0).normal(size=(3, 16, 16)).astype(np.float32)
    found = explainer.explain(explainer.prepared([(image, Geometry.from_spacing((3, 16, 16), (3, 1, 1)))]), 1)
    assert list(found.maps) == ["occlusion"]
    assert found.maps["occlusion"].shape == (3, 16, 16)
    assert set(found.correlations) <= {"occlusion"}


class Series(nn.Module):
    """A patient shows class 1 where any series that is there is bright."""

    def forward(self, sets: Tensor) -> Tensor:
        total = 3 * sets.flatten(2).nan_to_num(0).relu().square().mean(dim=2).amax(dim=1, keepdim=True)
        return torch.cat((-total, total), dim=1)


def test_of_a_patient_the_series_that_counts_is_explained() -> None:
    package = described(patients())
    predictor = Predictor(package, weights_of(package.plans), "cpu", precision="fp32")
    predictor.network = Series()
    explainer = Explainer(predictor)
    grid = Geometry.from_spacing((1, SIDE, SIDE), (1.0, 1.0, 1.0))
    images = [np.zeros((1, SIDE, SIDE), np.float32) for _ in range(3)]
    images[2][:, 2:6, 2:6] = 3
    found = explainer.explain(explainer.prepared([(image, grid) for image in images]), 1)
    assert found.series == 2
    values = found.maps["occlusion"]
    assert values[0, 3:5, 3:5].mean() > 3 * values[0, 8:, 8:].mean()
    alone = explainer.explain(explainer.prepared([(images[2], grid)]), 1)
    assert alone.series == 0


def test_clinical_variables_go_along() -> None:
    world = pictures()
    age = VariablePlan(name="age", kind="number", mean=50, std=10)
    network = world.plan.network.model_copy(update={"variables": age.width})
    package = described(changed(world, network=network, variables=(age,)))
    predictor = Predictor(package, weights_of(package.plans), "cpu", precision="fp32")
    explainer = Explainer(predictor)
    case = explainer.prepared([(shown()[0], GRID)], ("70",))
    assert case.clinical is not None
    assert case.clinical[0].tolist() == [2.0, 0.0]
    assert list(explainer.explain(case, 0).maps) == ["grad-cam", "guided-grad-cam", "occlusion"]
