"""Tables and lists as JSON and TOML know them, with things wrong in them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from hypothesis import strategies as st

_ODD: Final[tuple[Any, ...]] = (
    *(True, False, 0, 1, -1, 2, 7, 255, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308),
    *(
        math.nan,
        math.inf,
        -math.inf,
        "",
        " ",
        "auto",
        "none",
        "a" * 300,
        "../../etc/passwd",
        "\ud800",
        "\0",
        "é",
        "*[!",
    ),
    *("a{99999999999}", "(" * 400, "(?P<a", "(a+)+$", "1", "nan", "CSV", "SEG", "unet", "low", "cascade"),
    *([], {}, [[]], [0, 0, 0], [1.0, 2.0, 3.0], [-1, -1, -1], [math.nan] * 3, [1e308] * 3, ["x", "x"], {"name": "x"}),
    *({"a": {"b": {}}}, [{"name": "a", "modality": "CT"}, {"name": "a", "modality": "MR"}], [1] * 500),
)
Path = tuple[str | int, ...]


def spoilt(tree: Mapping[str, Any], *, most: int = 3) -> st.SearchStrategy[dict[str, Any]]:
    """The tree with one or more leaves or branches replaced, left out, added or doubled."""
    change = st.tuples(
        st.integers(0, 100_000),
        st.sampled_from(("set", "set", "set", "scale", "drop", "add", "double", "nest")),
        st.one_of(st.sampled_from(_ODD), st.sampled_from(_ODD), st.integers(), st.floats(), st.text(max_size=8)),
    )
    return st.lists(change, min_size=1, max_size=most).map(lambda changes: _apply(tree, changes))


def _apply(tree: Mapping[str, Any], changes: list[tuple[int, str, Any]]) -> dict[str, Any]:
    changed = copy.deepcopy(dict(tree))
    for number, kind, what in changes:
        places = list(_places(changed))
        if places:
            _change(changed, places[number % len(places)], kind, what)
    return changed


def _change(tree: Any, place: Path, kind: str, what: Any) -> None:
    for part in place[:-1]:
        tree = tree[part]
    last, value = place[-1], tree[place[-1]]
    if kind == "drop":
        del tree[last]
    elif kind == "add" and isinstance(tree, dict):
        tree[f"{last}s"] = what
    elif kind == "double" and isinstance(value, list) and len(value) < 1000:
        tree[last] = value * 3
    elif kind == "scale" and isinstance(value, int | float) and math.isfinite(value) and abs(value) < 1e100:
        tree[last] = value * 1000
    elif kind == "nest":
        tree[last] = [value]
    else:
        tree[last] = copy.deepcopy(what)


def _places(tree: Any, above: Path = ()) -> Iterator[Path]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*above, key)
        yield from _places(value, (*above, key))


def toml(tree: Mapping[str, Any]) -> str:
    """As TOML, each table's values in inline tables."""
    return "".join(f"{json.dumps(key)} = {_toml(value)}\n" for key, value in tree.items() if value is not None)


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        inner = (f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items() if one is not None)
        return "{" + ", ".join(inner) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(one) for one in value if one is not None) + "]"
    if isinstance(value, bool | str):
        return json.dumps(value)
    return str(value)
