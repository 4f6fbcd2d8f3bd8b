"""How unsure a model is: by case from what it said, and by voxel from several voices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn

from models.geometry import Geometry
from models.package import Member
from models.plan import Plan
from tasks.imaging.ensemble import Together
from tasks.imaging.predictor import Predictor
from tasks.imaging.uncertainty import (
    UNKNOWN,
    VOICES,
    case_uncertainty,
    disagreement,
    entropy,
    uncertainty_map,
    voices,
)
from tests.tasks.imaging.test_ensemble import weights_of
from tests.tasks.imaging.test_predictor import described
from tests.tasks.train.overlapping import regions_world
from tests.tasks.train.samples import World, balls, pictures

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (14, 24, 20)
GRID = Geometry.from_spacing(SHAPE, (1.0, 1.0, 1.0))


def plan(kind: str) -> Plan:
    return balls().plan if kind == "segmentation" else pictures().plan.model_copy(update={"kind": kind})


def test_entropy_is_nought_where_sure_and_one_where_all_is_as_likely() -> None:
    assert entropy([1.0, 0.0, 0.0]) == pytest.approx(0)
    assert entropy([1 / 3] * 3) == pytest.approx(1)
    assert entropy([0.5, 1.0], "sigmoid") == pytest.approx(0.5), "the mean over independent classes"
    assert entropy(np.full((4, 2, 3), 0.25)).shape == (2, 3)


def test_voices_that_disagree_are_told_from_voices_that_are_unsure() -> None:
    opposed, doubtful = [[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]
    assert entropy(np.mean(opposed, axis=0)) == entropy(np.mean(doubtful, axis=0)) == pytest.approx(1)
    assert disagreement(opposed) == pytest.approx(1)
    assert disagreement(doubtful) == pytest.approx(0)
    assert disagreement([[0.9, 0.2], [0.1, 0.2]], "sigmoid") > 0.1


def test_a_surer_case_is_less_uncertain_whatever_the_kind() -> None:
    for kind in ("classification", "detection", "segmentation"):
        sure, doubtful = [0.98, 0.02], [0.55, 0.45]
        if kind == "segmentation":
            sure, doubtful = [0.95, 0.0], [0.5, 0.6]
        low, high = (case_uncertainty(plan(kind), said) for said in (sure, doubtful))
        assert 0 <= low < 0.3 < high <= 1


def test_a_case_in_which_nothing_was_found_goes_by_how_near_it_came() -> None:
    segmenting = plan("segmentation")
    assert case_uncertainty(segmenting, (0.0, 0.0)) == UNKNOWN
    near, far = (case_uncertainty(segmenting, (0.0, 0.0), nearest=n) for n in (0.49, 0.01))
    assert far < 0.05 < 0.5 < near <= 1
    assert case_uncertainty(plan("detection"), []) == 0


class Soft(nn.Module):
    """Class 1 where the image is bright, unsure in between."""

    def __init__(self, shift: float = 0.0) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x: Tensor) -> Tensor:
        logit = 12 * (x[:, :1] - 0.5 - self.shift)
        return torch.cat((-logit, logit, torch.full_like(logit, -40.0)), dim=1)


def scene() -> np.ndarray:
    block = np.zeros(SHAPE, np.float32)
    block[4:11, 6:18, 5:15] = 1
    return ndimage.gaussian_filter(block, 1.2)


def predictor_of(world: World, *networks: nn.Module, **changes: object) -> Predictor:
    package = described(world, **changes)
    predictor = Predictor(package, weights_of(package.plans), "cpu", precision="fp32")
    activation = world.plan.activation
    share = [1.0] * len(networks)
    predictor.network = networks[0] if len(networks) == 1 else Together(networks, share, share, activation)
    return predictor


def test_the_border_is_more_uncertain_than_the_inside() -> None:
    found = uncertainty_map(predictor_of(balls(), Soft()), scene(), GRID)
    truth = scene() > 0.5
    inside = ndimage.binary_erosion(truth, iterations=2)
    border = truth & ~ndimage.binary_erosion(truth)
    assert found.entropy.shape == SHAPE
    assert 0 <= found.entropy.min() <= found.entropy.max() <= 1
    assert found.entropy[border].mean() > 10 * found.entropy[inside].mean()
    assert found.entropy[:2].max() < 0.01


def test_members_that_disagree_show_where() -> None:
    members = tuple(Member(name=str(i)) for i in range(2))
    predictor = predictor_of(balls(), Soft(-0.3), Soft(0.3), members=members)
    assert len(voices(predictor)) == 2
    found = uncertainty_map(predictor, scene(), GRID)
    assert found.voices == 2
    assert found.disagreement is not None
    between = (scene() > 0.35) & (scene() < 0.65)
    assert found.disagreement[between].mean() > 0.3
    assert found.disagreement[scene() > 0.95].max() < 0.05
    assert (found.disagreement <= found.entropy + 1e-6).all()


class OneSided(nn.Module):
    """Overlooks what lies in the far half along x."""

    def forward(self, x: Tensor) -> Tensor:
        half = torch.arange(x.shape[-1]) < x.shape[-1] // 2
        logit = 12 * (x[:, :1] * half - 0.5)
        return torch.cat((-logit, logit, torch.full_like(logit, -40.0)), dim=1)


def test_one_network_is_asked_again_with_mirrored_copies() -> None:
    world = balls(flip_axes=("x",))
    predictor = predictor_of(world, OneSided())
    assert len(voices(predictor)) == 2
    found = uncertainty_map(predictor, scene(), GRID)
    assert found.disagreement is not None
    assert found.disagreement[scene() > 0.9].mean() > 0.15, "seen from one side alone"
    alone = uncertainty_map(predictor_of(balls(flip_axes=()), OneSided()), scene(), GRID)
    assert (alone.disagreement, alone.voices) == (None, 1)


def test_passes_over_an_image_are_bounded() -> None:
    members = tuple(Member(name=str(i)) for i in range(VOICES + 3))
    predictor = predictor_of(balls(), *[Soft(0.01 * i) for i in range(VOICES + 3)], members=members)
    heard = voices(predictor)
    assert len(heard) == VOICES
    assert sum(part.share for part in heard) == pytest.approx(1)


def test_regions_have_an_uncertainty_of_their_own() -> None:
    world = regions_world(flip_axes=("x",))
    package = described(world)
    predictor = Predictor(package, weights_of(package.plans), "cpu", precision="fp32")
    found = uncertainty_map(predictor, scene(), GRID)
    assert np.isfinite(found.entropy).all()
    assert 0 <= case_uncertainty(world.plan, (0.7, 0.0)) == pytest.approx(0.6)


def test_the_predictor_tells_how_near_it_came() -> None:
    faint, bright = scene() * 0.6, scene()
    predictor = predictor_of(balls(), Soft(0.15))
    nothing = predictor.segment(faint, GRID)
    assert not nothing.labels.any()
    assert 0.2 < nothing.nearest < 0.5
    assert predictor.segment(faint * 0.2, GRID).nearest < 0.01
    told = [
        case_uncertainty(predictor.package.plan, found.confidence, nearest=found.nearest)
        for found in (predictor.segment(bright, GRID), nothing)
    ]
    assert told[0] < told[1]
