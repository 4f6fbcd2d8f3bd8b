"""What a card says in sentences: for what, not for what, whose interests are touched, and where it may fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from models.card import Use
from models.dataset import Dataset
from models.evaluation import Evaluation, Subgroup
from models.package import ModelPackage
from models.plan import Plan
from tasks.register.rules import shown

FEW_PATIENTS: Final = 30
INTERVALS: Final = "95 %, by bootstrap over patients"
LICENCE: Final = (
    "No licence is granted with these weights. They are derived from the patients of the institution that trained "
    "them, which alone decides on their use and on passing them on."
)
_NAMES: Final = {
    "dice": "Dice",
    "iou": "IoU",
    "pixel_accuracy": "pixel accuracy",
    "surface_dice": "surface Dice",
    "hd95_mm": "95 % Hausdorff distance, mm",
    "volume_absolute_error_ml": "absolute volume error, ml",
    "auc": "AUC",
    "average_precision": "average precision",
    "brier": "Brier score",
    "froc": "FROC (mean sensitivity at 1/8 to 8 false positives an image)",
    "false_positives": "false positives an image",
    "sensitivity_small": "sensitivity, lesions below 10 mm",
    "sensitivity_medium": "sensitivity, lesions of 10 to 30 mm",
    "sensitivity_large": "sensitivity, lesions from 30 mm on",
    **{
        f"sensitivity_at_{rate:g}": f"sensitivity at {rate:g} false positives an image"
        for rate in (0.125, 0.25, 0.5, 1, 2, 4, 8)
    },
}


def metric_name(metric: str) -> str:
    """As a reader calls it."""
    return _NAMES.get(metric, metric.replace("_", " "))


def group_name(group: Subgroup) -> str:
    """As `site A`."""
    return f"{group.attribute.replace('_', ' ')} {group.group}"


def listed(words: Sequence[str]) -> str:
    """As `a, b and c`."""
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else "".join(words)


def use_of(package: ModelPackage) -> Use:
    """For what and whom it was made, and what it is not for."""
    images = listed(package.recipe.images.modalities)
    return Use(
        primary=f"It gives {output_of(package.plan)} for {images} images like those that it was trained on, in the "
        "institution that trained it, for research and for quality control by qualified staff.",
        users="Staff of that institution who can read such images themselves and check every result.",
        out_of_scope=(
            "Diagnosis, triage or treatment without a person's own reading.",
            f"Images other than {images}, or from scanners, protocols and patients that its data do not hold.",
            "Passing on or selling its results, or its weights, outside the institution.",
        ),
    )


def output_of(plan: Plan) -> str:
    """What comes out, in words."""
    if plan.kind == "detection":
        return f"lesions as {'masks' if plan.segments else 'boxes'} with a confidence each"
    if plan.kind == "synthesis":
        return "new images of a class"
    if plan.kind == "segmentation":
        return "voxel masks of regions that may overlap" if plan.regions else "voxel masks"
    return "a probability for each class" + (", of which an image may show several or none" if plan.several else "")


def factors_of(package: ModelPackage, evaluation: Evaluation) -> tuple[str, ...]:
    """What is known to make a difference, and by what of it the test patients were told apart."""
    judged = [name.replace("_", " ") for name in dict.fromkeys(g.attribute for g in evaluation.subgroups)]
    asked = [name.replace("_", " ") for name in package.recipe.evaluate.subgroups]
    silent = [name for name in asked if name not in judged]
    told = ["Scanner, protocol, contrast agent, the patient's age and sex, and the size of what is sought."]
    if judged:
        told.append(f"The test patients were judged apart by {listed(judged)}.")
    if silent:
        told.append(f"They could not be told apart by {listed(silent)}: all alike, or not recorded.")
    return tuple(told)


def ethics_of(dataset: Dataset) -> tuple[str, ...]:
    """Whose data they are, and what a wrong result may do."""
    patients = len({row.patient for row in dataset.rows if not row.synthetic})
    return (
        f"It was learnt from {patients} patients' images and labels. They were de-identified before anything was "
        "learnt, and only pseudonyms are kept with the model; but weights may hold traces of what they have seen.",
        "A structure that is missed, or found where there is none, may mislead whoever does not look for themselves.",
        "Groups of patients who are rare in the data may be served worse: see the subgroups, and what is not recorded.",
    )


def limits_of(package: ModelPackage, evaluation: Evaluation, dataset: Dataset) -> tuple[str, ...]:
    """Where it must not be trusted, as far as the record shows."""
    return (
        *_of_the_data(evaluation, dataset),
        *_of_classes(evaluation),
        *_of_subgroups(package, evaluation),
        _beyond_the_classes(package.plan),
        "One institution's patients: age, sex and disease may be spread otherwise elsewhere"
        + ("." if evaluation.subgroups else "; no such subgroup was judged apart."),
        "Images unlike the training's in intensity or spacing are reported as such, but no such check is complete.",
    )


def _of_the_data(evaluation: Evaluation, dataset: Dataset) -> Iterator[str]:
    makers = {row.manufacturer for row in dataset.rows if row.manufacturer}
    if evaluation.n_patients < FEW_PATIENTS:
        yield f"The test split has only {evaluation.n_patients} patients: the intervals are wide and may err."
    if len(makers) == 1:
        yield f"All images come from one manufacturer ({makers.pop()}): other scanners were never seen."
    elif not makers:
        yield "The manufacturer is not recorded: which scanners it fits is unknown."


def _of_classes(evaluation: Evaluation) -> Iterator[str]:
    """The class with the lowest primary figure, where there are several."""
    own = [(m.class_name, m.interval) for m in evaluation.metrics if m.metric == evaluation.primary and m.class_name]
    if len(own) > 1:
        name, figure = min(own, key=lambda pair: pair[1].value)
        yield f"It is weakest on {name}: {metric_name(evaluation.primary)} {shown(figure)}."


def _of_subgroups(package: ModelPackage, evaluation: Evaluation) -> Iterator[str]:
    """The subgroup with the lowest primary figure among those that are large enough, and which ones are not."""
    least, metric = package.recipe.promote.subgroup_patients, evaluation.primary
    figures = [
        (group, summary.interval)
        for group in evaluation.subgroups
        for summary in group.metrics
        if group.n_patients >= least and summary.metric == metric and summary.class_name is None
    ]
    if figures:
        group, figure = min(figures, key=lambda pair: pair[1].value)
        told = f"{metric_name(metric)} {shown(figure)}, {group.n_patients} patients"
        yield f"Of the subgroups of {least} test patients or more it is weakest on {group_name(group)}: {told}."
    if small := [group for group in evaluation.subgroups if group.n_patients < least]:
        named = listed([f"{group_name(group)} ({group.n_patients})" for group in small])
        yield f"Too few test patients for any conclusion in {named}: their figures may be far off."


def _beyond_the_classes(plan: Plan) -> str:
    whatever = "than the classes above are not looked for, whatever the image shows."
    if plan.kind == "detection":
        return f"Lesions of other kinds {whatever}"
    if plan.kind == "segmentation":
        return f"Structures other {whatever}"
    if plan.kind == "synthesis":
        return "Images of other classes than those above are not made."
    if plan.several:
        return "What none of the classes above means is not looked for, whatever the image shows."
    return "An image that belongs to none of the classes above is nevertheless given one."
