"""Which resolutions are planned, and how a first stage comes to its grid."""

from __future__ import annotations

import math

import pytest
import torch

from models.errors import RecipeError
from models.networks import build
from models.plan import Plan
from models.recipe import Recipe
from tasks.preprocess.plan import make_plan
from tests.tasks.preprocess.cases import fingerprint, recipe

LIVER = fingerprint("CT", (482, 512, 512), (1, 0.767, 0.767), 131)
SMALL = fingerprint("MR", (36, 50, 35), (1, 1, 1), 100)
LONG = {"minutes": 1e5}


def planned(seen: object = LIVER, resolution: str = "auto", device: str = "cuda", **parts: object) -> Plan:
    wish = recipe("segmentation", "CT", **{"train": LONG, "network": {"resolution": resolution}, **parts})
    return make_plan(wish, seen, ("liver", "tumour"), memory_gb=8, device=device, cores=4)  # type: ignore[arg-type]


def test_a_patch_of_little_of_the_case_makes_a_cascade_on_nnunets_grid() -> None:
    got = planned()
    assert got.low is not None
    assert got.low.prepare.spacing == pytest.approx((2.47, 1.9, 1.9), abs=0.05)  # as published for Task03 liver
    assert (got.resolution, got.low.resolution, got.low.low) == ("full", "low", None)
    assert (got.network.in_channels, got.network.told, got.low.network.told) == (1, 2, 0)
    assert got.train.minutes == got.low.train.minutes == 5e4
    assert got.seed != got.low.seed
    assert any("a patch shows 2" in note for note in got.notes)
    assert ("resolution", "cascade: low, then full") in got.rows()
    assert planned() == got
    assert Plan.model_validate(got.model_dump(mode="json")) == got


def test_a_patch_of_the_whole_case_needs_none() -> None:
    got = planned(SMALL)
    assert (got.low, got.resolution) == (None, "full")
    assert got == planned(SMALL, "full")


def test_what_is_asked_for_is_planned() -> None:
    assert planned(resolution="full").low is None
    low = planned(resolution="low")
    assert (low.low, low.resolution) == (None, "low")
    assert low.train.minutes == LONG["minutes"]
    small = planned(SMALL, "cascade")
    assert small.low is not None
    full_voxels, low_voxels = (math.prod(p.prepare.spacing or ()) for p in (small, small.low))
    assert low_voxels >= 2 * full_voxels  # else it would be the same again
    assert small.network.told == 2


def test_short_times_are_not_halved_by_themselves() -> None:
    got = planned(train={"minutes": 60})
    assert got.low is None
    assert any(note.startswith("no cascade: the time is too short") for note in got.notes)
    assert planned(resolution="cascade", train={"minutes": 60}).low is not None


def test_epochs_are_for_each_stage() -> None:
    got = planned(train={"epochs": 7})
    assert got.low is not None
    assert (got.train.epochs, got.low.train.epochs, got.train.minutes) == (7, 7, None)


def test_thick_slices_are_coarsened_in_plane_first() -> None:
    got = planned(fingerprint("CT", (90, 1024, 1024), (5.0, 0.5, 0.5), 30))
    assert got.low is not None
    assert got.low.prepare.spacing is not None
    z, y, x = got.low.prepare.spacing
    assert z == 5.0
    assert y == x > 1


def test_planned_stages_can_be_built_and_run() -> None:
    got = planned(SMALL, "cascade", device="cpu", train={"epochs": 1, "patch_size": [16, 16, 16]})
    assert got.low is not None
    for plan, channels in ((got, 2), (got.low, 1)):
        with torch.inference_mode():
            said = build(plan.network).eval()(torch.zeros(1, channels, *plan.train.patch_size))
        assert said.shape == (1, 3, *plan.train.patch_size)


@pytest.mark.parametrize("resolution", ["low", "cascade"])
def test_it_is_refused_where_it_makes_no_sense(resolution: str) -> None:
    flat = fingerprint("MR", (1, 256, 256), (1, 1, 1), 20)
    with pytest.raises(RecipeError, match=r"network\.resolution.*slice by slice"):
        planned(flat, resolution)
    beginning, end = 'name = "r"\nimages.modality = "CT"\n', f'\nnetwork.resolution = "{resolution}"'
    for text in (
        'kind = "classification"\nlabels.source = "CSV"',
        'kind = "detection"\nlabels.source = "SEG"\ndetection.method = "retinanet"',
        'kind = "segmentation"\nlabels.source = "SEG"\nnetwork.dimensions = 2',
    ):
        with pytest.raises(RecipeError, match=r'network\.resolution.*write "auto"'):
            Recipe.parse(beginning + text + end)
    Recipe.parse(beginning + 'kind = "detection"\nlabels.source = "SEG"' + end)


def test_pretraining_has_one_grid() -> None:
    assert planned(start={"source": "pretraining"}).low is None
    for resolution in ("low", "full"):
        recipe("segmentation", start={"source": "pretraining"}, network={"resolution": resolution})
    with pytest.raises(ValueError, match="a cascade has two grids"):
        recipe("segmentation", start={"source": "pretraining"}, network={"resolution": "cascade"})
