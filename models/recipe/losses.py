"""Which losses fit which models, and what else of `train` fits a loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from models.recipe.learning import Loss

if TYPE_CHECKING:
    from models.recipe import Recipe

_MASKS: Final[tuple[Loss, ...]] = ("dice_ce", "ce", "focal", "dice_focal", "tversky", "dice_ce_boundary")
_REGIONS: Final[tuple[Loss, ...]] = ("dice_bce", "bce", "tversky")
_CLASSES: Final[tuple[Loss, ...]] = ("ce", "focal")
_SEVERAL: Final[tuple[Loss, ...]] = ("bce",)

_OVERLAP: Final = ("dice_focal", "tversky")
"""Have no share for the weights or the smoothing that cross-entropies take; neither has `focal` on masks."""


def fitting_losses(recipe: Recipe) -> tuple[Loss, ...]:
    """Those that the recipe may name, what "auto" means first; none where the model brings its own."""
    if recipe.kind == "classification":
        return _SEVERAL if recipe.labels.several else _CLASSES
    if recipe.segments:
        return _REGIONS if recipe.labels.regions else _MASKS
    return ()


def chosen_loss(recipe: Recipe) -> Loss:
    """The recipe's loss; "auto" where the model brings its own."""
    asked = recipe.train.loss
    return fitting_losses(recipe)[0] if asked == "auto" and fitting_losses(recipe) else asked


def misfit(recipe: Recipe) -> str | None:
    """What of `train` does not fit the kind of model or the loss, and what to write instead."""
    train, fitting, loss = recipe.train, fitting_losses(recipe), chosen_loss(recipe)
    if loss not in fitting and loss != "auto":
        what = _described(recipe)
        return f"train.loss: {loss} does not fit {what}; " + (
            f"write one of {', '.join(fitting)}" if fitting else 'it brings its own: leave it at "auto"'
        )
    if not fitting and (train.class_weights or train.label_smoothing):
        return f"train.class_weights and train.label_smoothing: {_described(recipe)} brings a loss without them"
    if recipe.kind != "classification" and (train.mixup or train.cutmix):
        return "train.mixup and train.cutmix are for a classification: leave them at 0"
    if recipe.labels.of == "patient" and (train.mixup or train.cutmix):
        return "train.mixup and train.cutmix blend single images, not a patient's series: leave them at 0"
    if train.label_smoothing and (loss in _OVERLAP or loss == "focal"):
        return f"train.label_smoothing: {loss} has no such share; leave it at 0 or choose loss = {fitting[0]}"
    if train.class_weights and loss == "tversky":
        return "train.class_weights: this loss weighs errors by train.tversky; leave them out"
    if loss == "tversky" and (min(train.tversky) < 0 or sum(train.tversky) <= 0):
        return "train.tversky: two weights that are not negative, not both 0, such as [0.3, 0.7]"
    if isinstance(train.class_weights, tuple) and recipe.labels.classes:
        return misfitting_weights(recipe, train.class_weights, len(recipe.labels.classes))
    return None


def misfitting_weights(recipe: Recipe, weights: Sequence[float], classes: int) -> str | None:
    """Why weights that were given cannot be those of `classes` classes."""
    needed = classes + recipe.background
    if weights and (len(weights) != needed or min(weights) <= 0):
        form = f"{classes} classes" + (" and the background before them" if recipe.background else "")
        return f'train.class_weights: {needed} positive numbers, for {form}; or "auto"'
    return None


def _described(recipe: Recipe) -> str:
    if recipe.labels.several:
        return "images that show several classes at once"
    if recipe.labels.regions:
        return "regions that overlap"
    return f"a {recipe.kind}" + (f" by {recipe.detection.method}" if recipe.kind == "detection" else "")
