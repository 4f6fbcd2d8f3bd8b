from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.train.patches import Batch, Cases, ImageSampler, PatchSampler, Prefetcher, cut
from tests.tasks.train.samples import MemoryCase, MemoryStore, ball, picture

STORE = MemoryStore({f"case{i}": ball(i) for i in range(4)})


def sampler(patch: tuple[int, int, int] = (8, 16, 16), oversample: float = 0.33, seed: int = 0) -> PatchSampler:
    return PatchSampler(Cases(STORE, list(STORE.cases)), patch, oversample, seed)


def same(first: Batch, second: Batch) -> bool:
    return torch.equal(first.images, second.images) and torch.equal(first.targets, second.targets)


class TestPatches:
    def test_a_batch_depends_on_seed_and_step_alone(self) -> None:
        drawn = sampler()
        for step in (5, 0, 9):
            drawn.batch(step, 2)
        assert same(drawn.batch(7, 2), sampler().batch(7, 2))
        assert not same(drawn.batch(7, 2), drawn.batch(8, 2))
        assert not same(drawn.batch(7, 2), sampler(seed=1).batch(7, 2))

    def test_a_patch_shows_image_and_mask_of_one_place(self) -> None:
        batch = sampler().batch(0, 8)
        assert batch.images.shape == (8, 1, 8, 16, 16)
        assert batch.targets.shape == (8, 8, 16, 16)
        brightness = [float(batch.images[:, 0][batch.targets == c].float().mean()) for c in (0, 1, 2)]
        assert brightness == sorted(brightness)
        assert brightness[2] > 2

    def test_the_forced_share_always_holds_foreground(self) -> None:
        tiny = sampler(patch=(2, 2, 2), oversample=0.5)
        for step in range(20):
            assert (tiny.batch(step, 4).targets[2:].flatten(1) > 0).any(1).all()

    def test_a_small_case_lies_in_the_middle_of_zeros(self) -> None:
        batch = sampler(patch=(16, 20, 24)).batch(0, 1)
        assert float(batch.images[0, 0, :2].abs().max()) == 0
        assert float(batch.images[0, 0, -2:].abs().max()) == 0
        assert float(batch.images[0, 0, 2:14, :, 4:20].abs().min(-1).values.max()) > 0

    def test_a_case_without_the_class_is_drawn_all_the_same(self) -> None:
        empty = MemoryStore({"a": MemoryCase(np.ones((1, 4, 8, 8), np.float16), np.zeros((4, 8, 8), np.uint8))})
        batch = PatchSampler(Cases(empty, ["a"]), (4, 4, 4), 1.0, 0).batch(0, 2)
        assert batch.targets.sum() == 0

    def test_of_an_image_only_what_is_cut_is_asked_for(self) -> None:
        whole = ball(1)

        class Joined:
            """A second stage's image: a shape, and a way to cut."""

            shape, dtype = whole.image.shape, whole.image.dtype

            def __getitem__(self, places: tuple[Any, ...]) -> NDArray[Any]:
                return whole.image[places]

        joined = MemoryStore({"a": replace(whole, image=cast(Any, Joined()))})
        plain = MemoryStore({"a": whole})
        for patch in ((8, 16, 16), (16, 16, 16)):
            one, other = (PatchSampler(Cases(s, ["a"]), patch, 0.5, 0).batch(0, 4) for s in (joined, plain))
            assert same(one, other)

    def test_cases_of_half_and_of_full_precision_go_together(self) -> None:
        half = ball(1)
        mixed = MemoryStore({"a": half, "b": replace(half, image=half.image.astype(np.float32))})
        kinds = {PatchSampler(Cases(mixed, ["a", "b"]), (8, 8, 8), 0, 0).batch(s, 2).images.dtype for s in range(20)}
        assert kinds == {torch.float16, torch.float32}

    @given(
        corner=st.tuples(*[st.integers(-6, 6)] * 3),
        size=st.tuples(*[st.integers(1, 8)] * 3),
    )
    def test_cutting_equals_cutting_from_a_padded_array(
        self, corner: tuple[int, int, int], size: tuple[int, int, int]
    ) -> None:
        array = np.arange(1, 4 * 5 * 6 + 1).reshape(1, 4, 5, 6)
        padded = np.pad(array, ((0, 0), (14, 14), (14, 14), (14, 14)))
        z, y, x = (slice(c + 14, c + 14 + n) for c, n in zip(corner, size, strict=True))
        assert np.array_equal(cut(array, np.array(corner), size), padded[:, z, y, x])


