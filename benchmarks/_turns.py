"""Contestants that take turns, so that a busy machine is busy for all of them; what they took, as Markdown.

A contestant is a call. One that must live in another environment, or whose memory counts, is a `Served` process: it
starts once (see `_served.py`), and each turn asks it for one piece of work.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Turn:
    """What one piece of work took. `peak_mb`: beyond what the process held before it."""

    seconds: float
    cpu_seconds: float = 0.0
    peak_mb: float = 0.0


@dataclass(frozen=True)
class Taken:
    """All turns of one contestant."""

    turns: tuple[Turn, ...]

    def middle(self, what: str = "seconds") -> float:
        """Median of `seconds`, `cpu_seconds` or `peak_mb`."""
        return statistics.median(getattr(turn, what) for turn in self.turns)

    def least(self, what: str = "seconds") -> float:
        """The smallest."""
        return min(getattr(turn, what) for turn in self.turns)

    def times(self, other: Taken, what: str = "seconds") -> float:
        """How many times as much as `other` took: the median over the turns, each beside its neighbour."""
        pairs = zip(self.turns, other.turns, strict=True)
        return statistics.median(getattr(a, what) / max(getattr(b, what), 1e-9) for a, b in pairs)


@dataclass(frozen=True)
class Goal:
    """`peer` takes at least `times` as much of `what` as ours; below 1: ours may take 1 / `times` of it."""

    peer: str
    times: float
    what: str = "seconds"


Contestant = Callable[[], object]
"""One piece of work. It may return the `Turn` that it measured itself; else the whole call counts."""


def turns(contestants: Mapping[str, Contestant], repeat: int = 5) -> dict[str, Taken]:
    """Everyone once to warm up, then in turn `repeat` times."""
    found: dict[str, list[Turn]] = {name: [] for name in contestants}
    for number in range(repeat + 1):
        for name, work in contestants.items():
            print(f"\r{number}/{repeat} {name[:60]:<60}", end="", file=sys.stderr)
            turn = one_turn(work)
            if number:
                found[name].append(turn)
    print(file=sys.stderr)
    return {name: Taken(tuple(them)) for name, them in found.items()}


def one_turn(work: Contestant) -> Turn:
    """Its own figures, or those of the call."""
    begun, worked = time.perf_counter(), time.process_time()
    told = work()
    took = Turn(time.perf_counter() - begun, time.process_time() - worked)
    return told if isinstance(told, Turn) else took


class Served:
    """A process that does one piece of work whenever it is asked. Raises RuntimeError with what it said if it dies."""

    def __init__(self, *command: object) -> None:
        self._process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        self.about: dict[str, object] = self._read()

    def __call__(self) -> Turn:
        assert self._process.stdin
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return Turn(**self._read())  # type: ignore[arg-type]

    def _read(self) -> dict[str, object]:
        assert self._process.stdout
        for line in self._process.stdout:  # libraries print too
            if line.startswith("turn "):
                told: dict[str, object] = json.loads(line[5:])
                return told
        raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=60)


def table(
    found: Mapping[str, Taken],
    goals: Sequence[Goal] = (),
    *,
    what: str = "seconds",
    unit: str = "s",
    scale: float = 1.0,
    remarks: Mapping[str, str] | None = None,
    remark: str = "",
) -> str:
    """Markdown: the first contestant is ours; the others in relation to it, and what is to be reached."""
    ours, *_ = found
    head = ["", f"{unit}, median (least)", "× ours", "to reach", *([remark] if remarks else [])]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for name, taken in found.items():
        times = taken.times(found[ours], what)
        goal = next((g for g in goals if g.peer == name and g.what == what), None)
        said = "" if goal is None else f"{goal.times:g}: {'reached' if times >= goal.times else '**not reached**'}"
        bold = f"**{name}**" if name == ours else name
        figures = f"{_figure(taken.middle(what) * scale)} ({_figure(taken.least(what) * scale)})"
        cells = [bold, figures, f"{times:.3g}", said, *([remarks.get(name, "")] if remarks else [])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def arguments(about: str | None) -> argparse.ArgumentParser:
    """What every script takes."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="turns of each, after one that warms up")
    parser.add_argument("--threads", type=int, default=1, help="of every library")
    parser.add_argument(
        "--peers", type=Path, help="Python of an environment with nnunetv2; without it they are left out"
    )
    return parser
