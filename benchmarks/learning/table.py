"""Results as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

BEGIN, END = "<!-- learning -->", "<!-- /learning -->"


@dataclass(frozen=True)
class Result:
    """One contender on one cohort. `scores` are an evaluation's flat figures."""

    contest: str
    who: str
    minutes: float
    steps: int
    cpu_seconds: float
    memory_mb: float
    about: str
    scores: Mapping[str, float]

    @property
    def score(self) -> str:
        """Dice, or AUC and accuracy, with the 95 % interval."""
        name = "dice" if "dice" in self.scores else "auc"
        value, low, high = (self.scores.get(name + end) for end in ("", ".low", ".high"))
        told = f"{value:.3f}" + (f" ({low:.3f}–{high:.3f})" if low is not None and high is not None else "")
        return told if name == "dice" else f"{told}, accuracy {self.scores['accuracy']:.3f}"


def markdown(results: Sequence[Result], threads: int) -> str:
    """A table for each cohort and budget."""
    lines: list[str] = []
    for contest, minutes in dict.fromkeys((r.contest, r.minutes) for r in results):
        mine = [r for r in results if (r.contest, r.minutes) == (contest, minutes)]
        score = "Dice" if "dice" in mine[0].scores else "AUC"
        lines += [
            f"\n**{contest}**, {minutes:g} minutes of CPU time on {threads} thread{'s' if threads > 1 else ''}\n",
            f"| | test {score} (95 %) | steps | CPU min | peak memory, MB | |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r.who} | {r.score} | {r.steps or '–'} | {r.cpu_seconds / 60:.1f} | {r.memory_mb:,.0f} | {r.about} |"
            for r in mine
        ]
    return "\n".join(lines) + "\n"
