"""Two stages, the second told what the first found: learnt, taken up again, packed and applied."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from models.errors import TrainingError
from models.package import ModelPackage
from models.recipe import Augment
from tasks.imaging.predictor import Predictor
from tasks.imaging.sliding import Whole, sliding_bands
from tasks.imaging.told import told_map
from tasks.stores.packages import read_package
from tasks.train import cascade
from tasks.train.cascade import ToldLearner, ToldSampler, ToldStore, worsened
from tasks.train.folds import draw_folds
from tasks.train.loop import TERMINATED, TrainEvent
from tasks.train.patches import Cases, PatchSampler
from tests.tasks.train.cascades import LOW, grid, trained
from tests.tasks.train.cascades import cascade as two_stages
from tests.tasks.train.overlapping import crossing, regions_world
from tests.tasks.train.samples import NO_AUGMENT, ball

SHORT = {"epochs": 1, "validations": 1, "augment": NO_AUGMENT, "flip_axes": ()}


def told_balls() -> tuple[np.ndarray, np.ndarray]:
    mask = ball(3).mask
    assert mask is not None
    return mask, (mask > 0).astype(np.uint8) | (mask == 2).astype(np.uint8) << 1


def test_the_package_holds_both_stages_and_predicts_through_both(tmp_path: Path) -> None:
    learning = {"epochs": 6, "validations": 2, "ema": 0.9, "augment": NO_AUGMENT, "flip_axes": ()}
    package = trained(two_stages(**learning), tmp_path)
    described, weights = read_package(tmp_path / "package")
    assert described == package
    assert [(m.name, m.low) for m in package.members] == [("full", ("low",)), ("low", ())]
    assert package.training.low is not None
    assert package.training.steps == 60
    assert any(note.startswith("low resolution: ") for note in package.training.notes)

    predictor = Predictor(described, weights, "cpu")
    assert len(predictor.parts) == 1
    unseen = ball(99)
    assert unseen.mask is not None
    image, where = unseen.image[0].astype(np.float32), grid(unseen.mask.shape)
    found = predictor.segment(image, where)
    overlap = ((found.labels > 0) & (unseen.mask > 0)).sum()
    assert 2 * overlap / ((found.labels > 0).sum() + (unseen.mask > 0).sum()) > 0.5

    predictor.parts[0].low = None  # as if the first stage had found nothing
    assert (predictor.segment(image, where).labels != found.labels).any()


def test_what_is_told_in_training_is_what_is_told_when_it_is_applied(tmp_path: Path) -> None:
    world = two_stages(**SHORT)
    trained(world, tmp_path)
    predictor = Predictor(*read_package(tmp_path / "package"), "cpu")
    low = predictor.parts[0].low
    assert low is not None
    (file,) = (tmp_path / "checkpoints").rglob("ball0.npy")
    case, coarse = world.store.cases["ball0"], world.store.cases[LOW + "ball0"]
    assert case.mask is not None
    bands, layout = predictor.bands(low, case.image.astype(np.float32), grid(case.mask.shape))
    applied = told_map(bands, layout.target, grid(case.mask.shape), regions=False)
    assert (applied == np.load(file)).mean() > 0.99  # but for the rounding of what is stored
    assert coarse.mask is not None
    assert layout.target.shape == coarse.mask.shape


def test_two_trainings_are_the_same_and_one_that_was_killed_is_too(tmp_path: Path) -> None:
    world = two_stages(epochs=2, validations=2)
    whole = trained(world, tmp_path / "whole")
    assert trained(world, tmp_path / "again").weights_sha256 == whole.weights_sha256
    for moment in (0, 2):  # in the first stage, and in the second
        cancel, events = threading.Event(), list[TrainEvent]()

        def stop(event: TrainEvent, moment: int = moment, cancel: threading.Event = cancel, events=events) -> None:  # type: ignore[no-untyped-def]
            events.append(event)
            if len(events) > moment:
                cancel.set()

        with pytest.raises(SystemExit) as left:
            trained(world, tmp_path / str(moment), on_event=stop, cancel=cancel)
        assert left.value.code == TERMINATED
        resumed = trained(world, tmp_path / str(moment))
        assert resumed.weights_sha256 == whole.weights_sha256
        assert any("resumed" in note for note in resumed.training.notes)


def test_a_kill_between_the_stages_keeps_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = two_stages(**SHORT)
    cancel, asked = threading.Event(), []
    found = cascade.Teller._found

    def counted(self, learnt, row, cancelled):  # type: ignore[no-untyped-def]
        asked.append(row.volume)
        if len(asked) == 3:
            cancel.set()
        return found(self, learnt, row, cancelled)

    monkeypatch.setattr(cascade.Teller, "_found", counted)
    with pytest.raises(SystemExit) as left:
        trained(world, tmp_path, cancel=cancel)
    assert left.value.code == TERMINATED
    cancel.clear()
    trained(world, tmp_path)
    assert len(asked) == len(world.keys) + 1  # the third was asked about twice


def test_with_folds_a_case_is_told_by_networks_that_have_not_seen_it(tmp_path: Path) -> None:
    world = two_stages(train=5, validation=1, folds=2, **SHORT)
    package = trained(world, tmp_path)
    names = [(m.name, m.low) for m in package.members]
    assert names == [("0", ("low-0", "low-1")), ("1", ("low-0", "low-1")), ("low-0", ()), ("low-1", ())]
    assert [m.name for m in package.answering] == ["0", "1"]
    assert len(package.training.folds) == 2
    assert package.training.low is not None
    assert len(package.training.low.folds) == 2

    predictor = Predictor(package, read_package(tmp_path / "package")[1], "cpu")
    part = predictor.parts[0]
    assert part.low is not None
    drawn = draw_folds({row.patient for row in world.dataset.rows}, 2)
    networks = part.low.network.networks
    for row in world.dataset.rows:
        case, coarse = world.store.cases[row.volume], world.store.cases[LOW + row.volume]
        (file,) = (tmp_path / "checkpoints").rglob(f"{row.volume}.npy")
        image = Whole(torch.from_numpy(coarse.image.astype(np.float32)))
        infer = part.low.plan.infer
        bands = sliding_bands(networks[drawn[row.patient]], image, infer.tile, infer.overlap, precision="fp32")
        arrays = ((first, found.numpy()) for first, found in bands)
        said = told_map(arrays, coarse.about.geometry, case.about.geometry, regions=False)  # type: ignore[attr-defined]
        assert (said == np.load(file)).all()


def test_without_cases_at_low_resolution_it_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="one of its resolutions"):
        trained(two_stages(**SHORT), tmp_path, more_keys={})


def test_members_that_are_not_there_make_no_package(tmp_path: Path) -> None:
    package = trained(two_stages(**SHORT), tmp_path)
    broken = package.model_dump(mode="json")
    broken["members"][0]["low"] = ["nobody"]
    with pytest.raises(ValueError, match="told by members"):
        ModelPackage.model_validate(broken)
    old = package.model_dump(mode="json")
    for part in [*old["members"], old["training"]]:
        part.pop("low")
    ModelPackage.model_validate(old)


class TestWorsening:
    def test_the_same_step_draws_the_same_and_steps_differ(self) -> None:
        world = two_stages()
        mask, _ = told_balls()
        folder = Path("unused")

        class Told(ToldStore):
            def open(self, key: str):  # type: ignore[no-untyped-def]
                return cascade.ToldCase(world.store.open(key), mask)

        cases = Cases(Told(world.store, folder), ["ball0", "ball1"])
        sampler = ToldSampler(PatchSampler(cases, (8, 16, 16), 0.33, 3), Augment(cascade_morphology=1), 2, False, 3)
        first, again, other = sampler.batch(4, 2), sampler.batch(4, 2), sampler.batch(5, 2)
        assert first.images.shape == (2, 2, 8, 16, 16)
        assert torch.equal(first.images, again.images)
        assert not torch.equal(first.images[:, 1], other.images[:, 1])
        assert set(first.images[:, 1].unique().tolist()) <= {0.0, 1.0, 2.0}

    @pytest.mark.parametrize("regions", [False, True])
    def test_classes_grow_and_shrink_and_stay_classes(self, regions: bool) -> None:
        told = told_balls()[regions]
        always = Augment(cascade_morphology=1, cascade_dropped=0)
        sizes = []
        for seed in range(12):
            worse = worsened(told, always, 2, np.random.default_rng(seed), regions=regions)
            assert worse.dtype == np.uint8
            assert worse.max() <= (3 if regions else 2)
            sizes.append(int((worse > 0).sum()))
        whole = int((told > 0).sum())
        assert min(sizes) < whole < max(sizes)

    def test_a_small_component_is_dropped_and_a_large_one_stays(self) -> None:
        always = Augment(cascade_morphology=0, cascade_dropped=1)
        told = np.zeros((10, 10, 10), np.uint8)
        told[:2, :2, :2], told[6:8, 6:8, 6:8] = 1, 1
        worse = worsened(told, always, 1, np.random.default_rng(0), regions=False)
        assert ndimage.label(worse)[1] == 1
        told[:8] = 1
        assert (worsened(told, always, 1, np.random.default_rng(0), regions=False) == told).all()

    def test_nothing_stays_nothing(self) -> None:
        nothing = np.zeros((6, 6, 6), np.uint8)
        always = Augment(cascade_morphology=1, cascade_dropped=1)
        assert not worsened(nothing, always, 2, np.random.default_rng(1), regions=False).any()


def test_maps_move_with_the_image_and_keep_their_values() -> None:
    world = two_stages(augment=Augment(rotation=1, scaling=1, noise=1, brightness=1))
    learner = ToldLearner(world.plan, torch.device("cpu"))
    mask, _ = told_balls()
    maps = torch.from_numpy(mask[None]).repeat(2, 1, 1, 1)
    images = torch.cat((torch.zeros(2, 1, *mask.shape), maps[:, None].float()), dim=1)
    changed, targets = learner._augmented(images, maps)
    assert targets.dtype == torch.uint8
    assert torch.equal(changed[:, 1], targets.float())  # both were the same before
    assert not torch.equal(targets, maps)
    assert changed[:, 0].std() > 0  # the image has its noise, the map has none


def test_a_missing_channel_stays_empty_beside_what_is_told() -> None:
    world = two_stages(channel_dropout=0.9, augment=Augment(noise=1))
    network = world.plan.network.model_copy(update={"in_channels": 2})
    plan = world.plan.model_copy(update={"channels": ("PET", "CT"), "network": network})
    mask, _ = told_balls()
    maps = torch.from_numpy(mask[None]).repeat(4, 1, 1, 1)
    pet, ct = torch.ones(4, 1, *mask.shape), torch.ones(4, 1, *mask.shape)
    ct[0] = 0
    changed, _ = ToldLearner(plan, torch.device("cpu"))._augmented(torch.cat((pet, ct, maps[:, None]), 1), maps)
    assert changed.shape[1] == 3
    assert not changed[0, 1].any()
    assert all(changed[i, 0].any() and changed[i, 2].any() for i in range(4))


def test_regions_are_told_as_bits(tmp_path: Path) -> None:
    world = two_stages(world=regions_world(train=3, validation=1, epochs=1, validations=1))
    package = trained(world, tmp_path)
    assert package.plan.network.told_regions
    predictor = Predictor(package, read_package(tmp_path / "package")[1], "cpu")
    image, there = crossing(50)
    found = predictor.segment(image, grid(there.shape[1:]))
    assert found.labels.max() <= 3
