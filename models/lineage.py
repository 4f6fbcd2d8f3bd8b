"""What a thing came from and what came of it: a graph of typed nodes, each named by kind and key.

Edges run downstream: from a patient's images and labels over datasets and packages to what was said, sent, corrected.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from functools import cached_property
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

NodeKind = Literal[
    "patient",
    "study",
    "series",
    "volume",
    "label",
    "version",
    "dataset",
    "plan",
    "package",
    "evaluation",
    "decision",
    "alert",
    "prediction",
    "analysis",
    "delivery",
    "object",
    "correction",
]
KINDS: tuple[NodeKind, ...] = get_args(NodeKind)
Direction = Literal["up", "down"]
Fact = str | int | float | None


class NodeName(BaseModel):
    """What a node is called: its kind, and its key or pseudonym."""

    model_config = ConfigDict(frozen=True)
    kind: NodeKind
    key: str


class Node(BaseModel):
    """One thing: `title` for people, `facts` in plain values, `up` and `down` its nearest.

    `more_up` and `more_down` count, by kind, those nearest ones that are not in the lineage, because they are many.
    """

    model_config = ConfigDict(frozen=True)
    kind: NodeKind
    key: str
    title: str
    facts: dict[str, Fact] = {}
    up: tuple[NodeName, ...] = ()
    down: tuple[NodeName, ...] = ()
    more_up: dict[NodeKind, int] = {}
    more_down: dict[NodeKind, int] = {}

    @property
    def name(self) -> NodeName:
        """Kind and key."""
        return NodeName(kind=self.kind, key=self.key)

    def nearest(self, way: Direction) -> tuple[NodeName, ...]:
        """Its nearest in one direction."""
        return self.up if way == "up" else self.down

    def more(self, way: Direction) -> dict[NodeKind, int]:
        """How many more there are in one direction, by kind."""
        return self.more_up if way == "up" else self.more_down


class Lineage(BaseModel):
    """All that lies upstream and downstream of `root`. `complete`: nothing was left out."""

    model_config = ConfigDict(frozen=True)
    root: NodeName
    complete: bool
    nodes: tuple[Node, ...]

    @cached_property
    def by_name(self) -> Mapping[NodeName, Node]:
        """The nodes."""
        return {node.name: node for node in self.nodes}

    def reach(self, way: Direction) -> frozenset[NodeName]:
        """Everything in one direction of the root, near and far."""
        found: set[NodeName] = set()
        waiting = deque([self.root])
        while waiting:
            fresh = set(self.by_name[waiting.popleft()].nearest(way)) - found
            found |= fresh
            waiting.extend(sorted(fresh, key=lambda name: (name.kind, name.key)))
        return frozenset(found)
