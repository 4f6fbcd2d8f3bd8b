"""How often the 95 % bootstrap interval holds the truth, on simulated cohorts of known truth.

    python benchmarks/coverage.py [--cohorts N] [--resamples N]

Each cohort is drawn anew, judged as an evaluation judges, and counted where its interval holds the population's value.
Prints a Markdown table: coverage and the intervals' mean width, by figure and number of patients. Chance moves a
coverage by about 2 × sqrt(0.95 × 0.05 / cohorts), 0.7 points for 4000.

Dice-like means: patients' own levels from a beta distribution (skewed, as Dice is), one or two scans each that differ
a little. "With misses" one patient in ten has a Dice of 0: a small cohort may hold no such patient, and then no
interval can know of it; it is shown and not judged. AUC: normal scores, apart so that the area is 0.76 or 0.92, half or
a third of the patients positive, one or two scans each. An area near 1 of 20 patients takes so few values that its
intervals err on the wide side (98 to 99 %): there only the lower aim counts.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tasks.evaluate.bounds import how_many, mann_whitney
from tasks.evaluate.delong import delong_interval
from tasks.evaluate.figures import Figures
from tasks.evaluate.intervals import auc, weighted_mean

PATIENTS = (20, 40, 100)
AIM = 0.92, 0.98


@dataclass(frozen=True, slots=True)
class Cohort:
    """A cohort drawn: its figure, and of scores also the truth and themselves."""

    figures: Figures
    scored: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True, slots=True)
class Figure:
    """How cohorts of so many patients are drawn, and the population's value."""

    name: str
    truth: float
    draw: Callable[[np.random.Generator, int], Cohort]
    judged: bool = True
    wide_below: int = 0

    def aim(self, patients: int) -> tuple[float, float] | None:
        """The least and the greatest coverage that pass; none where it is shown only."""
        if not self.judged:
            return None
        return (AIM[0], 1.0) if patients < self.wide_below else AIM


def dice(scans: int, misses: float = 0.0) -> Callable[[np.random.Generator, int], Cohort]:
    """Values around 0.8."""

    def draw(generator: np.random.Generator, patients: int) -> Cohort:
        level = generator.beta(8, 2, patients) * (generator.random(patients) >= misses)
        values = np.repeat(level, scans) + generator.normal(0, 0.03, patients * scans)
        names = _names(patients, scans)
        return Cohort(Figures((("dice", None),), weighted_mean(values[:, None]), names, values[:, None]))

    return draw


def scores(apart: float, positive: float, scans: int) -> Callable[[np.random.Generator, int], Cohort]:
    """A patient's scans are of one class, and alike."""

    def draw(generator: np.random.Generator, patients: int) -> Cohort:
        truth = np.arange(patients) < round(positive * patients)
        shared = math.sqrt(0.7) if scans > 1 else 0.0
        own = generator.normal(0, 1, patients * scans) * math.sqrt(1 - shared**2)
        score = own + np.repeat(shared * generator.normal(0, 1, patients) + apart * truth, scans)
        real = np.repeat(truth, scans)
        statistic, names = auc(real, score), _names(patients, scans)
        area = float(statistic(np.ones((1, len(real))))[0, 0])
        closed = mann_whitney(area, how_many(names, real), how_many(names, ~real))
        none_each = np.full((len(real), 1), np.nan)
        return Cohort(Figures((("auc", None),), statistic, names, none_each, (closed,)), (real, score))

    return draw


def area(apart: float) -> float:
    """Of two normal distributions with means so many standard deviations apart."""
    return 0.5 * (1 + math.erf(apart / 2))


FIGURES = (
    Figure("Dice, one scan", 0.8, dice(1)),
    Figure("Dice, two scans", 0.8, dice(2)),
    Figure("AUC 0.76, half positive", area(1), scores(1, 1 / 2, 1)),
    Figure("AUC 0.76, a third positive, two scans", area(1), scores(1, 1 / 3, 2)),
    Figure("AUC 0.92, half positive", area(2), scores(2, 1 / 2, 1), wide_below=40),
    Figure("Dice with misses, one scan", 0.72, dice(1, misses=0.1), judged=False),
)


def coverage(
    figure: Figure, patients: int, *, cohorts: int, resamples: int, method: str = "bootstrap", seed: int = 0
) -> tuple[float, float]:
    """The share of cohorts whose interval holds the truth, and the intervals' mean width.

    `method` is bootstrap, or delong where cases are scored; cohorts without an interval do not count.
    """
    generator, hits, widths = np.random.default_rng(seed), 0, []
    for number in range(cohorts):
        cohort = figure.draw(generator, patients)
        if method == "delong" and cohort.scored:
            found = delong_interval(*cohort.scored, cohort.figures.patients)
        else:
            found = cohort.figures.summaries(samples=resamples, seed=number)[0].interval
        if found is None or found.low is None or found.high is None:
            continue
        hits += found.low <= figure.truth <= found.high
        widths.append(found.high - found.low)
    return hits / max(len(widths), 1), float(np.mean(widths))


def _names(patients: int, scans: int) -> tuple[str, ...]:
    return tuple(f"P{number:03d}" for number in range(patients) for _ in range(scans))


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=2000)
    parser.add_argument("--resamples", type=int, default=1000)
    asked = parser.parse_args()
    heads = [f"{n} patients" for n in PATIENTS]
    print(f"| figure | interval | {' | '.join(heads)} |\n|{'---|' * (2 + len(heads))}")
    for figure in FIGURES:
        for method in ("bootstrap", "delong") if figure.name.startswith("AUC") else ("bootstrap",):
            cells = []
            for patients in PATIENTS:
                share, width = coverage(
                    figure, patients, cohorts=asked.cohorts, resamples=asked.resamples, method=method
                )
                aim = figure.aim(patients)
                outside = aim and not aim[0] <= share <= aim[1]
                cells.append(f"{100 * share:.1f} %{' (!)' if outside else ''}, width {width:.3f}")
            print(f"| {figure.name} | {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