class TestImages:
    TARGETS = (0,) * 9 + (1,)

    def drawn(self, *, balanced: bool) -> ImageSampler:
        store = MemoryStore({str(i): picture(i, t) for i, t in enumerate(self.TARGETS)})
        return ImageSampler(Cases(store, list(store.cases)), self.TARGETS, balanced, seed=2)

    def test_balanced_batches_hold_the_classes_in_equal_parts(self) -> None:
        for step in range(5):
            assert int(self.drawn(balanced=True).batch(step, 6).targets.sum()) == 3

    def test_otherwise_they_come_as_often_as_they_are(self) -> None:
        share = torch.cat([self.drawn(balanced=False).batch(s, 20).targets for s in range(20)]).float().mean()
        assert 0.03 < float(share) < 0.2

    def test_a_batch_depends_on_seed_and_step_alone(self) -> None:
        assert same(self.drawn(balanced=True).batch(3, 4), self.drawn(balanced=True).batch(3, 4))


class TestPrefetcher:
    def test_brings_the_steps_in_order_from_the_first_asked_for(self) -> None:
        drawn = sampler()
        with Prefetcher(drawn, 5, 2) as batches:
            for step in (5, 6, 7):
                assert same(batches.next(), drawn.batch(step, 2))

    def test_raises_what_drawing_raised(self) -> None:
        class Broken:
            def batch(self, step: int, size: int) -> Batch:
                raise OSError("the disk is gone")

        with Prefetcher(Broken(), 0, 1) as batches, pytest.raises(OSError, match="the disk is gone"):
            batches.next()

    def test_leaves_no_thread_behind(self) -> None:
        with Prefetcher(sampler(), 0, 1) as batches:
            batches.next()
        assert not [t for t in threading.enumerate() if t.name == "prefetch"]


def test_small_images_are_opened_once() -> None:
    opened: list[str] = []

    class Counting:
        def open(self, key: str) -> MemoryCase:
            opened.append(key)
            return picture(0, 0)

    cases = Cases(Counting(), ["a", "b"])
    for _ in range(3):
        assert cases[1].image.shape == (1, 1, 16, 16)
    assert opened == ["b"]


class TestShares:
    """A fine-tuned model sees more of what is new."""

    def test_cases_come_as_often_as_their_shares_say(self) -> None:
        names = [f"ball{i}" for i in range(4)]
        cases = Cases(MemoryStore({n: ball(i) for i, n in enumerate(names)}), names, shares=(0.25, 0.25, 0.5, 0.0))
        drawn = np.bincount([cases.draw(np.random.default_rng((1, i))) for i in range(2000)], minlength=4) / 2000
        np.testing.assert_allclose(drawn, (0.25, 0.25, 0.5, 0), atol=0.05)

    def test_a_class_that_shows_nothing_with_a_share_is_drawn_all_the_same(self) -> None:
        names = [f"picture{i}" for i in range(4)]
        store = MemoryStore({n: picture(i, i % 2) for i, n in enumerate(names)})
        cases = Cases(store, names, shares=(0.0, 0.5, 0.0, 0.5))
        batch = ImageSampler(cases, (0, 1, 0, 1), balanced=True, seed=1).batch(0, 8)
        assert batch.targets.tolist().count(0) == 4
