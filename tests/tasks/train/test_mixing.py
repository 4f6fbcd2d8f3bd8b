"""Blended images: what is blended, by how much, and that a step draws the same again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tasks.train.mixing import class_shares, draw_mixing

SIZE = (1, 24, 32)


def test_a_step_draws_the_same_again_and_another_one_does_not() -> None:
    first, again, other = (draw_mixing(6, SIZE, 0.4, 1.0, seed=3, step=step) for step in (7, 7, 8))
    assert first == again
    assert first != other


def test_nothing_is_mixed_unless_asked_for() -> None:
    assert draw_mixing(6, SIZE, 0, 0, seed=0, step=0) is None
    assert draw_mixing(1, SIZE, 1.0, 1.0, seed=0, step=0) is None


def test_mixup_blends_images_and_classes_alike() -> None:
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 3, 3)
    mixing = draw_mixing(4, (3, 3), 1.0, 0, seed=1, step=0)
    assert mixing is not None
    shares = mixing.rows(class_shares(torch.arange(4), 4))
    # Image i is i everywhere, so that the blended value tells who takes part by how much.
    assert torch.allclose(mixing.images(images)[:, 0, 0, 0], shares @ torch.arange(4.0))
    assert torch.allclose(shares.sum(1), torch.ones(4))


@pytest.mark.parametrize("size", [(20, 24), (10, 20, 24), (1, 20, 24)])
def test_cutmix_pastes_a_box_of_the_share_that_it_tells(size: tuple[int, ...]) -> None:
    images = torch.arange(4.0).view(4, 1, *[1] * len(size)).expand(4, 1, *size).contiguous()
    told = []
    for step in range(40):
        mixing = draw_mixing(4, size, 0, 1.0, seed=1, step=step)
        assert mixing is not None
        mixed = mixing.images(images)
        for i, partner in enumerate(mixing.partners):
            if partner != i:
                kept = (mixed[i] == i).float().mean()
                assert float(kept) == pytest.approx(mixing.share, abs=1e-6)
                assert set(mixed[i].unique().tolist()) <= {float(i), float(partner)}
        told.append(mixing.share)
    assert min(told) < 0.5 < max(told)
    assert torch.equal(images[:, 0].flatten(1)[:, 0], torch.arange(4.0)), "the batch itself is left alone"


def test_with_both_each_has_its_steps() -> None:
    drawn = [draw_mixing(4, SIZE, 1.0, 1.0, seed=0, step=step) for step in range(40)]
    assert 5 < sum(d is not None and d.box is not None for d in drawn) < 35


def test_shares_stay_shares() -> None:
    several = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    assert class_shares(several, 2) is several
    assert np.array_equal(class_shares(torch.tensor([1, 0]), 2).numpy(), [[0, 1], [1, 0]])
