"""The card as Markdown. Names come from the data: whatever is in them, the tables hold."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

from models.card import ModelCard, Performance
from models.evaluation import Interval, Subgroup
from tasks.register.card.wording import group_name, listed, metric_name
from tasks.register.rules import shown


def markdown(card: ModelCard) -> str:
    """Each section from what the document holds."""
    sections = (
        _head(card),
        _use(card),
        _data(card),
        _training(card),
        _performance(card),
        _subgroups(card),
        _agreement(card),
        _cost(card),
        ["## Limitations", "", *_points(card.limitations)],
        ["## Ethical considerations", "", *_points(card.ethics)],
        _provenance(card),
        ["## Licence", "", card.licence],
        _running(card),
    )
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def front_matter(card: ModelCard) -> str:
    """The Hub's fields as the YAML that its pages begin with. Every JSON value is one of YAML too."""
    fields = "\n".join(f"{key}: {json.dumps(value)}" for key, value in card.hub.items() if value is not None)
    return f"---\n{fields}\n---\n\n"


def _head(card: ModelCard) -> list[str]:
    details, performance = card.details, card.performance
    primary = next(m for m in performance.metrics if m.metric == performance.primary and m.class_name is None)
    several = f", {details.members} of them together" if details.members > 1 else ""
    return [
        f"# {details.name}",
        "",
        f"A {details.dimensions}-D {details.network} network{several} for {details.kind} of "
        f"{listed(details.modalities)} images: {listed([_cell(name) for name in details.classes])}. "
        f"{metric_name(performance.primary)} **{shown(primary.interval)}** on {performance.n_patients} test patients "
        "that it never learned from.",
    ]


def _use(card: ModelCard) -> list[str]:
    return [
        "## Intended use",
        "",
        card.use.primary,
        "",
        f"Users: {card.use.users}",
        "",
        "**Not for diagnostic use.** It is not a medical device. It was not validated clinically, and the figures "
        "below do not replace such a validation. Every result is to be checked by a person.",
        "",
        "Not for:",
        "",
        *_points(card.use.out_of_scope),
    ]


def _data(card: ModelCard) -> list[str]:
    data = card.data
    lines = ["## Data", "", "| split | patients | cases |", "|---|---:|---:|"]
    lines += [f"| {one.split} | {one.patients} | {one.cases} |" for one in data.splits]
    lines += ["", "No patient is in two splits, and none ever changes side.", ""]
    lines += [f"- modality: {_tally(data.modalities)}", f"- manufacturer: {_tally(data.manufacturers)}"]
    if data.made_images:
        made = "made images, counted above as patients of their own"
        lines.append(f"- {made}: {data.made_images}, in training alone")
    if data.classes:
        lines.append(f"- class: {_tally(data.classes)}")
    return [*lines, f"- spacing (z, y, x): {' × '.join(map(_span, data.spacing_mm))} mm"]


def _training(card: ModelCard) -> list[str]:
    training = card.training
    lines = ["## Training", "", "| | |", "|---|---|"]
    lines += [f"| {_cell(what)} | {_cell(value)} |" for what, value in training.choices]
    lines += [
        f"| parameters | {card.details.parameters:,} |",
        f"| trained for | {training.minutes:.1f} min, {training.steps:,} steps, {training.epochs} epochs |",
        f"| ended by | {training.stopped_by} |",
        f"| on | {_cell(training.device)}, {training.precision} |",
        f"| best validation figure | {training.best_metric:.4f} at step {training.best_step:,} |",
    ]
    if card.details.started_from:
        lines.append(f"| weights began as | `{_cell(card.details.started_from)}` |")
    return [*lines, *(["", *_points(training.notes)] if training.notes else [])]


def _performance(card: ModelCard) -> list[str]:
    performance = card.performance
    lines = [
        "## Performance",
        "",
        f"On the frozen test split: {performance.n_patients} patients, {performance.n_cases} cases. Intervals are "
        f"{performance.intervals}.",
        "",
        "| metric | class | value | interval | patients |",
        "|---|---|---:|---|---:|",
    ]
    lines += [
        f"| {metric_name(m.metric)} | {_cell(m.class_name or 'all')} | {m.interval.value:.4f} | {_ends(m.interval)} "
        f"| {m.interval.n} |"
        for m in performance.metrics
    ]
    if performance.surface_tolerance_mm is not None:
        lines += ["", f"Surface Dice tolerates {performance.surface_tolerance_mm:g} mm."]
    return [*lines, *_called(card), *_against(performance), "", *_points(card.factors)]


def _called(card: ModelCard) -> Iterator[str]:
    """From which probability on something is said to be there."""
    thresholds = card.performance.thresholds
    if not thresholds:
        return
    yield ""
    first = next(iter(thresholds.values()))
    if card.details.kind == "detection":
        yield f"A lesion is reported from a confidence of {first:.4f} on."
    elif len(thresholds) > 1:
        told = ", ".join(f"{value:.4f} ({_cell(name)})" for name, value in thresholds.items())
        yield f"Called from a probability of {told} on."
    else:
        yield f"Called {_cell(next(iter(thresholds)))} from a probability of {first:.4f} on."


