"""Networks that learn for one package: one after the other, or one on each GPU; a cascade's in two stages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from models.dataset import DatasetRow
from models.errors import TrainingError
from models.package import Member, TrainingRecord
from models.plan import Plan
from tasks.train.cascade import FULL, Teller, ToldStore, named
from tasks.train.distributed import learn_jointly, processes_for
from tasks.train.folds import Share, shared_out, summed_up
from tasks.train.learning import Job, Learnt, PreparedKeys, learn, learn_abreast
from tasks.train.loop import TERMINATED, Listener, Termination
from tasks.train.patches import Opener
from tasks.train.teaching import Trained
from tasks.train.transfer.course import Origin

_TOLD = "told"


@dataclass(frozen=True)
class Taught:
    """What learnt by one plan: the networks that answer, and those of a cascade's first stage, which tell them."""

    plan: Plan
    learnt: Sequence[Learnt]
    low: Sequence[Learnt] = ()

    @property
    def weights(self) -> dict[str, Tensor]:
        """Of all networks; where there are several they bear their names."""
        every = [*((self._name(one), one) for one in self.learnt), *((one.name, one) for one in self.low)]
        return {
            (f"{name}.{tensor}" if name else tensor): value
            for name, one in every
            for tensor, value in one.network.state_dict().items()
        }

    @property
    def members(self) -> tuple[Member, ...]:
        """None for a single network; those that answer before those that tell them."""
        told = tuple(one.name for one in self.low)
        answering = (Member(name=self._name(one), low=told) for one in self.learnt if self._name(one))
        return (*answering, *(Member(name=one.name, plan=self.plan.low) for one in self.low))

    @property
    def seconds(self) -> float:
        """That learning took."""
        return sum(one.record.seconds for one in (*self.learnt, *self.low))

    @property
    def trained(self) -> list[Trained]:
        """The networks that answer and that are judged."""
        return [one.trained for one in self.learnt if one.trained is not None]

    def record(self, more: Sequence[str] = ()) -> TrainingRecord:
        """Of all of it, with `more` notes."""
        record = _summed(self.learnt)
        if self.low:
            first = _summed(self.low)
            work = {what: getattr(record, what) + getattr(first, what) for what in ("steps", "seconds", "parameters")}
            told = (*(f"low resolution: {note}" for note in first.notes), *record.notes)
            record = record.model_copy(update={"low": first, "notes": told, **work})
        return record.model_copy(update={"notes": (*record.notes, *more)})

    def _name(self, one: Learnt) -> str:
        return one.name or (FULL if self.low else "")


def _summed(learnt: Sequence[Learnt]) -> TrainingRecord:
    if len(learnt) == 1:
        return learnt[0].record
    metric = next((one.validation.name for one in learnt if one.validation), "")
    return summed_up({one.name: one.record for one in learnt}, metric)


@dataclass(frozen=True)
class School:
    """Where checkpoints lie, whose they are (`key`), what is started from, and how many learn at the same time.

    With `processes` each network learns in so many (0: one per GPU where networks do not learn abreast). `prepared`
    opens cases; `keys` are theirs, by the key of the way in which they were prepared.
    """

    folder: Path
    key: str
    prepared: Opener
    keys: Mapping[str, PreparedKeys]
    origin: Origin | None
    abreast: int
    termination: Termination
    on_event: Listener | None = None
    processes: int = 0

    def teach(self, plan: Plan, rows: Sequence[DatasetRow], judged: Sequence[DatasetRow]) -> Taught:
        """All networks of `plan`; what has learnt does not learn again. Raises what `learning.learn` raises."""
        low: list[Learnt] = []
        prepared = self.prepared
        if plan.low is not None:
            low, prepared = self._first_stage(plan, rows, judged)
        return Taught(plan, self._learn(shared_out(plan, rows, judged, self.abreast), prepared), low)

    def within(self, name: str) -> School:
        """The same, with checkpoints of its own."""
        return replace(self, folder=self.folder / name)

    def _learn(self, shares: Iterable[Share], prepared: Opener) -> list[Learnt]:
        jobs = [
            Job(share, prepared, self._keys(share.plan), self.folder / share.name, self.key, self.origin)
            for share in shares
        ]
        if self.abreast > 1 and len(jobs) > 1:
            learn_abreast(jobs, self.abreast, self.termination)
        else:
            for job in jobs:
                together = processes_for(job.share.plan, self.processes)
                if together > 1:
                    learn_jointly(job, together, self.termination, self.on_event)
        return [learn(job, self.termination, self.on_event) for job in jobs]

    def _first_stage(
        self, plan: Plan, rows: Sequence[DatasetRow], judged: Sequence[DatasetRow]
    ) -> tuple[list[Learnt], ToldStore]:
        """The networks of `plan.low`, and the second stage's cases with what those found in them.

        With folds each case is told what the network found that has not seen it.
        """
        assert plan.low is not None  # noqa: S101 - it is the first stage of a cascade
        shares = shared_out(plan.low, rows, judged, self.abreast)
        learnt = self._learn([replace(share, name=named(share.name)) for share in shares], self.prepared)
        asked = [share.judged for share in shares] if len(shares) > 1 else [(*rows, *judged)]
        folder = self.folder / _TOLD / plan.key
        teller = Teller(plan, self.prepared, self._keys(plan.low), self._keys(plan), folder)
        with self.termination.listening():
            try:
                return learnt, teller.tell(list(zip(learnt, asked, strict=True)), self.termination)
            except InterruptedError:
                # What was found before is kept, and the networks' last checkpoints say that they have learnt.
                raise SystemExit(TERMINATED) from None

    def _keys(self, plan: Plan) -> PreparedKeys:
        if plan.prepare.key not in self.keys:
            raise TrainingError("there are no cases prepared for one of its resolutions", where=plan.recipe)
        return self.keys[plan.prepare.key]
