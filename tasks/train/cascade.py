"""nnU-Net's cascade (Isensee et al. 2021): what a low-resolution network found is told to a full-resolution one.

The second network must not learn to trust what is better in training than it will be. With folds it is told what
networks found that had not seen the case. Always what it is told is made worse now and then: grown, shrunk, or without
one of its components. What is drawn depends on (seed, step) alone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from models.dataset import DatasetRow
from models.geometry import Geometry
from models.plan import Plan
from models.recipe import Augment
from tasks.imaging.sliding import Whole, sliding_bands
from tasks.imaging.told import told_map
from tasks.progress import stage
from tasks.stores.places import write_synced
from tasks.train.learner import Learner
from tasks.train.patches import Batch, Case, Opener, Sampler

LOW = "low"
"""The first stage's networks' name; those of folds have the fold's number behind it."""
FULL = "full"
"""The second stage's name, where it is a single network."""

FARTHEST = 8
"""Voxels by which what was found grows or shrinks at most; and the next three, nnU-Net's."""
SMALL = 0.15
"""Share of the patch below which a component may be dropped."""
_STREAM = 11  # apart from what else is drawn from a seed and a step
_BASE = 256  # of two maps of bytes in one map of integers

Morphology = Callable[[NDArray[np.bool_], float], NDArray[np.bool_]]


class Placed(Protocol):
    """What lies beside a prepared case."""

    @property
    def geometry(self) -> Geometry:
        """The prepared grid."""
        ...


class PlacedCase(Case, Protocol):
    """A prepared case that knows where it lies."""

    @property
    def about(self) -> Placed:
        """Its grid."""
        ...


def named(fold: str) -> str:
    """The name of the first stage's network of a fold; of the only one for ""."""
    return f"{LOW}-{fold}" if fold else LOW


# -- what the second stage opens --------------------------------------------------------------------------------


@dataclass(frozen=True)
class ToldCase:
    """A prepared case whose image has what it is told as its last channel."""

    case: PlacedCase
    told: NDArray[np.uint8]

    @property
    def image(self) -> NDArray[Any]:
        """(c + 1, z, y, x); made where it is looked at."""
        return cast(NDArray[Any], _Joined(self.case.image, self.told))

    @property
    def mask(self) -> NDArray[np.uint8] | None:
        """The truth, (z, y, x)."""
        return self.case.mask

    @property
    def about(self) -> Placed:
        """Where it lies."""
        return self.case.about

    @property
    def locations(self) -> Mapping[int, NDArray[Any]]:
        """Class value → (n, 3) voxels of it."""
        return self.case.locations


