"""From a package, its evaluation and its dataset to the card: nothing is claimed that was not measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

from models.card import (
    Against,
    AgreementLimits,
    Data,
    Details,
    ModelCard,
    Performance,
    Provenance,
    SplitCount,
    Training,
)
from models.dataset import SPLITS, Dataset, DatasetRow
from models.evaluation import Comparison, Evaluation
from models.package import ModelPackage
from models.recipe import Kind
from tasks.register.card.wording import (
    INTERVALS,
    LICENCE,
    ethics_of,
    factors_of,
    limits_of,
    metric_name,
    output_of,
    use_of,
)

_PIPELINES: Final[dict[Kind, str]] = {
    "segmentation": "image-segmentation",
    "classification": "image-classification",
    "detection": "object-detection",
    "synthesis": "unconditional-image-generation",
}
"""The Hub's names of what a model does."""


def gather(
    package: ModelPackage, evaluation: Evaluation, dataset: Dataset, *, comparison: Comparison | None = None
) -> ModelCard:
    """The card of `package` as it was judged; `comparison` is that with the champion of the day."""
    return ModelCard(
        details=_details(package),
        use=use_of(package),
        factors=factors_of(package, evaluation),
        data=_data(dataset),
        training=_training(package),
        performance=_performance(package, evaluation, comparison),
        ethics=ethics_of(dataset),
        limitations=limits_of(package, evaluation, dataset),
        provenance=_provenance(package),
        licence=LICENCE,
        running=f"nocturne predict STUDY_FOLDER --model {package.recipe.name}",
        hub=_hub(package, evaluation),
    )


def _details(package: ModelPackage) -> Details:
    plan = package.plan
    return Details(
        name=package.recipe.name,
        kind=plan.kind,
        package=package.key,
        network=plan.network.name,
        dimensions=plan.network.dimensions,
        parameters=package.training.parameters,
        classes=plan.classes,
        modalities=package.recipe.images.modalities,
        output=output_of(plan),
        members=max(1, len(package.members)),
        started_from=package.started_from,
    )


def _data(dataset: Dataset) -> Data:
    counts, rows = dataset.counts(), dataset.rows
    classes: dict[str, int] = {}
    if dataset.kind == "classification":
        classes = _tally(name for row in rows for name in _classes_of(dataset, row))
    return Data(
        dataset=dataset.key,
        splits=tuple(SplitCount(split=s, patients=counts[s][0], cases=counts[s][1]) for s in SPLITS),
        modalities=_tally(row.modality for row in rows),
        manufacturers=_tally(row.manufacturer or "not recorded" for row in rows),
        classes=classes,
        made_images=sum(row.synthetic for row in rows),
        spacing_mm=tuple(_span([row.spacing[axis] for row in rows]) for axis in range(3)),
    )


def _classes_of(dataset: Dataset, row: DatasetRow) -> Sequence[str]:
    if row.target >= 0:
        return (dataset.classes[row.target],)
    return [name for name, there in zip(dataset.classes, row.classes, strict=True) if there] or ("none",)


def _tally(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _span(values: Sequence[float]) -> tuple[float, float]:
    return (min(values), max(values)) if values else (0.0, 0.0)


def _training(package: ModelPackage) -> Training:
    record = package.training
    return Training(
        choices=tuple((what, str(value)) for what, value in package.plan.rows()),
        minutes=record.seconds / 60,
        steps=record.steps,
        epochs=record.epochs,
        stopped_by=record.stopped_by,
        device=record.device,
        precision=record.precision,
        best_metric=record.best_metric,
        best_step=record.best_step,
        notes=(*package.plan.notes, *record.notes),
    )


def _performance(package: ModelPackage, evaluation: Evaluation, comparison: Comparison | None) -> Performance:
    against = None
    if comparison is not None:
        against = Against(
            champion=comparison.champion,
            metric=comparison.primary,
            difference=comparison.primary_difference,
            tests=comparison.tests,
        )
    return Performance(
        dataset=evaluation.dataset,
        n_patients=evaluation.n_patients,
        n_cases=evaluation.n_cases,
        primary=evaluation.primary,
        metrics=evaluation.metrics,
        thresholds=_thresholds(evaluation),
        surface_tolerance_mm=evaluation.surface_tolerance_mm,
        intervals=INTERVALS,
        against=against,
        subgroups=evaluation.subgroups,
        small=package.recipe.promote.subgroup_patients,
        agreement=tuple(
            AgreementLimits(class_name=a.class_name, bias=a.bias, lower=a.lower, upper=a.upper, n_cases=len(a.points))
            for a in evaluation.agreement
        ),
        cost=evaluation.cost,
    )


def _thresholds(evaluation: Evaluation) -> dict[str, float]:
    if evaluation.thresholds:
        return dict(zip(evaluation.class_names, evaluation.thresholds, strict=True))
    if evaluation.threshold is None:
        return {}
    return {evaluation.positive or "lesion": evaluation.threshold}


def _provenance(package: ModelPackage) -> Provenance:
    made = package.environment
    return Provenance(
        weights_sha256=package.weights_sha256,
        dataset=package.dataset,
        recipe=package.recipe.key,
        plan=package.plan.key,
        seed=package.plan.seed,
        code=made.code,
        nocturne=made.nocturne,
        python=made.python,
        torch=made.torch,
        platform=made.platform,
    )


def _hub(package: ModelPackage, evaluation: Evaluation) -> dict[str, Any]:
    """Metadata as the Hugging Face Hub reads them: https://huggingface.co/docs/hub/model-cards."""
    task = _PIPELINES[package.plan.kind]
    results = [
        {"type": m.metric, "name": metric_name(m.metric), "value": m.interval.value}
        for m in evaluation.metrics
        if m.class_name is None
    ]
    return {
        "library_name": "nocturne",
        "pipeline_tag": task,
        "license": "other",
        "license_name": "no-licence-granted",
        "tags": ["medical-imaging", "dicom", package.plan.kind, *map(str.lower, package.recipe.images.modalities)],
        "datasets": [package.dataset],
        "metrics": list(dict.fromkeys(result["type"] for result in results)),
        "base_model": package.started_from or None,
        "model-index": [
            {
                "name": package.recipe.name,
                "results": [
                    {
                        "task": {"type": task},
                        "dataset": {"name": "frozen test split", "type": evaluation.dataset},
                        "metrics": results,
                    }
                ],
            }
        ],
    }