def _against(performance: Performance) -> Iterator[str]:
    against = performance.against
    if against is None:
        return
    gap = against.difference
    yield ""
    yield (
        f"Against the champion of the day, package `{against.champion}`, on the same {gap.n} patients: "
        f"{metric_name(against.metric)} {shown(gap, signed=True)}."
    )
    if against.tests:
        yield from ("", "| paired test | class | Wilcoxon | bootstrap | p after Holm |", "|---|---|---:|---:|---:|")
    for test in against.tests:
        ranks = "none" if test.wilcoxon is None else f"{test.wilcoxon:.4f}"
        yield (
            f"| {metric_name(test.metric)} | {_cell(test.class_name or 'all')} | {ranks} | {test.bootstrap:.4f} "
            f"| {test.adjusted:.4f} |"
        )


def _subgroups(card: ModelCard) -> list[str]:
    groups, small = card.performance.subgroups, card.performance.small
    if not groups:
        return []
    metrics = list(dict.fromkeys(m.metric for g in groups for m in g.metrics if m.class_name is None))
    lines = [
        "## Subgroups",
        "",
        f"| subgroup | patients | cases | {' | '.join(map(metric_name, metrics))} |",
        f"|---|---:|---:|{'---|' * len(metrics)}",
    ]
    lines += [_subgroup(group, metrics, few=group.n_patients < small) for group in groups]
    if card.small_subgroups:
        lines += ["", f"\\* fewer than {small} patients: shown, but too few for any conclusion."]
    return lines


def _subgroup(group: Subgroup, metrics: Sequence[str], *, few: bool) -> str:
    found = {m.metric: shown(m.interval) for m in group.metrics if m.class_name is None}
    cells = " | ".join(found.get(metric, "none") for metric in metrics)
    name = _cell(group_name(group)) + (" \\*" if few else "")
    return f"| {name} | {group.n_patients} | {group.n_cases} | {cells} |"


def _agreement(card: ModelCard) -> list[str]:
    if not card.performance.agreement:
        return []
    lines = [
        "## Agreement of volumes",
        "",
        "Predicted minus true volume after Bland and Altman: 95 % of cases lie between the limits.",
        "",
        "| class | mean, ml | lower limit, ml | upper limit, ml | cases |",
        "|---|---:|---:|---:|---:|",
    ]
    for one in card.performance.agreement:
        limits = " | ".join(shown(i, signed=True) for i in (one.bias, one.lower, one.upper))
        lines.append(f"| {_cell(one.class_name)} | {limits} | {one.n_cases} |")
    return lines


def _cost(card: ModelCard) -> list[str]:
    cost = card.performance.cost
    if cost is None:
        return []
    return [
        "## Cost",
        "",
        f"A test case took {cost.seconds_median:.3g} s in the median and {cost.seconds_longest:.3g} s at most on "
        f"{_cell(cost.device)}; the weights take {cost.megabytes:.4g} MB.",
    ]


def _provenance(card: ModelCard) -> list[str]:
    made = card.provenance
    rows = [
        ("package", card.details.package),
        ("weights, SHA-256", made.weights_sha256),
        ("dataset", made.dataset),
        ("judged on dataset", card.performance.dataset),
        ("recipe", made.recipe),
        ("plan", made.plan),
        ("seed", str(made.seed)),
        ("code", made.code),
    ]
    lines = ["## Provenance", "", "| | |", "|---|---|", *(f"| {what} | `{_cell(value)}` |" for what, value in rows)]
    software = f"Nocturne {made.nocturne}, Python {made.python}, torch {made.torch}, {made.platform}"
    return [*lines, f"| software | {software} |"]


def _running(card: ModelCard) -> list[str]:
    return [
        "## How to run",
        "",
        "```",
        card.running,
        "```",
        "",
        "The package is `weights.safetensors` and `package.json`: the network, the preprocessing and the way it is "
        "applied are all in the latter, and neither holds code.",
    ]


def _points(sentences: Iterable[str]) -> list[str]:
    return [f"- {_line(sentence)}" for sentence in sentences]


def _ends(figure: Interval) -> str:
    return f"{figure.low:.4f} to {figure.high:.4f}" if figure.low is not None else "none (one patient)"


def _tally(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{_line(name)} {count}" for name, count in counts.items()) or "none"


def _span(ends: tuple[float, float]) -> str:
    low, high = (f"{end:.3g}" for end in ends)
    return low if low == high else f"{low}–{high}"


def _line(text: str) -> str:
    return text.replace("\n", " ").replace("<", "&lt;")


def _cell(value: object) -> str:
    """Fit for a Markdown table: class names come from the data."""
    return _line(str(value)).replace("|", "\\|")
