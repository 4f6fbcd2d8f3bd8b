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


def markdown(results: Sequence[Result], minutes: float, threads: int) -> str:
    """A table a cohort."""
    lines: list[str] = []
    for contest in dict.fromkeys(r.contest for r in results):
        mine = [r for r in results if r.contest == contest]
        score = "Dice" if "dice" in mine[0].scores else "AUC"
        lines += [
            f"\n**{contest}**, {minutes:g} minutes on {threads} thread{'s' if threads > 1 else ''}\n",
            f"| | test {score} (95 %) | steps | CPU min | peak memory, MB | |",
            "|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {r.who} | {r.score} | {r.steps or '–'} | {r.cpu_seconds / 60:.1f} | {r.memory_mb:,.0f} | {r.about} |"
            for r in mine
        ]
    return "\n".join(lines) + "\n"
