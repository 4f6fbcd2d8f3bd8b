"""The figures of some cases as one statistic, whichever kind of model: for subgroups and for comparisons."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from models.errors import NothingToDoError
from models.evaluation import Interval, MetricSummary
from tasks.evaluate.bounds import Bounds, on_logit
from tasks.evaluate.intervals import SAMPLES, Drawn, Floats, Statistic, draw

Label = tuple[str, str | None]
"""A metric, and the class that it is of (None: all of them)."""


@dataclass(frozen=True, slots=True)
class Figures:
    """Figures of cases: `statistic`'s columns are named by `labels`, and its weights are of cases of `patients`.

    `each` (cases, labels) has every case's own value of what is a mean over the cases, NaN elsewhere. `closed` (a label
    each, or nothing) marks areas and shares, with what stands in where resampling sees no spread (`bounds`).
    """

    labels: tuple[Label, ...]
    statistic: Statistic
    patients: tuple[str, ...]
    each: Floats
    closed: tuple[Bounds | None, ...] = ()

    def drawn(self, *, samples: int = SAMPLES, seed: int = 0) -> Drawn:
        """On resamples of the patients."""
        return draw(self.statistic, self.patients, samples=samples, seed=seed)

    def summaries(self, *, samples: int = SAMPLES, seed: int = 0) -> tuple[MetricSummary, ...]:
        """With intervals, without what is undefined."""
        drawn = self.drawn(samples=samples, seed=seed)
        closed = self.closed or (None,) * len(self.labels)
        return summaries(self.labels, list(map(on_logit, drawn.intervals(), drawn.resampled.T, closed)))

    def only(self, metrics: Collection[str], *, classes: bool = True) -> Figures:
        """Those of `metrics`; without `classes` those over all classes."""
        kept = [i for i, (metric, name) in enumerate(self.labels) if metric in metrics and (classes or name is None)]
        statistic = self.statistic
        return Figures(
            tuple(self.labels[i] for i in kept),
            lambda weights: statistic(weights)[:, kept],
            self.patients,
            self.each[:, kept],
            tuple(self.closed[i] for i in kept) if self.closed else (),
        )

    def since(self, old: Figures) -> Figures:
        """How much higher they are than `old` of the same cases. Raises NothingToDoError where the cases differ."""
        if self.patients != old.patients or self.labels != old.labels:
            raise NothingToDoError("champion and challenger were not judged on the same cases")
        before, after = old.statistic, self.statistic
        return Figures(
            self.labels, lambda weights: after(weights) - before(weights), self.patients, self.each - old.each
        )


def summaries(labels: Collection[Label], intervals: Collection[Interval | None]) -> tuple[MetricSummary, ...]:
    """Without what is undefined."""
    return tuple(
        MetricSummary(metric=metric, class_name=name, interval=interval)
        for (metric, name), interval in zip(labels, intervals, strict=True)
        if interval is not None
    )
