"""Which losses a recipe may name."""

from __future__ import annotations

from typing import get_args

import pytest

from models.errors import RecipeError
from models.recipe import Loss, Recipe
from models.recipe.losses import chosen_loss, fitting_losses

SEGMENT = 'name = "a"\nkind = "segmentation"\nimages.modality = "CT"\nlabels.source = "SEG"\n'
REGIONS = SEGMENT + "labels.regions = true\n"
CLASSIFY = 'name = "a"\nkind = "classification"\nimages.modality = "CR"\nlabels.source = "CSV"\n'
SEVERAL = CLASSIFY + "labels.several = true\n"
KINDS = {"segmentation": SEGMENT, "regions": REGIONS, "classification": CLASSIFY, "several": SEVERAL}
AUTO = {"segmentation": "dice_ce", "regions": "dice_bce", "classification": "ce", "several": "bce"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("loss", get_args(Loss))
def test_a_loss_fits_or_is_refused_by_name(kind: str, loss: str) -> None:
    text = KINDS[kind] + f'train.loss = "{loss}"\n'
    fitting = fitting_losses(Recipe.parse(KINDS[kind]))
    if loss == "auto":
        assert chosen_loss(Recipe.parse(text)) == AUTO[kind] == fitting[0]
    elif loss in fitting:
        assert chosen_loss(Recipe.parse(text)) == loss
    else:
        with pytest.raises(RecipeError, match=f"train.loss: {loss} does not fit .*write one of {fitting[0]}"):
            Recipe.parse(text)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (SEGMENT + "train.mixup = 0.2", "train.mixup"),
        (SEGMENT + "train.cutmix = 1.0", "train.cutmix"),
        (CLASSIFY + 'labels.of = "patient"\ntrain.mixup = 0.2', "train.mixup"),
        (SEGMENT + 'train.loss = "tversky"\ntrain.class_weights = "auto"', "train.class_weights"),
        (SEGMENT + 'train.loss = "tversky"\ntrain.tversky = [-0.1, 0.5]', "train.tversky"),
        (SEGMENT + 'train.loss = "focal"\ntrain.label_smoothing = 0.1', "train.label_smoothing"),
        (SEGMENT + 'labels.classes = ["liver"]\ntrain.class_weights = [1.0]', "train.class_weights: 2 positive"),
        (REGIONS + 'labels.classes = ["liver"]\ntrain.class_weights = [1.0, 2.0]', "train.class_weights: 1 positive"),
        (SEVERAL + 'labels.classes = ["a", "b"]\ntrain.class_weights = [1.0, 0.0]', "train.class_weights: 2 positive"),
        (REGIONS + f"labels.classes = {[f'c{i}' for i in range(9)]}", "regions: at most 8"),
        (CLASSIFY + "labels.regions = true", "labels.regions"),
        (SEGMENT + "labels.several = true", "labels.several"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_key(text: str, key: str) -> None:
    with pytest.raises(RecipeError, match=key):
        Recipe.parse(text)
