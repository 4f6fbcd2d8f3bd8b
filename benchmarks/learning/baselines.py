"""What needs no network: a mean shape, a threshold, a logistic regression."""

from __future__ import annotations

import numpy as np
from contest import image_of, images_of, truth_of
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.dataset import Dataset
from models.recipe import Recipe
from tasks.stores.house import Stores
from tasks.train.validate import choose_threshold

_GRID = (48, 48, 48)


def mean_shape(stores: Stores, dataset: Dataset, recipe: Recipe) -> dict[str, np.ndarray]:
    """Each class's mean mask, crops brought to one size; a voxel is the likeliest class, if any is at 0.5 or more."""
    classes = range(1, len(dataset.classes) + 1)
    total = np.zeros((len(dataset.classes), *_GRID))
    rows = dataset.split("train")
    for row in rows:
        truth = truth_of(stores, row, recipe, dataset)
        total += [_fitted((truth == c).astype(float), _GRID) for c in classes]
    mean = total / len(rows)
    found = {}
    for row in dataset.split("test"):
        shape = row.shape
        chances = np.stack([_fitted(plane, shape) for plane in mean])
        inside = chances.sum(0) >= 0.5
        found[row.volume] = ((chances.argmax(0) + 1) * inside).astype(np.uint8)
    return found


def _fitted(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    fitted = ndimage.zoom(array, [n / m for n, m in zip(shape, array.shape, strict=True)], order=1, grid_mode=True,
                          mode="nearest")  # fmt: skip
    assert fitted.shape == tuple(shape)
    return fitted


def share_of_peak(stores: Stores, dataset: Dataset, recipe: Recipe, share: float = 0.3) -> dict[str, np.ndarray]:
    """All from a share of the image's maximum on, as tumours are drawn on PET by hand."""
    found = {}
    for row in dataset.split("test"):
        array, _ = image_of(stores, row, recipe)
        first = array if array.ndim == 3 else array[0]
        found[row.volume] = (first >= share * first.max()).astype(np.uint8)
    return found


def logistic(stores: Stores, dataset: Dataset) -> tuple[np.ndarray, float]:
    """Probabilities of the test split from the pixels, and the threshold chosen on validation."""
    (train, labels), (val, known), (test, _) = (
        images_of(stores, dataset, split) for split in ("train", "validation", "test")
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    model.fit(train.reshape(len(train), -1), labels)
    chosen = choose_threshold(model.predict_proba(val.reshape(len(val), -1))[:, 1], known == 1)
    return model.predict_proba(test.reshape(len(test), -1)), chosen
