"""Cross-validation by patient: who judges which network, and what the networks' scores say together.

As nnU-Net does it, the folds are drawn from all patients that are not in the test split, those of the validation split
among them: each network learns from all folds but one and is judged on that one, so each patient is judged once, by a
network that has not seen it.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from models.dataset import DatasetRow
from models.errors import RecipeError
from models.hashing import content_key
from models.package import TrainingRecord
from models.plan import Plan

_DIGITS = 7  # of a content key, for a seed that every generator takes


@dataclass(frozen=True, slots=True)
class Share:
    """One network's part of a training: `learnt` and `judged` share no patient. `name` is "" for the only network."""

    name: str
    plan: Plan
    learnt: tuple[DatasetRow, ...]
    judged: tuple[DatasetRow, ...]


def shared_out(
    plan: Plan, learnt: Sequence[DatasetRow], judged: Sequence[DatasetRow], abreast: int = 1
) -> tuple[Share, ...]:
    """The networks that `plan` asks for: one on the splits as they are, or one for each fold.

    Of `abreast` networks that learn at the same time each has all of their minutes. Synthetic images are learnt from,
    and judge nothing. Raises RecipeError where there are fewer patients than folds.
    """
    folds = plan.train.folds
    if folds == 1:
        return (Share("", plan, tuple(learnt), tuple(judged)),)
    if plan.kind == "synthesis":
        raise RecipeError(
            "folds of a synthesis cannot be applied together", where="train.folds", hint="write folds = 1"
        )
    everybody = [*learnt, *judged]
    drawn = draw_folds({row.patient for row in everybody if not row.synthetic}, folds)
    rounds = -(-folds // max(1, min(abreast, folds)))
    return tuple(
        Share(
            str(fold),
            _of_fold(plan, fold, rounds),
            tuple(row for row in everybody if row.synthetic or drawn[row.patient] != fold),
            tuple(row for row in everybody if not row.synthetic and drawn[row.patient] == fold),
        )
        for fold in range(folds)
    )


def draw_folds(patients: Iterable[str], folds: int) -> dict[str, int]:
    """Each patient's fold, 0 … `folds` − 1, by a hash of the pseudonym: it stays the same however many others come.

    Only in a cohort so small that a fold would be empty, the fullest fold gives it its patient of the lowest hash.
    Raises RecipeError where there are fewer patients than folds.
    """
    order = {patient: content_key("fold", patient) for patient in patients}
    if len(order) < folds:
        raise RecipeError(
            f"{len(order)} patients make no {folds} folds",
            where="train.folds",
            hint=f"write folds = {max(1, len(order))} or less, or label more patients",
        )
    drawn = {patient: int(key, 16) % folds for patient, key in order.items()}
    while empty := sorted(set(range(folds)) - set(drawn.values())):
        sizes = [sum(fold == one for one in drawn.values()) for fold in range(folds)]
        fullest = max(range(folds), key=lambda fold: (sizes[fold], -fold))
        moved = min((p for p in drawn if drawn[p] == fullest), key=lambda patient: order[patient])
        drawn[moved] = empty[0]
    return drawn


def summed_up(records: Mapping[str, TrainingRecord], metric: str) -> TrainingRecord:
    """One record of all folds' (by name): the sum of the work, the mean of the scores and of the curves."""
    every = tuple(records.values())
    first = every[0]
    scores = [record.best_metric for record in every]
    turns = zip(*(record.history for record in every), strict=False)
    notes = [f"fold {name}: {note}" for name, record in records.items() for note in record.notes]
    return first.model_copy(
        update={
            "steps": sum(record.steps for record in every),
            "epochs": sum(record.epochs for record in every),
            "seconds": sum(record.seconds for record in every),
            "parameters": sum(record.parameters for record in every),
            "best_metric": statistics.fmean(scores),
            "best_step": round(statistics.fmean(record.best_step for record in every)),
            "history": tuple(_mean_turn(turn) for turn in turns),
            "notes": (_told(metric, scores), *notes),
            "folds": every,
        }
    )


def _told(metric: str, scores: Sequence[float]) -> str:
    each = ", ".join(f"{score:.3f}" for score in scores)
    return (
        f"cross-validation over {len(scores)} folds by patient: {metric} {statistics.fmean(scores):.3f} ± "
        f"{statistics.stdev(scores):.3f} ({each})"
    )


def _mean_turn(turn: Sequence[tuple[int, float, float]]) -> tuple[int, float, float]:
    steps, losses, metrics = zip(*turn, strict=True)
    return round(statistics.fmean(steps)), statistics.fmean(losses), statistics.fmean(metrics)


def _of_fold(plan: Plan, fold: int, rounds: int) -> Plan:
    """With a seed of its own, as networks that start alike err alike, and its part of the minutes."""
    minutes = None if plan.train.minutes is None else plan.train.minutes / rounds
    seed = int(content_key("fold", plan.seed, fold)[:_DIGITS], 16)
    return plan.model_copy(update={"seed": seed, "train": plan.train.model_copy(update={"minutes": minutes})})
