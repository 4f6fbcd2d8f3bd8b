"""Whatever a recipe says: read it, and keep it as a package does."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, Final

from hypothesis import strategies as st

from models.recipe import Recipe
from models.recipe.losses import chosen_loss
from tests.fuzz.trees import spoilt, toml

_KINDS: Final[dict[str, Any]] = {
    "segmentation": {
        "images": {"modality": "CT", "description": "thorax|chest"},
        "labels": {"source": "SEG", "classes": [{"name": "liver", "match": ["Liver*"]}]},
        "preprocess": {"steps": [{"step": "median", "size": 3}, {"step": "window", "center": 40, "width": 400}]},
        "network": {"select": ["2d", "unet/full"]},
        "train": {"folds": 2, "minutes": 10, "loss": "tversky"},
    },
    "classification": {
        "images": {
            "channels": [{"name": "a", "modality": "MR", "min_slices": 2}, {"name": "b", "modality": ["MR", "PT"]}]
        },
        "labels": {"source": "CSV", "classes": ["sick", "well"]},
        "clinical": {"variables": [{"name": "PatientAge"}, {"name": "g", "kind": "category", "values": ["x", "y"]}]},
        "synthetic": {"source": "other", "per_class": {"sick": 10}},
        "train": {"class_weights": [1.0, 2.0], "mixup": 0.2},
        "promote": {"class_floors": {"sick": 0.5}},
    },
    "detection": {
        "images": {"modality": "CT"},
        "labels": {"source": "RTSTRUCT"},
        "detection": {"method": "retinanet"},
        "deliver": {
            "codes": {"lesion": {"type": {"value": "52988006", "meaning": "Lesion"}}},
        },
    },
    "synthesis": {"images": {"modality": "CR"}, "labels": {"source": "CSV"}, "synthesis": {"latent": 16}},
}


def target(data: bytes) -> None:
    """A recipe's text. Raises RecipeError alone, and what is read can be kept."""
    recipe = Recipe.parse(data)
    kept = recipe.model_dump_json()
    json.dumps(recipe.model_dump(mode="json"), allow_nan=False)
    assert Recipe.model_validate_json(kept) == recipe
    assert len({recipe.key, recipe.learning_key, recipe.planning_key}) == 3
    chosen_loss(recipe)
    recipe.labels.meaning(("a", "b"))
    seen = SimpleNamespace(
        modality="CT", description="Thorax", channels=1, shape_z=40, slice_thickness=None, spacing_z=2.0
    )
    for part in (recipe.images, *recipe.images.channels):
        part.refusal(seen)


def _whole(kind: str) -> dict[str, Any]:
    """A recipe of the kind with every key."""
    recipe = Recipe.model_validate({"name": "a", "kind": kind, **_KINDS[kind]})
    return recipe.model_dump(mode="json", exclude_none=True)


def seeds() -> list[bytes]:
    """Recipes that are right: as people write them, and with every key."""
    short = [toml({"name": "a", "kind": kind, **_KINDS[kind]}) for kind in _KINDS]
    return [text.encode() for text in (*short, *(toml(_whole(kind)) for kind in _KINDS))]


_STRANGE: Final = (b"[" * 3000, b"1" * 5000, b"\n[a.b]\n", b'"""', b"1979-05-27", b"\xff\xfe")
shaped = st.one_of(
    st.sampled_from(list(_KINDS))
    .flatmap(lambda kind: spoilt({"name": "a", "kind": kind, **_KINDS[kind]}) | spoilt(_whole(kind)))
    .map(lambda tree: toml(tree).encode("utf-8", "replace")),
    st.builds(
        lambda text, at, extra: text[:at] + extra + text[at:],
        st.sampled_from(seeds()),
        st.integers(0, 900),
        st.binary(max_size=6) | st.sampled_from(_STRANGE),
    ),
)
"""Recipes of which one to three values are wrong, or with something strange in the text."""
