"""From a recipe and a fingerprint to a plan: nnU-Net's rules, bounded by the memory and the minutes at hand."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from models.errors import RecipeError
from models.networks import entry_for, entry_named
from models.plan import (
    Fingerprint,
    InferPlan,
    IntTriple,
    NetworkPlan,
    Normalisation,
    Plan,
    PreparePlan,
    TrainPlan,
    VariablePlan,
)
from models.recipe import Detection, Kind, Recipe, Window
from models.recipe.labels import MOST_REGIONS
from models.recipe.losses import chosen_loss
from tasks.preprocess import generative, patients
from tasks.preprocess.budget import Budget, Sized, size_classification, size_segmentation
from tasks.preprocess.candidates import to_choose_from
from tasks.preprocess.fitting import Fitting, Measure
from tasks.preprocess.grids import Device, Grid, choose_grid, choose_size, median_shape
from tasks.preprocess.rarity import class_weights
from tasks.preprocess.resolution import Planned, resolved

MASKED_BELOW = 0.75
"""Share of the image that is not empty, below which a z-score looks inside alone (nnU-Net)."""
SGD_FROM_STEPS = 20_000
"""Momentum 0.99 pays in long trainings: on hippocampi after 1,000 steps it has Dice 0.87, AdamW 0.89."""
MIRROR_FROM_STEPS, MIRROR_X_FROM_STEPS = 20_000, 5000
"""Mirror images have to be learnt as well: on hippocampi after 1,000 steps Dice 0.86 with all of them, 0.89 without."""
EPOCH_STEPS = (10, 250)

DEFAULTS: dict[Kind, str] = {
    "segmentation": "unet",
    "classification": "resnet",
    "detection": "retinanet",
    "synthesis": generative.NETWORK,
}
"""The network that "auto" means."""

Axis = Literal["z", "y", "x"]

_SIDES = re.compile(r"\b(left|right|lt|rt|links?|rechts?|sinister|dexter)\b", re.IGNORECASE)
_ENDS = re.compile(r"(anterior|posterior|superior|inferior|upper|lower|cranial|caudal|proximal|distal)", re.IGNORECASE)


def make_plan(
    recipe: Recipe,
    fingerprint: Fingerprint,
    classes: tuple[str, ...],
    *,
    memory_gb: float,
    device: str,
    cores: int | None = None,
    series: Sequence[int] = (),
    variables: tuple[VariablePlan, ...] = (),
    measure: Measure | None = None,
) -> Plan:
    """Every number that preparing, training and applying need; `notes` say why.

    `device` is where training runs (`cpu` or `cuda…`), `cores` how many of its CPUs (default: all); `series`, where
    patients are the cases, how many each training patient has. With `measure`, and minutes for a budget, the plan is
    cut to what steps of the measured length can train. Raises RecipeError where the recipe cannot be carried
    out: what to change is in its hint.
    """
    if recipe.network.select:
        more = partial(
            make_plan, fingerprint=fingerprint, classes=classes, memory_gb=memory_gb, device=device, cores=cores,
            series=series, variables=variables, measure=measure,
        )  # fmt: skip
        return to_choose_from(recipe, more)
    kind: Device = "cuda" if device.startswith("cuda") else "cpu"
    grid = choose_grid(recipe, fingerprint, kind)
    budget = patients.shared(_of_a_fold(Budget.of(recipe, memory_gb, kind, cores), recipe), series)
    planner = Planner(recipe, fingerprint, classes, tuple(series), variables)
    fitting = Fitting(recipe, planner.plan, measure, cases=len(series) or len(fingerprint.cases))
    return resolved(recipe, fingerprint, grid, budget, planner.plan, fitting.fit)


@dataclass(frozen=True)
class Planner:
    """Plans on a given grid, with a given budget."""

    recipe: Recipe
    fingerprint: Fingerprint
    classes: tuple[str, ...]
    series: tuple[int, ...]
    variables: tuple[VariablePlan, ...]

    def plan(self, grid: Grid, budget: Budget, *, told: bool = False) -> Planned:
        """A plan of one stage; its network is `told` a coarser segmentation, or not. Raises RecipeError."""
        recipe, fingerprint, classes, series = self.recipe, self.fingerprint, self.classes, self.series
        cases, channels = len(series) or len(fingerprint.cases), len(fingerprint.intensities)
        outputs = _outputs(recipe, classes)
        notes = [*grid.notes, *patients.told(series)]
        if recipe.train.folds > 1:
            notes.append(f"{recipe.train.folds} folds by patient: a network each")
        size: IntTriple | None = None
        if recipe.learns_masks:
            sized = size_segmentation(
                recipe, grid, budget, cases=cases, channels=channels + told * len(classes), outputs=outputs,
                volume=median_shape(fingerprint, grid.spacing),
            )  # fmt: skip
        else:
            size, why = self._size(grid, budget.device)
            notes.append(why)
            with patients.sharing(series):
                sized = size_classification(recipe, grid, budget, size=size, cases=cases, channels=channels)
        notes += sized.notes
        prepare, more = _prepare(recipe, fingerprint, grid, size)
        notes += more
        network = _network(recipe, grid, sized, channels, outputs).model_copy(
            update={
                "variables": sum(variable.width for variable in self.variables),
                "told": len(classes) if told else 0,
                "told_regions": told and recipe.labels.regions,
            }
        )
        flips, why = _flips(recipe, classes, grid, sized)
        train, more = _train(recipe, grid, sized, cases, flips)
        weights, rare = class_weights(recipe, fingerprint, classes)
        compiled = train.compile if entry_for(network).compiles else False
        train = train.model_copy(update={"class_weights": weights, "compile": compiled})
        notes += [why, *more, *([rare] if rare else [])]
        return Planned(self._whole(prepare, network, train, flips, notes), sized, grid)

    def _size(self, grid: Grid, device: Device) -> tuple[IntTriple, str]:
        """Of a classified picture, and why."""
        recipe, classes = self.recipe, self.classes
        if recipe.kind == "classification" and len(classes) < 2 - recipe.labels.several:
            raise RecipeError(
                f"a classification needs two classes, not {len(classes)}",
                where="labels.classes",
                hint="import labels with at least two values",
            )
        return choose_size(recipe, self.fingerprint, grid, device)

    def _whole(
        self, prepare: PreparePlan, network: NetworkPlan, train: TrainPlan, flips: tuple[Axis, ...], notes: list[str]
    ) -> Plan:
        recipe = self.recipe
        infer = InferPlan(
            tile=train.patch_size,
            overlap=recipe.infer.overlap,
            mirror_axes=flips if recipe.infer.mirror else (),
            keep_largest=recipe.infer.keep_largest if recipe.kind == "segmentation" else False,
        )
        plan = Plan(
            recipe=recipe.name,
            kind=recipe.kind,
            seed=recipe.seed,
            classes=self.classes,
            prepare=prepare,
            network=network,
            train=train,
            infer=infer,
            regions=recipe.labels.regions,
            several=recipe.labels.several,
            of=recipe.labels.of,
            channels=tuple(channel.name for channel in recipe.images.channels),
            variables=self.variables,
            detection=_detection(recipe),
            synthesis=recipe.synthesis,
            notes=tuple(notes),
        )
        return generative.adapted(plan, recipe) if recipe.kind == "synthesis" else plan


def _of_a_fold(budget: Budget, recipe: Recipe) -> Budget:
    """What one of the recipe's folds has of the time, where they learn one after the other."""
    return budget if budget.seconds is None else replace(budget, seconds=budget.seconds / recipe.train.folds)