class _Joined:
    """An image (c, z, y, x) and a map (z, y, x) as one array, of which only what is cut out takes memory."""

    def __init__(self, image: NDArray[Any], told: NDArray[np.uint8]) -> None:
        self._image, self._told, self.dtype = image, told, image.dtype
        self.shape = (len(image) + 1, *told.shape)

    def __getitem__(self, places: tuple[Any, slice, slice, slice]) -> NDArray[Any]:
        """`[..., z, y, x]`."""
        told = self._told[places[1:]].astype(self.dtype)
        return np.concatenate((self._image[places], told[None]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.concatenate((self._image, self._told[None]), dtype=dtype or self.dtype, casting="unsafe")


@dataclass(frozen=True)
class ToldStore:
    """Opens the second stage's cases; `folder` holds a map for each."""

    prepared: Opener
    folder: Path

    def open(self, key: str) -> ToldCase:
        """The case of `key`, and what it is told."""
        return ToldCase(cast(PlacedCase, self.prepared.open(key)), np.load(_map_file(self.folder, key), mmap_mode="r"))


# -- what the first stage finds ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Teller:
    """Asks the first stage's networks of `plan.low` about cases, and keeps what they found in `folder`."""

    plan: Plan
    prepared: Opener
    low_keys: Mapping[tuple[str, str], str]
    keys: Mapping[tuple[str, str], str]
    folder: Path

    def tell(self, answers: Sequence[tuple[Any, Sequence[DatasetRow]]], cancelled: Callable[[], bool]) -> ToldStore:
        """`answers` are networks that have learnt (`learning.Learnt`) and the cases that each is asked about.

        What is known is not asked again. Raises InterruptedError once `cancelled`.
        """
        asked = [(learnt, row) for learnt, rows in answers for row in rows if not self._file(row).is_file()]
        with stage("low resolution", len(asked), "cases") as progress:
            for learnt, row in asked:
                buffer = io.BytesIO()
                np.save(buffer, self._found(learnt, row, cancelled))
                write_synced(self._file(row), buffer.getvalue())
                progress.advance(1)
        return ToldStore(self.prepared, self.folder)

    def _file(self, row: DatasetRow) -> Path:
        return _map_file(self.folder, self.keys[row.volume, row.label])

    def _found(self, learnt: Any, row: DatasetRow, cancelled: Callable[[], bool]) -> NDArray[np.uint8]:
        low = self.plan.low
        assert low is not None  # noqa: S101 - there is nobody to ask otherwise
        case = row.volume, row.label
        coarse = cast(PlacedCase, self.prepared.open(self.low_keys[case]))
        fine = cast(PlacedCase, self.prepared.open(self.keys[case]))
        bands = sliding_bands(
            learnt.network,
            Whole(torch.from_numpy(np.asarray(coarse.image, dtype=np.float32))),
            low.infer.tile,
            low.infer.overlap,
            mirror_axes=low.infer.mirror_axes,
            activation=low.activation,
            precision=learnt.precision,
            device=next(learnt.network.parameters()).device,
            cancelled=cancelled,
        )
        arrays = ((first, probabilities.numpy()) for first, probabilities in bands)
        return told_map(arrays, coarse.about.geometry, fine.about.geometry, regions=low.regions)


def _map_file(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key}.npy"


# -- what it makes of it while it learns ------------------------------------------------------------------------


@dataclass(frozen=True)
class ToldSampler:
    """Batches of the second stage, in some of whose samples what is told has been made worse."""

    inner: Sampler
    augment: Augment
    classes: int
    regions: bool
    seed: int

    def batch(self, step: int, size: int) -> Batch:
        """The batch of `step`."""
        batch = self.inner.batch(step, size)
        rng = np.random.default_rng((self.seed, step, _STREAM))
        images = batch.images.numpy()
        for image in images:
            told = image[-1].astype(np.uint8)
            image[-1] = worsened(told, self.augment, self.classes, rng, regions=self.regions)
        return replace(batch, images=torch.from_numpy(images))


def worsened(
    told: NDArray[np.uint8], augment: Augment, classes: int, rng: np.random.Generator, *, regions: bool
) -> NDArray[np.uint8]:
    """A label map or region map (z, y, x) as a worse network might have found it; nnU-Net's two transforms."""
    if rng.random() < augment.cascade_morphology:
        for index in rng.permutation(classes):
            how, radius = _MORPHOLOGY[rng.integers(len(_MORPHOLOGY))], rng.uniform(1, FARTHEST)
            found = _of_class(told, index, regions)
            if found.any() and not found.all():
                told = _with_class(told, index, how(found, radius), regions)
    if rng.random() < augment.cascade_dropped:
        for index in range(classes):
            told = _with_class(told, index, _without_one(_of_class(told, index, regions), rng), regions)
    return told


def _of_class(told: NDArray[np.uint8], index: int, regions: bool) -> NDArray[np.bool_]:
    return (told >> np.uint8(index) & 1).astype(bool) if regions else told == index + 1


def _with_class(told: NDArray[np.uint8], index: int, found: NDArray[np.bool_], regions: bool) -> NDArray[np.uint8]:
    """What a class newly holds no other class holds any more, unless they may overlap."""
    if regions:
        bit = np.uint8(1 << index)
        return np.where(found, told | bit, told & ~bit)
    value = np.uint8(index + 1)
    return np.where(found, value, np.where(told == value, np.uint8(0), told))


def _grown(found: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    """By a ball; a distance costs the same whatever the radius."""
    return np.asarray(ndimage.distance_transform_edt(~found) <= radius) if found.any() else found


def _shrunk(found: NDArray[np.bool_], radius: float) -> NDArray[np.bool_]:
    return np.asarray(ndimage.distance_transform_edt(found) > radius) if not found.all() else found


_MORPHOLOGY: tuple[Morphology, ...] = (
    _grown,
    _shrunk,
    lambda found, radius: _grown(_shrunk(found, radius), radius),
    lambda found, radius: _shrunk(_grown(found, radius), radius),
)


def _without_one(found: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Without one of its small components, if it has any."""
    parts, count = ndimage.label(found)
    small = 1 + np.flatnonzero(np.bincount(parts.ravel(), minlength=count + 1)[1:] < SMALL * found.size)
    return found & (parts != rng.choice(small)) if len(small) else found


class ToldLearner(Learner):
    """Moves and mirrors what is told along with the image and the truth, and leaves its values alone."""

    def _augmented(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        seen, told = images[:, :-1], images[:, -1]
        # Both maps go the same way: as one.
        seen, packed = super()._augmented(seen, targets.int() + _BASE * told.int())
        told = torch.div(packed, _BASE, rounding_mode="floor")
        return torch.cat((seen, told.to(seen.dtype)[:, None]), dim=1), (packed % _BASE).to(targets.dtype)
