"""Where something came from, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.shared import ready, stores_of

if TYPE_CHECKING:
    from rich.tree import Tree

    from models.lineage import Direction, Lineage, NodeKind, NodeName


def lineage(
    what: Annotated[
        str,
        typer.Argument(
            help="A UID as in the PACS (of a delivered object, a series, a study), a model (name or name/version), or "
            "any key or its beginning."
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the nodes as JSON.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Leave nothing out, however many there are of a kind.")
    ] = False,
) -> None:
    """Tell where something came from and what came of it: images, labels, datasets, models, results, corrections."""
    stores = stores_of(ready())
    from tasks.lineage.run import lineage as trace

    found = trace(stores, what, complete=everything)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
        return
    from flows.console import out

    out.print(tree_of(found))


def tree_of(found: Lineage) -> Tree:
    """The lineage as a tree: what it came from, then what came of it. A node is shown where it first comes up."""
    from rich.tree import Tree

    tree = Tree(_line(found, found.root))
    for way, title in (("up", "came from"), ("down", "led to")):
        branch = tree.add(f"[bold]{title}[/]")
        _grow(found, branch, found.root, way, {found.root})  # type: ignore[arg-type]
        if not branch.children:
            branch.add("nothing that is known")
    return tree


def _grow(found: Lineage, branch: Tree, name: NodeName, way: Direction, shown: set[NodeName]) -> None:
    node = found.by_name[name]
    fresh = [near for near in node.nearest(way) if near not in shown]
    shown |= set(fresh)
    for near in fresh:
        _grow(found, branch.add(_line(found, near)), near, way, shown)
    for told in (*_again(node.nearest(way), fresh), *_more(node.more(way))):
        branch.add(f"[dim]{told}[/]")


def _again(nearest: tuple[NodeName, ...], fresh: list[NodeName]) -> Iterator[str]:
    yield from (f"{name.kind} {name.key[:12]}: see elsewhere" for name in nearest if name not in fresh)


def _more(more: Mapping[NodeKind, int]) -> Iterator[str]:
    yield from (f"and {count:,} more of the kind {kind}" for kind, count in sorted(more.items()))


def _line(found: Lineage, name: NodeName) -> str:
    from rich.markup import escape

    node = found.by_name[name]
    return f"{escape(node.title)} [dim]{name.kind} {name.key}[/]"