def _detection(recipe: Recipe) -> Detection:
    """With its method settled: components learn from every voxel, boxes from a few places, which takes far longer."""
    if recipe.detection.method != "auto":
        return recipe.detection
    return recipe.detection.model_copy(update={"method": "components"})


def _outputs(recipe: Recipe, classes: Sequence[str]) -> int:
    if recipe.labels.regions and len(classes) > MOST_REGIONS:
        raise RecipeError(
            f"at most {MOST_REGIONS} regions may overlap, not {len(classes)}",
            where="labels.regions",
            hint="name fewer in labels.classes",
        )
    return len(classes) + recipe.background


# -- preparing --------------------------------------------------------------------------------------------------


def _prepare(
    recipe: Recipe, fingerprint: Fingerprint, grid: Grid, size: tuple[int, int, int] | None
) -> tuple[PreparePlan, list[str]]:
    crop = recipe.preprocess.crop
    if crop == "auto":
        # Zero is water in CT, not "outside"; and a classified picture's frame is part of it.
        framed = "CT" in (fingerprint.modality, *fingerprint.modalities) or not recipe.learns_masks
        crop = "none" if framed else "nonzero"
    ways = tuple(_normalisation(recipe, fingerprint, channel, crop) for channel in range(len(fingerprint.intensities)))
    plan = PreparePlan(
        dimensions=grid.dimensions,
        spacing=None if size else grid.spacing,
        size=size,
        anisotropic=grid.anisotropic and grid.dimensions == 3 and size is None,
        crop=crop,
        channels=len(ways),
        steps=recipe.preprocess.steps,
        normalisation=ways,
    )
    names = [f" of {channel.name}" for channel in recipe.images.channels] or [""]
    notes = [f"normalisation{name} {_told(way)}" for name, way in zip(names, ways, strict=False)]
    if plan.anisotropic:
        notes.append("slices lie over 3 pixels apart: z is resampled by nearest neighbour, in-plane by cubic splines")
    return plan, notes


