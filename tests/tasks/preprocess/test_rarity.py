"""Weights of classes: as given, or by how rare they are."""

from __future__ import annotations

from typing import Any

import pytest

from models.errors import RecipeError
from models.plan import CaseFacts, Fingerprint
from models.recipe import Recipe
from tasks.preprocess.plan import make_plan
from tasks.preprocess.rarity import MOST, class_weights
from tests.tasks.preprocess.cases import fingerprint


def asked(kind: str, weights: Any = "auto", **labels: Any) -> Recipe:
    source = "SEG" if kind == "segmentation" else "CSV"
    return Recipe.model_validate(
        {
            "name": "a",
            "kind": kind,
            "images": {"modality": "MR"},
            "labels": {"source": source, **labels},
            "train": {"class_weights": weights, "epochs": 2},
        }
    )


def masks(*voxels: tuple[int, ...]) -> Fingerprint:
    """Cases of 1,000 voxels each."""
    cases = [
        CaseFacts(
            volume=str(i),
            shape=(10, 10, 10),
            spacing=(1, 1, 1),
            cropped_shape=(10, 10, 10),
            class_voxels=v,
            median=0,
            iqr=1,
        )
        for i, v in enumerate(voxels)
    ]
    return fingerprint("MR", (10, 10, 10), (1, 1, 1), 1).model_copy(update={"cases": tuple(cases)})


def counted(cases: int, *counts: int) -> Fingerprint:
    return fingerprint("MR", (1, 32, 32), (1, 1, 1), cases).model_copy(update={"class_counts": counts})


def test_median_frequency_of_voxels() -> None:
    # Frequencies: background 1,650 of 2,000, organ 300 of 2,000, lesion 50 of the 1,000 where there is one.
    found, note = class_weights(asked("segmentation"), masks((200, 50), (100, 0)), ("organ", "lesion"))
    assert found == pytest.approx((0.15 / 0.825, 1.0, 3.0), rel=1e-3)
    assert "median frequency" in note


def test_median_frequency_of_cases() -> None:
    found, _ = class_weights(asked("classification"), counted(100, 80, 20), ("no", "yes"))
    assert found == pytest.approx((0.5 / 0.8, 0.5 / 0.2))


@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_negatives_per_positive_where_classes_do_not_exclude_each_other(kind: str) -> None:
    if kind == "classification":
        found, _ = class_weights(asked(kind, several=True), counted(100, 20, 50, 0), ("a", "b", "c"))
    else:
        found, _ = class_weights(asked(kind, regions=True), masks((200, 500, 0), (0, 0, 0)), ("a", "b", "c"))
    assert found == (4.0, 1.0, 1.0)


def test_no_weight_is_beyond_reason() -> None:
    found, _ = class_weights(asked("segmentation", regions=True), masks((1,)), ("a",))
    assert found == (MOST,)


def test_given_weights_must_be_as_many_as_the_classes_that_were_found() -> None:
    assert class_weights(asked("segmentation", (1.0, 2.0)), masks((5,)), ("a",))[0] == (1.0, 2.0)
    assert class_weights(asked("segmentation", ()), masks((5,)), ("a",)) == ((), "")
    with pytest.raises(RecipeError, match=r"train.class_weights: 3 positive numbers"):
        class_weights(asked("segmentation", (1.0, 2.0)), masks((5, 5)), ("a", "b"))


def test_weights_by_rarity_take_the_place_of_balanced_sampling() -> None:
    plans = [
        make_plan(asked("classification", weights), counted(40, 30, 10), ("no", "yes"), memory_gb=8, device="cpu")
        for weights in ("auto", ())
    ]
    assert [(bool(p.train.class_weights), p.train.class_balance) for p in plans] == [(True, False), (False, True)]


def test_regions_have_no_background_and_are_at_most_eight() -> None:
    recipe, seen = asked("segmentation", (), regions=True), fingerprint("MR", (32, 48, 48), (1, 1, 1), 20)
    plan = make_plan(recipe, seen, ("whole", "core"), memory_gb=8, device="cpu")
    assert (plan.network.out_channels, plan.train.loss, plan.activation) == (2, "dice_bce", "sigmoid")
    with pytest.raises(RecipeError, match="at most 8 regions"):
        make_plan(recipe, seen, tuple("abcdefghi"), memory_gb=8, device="cpu")


def test_one_class_of_several_is_enough() -> None:
    plan = make_plan(asked("classification", (), several=True), counted(40, 10), ("a",), memory_gb=8, device="cpu")
    assert (plan.network.out_channels, plan.train.loss, plan.activation) == (1, "bce", "sigmoid")
