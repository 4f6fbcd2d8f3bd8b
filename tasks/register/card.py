"""The model card: what a version is, what it learned from, how good it is and where it must not be trusted.

Markdown after Mitchell et al., "Model cards for model reporting", FAT* 2019. Counts and pseudonymous keys only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from models.dataset import SPLITS, Dataset, DatasetRow
from models.evaluation import Comparison, Evaluation, Interval
from models.package import ModelPackage
from models.plan import Plan

_FEW_PATIENTS = 30
_NAMES = {
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


def model_card(
    package: ModelPackage, evaluation: Evaluation, dataset: Dataset, *, comparison: Comparison | None = None
) -> str:
    """The card as Markdown, each section from what was recorded; nothing is claimed that was not measured."""
    sections = (
        _head(package, evaluation),
        _use(package),
        _training_data(dataset),
        _training(package),
        _performance(evaluation, comparison),
        _limits(package, evaluation, dataset),
        _provenance(package, evaluation),
        _running(package),
    )
    return "\n\n".join("\n".join(lines) for lines in sections) + "\n"


def _head(package: ModelPackage, evaluation: Evaluation) -> list[str]:
    plan, primary = package.plan, evaluation.primary_interval
    return [
        f"# {package.recipe.name}",
        "",
        f"A {plan.network.dimensions}-D {plan.network.name} network for {plan.kind} of "
        f"{_listed(package.recipe.images.modalities)} images: {_listed(plan.classes)}. "
        f"{_name(evaluation.primary)} **{_shown(primary)}** on {evaluation.n_patients} test patients "
        "that it never learned from.",
    ]


def _use(package: ModelPackage) -> list[str]:
    output = _output(package.plan)
    return [
        "## Intended use",
        "",
        f"It gives {output} for {_listed(package.recipe.images.modalities)} images like those that it was trained on, "
        "in the institution that trained it, for research and for quality control by qualified staff.",
        "",
        "**Not for diagnostic use.** It is not a medical device. It was not validated clinically, and the figures "
        "below do not replace such a validation. Every result is to be checked by a person.",
    ]


def _output(plan: Plan) -> str:
    if plan.kind == "detection":
        return f"lesions as {'masks' if plan.segments else 'boxes'} with a confidence each"
    if plan.kind == "synthesis":
        return "new images of a class"
    if plan.kind == "segmentation":
        return "voxel masks of regions that may overlap" if plan.regions else "voxel masks"
    return "a probability for each class" + (", of which an image may show several or none" if plan.several else "")


def _training_data(dataset: Dataset) -> list[str]:
    counts = dataset.counts()
    lines = ["## Data", "", "| split | patients | cases |", "|---|---:|---:|"]
    lines += [f"| {split} | {counts[split][0]} | {counts[split][1]} |" for split in SPLITS]
    lines += ["", "No patient is in two splits, and none ever changes side.", ""]
    lines += [
        f"- modality: {_tally(row.modality for row in dataset.rows)}",
        f"- manufacturer: {_tally(row.manufacturer or 'not recorded' for row in dataset.rows)}",
    ]
    if made := sum(row.synthetic for row in dataset.rows):
        lines.append(f"- made images, counted above as patients of their own: {made}, in training alone")
    if dataset.kind == "classification":
        lines.append(f"- class: {_tally(name for row in dataset.rows for name in _classes_of(dataset, row))}")
    spacings = [_span([row.spacing[axis] for row in dataset.rows]) for axis in range(3)]
    return [*lines, f"- spacing (z, y, x): {' × '.join(spacings)} mm"]


def _classes_of(dataset: Dataset, row: DatasetRow) -> Sequence[str]:
    if row.target >= 0:
        return (dataset.classes[row.target],)
    return [name for name, there in zip(dataset.classes, row.classes, strict=True) if there] or ("none",)


def _training(package: ModelPackage) -> list[str]:
    training = package.training
    lines = ["## Training", "", "| | |", "|---|---|"]
    lines += [f"| {_cell(what)} | {_cell(value)} |" for what, value in package.plan.rows()]
    lines += [
        f"| parameters | {training.parameters:,} |",
        f"| trained for | {training.seconds / 60:.1f} min, {training.steps:,} steps, {training.epochs} epochs |",
        f"| ended by | {training.stopped_by} |",
        f"| on | {_cell(training.device)}, {training.precision} |",
        f"| best validation figure | {training.best_metric:.4f} at step {training.best_step:,} |",
    ]
    notes = (*package.plan.notes, *training.notes)
    return [*lines, *(["", *(f"- {note}" for note in notes)] if notes else [])]


def _performance(evaluation: Evaluation, comparison: Comparison | None) -> list[str]:
    lines = [
        "## Performance",
        "",
        f"On the frozen test split: {evaluation.n_patients} patients, {evaluation.n_cases} cases. Intervals are 95 %, "
        "by bootstrap over patients.",
        "",
        "| metric | class | value | interval | patients |",
        "|---|---|---:|---|---:|",
    ]
    for summary in evaluation.metrics:
        figure = summary.interval
        ends = f"{figure.low:.4f} to {figure.high:.4f}" if figure.low is not None else "none (one patient)"
        lines.append(
            f"| {_name(summary.metric)} | {_cell(summary.class_name or 'all')} "
            f"| {figure.value:.4f} | {ends} | {figure.n} |"
        )
    if evaluation.surface_tolerance_mm is not None:
        lines += ["", f"Surface Dice tolerates {evaluation.surface_tolerance_mm:g} mm."]
    if evaluation.kind == "detection" and evaluation.threshold is not None:
        lines += ["", f"A lesion is reported from a confidence of {evaluation.threshold:.4f} on."]
    elif evaluation.thresholds:
        told = zip(evaluation.class_names, evaluation.thresholds, strict=True)
        lines += ["", f"Called from a probability of {', '.join(f'{t:.4f} ({_cell(name)})' for name, t in told)} on."]
    elif evaluation.threshold is not None:
        lines += ["", f"Called {evaluation.positive} from a probability of {evaluation.threshold:.4f} on."]
    if comparison is not None:
        gap = comparison.primary_difference
        lines += [
            "",
            f"Against the champion of the day, package `{comparison.champion}`, on the same {gap.n} patients: "
            f"{_name(comparison.primary)} {_shown(gap, signed=True)}.",
        ]
    return lines


def _limits(package: ModelPackage, evaluation: Evaluation, dataset: Dataset) -> list[str]:
    lines = ["## Limitations", ""]
    makers = {row.manufacturer for row in dataset.rows if row.manufacturer}
    if evaluation.n_patients < _FEW_PATIENTS:
        lines.append(f"- The test split has only {evaluation.n_patients} patients: the intervals are wide and may err.")
    if len(makers) == 1:
        lines.append(f"- All images come from one manufacturer ({makers.pop()}): other scanners were never seen.")
    if not makers:
        lines.append("- The manufacturer is not recorded: which scanners it fits is unknown.")
    weak = _weakest(evaluation)
    if weak is not None:
        lines.append(f"- It is weakest on {weak[0]}: {_name(evaluation.primary)} {_shown(weak[1])}.")
    if package.plan.kind == "detection":
        lines.append("- Lesions of other kinds than the classes above are not looked for, whatever the image shows.")
    elif package.plan.kind == "segmentation":
        lines.append("- Structures other than the classes above are not looked for, whatever the image shows.")
    elif package.plan.several:
        lines.append("- What none of the classes above means is not looked for, whatever the image shows.")
    else:
        lines.append("- An image that belongs to none of the classes above is nevertheless given one.")
    lines += [
        "- One institution's patients: age, sex and disease may be spread otherwise elsewhere; no such subgroup was "
        "judged apart.",
        "- Images unlike the training's in intensity or spacing are reported as such, but no such check is complete.",
    ]
    return lines


def _provenance(package: ModelPackage, evaluation: Evaluation) -> list[str]:
    made = package.environment
    rows = [
        ("package", package.key),
        ("weights, SHA-256", package.weights_sha256),
        ("dataset", package.dataset),
        ("judged on dataset", evaluation.dataset),
        ("recipe", package.recipe.key),
        ("plan", package.plan.key),
        ("seed", str(package.plan.seed)),
        ("code", made.code),
    ]
    lines = ["## Provenance", "", "| | |", "|---|---|", *(f"| {what} | `{_cell(value)}` |" for what, value in rows)]
    lines += [f"| software | Nocturne {made.nocturne}, Python {made.python}, torch {made.torch}, {made.platform} |"]
    lines += [
        "",
        "## Licence",
        "",
        "No licence is granted with these weights. They are derived from the patients of the institution that trained "
        "them, which alone decides on their use and on passing them on.",
    ]
    return lines


def _running(package: ModelPackage) -> list[str]:
    return [
        "## How to run",
        "",
        "```",
        f"nocturne predict STUDY_FOLDER --model {package.recipe.name}",
        "```",
        "",
        "The package is `weights.safetensors` and `package.json`: the network, the preprocessing and the way it is "
        "applied are all in the latter, and neither holds code.",
    ]


def _weakest(evaluation: Evaluation) -> tuple[str, Interval] | None:
    """The class with the lowest primary figure, where there are several."""
    own = [(m.class_name, m.interval) for m in evaluation.metrics if m.metric == evaluation.primary and m.class_name]
    return min(own, key=lambda pair: pair[1].value) if len(own) > 1 else None


def _tally(values: Iterable[str]) -> str:
    return ", ".join(f"{value} {count}" for value, count in Counter(values).most_common()) or "none"


def _span(values: Sequence[float]) -> str:
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    return f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g}–{high:.3g}"


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:-1]) + f" and {words[-1]}" if len(words) > 1 else "".join(words)


def _name(metric: str) -> str:
    return _NAMES.get(metric, metric.replace("_", " "))


def _cell(value: object) -> str:
    """Fit for a Markdown table: class names come from the data."""
    return str(value).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _shown(interval: Interval, *, signed: bool = False) -> str:
    style = "+.4f" if signed else ".4f"
    if interval.low is None or interval.high is None:
        return f"{interval.value:{style}}"
    return f"{interval.value:{style}} [{interval.low:{style}}, {interval.high:{style}}]"