def _told(way: Normalisation) -> str:
    if way.scheme == "ct":
        return f"ct: clipped to {way.low:g}…{way.high:g}, then (x − {way.mean:g})/{way.std:g} of the foreground"
    if way.scheme == "zscore":
        return "z-score of each image" + (", inside its body" if way.masked else "")
    return way.scheme


def _normalisation(recipe: Recipe, fingerprint: Fingerprint, channel: int, crop: str) -> Normalisation:
    own = recipe.images.channels[channel].normalise if recipe.images.channels else None
    how = own or recipe.preprocess.normalise
    scheme = ("ct" if fingerprint.modality_of(channel) == "CT" else "zscore") if how == "auto" else how
    stats = fingerprint.intensities[channel]
    if scheme == "ct":
        low, high, mean, std = (_steady(v, stats.std) for v in (stats.p005, stats.p995, stats.mean, stats.std))
        return Normalisation(scheme="ct", low=low, high=high, mean=mean, std=std)
    if scheme == "zscore":
        return Normalisation(scheme="zscore", masked=crop == "nonzero" and fingerprint.crop_ratio < MASKED_BELOW)
    if scheme == "percentile":
        low, high = recipe.preprocess.percentiles
        return Normalisation(scheme="percentile", low=low, high=high)
    if scheme == "window":
        windows = [step for step in recipe.preprocess.steps if isinstance(step, Window)]
        if not windows:
            raise RecipeError(
                'normalise = "window" needs to know which window',
                where="preprocess.normalise",
                hint='add {step = "window", center = …, width = …} to preprocess.steps',
            )
        last = windows[-1]
        return Normalisation(scheme="window", low=last.center - last.width / 2, high=last.center + last.width / 2)
    return Normalisation(scheme=scheme)


def _steady(value: float, std: float) -> float:
    """To half the order of the spread (5 HU where it is 38), so that a night's new cases seldom change it.

    Prepared arrays are keyed by these numbers; the network does not care about a tenth of a standard deviation.
    """
    step = 10.0 ** math.floor(math.log10(max(std, 1e-8))) / 2
    return float(f"{round(value / step) * step:.12g}")


# -- network and training ---------------------------------------------------------------------------------------


def _network(recipe: Recipe, grid: Grid, sized: Sized, channels: int, outputs: int) -> NetworkPlan:
    # A network is of use to a kind of model; a detection by components takes those of a segmentation.
    use: Kind = "segmentation" if recipe.segments else recipe.kind
    name = recipe.network.name
    plan = NetworkPlan(
        name=_default(recipe, use) if name == "auto" else name,
        dimensions=grid.dimensions,
        in_channels=channels,
        out_channels=outputs,
        features=sized.features,
        strides=sized.topology.strides,
        kernels=sized.topology.kernels,
        dropout=recipe.network.dropout,
        stochastic_depth=recipe.network.stochastic_depth,
        size=None if recipe.learns_masks else sized.topology.patch,
    )
    entry = entry_named(plan.name)
    if use not in entry.kinds:
        told = f" by {_detection(recipe).method}" if recipe.kind == "detection" else ""
        raise RecipeError(
            f"{plan.name} cannot do {recipe.kind}{told}", where="network.name", hint='leave network.name at "auto"'
        )
    entry_for(plan)
    patients.check(recipe, entry)
    for key in ("dropout", "stochastic_depth"):
        if getattr(recipe.network, key) and not getattr(entry, key):
            raise RecipeError(f"{plan.name} has no {key}", where=f"network.{key}", hint="leave it out")
    if entry.positions:
        plan = plan.model_copy(update={"size": sized.topology.patch})
    deep = recipe.train.deep_supervision and entry.deep_supervision and len(plan.features) >= 3
    return plan.model_copy(update={"deep_supervision": deep})


