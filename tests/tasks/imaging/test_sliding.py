from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tasks.imaging.sliding import PORTION, Whole, class_probabilities, sliding_bands, sliding_window

TILE = (4, 6, 8)

pytestmark = pytest.mark.usefixtures("one_thread")


class Voxelwise(nn.Module):
    """Two classes whose logits depend on the voxel alone; remembers the tiles' shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(tuple(x.shape))
        return torch.cat((torch.zeros_like(x[:, :1]), x[:, :1]), 1)


class Edgy(nn.Module):
    """Wrong at the tiles' borders, as real networks are."""

    def forward(self, x: Tensor) -> Tensor:
        wrong = torch.zeros_like(x)
        for axis in (2, 3, 4):
            wrong.select(axis, 0).fill_(1)
            wrong.select(axis, -1).fill_(1)
        return torch.cat((torch.zeros_like(x), torch.where(wrong > 0, -x, x)), 1)


def image(shape: tuple[int, ...], channels: int = 1) -> Tensor:
    return torch.randn(channels, *shape, generator=torch.Generator().manual_seed(0))


def expected(x: Tensor) -> Tensor:
    return torch.stack((torch.zeros_like(x[0]), x[0])).softmax(0)


@settings(max_examples=25, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 19)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.9]),
    batch=st.integers(0, 5),
)
def test_tiles_blend_to_what_the_whole_would_give(shape: tuple[int, int, int], overlap: float, batch: int) -> None:
    x = image(shape)
    found = sliding_window(Voxelwise(), x, TILE, overlap, precision="fp32", batch=batch)
    assert found.shape == (2, *shape)
    assert torch.allclose(found, expected(x), atol=1e-5)


def test_slices_go_through_a_flat_network_in_batches() -> None:
    x, network = image((5, 13, 9)), Voxelwise()
    found = sliding_window(network, x, (1, 8, 8), 0.5, precision="fp32", batch=4)
    assert torch.allclose(found, expected(x), atol=1e-5)
    assert all(len(s) == 4 and s[0] <= 4 and s[2:] == (8, 8) for s in network.seen)


def test_the_middle_of_a_tile_counts_most() -> None:
    x = torch.full((1, 16, 16, 16), 4.0)
    found = sliding_window(Edgy(), x, (8, 8, 8), 0.5, precision="fp32")
    inner = found[1, 2:-2, 2:-2, 2:-2]
    assert float(inner.min()) > 0.5


def test_all_channels_reach_the_network() -> None:
    network = Voxelwise()
    sliding_window(network, image((4, 6, 8), channels=3), TILE, 0.5)
    assert network.seen[0][1] == 3


def test_bfloat16_and_float32_agree() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(4, 2, 3, padding=1)).eval()
    x = image((9, 12, 11))
    exact = sliding_window(network, x, TILE, 0.5, precision="fp32")
    quick = sliding_window(network, x, TILE, 0.5, precision="bf16")
    assert quick.dtype == torch.float32
    assert float((exact - quick).abs().max()) < 0.02
    assert torch.allclose(quick.sum(0), torch.ones(9, 12, 11), atol=1e-5)


@pytest.mark.parametrize(("axes", "count"), [((), 1), (("x",), 2), (("z", "y", "x"), 8)])
def test_mirrored_copies_are_averaged_in_place(axes: tuple[str, ...], count: int) -> None:
    network, x = Voxelwise(), image((4, 6, 8))
    found = class_probabilities(network, x[None], axes, "fp32")[0]
    assert len(network.seen) == count
    assert torch.allclose(found, expected(x), atol=1e-6)


def test_a_classifier_is_mirrored_too() -> None:
    class Left(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack((torch.zeros(len(x)), 10 * x[..., 0].mean((1, 2))), 1)

    x = torch.zeros(1, 1, 4, 4)
    x[..., 0] = 1
    assert class_probabilities(Left(), x, ("x",), "fp32")[0, 1] == pytest.approx(0.75, abs=1e-3)


def test_it_stops_between_tiles_when_cancelled() -> None:
    network = Voxelwise()
    answers = iter([False, False, True])
    with pytest.raises(InterruptedError):
        sliding_window(network, image((4, 6, 60)), TILE, 0.5, batch=1, cancelled=lambda: next(answers))
    assert len(network.seen) == 2


@pytest.mark.parametrize("tile", [TILE, (1, 8, 8), (24, 16, 16)])
def test_bands_come_in_order_without_gaps(tile: tuple[int, int, int]) -> None:
    x, after = image((70, 13, 9)), 0
    for first, band in sliding_bands(Voxelwise(), Whole(x), tile, 0.5, precision="fp32", batch=3):
        assert first == after
        assert 0 < band.shape[1] <= PORTION
        after += band.shape[1]
        assert torch.allclose(band, expected(x)[:, first:after], atol=1e-5)
    assert after == 70


def test_slices_are_asked_for_in_rising_order_and_a_tile_at_a_time() -> None:
    class Endless:
        shape = (1, 300, 13, 9)
        asked: tuple[tuple[int, int], ...] = ()

        def planes(self, start: int, stop: int) -> Tensor:
            self.asked += ((start, stop),)
            return torch.full((1, stop - start, 13, 9), 2.0)

    endless = Endless()
    for _, band in sliding_bands(Voxelwise(), endless, TILE, 0.5, precision="fp32"):
        assert float((band[1] - torch.tensor(2.0).sigmoid()).abs().max()) < 1e-5
    starts, stops = zip(*endless.asked, strict=True)
    assert list(starts) == sorted(set(starts))
    assert list(stops) == sorted(stops)
    assert max(stop - start for start, stop in endless.asked) == TILE[0]


def test_agrees_with_monai() -> None:
    from monai.inferers.utils import sliding_window_inference

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(4, 2, 3, padding=1)).eval()
    x = image((12, 18, 24))
    ours = sliding_window(network, x, (8, 12, 16), 0.5, precision="fp32")
    with torch.inference_mode():
        theirs = sliding_window_inference(
            x[None], (8, 12, 16), 2, lambda t: network(t).softmax(1), overlap=0.5, mode="gaussian", sigma_scale=0.125
        )
    # MONAI lifts the small weights where axes meet, so the two are not one.
    assert np.abs(ours.numpy() - theirs[0].numpy()).mean() < 5e-3
