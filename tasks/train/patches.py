"""Batches straight from prepared cases. What a batch holds depends on (seed, step, batch size) alone.

So the loader's position, on resuming, is the step's number.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.plan import IntTriple

_SMALL = 256 * 1024  # bytes: images up to this size are kept in memory
_OPEN = 4096  # cases kept open
_CHANCES = 4  # of a patch, at most: its case, and three for its corner


Targets = tuple[int, ...] | tuple[tuple[int, ...], ...]
"""Of whole images: class indices, or 0 and 1 for each class."""


class Case(Protocol):
    """A prepared case, as the prepared store opens it."""

    @property
    def image(self) -> NDArray[Any]:
        """(c, z, y, x) float16 or float32."""
        ...

    @property
    def mask(self) -> NDArray[np.uint8] | None:
        """(z, y, x): 0 background, class index + 1."""
        ...

    @property
    def locations(self) -> Mapping[int, NDArray[Any]]:
        """Class value → (n, 3) voxels (z, y, x) of it."""
        ...


class Opener(Protocol):
    """What of the prepared store training needs."""

    def open(self, key: str) -> Case:
        """The case of `key`."""
        ...


@dataclass(frozen=True, slots=True)
class _Copied:
    image: NDArray[Any]
    mask: NDArray[np.uint8] | None
    locations: Mapping[int, NDArray[Any]]


class Cases:
    """Prepared cases by position; the recently used stay open, small ones in memory.

    `shares` are how often each is drawn, beside the others; by default all are drawn equally often.
    """

    def __init__(self, store: Opener, keys: Sequence[str], shares: Sequence[float] | None = None) -> None:
        self._store, self._keys = store, tuple(keys)
        self._shares = np.asarray(shares, dtype=np.float64) if shares and any(shares) else None
        self._open: OrderedDict[int, Case] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Case:
        if len(self._keys) <= _OPEN and (known := self._open.get(index)) is not None:
            return known  # none is ever closed, so that their order does not matter
        with self._lock:
            if index in self._open:
                self._open.move_to_end(index)
                return self._open[index]
        case = self._store.open(self._keys[index])
        if case.mask is None and case.image.nbytes <= _SMALL:
            case = _Copied(np.array(case.image), None, {})
        with self._lock:
            self._open[index] = case
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        return case

    @property
    def shares(self) -> NDArray[np.float64] | None:
        """How often each is drawn, beside the others; None where all are drawn equally often."""
        return self._shares

    def draw(self, rng: np.random.Generator, among: NDArray[np.int64] | None = None) -> int:
        """The position of a case by chance, of `among` where that is given."""
        if self._shares is None or (among is not None and not self._shares[among].any()):
            return int(rng.integers(len(self)) if among is None else rng.choice(among))
        among = np.arange(len(self)) if among is None else among
        shares = self._shares[among]
        return int(rng.choice(among, p=shares / shares.sum()))


@dataclass(frozen=True, slots=True)
class Batch:
    """`images` (b, c, z, y, x) float16 or float32; sets of n series (b, n, c, z, y, x), NaN where there is none.

    `targets` are (b, z, y, x) uint8 masks, (b,) int64 classes, or (b, k) float32 shares of the classes. `clinical` is
    (b, v) float32.
    """

    images: Tensor
    targets: Tensor
    clinical: Tensor | None = None

    def pinned(self) -> Batch:
        """In page-locked memory, from where a GPU fetches it while it computes."""
        clinical = None if self.clinical is None else self.clinical.pin_memory()
        return Batch(self.images.pin_memory(), self.targets.pin_memory(), clinical)


def is_masks(targets: Tensor, images: Tensor) -> bool:
    """Whether targets are maps, not classes: as many axes as the images (b, c, …), but for the channels."""
    return targets.ndim == images.ndim - 1


class Sampler(Protocol):
    """Draws the batch of a step."""

    def batch(self, step: int, size: int) -> Batch:
        """The batch of `step`."""
        ...


@dataclass(frozen=True)
class PatchSampler:
    """Patches of random cases; the last `oversample` of each batch hold foreground, each class equally often."""

    cases: Cases
    patch: IntTriple
    oversample: float
    seed: int

    def batch(self, step: int, size: int) -> Batch:
        """The batch of `step`."""
        chance = _Chance(np.random.default_rng((self.seed, step)), _CHANCES * size)
        forced_from = round(size * (1 - self.oversample))
        drawn = [self._draw(chance, index >= forced_from) for index in range(size)]
        kind = np.result_type(*{case.image.dtype for case, _, _ in drawn})
        # Copied once, from the file's pages to where the batch lies.
        images = np.empty((size, drawn[0][0].image.shape[0], *self.patch), kind)
        masks = np.empty((size, *self.patch), np.uint8)
        for image, place, (case, mask, corner) in zip(images, masks, drawn, strict=True):
            copy_cut(case.image, corner, image)
            copy_cut(mask, corner, place)
        return Batch(torch.from_numpy(images), torch.from_numpy(masks))

    def _draw(self, chance: _Chance, forced: bool) -> tuple[Case, NDArray[np.uint8], list[int]]:
        cases = self.cases
        case = cases[chance.below(len(cases)) if cases.shares is None else cases.draw(chance.rng)]
        mask = case.mask
        if mask is None:
            raise ValueError("a case without a mask cannot train a segmentation")
        return case, mask, self._corner(chance, case, mask.shape, forced)

    def _corner(self, chance: _Chance, case: Case, shape: Sequence[int], forced: bool) -> list[int]:
        """First voxel; negative where the case is smaller than the patch, which then lies in the middle."""
        # Plain numbers: on three of them numpy's functions take longer than copying the voxels.
        rooms = [n - size for n, size in zip(shape, self.patch, strict=True)]
        voxels = self._voxels(chance, case) if forced else None
        if voxels is None:
            return [chance.below(room + 1) if room > 0 else -(-room // 2) for room in rooms]
        chosen = voxels[chance.below(len(voxels))].tolist()
        wanted = [voxel - size // 2 for voxel, size in zip(chosen, self.patch, strict=True)]
        return [min(max(i, 0), room) if room > 0 else -(-room // 2) for i, room in zip(wanted, rooms, strict=True)]

    def _voxels(self, chance: _Chance, case: Case) -> NDArray[Any] | None:
        """Those of a class that occurs; None where none does."""
        present = [value for value, voxels in sorted(case.locations.items()) if value > 0 and len(voxels)]
        return case.locations[present[chance.below(len(present))]] if present else None


class _Chance:
    """`draws` numbers drawn at once: numpy takes as long for one as for a hundred."""

    __slots__ = ("_drawn", "rng")

    def __init__(self, rng: np.random.Generator, draws: int) -> None:
        self.rng = rng
        self._drawn = iter(rng.random(draws).tolist())

    def below(self, number: int) -> int:
        """One of 0 … `number` - 1, each as likely."""
        return int(next(self._drawn) * number)


@dataclass(frozen=True)
class ImageSampler:
    """Whole images; with `balanced`, the classes equally often.

    `targets` are class indices; or, of images that may show several classes, 0 and 1 for each. What shows none is then
    a class of its own to the balance. `clinical` (cases, v) goes along.
    """

    cases: Cases
    targets: Targets
    balanced: bool
    seed: int
    clinical: NDArray[np.float32] | None = None
    _by_class: tuple[NDArray[np.int64], ...] = field(init=False)

    def __post_init__(self) -> None:
        targets = np.asarray(self.targets)
        several = targets.ndim == 2
        shown = [*(targets.T > 0), ~targets.any(1)] if several else [targets == c for c in np.unique(targets)]
        groups = tuple(np.flatnonzero(there) for there in shown if there.any())
        object.__setattr__(self, "_by_class", groups if self.balanced else (np.arange(len(targets)),))

    def batch(self, step: int, size: int) -> Batch:
        """The batch of `step`."""
        rng = np.random.default_rng((self.seed, step))
        # Turns instead of draws: a small batch, too, holds the classes in equal parts.
        turns = (rng.integers(len(self._by_class)) + np.arange(size)) % len(self._by_class)
        chosen = [self.cases.draw(rng, self._by_class[turn]) for turn in turns]
        images = stacked([np.asarray(self.cases[index].image) for index in chosen])
        targets = torch.tensor([self.targets[i] for i in chosen])
        clinical = None if self.clinical is None else torch.from_numpy(self.clinical[chosen])
        return Batch(torch.from_numpy(images), targets.float() if targets.ndim == 2 else targets, clinical)


def stacked(images: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Along a new first axis. Sets of different length are filled up with NaN: series that are not there."""
    longest = max(len(image) for image in images)
    if images[0].ndim == 4 or all(len(image) == longest for image in images):
        return np.stack(images)
    whole = np.full((len(images), longest, *images[0].shape[1:]), np.nan, np.result_type(*images))
    for place, image in zip(whole, images, strict=True):
        place[: len(image)] = image
    return whole


