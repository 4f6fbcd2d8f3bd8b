from __future__ import annotations

import pytest

from models.recipe import Evaluate
from models.subgroups import EMPTY, NOT_RECORDED, OTHER, Traits, banded, grouped


def told(attribute: str, *traits: Traits, **asked: object) -> dict[str, tuple[str, ...]]:
    cases = {str(number): trait for number, trait in enumerate(traits)}
    return grouped(cases, Evaluate(subgroups=(attribute,), **asked)).get(attribute, {})  # type: ignore[arg-type]


def test_every_case_is_in_one_group_of_an_attribute() -> None:
    groups = told("manufacturer", *(Traits(manufacturer=m) for m in ("ACME", "Bolt", "", "ACME", " ACME ", "Zeta")))
    assert groups == {"ACME": ("0", "3", "4"), "Bolt": ("1",), "Zeta": ("5",), NOT_RECORDED: ("2",)}


@pytest.mark.parametrize(
    ("attribute", "traits", "expected"),
    [
        ("site", [Traits(site="site-1"), Traits(site="site-2")], ["site-1", "site-2"]),
        ("model_name", [Traits(model_name="X"), Traits()], ["X", NOT_RECORDED]),
        ("sex", [Traits(sex="M"), Traits(sex="F"), Traits(sex="F")], ["F", "M"]),
        ("contrast", [Traits(contrast="with"), Traits(contrast="without")], ["with", "without"]),
        (
            "age",
            [Traits(age_years=a) for a in (81, 17.9, 18, 39.99, 40)],
            ["under 18 years", "18–39 years", "40–59 years", "80 years and over"],
        ),
        (
            "slice_thickness",
            [Traits(slice_thickness_mm=t) for t in (3, 1, 2.999)],
            ["under 1.5 mm", "1.5–3 mm", "3–5 mm"],
        ),
        ("size", [Traits(size_ml=v) for v in (0, 0.5, 100)], [EMPTY, "under 1 ml", "100 ml and over"]),
        ("Smoking", [Traits(clinical={"smoking": s}) for s in ("yes", "no", "no")], ["no", "yes"]),
    ],
)
def test_groups_are_named_and_in_order(attribute: str, traits: list[Traits], expected: list[str]) -> None:
    assert list(told(attribute, *traits)) == expected


def test_what_does_not_tell_cases_apart_is_left_out() -> None:
    assert grouped({"a": Traits(sex="F"), "b": Traits(sex="F")}, Evaluate()) == {}
    assert grouped({"a": Traits(), "b": Traits()}, Evaluate(subgroups=("weight",))) == {}
    assert grouped({}, Evaluate()) == {}


def test_bands_are_those_of_the_recipe() -> None:
    traits = [Traits(age_years=a) for a in (10, 64.9, 65)]
    assert told("age", *traits, age_bands=(65,)) == {"under 65 years": ("0", "1"), "65 years and over": ("2",)}
    assert list(told("age", *traits, age_bands=(64.9, 10.5))) == ["under 10.5 years", "64.9 years and over"]
    assert told("age", *traits, age_bands=()) == {}
    assert banded(float("nan"), (1, 2), "mm") == NOT_RECORDED


def test_a_number_of_many_values_is_cut_into_thirds() -> None:
    traits = [Traits(clinical={"weight": f"{w}"}) for w in range(50, 59)] + [Traits()]
    groups = told("weight", *traits)
    assert list(groups) == ["under 53", "53 to under 56", "56 and over", NOT_RECORDED]
    assert [len(cases) for cases in groups.values()] == [3, 3, 3, 1]


def test_rare_texts_share_a_group() -> None:
    groups = told("model_name", *(Traits(model_name=f"M{n // 2:02d}") for n in range(50)))
    assert len(groups) == 12
    assert len(groups[OTHER]) == 50 - 11 * 2
