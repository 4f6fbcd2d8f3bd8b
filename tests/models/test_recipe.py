"""The file that a user writes: short ones work, wrong ones say what to correct."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.errors import RecipeError
from models.recipe import Recipe

SHORTEST = """
name = "liver"
kind = "segmentation"
images.modality = "CT"
labels.source = "SEG"
"""


def test_four_lines_are_a_recipe() -> None:
    recipe = Recipe.parse(SHORTEST)
    assert recipe.images.modality == ("CT",)
    assert recipe.train.limit_minutes == 60


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("train.epoch = 3", "'train.epoch': did you mean 'epochs'"),
        ("prepocess.spacing = 'auto'", "'prepocess': did you mean 'preprocess'"),
        ("preprocess.steps = [{step = 'median', sise = 3}]", "did you mean 'size'"),
        ("labels.classes = [{name = 'liver', mach = 'Liv*'}]", "did you mean 'match'"),
        ("split.train = 0.9", "add up to 1"),
        ("train.minutes = -1", "train.minutes"),
        ("train.batch_size = 0", 'toml: train.batch_size: Input should be greater than or equal to 1, or "auto"'),
        ("preprocess.spacing = [3, 0, 1]", "toml: preprocess.spacing.1: Input should be greater than 0"),
        ("preprocess.steps = [{step = 'median', size = 99}]", "toml: preprocess.steps.0.size: Input should be less"),
        ("preprocess.percentiles = [99, 1]", "the lower one comes first"),
        ("augment.gamma_range = [1.5, 0.7]", "toml: augment.gamma_range: the lower bound comes first"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_what_is_near(line: str, told: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(SHORTEST + line, where="liver.toml")
    assert told in str(caught.value)
    assert str(caught.value).startswith("liver.toml: ")


def test_broken_toml_names_the_line() -> None:
    with pytest.raises(RecipeError, match=r"x\.toml: .*line 2"):
        Recipe.parse("name = 'x'\nkind = ?\n", where="x.toml")


def test_a_kind_that_does_not_fit_its_labels_is_refused() -> None:
    with pytest.raises(RecipeError, match="CSV"):
        Recipe.parse(SHORTEST.replace("SEG", "CSV"))


def test_keys_follow_meaning_not_spelling() -> None:
    plain, spelt = Recipe.parse(SHORTEST), Recipe.parse(SHORTEST.replace('"CT"', '["CT"]') + "seed = 0")
    assert plain.key == spelt.key
    judged = Recipe.parse(SHORTEST + "promote.floor = 0.8")
    assert judged.key != plain.key
    assert judged.learning_key == plain.learning_key
    assert Recipe.parse(SHORTEST + "train.minutes = 5").learning_key != plain.learning_key


def test_a_recipe_survives_its_json() -> None:
    recipe = Recipe.parse(SHORTEST + "preprocess.steps = [{step = 'window', center = 40, width = 400}]")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_every_shipped_recipe_is_valid() -> None:
    files = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
    assert {f.stem for f in files} >= {"hippocampus", "pneumonia", "sarcoma", "demo"}
    for file in files:
        assert Recipe.parse(file.read_text(), where=file.name).name == file.stem
