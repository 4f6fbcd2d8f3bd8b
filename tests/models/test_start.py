"""What of a recipe's start and nights changes the key that weights are found again by."""

from __future__ import annotations

import pytest

from models.errors import RecipeError
from models.recipe import Recipe

PLAIN = """
name = "liver"
kind = "segmentation"
images.modality = "CT"
labels.source = "SEG"
"""
DIGEST = "ab" * 32


def _with(more: str) -> Recipe:
    return Recipe.parse(PLAIN + more)


def test_where_a_file_of_weights_lies_does_not_matter_but_what_it_holds_does() -> None:
    given = f'start = {{ source = "weights", weights = "/a/net.pt", sha256 = "{DIGEST}" }}'
    here, there = _with(given), _with(given.replace("/a/", "/b/"))
    assert here.learning_key == there.learning_key
    assert here.learning_key != _with(given.replace("ab", "cd", 1)).learning_key


def test_a_file_of_weights_needs_its_digest() -> None:
    with pytest.raises(RecipeError, match="sha256"):
        _with('start = { source = "weights", weights = "net.pt" }')


def test_a_plan_may_be_kept_across_another_start_but_not_across_another_budget() -> None:
    plain = _with("")
    assert plain.planning_key == _with('start.source = "champion"\nnights.plan = "keep"').planning_key
    assert plain.planning_key != _with("train.epochs = 7").planning_key


@pytest.mark.parametrize(
    ("more", "follows"), [("", False), ('start.source = "champion"', True), ('nights.plan = "on-drift"', True)]
)
def test_a_recipe_says_whether_it_builds_on_what_serves(more: str, follows: bool) -> None:
    assert _with(more).follows is follows


def test_a_synthesis_starts_from_scratch() -> None:
    made = PLAIN.replace("segmentation", "synthesis").replace("SEG", "CSV")
    with pytest.raises(RecipeError, match="from scratch alone"):
        Recipe.parse(made + 'start.source = "champion"')
