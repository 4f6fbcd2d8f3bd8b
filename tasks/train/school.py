"""Networks that learn for one package: one after the other, or one on each GPU; a cascade's in two stages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from models.dataset import DatasetRow
from models.errors import TrainingError
from models.plan import Plan
from tasks.train.cascade import Teller, ToldStore, named
from tasks.train.folds import Share, shared_out
from tasks.train.learning import Job, Learnt, PreparedKeys, learn, learn_abreast
from tasks.train.loop import TERMINATED, Listener, Termination
from tasks.train.patches import Opener
from tasks.train.transfer.course import Origin

_TOLD = "told"


@dataclass(frozen=True)
class School:
    """Where checkpoints lie, whose they are (`key`), what is started from, and how many learn at the same time."""

    folder: Path
    key: str
    origin: Origin | None
    abreast: int
    termination: Termination
    on_event: Listener | None = None

    def learn(self, shares: Iterable[Share], prepared: Opener, keys: PreparedKeys) -> list[Learnt]:
        """Each share's network, in order; what has learnt does not learn again. Raises what `learning.learn` raises."""
        jobs = [Job(share, prepared, keys, self.folder / share.name, self.key, self.origin) for share in shares]
        if self.abreast > 1 and len(jobs) > 1:
            learn_abreast(jobs, self.abreast, self.termination)
        return [learn(job, self.termination, self.on_event) for job in jobs]

    def first_stage(
        self,
        plan: Plan,
        rows: Sequence[DatasetRow],
        judged: Sequence[DatasetRow],
        prepared: Opener,
        keys: PreparedKeys,
        low_keys: PreparedKeys | None,
    ) -> tuple[list[Learnt], ToldStore]:
        """The networks of `plan.low`, and the second stage's cases with what those found in them.

        With folds each case is told what the network found that has not seen it. Raises as `learn`.
        """
        if plan.low is None or low_keys is None:
            raise TrainingError("a cascade needs cases prepared at low resolution", where="network.resolution")
        shares = shared_out(plan.low, rows, judged, self.abreast)
        learnt = self.learn([replace(share, name=named(share.name)) for share in shares], prepared, low_keys)
        asked = [share.judged for share in shares] if len(shares) > 1 else [(*rows, *judged)]
        folder = self.folder / _TOLD / plan.key
        teller = Teller(plan, prepared, low_keys, keys, folder)
        with self.termination.listening():
            try:
                return learnt, teller.tell(list(zip(learnt, asked, strict=True)), self.termination)
            except InterruptedError:
                # What was found before is kept, and the networks' last checkpoints say that they have learnt.
                raise SystemExit(TERMINATED) from None
