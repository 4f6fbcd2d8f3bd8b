"""Write docs/recipe.md and docs/networks.md from the code, so that the references cannot fall behind.

python docs/make_recipe_reference.py
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from models.networks import NETWORKS, Entry
from models.recipe import Recipe

HEAD = """# The recipe's reference

Written by `python docs/make_recipe_reference.py` from `models/recipe/`. A recipe is a TOML file; keys may be dotted
(`train.minutes = 10`) or in tables (`[train]`). Unknown keys are refused with the nearest known one named.
"auto" lets the planner decide; what it decided, and why, is in the report.
"""

NETWORKS_HEAD = """# The networks

Written by `python docs/make_recipe_reference.py` from the one table in `models/networks/__init__.py`. A recipe names a
network by `network.name`; "auto" takes `unet`, `resnet`, `patient_attention`, `retinanet` or `gan`, as its kind asks
for. A network is added by one builder and one entry there: its tests, its planning and this page follow.

"""


def reference() -> str:
    """The whole page, as Markdown."""
    return HEAD + "".join(_section(Recipe, ""))


def networks() -> str:
    """The table of networks, as Markdown."""
    lines = [NETWORKS_HEAD, "| `network.name` | for | dimensions | what it is | besides |\n|---|---|---|---|---|\n"]
    for name, entry in NETWORKS.items():
        kinds, dimensions = ", ".join(sorted(entry.kinds)), " and ".join(f"{d}-D" for d in sorted(entry.dimensions))
        lines.append(f"| `{name}` | {kinds} | {dimensions} | {entry.description} | {_besides(entry)} |\n")
    return "".join(lines)


def _besides(entry: Entry) -> str:
    told = {
        "deep supervision": entry.deep_supervision,
        "stochastic depth": entry.stochastic_depth,
        "own widths": bool(entry.own_widths),
        "a patient's series as one case": entry.sets,
    }
    return ", ".join(what for what, so in told.items() if so)


def _section(model: type[BaseModel], path: str) -> Iterator[str]:
    inner: list[tuple[str, type[BaseModel]]] = []
    title = f"`[{path}]`" if path else "Top level"
    yield f"\n## {title}\n\n{(model.__doc__ or '').strip()}\n"
    yield "\n| key | may be | default | meaning |\n|---|---|---|---|\n"
    for name, field in model.model_fields.items():
        models = list(_models(field.annotation))
        inner += [(f"{path}.{name}" if path else name, m) for m in models]
        kind = _kind(field.annotation)
        meaning = (field.description or "").replace("|", "\\|")
        if models:
            meaning = meaning or "see below"
        yield f"| `{name}` | {kind} | {_default(field)} | {meaning} |\n"
    for place, nested in inner:
        yield from _section(nested, place)


def _default(field: Any) -> str:
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    if value is None:
        return "not set"
    return (
        f"`{str(list(value) if isinstance(value, tuple) else value).replace('True', 'true').replace('False', 'false')}`"
    )


def _kind(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _kind(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{a}`" for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(a) for a in arguments if a is not type(None)))
    if origin is tuple:
        several = len(arguments) == 2 and arguments[1] is Ellipsis
        return f"list of {_kind(arguments[0])}" if several else f"{len(arguments)} × {_kind(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"table ({annotation.__name__})"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(annotation, str(annotation))


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


if __name__ == "__main__":
    Path(__file__).with_name("recipe.md").write_text(reference(), encoding="utf-8")
    Path(__file__).with_name("networks.md").write_text(networks(), encoding="utf-8")
