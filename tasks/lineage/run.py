"""Everything that one thing came from, and everything that came of it.

The graph is walked level by level, a query for each relation and level. Where not all is asked for, each node shows a
few of its nearest of a kind, the newest, and counts the others: a dataset of ten thousand images is no slower.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Final

from models.lineage import Direction, Lineage, Node, NodeKind, NodeName
from tasks.lineage.naming import find
from tasks.lineage.reading import Reader
from tasks.lineage.relations import RELATIONS
from tasks.lineage.telling import tell
from tasks.stores.house import Stores

NEAREST: Final = 6
"""Of one kind that are shown of a node, unless everything is."""
MOST: Final = 300
"""Nodes in each direction, unless everything is shown."""

_Sides = dict[NodeName, list[NodeName]]


@dataclass
class _Walk:
    """A way through the graph: what was found, and what was only counted."""

    reader: Reader
    way: Direction
    seen: dict[NodeName, None] = field(default_factory=dict)
    edges: dict[tuple[NodeName, NodeName], None] = field(default_factory=dict)  # (upper, lower)
    more: dict[NodeName, dict[NodeKind, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))

    def go(self, root: NodeName) -> None:
        """From the root as far as it leads."""
        self.seen[root] = None
        level = [root]
        while level:
            level = self._next(level)

    def _next(self, level: list[NodeName]) -> list[NodeName]:
        fresh: list[NodeName] = []
        limit = None if self.reader.complete else NEAREST
        for relation in RELATIONS:
            mine, other = (relation.down, relation.up) if self.way == "up" else (relation.up, relation.down)
            keys = [name.key for name in level if name.kind == mine]
            for found in relation.find(self.reader, keys, self.way, limit) if keys else ():
                here = NodeName(kind=mine, key=found.key)
                left = found.total - len(found.nearest)
                for nearest in (NodeName(kind=other, key=key) for key in found.nearest):
                    if nearest not in self.seen:
                        if limit is not None and len(self.seen) > MOST:
                            left += 1
                            continue
                        self.seen[nearest] = None
                        fresh.append(nearest)
                    self.edges[(nearest, here) if self.way == "up" else (here, nearest)] = None
                if left:
                    self.more[here][other] += left
        return fresh


def lineage(stores: Stores, what: str, *, complete: bool = False) -> Lineage:
    """The lineage of what a person names: a key or its beginning, a UID, a model. `complete` leaves nothing out.

    Raises NotFoundError where nothing, or more than one thing, is named so.
    """
    reader = Reader(stores, complete)
    root = find(reader, what)
    ups, downs = _Walk(reader, "up"), _Walk(reader, "down")
    for walk in (ups, downs):
        walk.go(root)
    names = {**ups.seen, **downs.seen}
    edges = {**ups.edges, **downs.edges}
    above, below = _sides(edges)
    of_kind: dict[NodeKind, list[str]] = defaultdict(list)
    for name in names:
        of_kind[name.kind].append(name.key)
    told = {kind: tell(reader, kind, keys) for kind, keys in of_kind.items()}
    nodes = tuple(
        Node(
            kind=name.kind,
            key=name.key,
            title=told[name.kind][name.key].title,
            facts=told[name.kind][name.key].facts,
            up=tuple(above[name]),
            down=tuple(below[name]),
            more_up=dict(ups.more.get(name, {})),
            more_down=dict(downs.more.get(name, {})),
        )
        for name in names
    )
    return Lineage(root=root, complete=complete, nodes=nodes)


def _sides(edges: dict[tuple[NodeName, NodeName], None]) -> tuple[_Sides, _Sides]:
    above: _Sides = defaultdict(list)
    below: _Sides = defaultdict(list)
    for upper, lower in edges:
        above[lower].append(upper)
        below[upper].append(lower)
    return above, below
