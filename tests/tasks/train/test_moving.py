"""The fast way through a volume gives what torch's own gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tasks.train.moving import Motion, move


def blobs(size: tuple[int, ...], channels: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    pool = functional.avg_pool3d if len(size) == 3 else functional.avg_pool2d
    larger = [n + 2 for n in size]
    image = pool(torch.randn(1, channels, *larger, generator=generator), 3, 1)[0]
    return image, (image[0] > 0).to(torch.uint8) + (image[0] > 0.3).to(torch.uint8)


def turned(d: int) -> Tensor:
    matrix = torch.eye(d)
    for first in range(d - 1):
        one, angle = torch.eye(d), 0.3 + 0.1 * first
        one[first, first] = one[first + 1, first + 1] = math.cos(angle)
        one[first, first + 1], one[first + 1, first] = -math.sin(angle), math.sin(angle)
        matrix = matrix @ one
    return matrix


def plain(motion: Motion, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """By `affine_grid` and `grid_sample`."""
    d, half = image.ndim - 1, torch.tensor(image.shape[1:]) / 2
    matrix = motion.matrix * half / half[:, None]
    theta = torch.cat((matrix.flip(0, 1), (motion.offset / half).flip(0)[:, None]), 1)[None]
    grid = functional.affine_grid(theta, [1, 1, *image.shape[1:]], align_corners=False)
    if motion.bend is not None:
        mode = "trilinear" if d == 3 else "bicubic"
        bent = functional.interpolate(motion.bend[None], image.shape[1:], mode=mode, align_corners=True)[0]
        grid = grid + (bent / half.view(-1, *[1] * d)).flip(0).movedim(0, -1)
    seen = functional.grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]
    labels = functional.grid_sample(
        mask[None, None].float(), grid, mode="nearest", padding_mode="border", align_corners=False
    )
    return seen, labels[0, 0].to(mask.dtype)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(20, 24, 28), (2, 9, 17), (70, 90, 80), (24, 28), (1, 24, 28), (5, 1, 6)])
@pytest.mark.parametrize("bent", [False, True])
def test_the_same_as_by_a_grid(size: tuple[int, ...], channels: int, *, bent: bool) -> None:
    d = len(size)
    image, mask = blobs(size, channels)
    bend = torch.randn(d, *[5] * d, generator=torch.Generator().manual_seed(1)) if bent else None
    motion = Motion(1.1 * turned(d), torch.arange(1.0, 1 + d) / 3, bend)
    out, labels = torch.empty_like(image), torch.empty_like(mask)
    move(motion, image, mask, out, labels)
    expected, expected_labels = plain(motion, image, mask)
    assert float((out - expected).abs().max()) < 0.01
    assert float((out - expected).abs().mean()) < 1e-4
    assert float((labels != expected_labels).float().mean()) < 2e-3


def test_standing_still_changes_nothing() -> None:
    image, mask = blobs((12, 14, 16), 2)
    out, labels = torch.empty_like(image), torch.empty_like(mask)
    move(Motion(torch.eye(3), torch.zeros(3)), image, mask, out, labels)
    assert torch.allclose(out, image, atol=1e-3)
    assert torch.equal(labels, mask)


def test_maps_of_many_numbers_keep_them() -> None:
    image, _ = blobs((12, 14, 16))
    many = torch.arange(12 * 14 * 16, dtype=torch.int32).view(12, 14, 16) * 30
    labels = torch.empty_like(many)
    shifted = Motion(torch.eye(3), torch.tensor([1.0, 0.0, -2.0]))
    move(shifted, image, many, torch.empty_like(image), labels)
    assert torch.equal(labels[:-1, :, 2:], many[1:, :, :-2])


def test_views_that_do_not_lie_in_one_piece_are_read_right() -> None:
    image, mask = blobs((12, 14, 16), 2)
    motion = Motion(turned(3), torch.zeros(3))
    results = []
    for one, its in ((image, mask), (image.movedim(1, 2).contiguous().movedim(2, 1), mask.mT.contiguous().mT)):
        out, labels = torch.empty_like(image), torch.empty_like(mask)
        move(motion, one, its, out, labels)
        results.append((out, labels))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
