"""One serving model as it is now: what it is shown, what it says and how good that was, beside what was known."""

from __future__ import annotations

from collections.abc import Sequence

from models.package import ModelPackage
from models.recipe.applying import Watch
from models.registration import Serving
from models.watching import Shift, Watched
from tasks.stores import alerts
from tasks.stores.house import Stores
from tasks.stores.packages import read_description
from tasks.stores.tables import AlertRow, CorrectionRow, EvaluationRow
from tasks.watch.inputs import inputs
from tasks.watch.outputs import Said, case_values, judged_cases, outputs
from tasks.watch.seen import Known, Predicted, training_cases, window
from tasks.watch.shifts import Numbers, fall, judged


def look(stores: Stores, model: Serving) -> Watched:
    """Every measure that the model's last predictions allow. Changes nothing. Raises NotFoundError."""
    return _looked(stores, model)[0]


def watch(stores: Stores, model: Serving) -> Watched:
    """As `look`; and what has newly moved becomes an alert that is told, what has moved back is resolved."""
    watched, now = _looked(stores, model)
    alerts.settle(stores.catalog, watched, now[-1].prediction if now else "")
    return watched


def opened(stores: Stores, name: str | None = None) -> Sequence[AlertRow]:
    """The alerts that are open, of one model or all."""
    return alerts.open_alerts(stores.catalog, name)


def _looked(stores: Stores, model: Serving) -> tuple[Watched, list[Predicted]]:
    """And the window that it was looked at by, the newest first."""
    package = read_description(stores.packages.local(model.package.key))
    rule, known = package.recipe.watch, training_cases(stores, package)
    learnt = {case.facts.volume for case in known.cases} if known else set()
    # An image is what it is, whichever version was shown it: a new champion need not wait for its own predictions.
    now = window(stores, model.name, rule.window, learnt)
    besides = [*(inputs(known, now, package.plan) if known else ()), *_outputs(stores, model, package, rule, learnt)]
    shifts = judged(besides, rule)
    quality = _quality(stores, package, rule)
    watched = Watched(
        name=model.name,
        version=model.version,
        package=model.package.key,
        cases=len(now),
        shifts=(*shifts, quality) if quality else shifts,
        note=_note(len(now), rule, known),
    )
    return watched, now


def _outputs(stores: Stores, model: Serving, package: ModelPackage, rule: Watch, learnt: set[str]) -> list[Numbers]:
    own = model.package.key
    last = window(stores, model.name, rule.window, learnt, package=own)
    first = window(stores, model.name, rule.window, learnt, package=own, oldest=True)
    # The first are known only where enough have come after them.
    patients = {case.patient for case in (*first, *last)}
    first = first[: max(0, len(patients) - rule.least)]
    return list(outputs(package, _test_cases(stores, package), first, last))


def _test_cases(stores: Stores, package: ModelPackage) -> list[Said]:
    evaluation = _evaluation(stores, package)
    if evaluation is None:
        return []
    threshold = stores.evaluations.read(evaluation.evaluation).threshold
    return judged_cases(stores.evaluations.cases(evaluation.evaluation), package, threshold)


def _evaluation(stores: Stores, package: ModelPackage) -> EvaluationRow | None:
    """The last one, rather on the dataset that it was trained with: the test patients that it was promoted by."""
    rows = stores.catalog.find(
        EvaluationRow, EvaluationRow.package == package.key, order_by=EvaluationRow.created_at.desc()
    )
    return next((row for row in rows if row.dataset == package.dataset), rows[0] if rows else None)


def _quality(stores: Stores, package: ModelPackage, rule: Watch) -> Shift | None:
    """The model's last corrections beside its test cases."""
    evaluation = _evaluation(stores, package)
    rows = stores.catalog.find(
        CorrectionRow,
        CorrectionRow.package == package.key,
        CorrectionRow.value.is_not(None),
        order_by=CorrectionRow.created_at.desc(),
        limit=rule.window,
    )
    # Of a prediction that was corrected twice the last word counts.
    last = {row.prediction: row.value for row in reversed(rows)}
    if evaluation is None or not last:
        return None
    known = case_values(stores.evaluations.cases(evaluation.evaluation), package.plan.kind)
    metric = "right calls" if package.plan.kind == "classification" else "dice"
    return fall(known, [value for value in last.values() if value is not None], rule, metric=metric)


def _note(cases: int, rule: Watch, known: Known | None) -> str:
    if known is None:
        return "the package does not tell what it was trained on: train again"
    if cases < rule.least:
        return f"{cases} of the {rule.least} patients that are needed have been predicted"
    return ""
