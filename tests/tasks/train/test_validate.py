from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from tasks.train.choosing import MaskTrial
from tasks.train.patches import Cases
from tasks.train.validate import (
    ImageValidation,
    MaskValidation,
    auc,
    choose_threshold,
    class_means,
    dice,
    mean_auc,
)
from tests.tasks.train.samples import MemoryCase, MemoryStore, balls, pictures

CPU = torch.device("cpu")


def never() -> bool:
    return False


class Bright(nn.Module):
    """Calls class 1 above 0.5 and class 2 above 1.5."""

    def forward(self, x: Tensor) -> Tensor:
        return -20 * (x - torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1, 1)) ** 2


def spotted(mask: np.ndarray, image: np.ndarray) -> MemoryStore:
    return MemoryStore({"a": MemoryCase(image[None].astype(np.float16), mask.astype(np.uint8))})


def validation(mask: np.ndarray, image: np.ndarray) -> MaskValidation:
    return MaskValidation(Cases(spotted(mask, image), ["a"]), balls().plan, CPU)


@pytest.fixture
def blocks() -> np.ndarray:
    mask = np.zeros((12, 20, 16))
    mask[2:8, 2:8, 2:8] = 1
    mask[9:12, 12:18, 10:15] = 2
    return mask


class TestMasks:
    def test_dice_counts_and_leaves_out_what_is_nowhere(self) -> None:
        truth, found = np.array([[[1, 1, 0, 0]]], np.uint8), np.array([[[1, 0, 0, 3]]], np.uint8)
        assert dice(found, truth, 3)[[0, 2]] == pytest.approx([2 / 3, 0])
        assert np.isnan(dice(found, truth, 3)[1])

    def test_means_are_over_the_cases_that_have_the_class(self) -> None:
        means = class_means([np.array([0.5, np.nan, np.nan]), np.array([1.0, 0.2, np.nan])])
        assert means[:2] == pytest.approx([0.75, 0.2])
        assert np.isnan(means[2])

    def test_whole_cases_are_judged(self, blocks: np.ndarray) -> None:
        assert validation(blocks, blocks)(Bright(), "fp32", never) == 1.0
        worse = np.where(blocks == 2, 0, blocks)
        assert validation(blocks, worse)(Bright(), "fp32", never) == pytest.approx(0.5)

    def test_it_can_be_cancelled(self, blocks: np.ndarray) -> None:
        with pytest.raises(InterruptedError):
            validation(blocks, blocks)(Bright(), "fp32", lambda: True)

    def test_only_classes_that_gain_keep_their_largest_component_alone(self, blocks: np.ndarray) -> None:
        # Class 1 has a false island; class 2 truly has two parts.
        truth = blocks.copy()
        truth[0:2, 12:18, 0:3] = 2
        seen = truth.copy()
        seen[10:12, 0:3, 0:3] = 1
        trial = MaskTrial(balls().plan, components=True, voxels=False)
        for probabilities, mask in validation(truth, seen).predicted(Bright(), "fp32", never):
            trial.take(probabilities, mask)
        assert trial.keep_largest == ("ball",)


class TestScores:
    @given(
        st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40).filter(
            lambda pairs: len({p for _, p in pairs}) == 2
        )
    )
    def test_auc_agrees_with_scikit_learn(self, pairs: list[tuple[int, bool]]) -> None:
        scores, positive = np.array([s for s, _ in pairs]), np.array([p for _, p in pairs])
        assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores))

    def test_several_classes_are_judged_one_against_the_rest(self) -> None:
        chances = np.eye(3)[[0, 1, 2, 2]] * 0.6 + 0.1
        assert mean_auc(chances, np.array([0, 1, 2, 2])) == 1.0

    def test_one_class_alone_is_judged_by_accuracy(self) -> None:
        assert mean_auc(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0])) == 0.5

    def test_the_threshold_separates_best(self) -> None:
        scores = np.array([0.1, 0.2, 0.3, 0.35, 0.8, 0.9])
        positive = np.array([False, False, False, True, True, True])
        assert 0.3 < choose_threshold(scores, positive) < 0.35
        assert choose_threshold(scores, np.ones(6, bool)) == 0.5

    def test_images_keep_their_order(self) -> None:
        world = pictures(train=0, validation=150)
        rows = world.dataset.split("validation")

        class Mean(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return torch.stack((torch.zeros(len(x)), x.amax((1, 2, 3)) - 2.0), 1)

        judged = ImageValidation(
            Cases(world.store, [r.volume for r in rows]), tuple(r.target for r in rows), world.plan, CPU
        )
        assert judged.probabilities(Mean(), "fp32", never).shape == (150, 2)
        assert judged(Mean(), "fp32", never) > 0.95

    def test_what_is_chosen_is_chosen_as_the_model_will_be_applied(self, blocks: np.ndarray) -> None:
        """Mirrored copies count for what is chosen afterwards, and cost no time while training goes on."""

        class Left(nn.Module):
            """Sees class 1 in the left half, of whatever it is shown."""

            asked = 0

            def forward(self, x: Tensor) -> Tensor:
                self.asked += 1
                left = torch.arange(x.shape[-1]).float().expand_as(x[:, 0]) < x.shape[-1] / 2

                shown = left.float()
                return torch.stack((torch.zeros_like(shown), 4 * shown, torch.full_like(shown, -9.0)), 1)

        plan = balls().plan
        plan = plan.model_copy(update={"infer": plan.infer.model_copy(update={"mirror_axes": ("x",)})})
        judge = MaskValidation(Cases(spotted(blocks, blocks), ["a"]), plan, CPU)
        network = Left()
        (said, _), (plain, _) = (next(judge.predicted(network, "fp32", never, mirrored=m)) for m in (True, False))
        assert np.allclose(said, said[..., ::-1], atol=1e-5)
        assert not np.allclose(plain, plain[..., ::-1], atol=1e-2)
        network.asked = 0
        judge(network, "fp32", never)
        once = network.asked
        list(judge.predicted(network, "fp32", never))
        assert network.asked == 3 * once
