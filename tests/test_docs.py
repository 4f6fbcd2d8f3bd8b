"""What the pages say is what the code does."""

from __future__ import annotations

import importlib.util
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


def test_the_references_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("make_recipe_reference", DOCS / "make_recipe_reference.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert (DOCS / "recipe.md").read_text() == script.reference(), "run python docs/make_recipe_reference.py"
    assert (DOCS / "networks.md").read_text() == script.networks(), "run python docs/make_recipe_reference.py"
