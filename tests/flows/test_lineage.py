"""The lineage as a person sees it: a tree in which everything is once, and what is many is counted."""

from __future__ import annotations

from rich.console import Console

from flows.commands.lineage import tree_of
from models.lineage import Lineage, Node, NodeName


def node(kind: str, key: str, up: tuple[str, ...] = (), down: tuple[str, ...] = (), **more: object) -> Node:
    def names(told: tuple[str, ...]) -> list[dict[str, str]]:
        return [dict(zip(("kind", "key"), name.split(" "), strict=True)) for name in told]

    return Node.model_validate(
        {"kind": kind, "key": key, "title": f"[{kind}]", "up": names(up), "down": names(down), **more}
    )


def shown(found: Lineage) -> list[str]:
    console = Console(width=200, record=True, force_terminal=False)
    with console.capture() as captured:
        console.print(tree_of(found))
    return [line.strip(" │├└─") for line in captured.get().splitlines()]


def test_a_tree_tells_both_ways_once_each_and_counts_the_rest() -> None:
    package = node("package", "p", ("dataset d", "plan l"), ("prediction q",), more_down={"prediction": 12345})
    found = Lineage(
        root=package.name,
        complete=False,
        nodes=(
            package,
            node("dataset", "d", (), ("package p", "plan l")),
            node("plan", "l", ("dataset d",), ("package p",)),
            node("prediction", "q", ("package p",)),
        ),
    )
    assert shown(found) == [
        "[package] package p",
        "came from",
        "[dataset] dataset d",
        "[plan] plan l",
        "dataset d: see elsewhere",
        "led to",
        "[prediction] prediction q",
        "and 12,345 more of the kind prediction",
    ]


def test_what_has_no_history_says_so() -> None:
    alone = node("label", "a")
    told = shown(Lineage(root=NodeName(kind="label", key="a"), complete=True, nodes=(alone,)))
    assert told == ["[label] label a", "came from", "nothing that is known", "led to", "nothing that is known"]