def _default(recipe: Recipe, use: Kind) -> str:
    return patients.DEFAULT if recipe.labels.of == "patient" else DEFAULTS[use]


def _train(
    recipe: Recipe, grid: Grid, sized: Sized, cases: int, flips: tuple[Axis, ...]
) -> tuple[TrainPlan, list[str]]:
    wish, masks, voxels = recipe.train, recipe.learns_masks, recipe.segments
    steps_per_epoch = wish.steps_per_epoch
    if steps_per_epoch == "auto":
        steps_per_epoch = _epoch(grid, sized, cases) if masks else max(1, math.ceil(cases / sized.batch))
    total = min(sized.steps, math.inf if wish.epochs is None else float(wish.epochs * int(steps_per_epoch)))
    optimiser = wish.optimiser
    if optimiser == "auto":
        optimiser = "sgd" if voxels and total >= SGD_FROM_STEPS else "adamw"
    rates = {"sgd": 0.01, "adamw": 3e-3 if voxels else 1e-3}
    decays = {"sgd": 3e-5, "adamw": 1e-2}
    # Averaging over more than a tenth of a short training would keep its beginning.
    ema = min(wish.ema, max(0.0, 1 - 10 / total))
    plan = TrainPlan(
        patch_size=sized.topology.patch,
        batch_size=sized.batch,
        steps_per_epoch=steps_per_epoch,
        epochs=wish.epochs,
        minutes=wish.limit_minutes,
        optimiser=optimiser,
        learning_rate=rates[optimiser] if wish.learning_rate == "auto" else wish.learning_rate,
        weight_decay=decays[optimiser] if wish.weight_decay == "auto" else wish.weight_decay,
        schedule=("poly" if masks else "cosine") if wish.schedule == "auto" else wish.schedule,
        warmup=wish.warmup,
        loss=chosen_loss(recipe),
        # Balanced twice, the rare would be the frequent.
        class_balance=wish.class_balance and wish.class_weights != "auto",
        label_smoothing=wish.label_smoothing,
        clip=wish.clip,
        ema=float(f"{ema:.4g}"),
        oversample_foreground=wish.oversample_foreground,
        precision=wish.precision,
        compile=wish.compile,
        patience=wish.patience,
        validations=wish.validations,
        checkpoint_minutes=wish.checkpoint_minutes,
        device=wish.device,
        augment=recipe.augment,
        flip_axes=flips,
        tversky=wish.tversky,
        mixup=wish.mixup,
        cutmix=wish.cutmix,
        channel_dropout=recipe.images.channel_dropout if recipe.images.missing == "learn" else 0.0,
        folds=wish.folds,
        start=recipe.start,
    )
    length = "" if math.isinf(total) else f" for about {total:,.0f} steps"
    return plan, [f"{plan.optimiser} at {plan.learning_rate:g}, {plan.schedule}{length}"]


def _epoch(grid: Grid, sized: Sized, cases: int) -> int:
    """Steps in which every case's voxels come up about once, within what makes a useful unit."""
    per_case = max(1.0, math.prod(grid.median) / math.prod(sized.topology.patch))
    least, most = EPOCH_STEPS
    return int(min(most, max(least, math.ceil(cases * per_case / sized.batch))))


def _flips(recipe: Recipe, classes: Sequence[str], grid: Grid, sized: Sized) -> tuple[tuple[Axis, ...], str]:
    """nnU-Net mirrors along all axes. Classes that name a side, and short trainings, bear less."""
    every: tuple[Axis, ...] = ("z", "y", "x") if grid.dimensions == 3 else ("y", "x")
    if recipe.augment.flip != "auto":
        axes = tuple(a for a in recipe.augment.flip if a in every)
        return axes, f"mirrored along {', '.join(axes) or 'no axis'}: given"
    names = " ".join(name.replace("_", " ").replace("-", " ") for name in classes)
    if _SIDES.search(names):
        return (), "never mirrored: the classes tell left from right"
    if not recipe.learns_masks:
        return ("x",), "mirrored along x alone: patients are about symmetric, pictures are never upside down"
    if sized.steps < MIRROR_X_FROM_STEPS:
        return (), "not mirrored: the budget is too short to learn mirror images as well"
    if _ENDS.search(names):
        return ("x",), "mirrored along x alone: the classes tell one end from the other"
    if sized.steps < MIRROR_FROM_STEPS:
        return ("x",), "mirrored along x alone: other mirror images cost more steps than this budget has"
    return every, "mirrored along all axes (nnU-Net)"