def cut(array: NDArray[Any], corner: Sequence[int] | NDArray[np.int64], size: Sequence[int]) -> NDArray[Any]:
    """`array[..., corner : corner + size]`, zeros where that lies outside."""
    patch = np.empty((*array.shape[:-3], *size), dtype=array.dtype)
    copy_cut(array, corner, patch)
    return patch


def copy_cut(array: NDArray[Any], corner: Sequence[int] | NDArray[np.int64], patch: NDArray[Any]) -> None:
    """What `cut` returns, into `patch` (…, z, y, x)."""
    z, y, x = corner
    (depth, height, width), (d, h, w) = array.shape[-3:], patch.shape[-3:]
    if 0 <= z <= depth - d and 0 <= y <= height - h and 0 <= x <= width - w:
        patch[...] = array[..., z : z + d, y : y + h, x : x + w]
        return
    patch[...] = 0
    low = [max(first, 0) for first in corner]
    high = [min(i + n, there) for i, n, there in zip(corner, (d, h, w), (depth, height, width), strict=True)]
    if any(end <= start for start, end in zip(low, high, strict=True)):
        return
    (a, b, c), (k, m, n) = low, high
    patch[..., a - z : k - z, b - y : m - y, c - x : n - x] = array[..., a:k, b:m, c:n]


class Prefetcher:
    """Draws the coming batches in a thread, at most `ahead` of them."""

    def __init__(self, sampler: Sampler, first_step: int, size: int, *, pin: bool = False, ahead: int = 2) -> None:
        self._sampler, self._step, self._size, self._pin = sampler, first_step, size, pin
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(ahead)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            with contextlib.suppress(queue.Empty):
                self._ready.get_nowait()
            self._thread.join(0.02)

    def next(self) -> Batch:
        """The next step's batch. Raises what drawing it raised."""
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                batch = self._sampler.batch(self._step, self._size)
                item: Batch | BaseException = batch.pinned() if self._pin else batch
            except BaseException as error:  # noqa: BLE001 - handed to the training thread, which raises it
                item = error
            self._put(item)
            if isinstance(item, BaseException):
                return
            self._step += 1

    def _put(self, item: Batch | BaseException) -> None:
        while not self._stopped.is_set():
            try:
                return self._ready.put(item, timeout=0.2)
            except queue.Full:
                continue
        return None
