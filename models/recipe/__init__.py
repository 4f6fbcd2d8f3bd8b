"""What to learn and how: one typed, versioned TOML file.

Everything but `name`, `kind`, the images' modality and the labels' source has a default that works.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal, Self, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from models.errors import RecipeError
from models.hashing import content_key
from models.recipe.applying import (
    Code,
    Coded,
    Deliver,
    Detection,
    Evaluate,
    Infer,
    Promote,
    Synthesis,
    Synthetic,
    Watch,
)
from models.recipe.base import Auto, Kind, Part, Share, Size, SpacingMm
from models.recipe.images import Channel, Clinical, Images, Pictured, Selection, Variable
from models.recipe.labels import LabelClass, Labels, LabelSourceName, Split
from models.recipe.learning import Augment, Loss, Network, Nights, Start, Train
from models.recipe.losses import misfit
from models.recipe.preprocess import Clahe, FilterStep, Median, NormalisationName, Preprocess, Wavelet, Window

__all__ = [
    "Augment",
    "Auto",
    "Channel",
    "Clahe",
    "Clinical",
    "Code",
    "Coded",
    "Deliver",
    "Detection",
    "Evaluate",
    "FilterStep",
    "Images",
    "Infer",
    "Kind",
    "LabelClass",
    "LabelSourceName",
    "Labels",
    "Loss",
    "Median",
    "Network",
    "Nights",
    "NormalisationName",
    "Pictured",
    "Preprocess",
    "Promote",
    "Recipe",
    "Selection",
    "Share",
    "Size",
    "SpacingMm",
    "Split",
    "Start",
    "Synthesis",
    "Synthetic",
    "Train",
    "Variable",
    "Watch",
    "Wavelet",
    "Window",
]


_NOT_LEARNT: Final[Mapping[str, Any]] = {
    "evaluate": True,
    "promote": True,
    "watch": True,
    "deliver": True,
    "start": {"weights"},  # the file's digest says what it is, wherever it lies
    "infer": {"ensemble"},  # the others join once this one has learnt
}
_NOT_PLANNED: Final[Mapping[str, Any]] = {"start": True, "nights": True}

_AUTO: Final = "literal['auto']"
"""What pydantic calls this member of a union, in the place of a mistake."""


class Recipe(Part):
    """One model: what it learns from, how, and when it may serve."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")
    kind: Kind
    version: Literal[1] = 1
    seed: int = Field(0, ge=0, lt=2**63)
    images: Images
    labels: Labels
    clinical: Clinical = Clinical()
    synthetic: Synthetic | None = None
    split: Split = Split()
    preprocess: Preprocess = Preprocess()
    network: Network = Network()
    train: Train = Train()
    augment: Augment = Augment()
    start: Start = Start()
    nights: Nights = Nights()
    detection: Detection = Detection()
    synthesis: Synthesis = Synthesis()
    infer: Infer = Infer()
    evaluate: Evaluate = Evaluate()
    promote: Promote = Promote()
    watch: Watch = Watch()
    deliver: Deliver = Deliver()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        masks = self.learns_masks
        if masks and self.labels.source == "CSV":
            raise ValueError(f"labels.source: {self.kind} learns from SEG, RTSTRUCT or NIfTI; CSV holds classes")
        if not masks and self.labels.source != "CSV":
            raise ValueError(f"labels.source: {self.kind} learns from CSV labels (`nocturne labels import`)")
        if self.labels.regions and self.kind != "segmentation":
            raise ValueError("labels.regions: only a segmentation has regions")
        if self.kind != "classification" and (self.labels.several or self.labels.of == "patient"):
            raise ValueError("labels.several and labels.of are for a classification")
        if self.kind != "classification" and (self.clinical.variables or self.synthetic):
            raise ValueError("clinical and synthetic are for a classification")
        if self.kind == "synthesis" and self.start.source != "scratch":
            raise ValueError("start.source: a synthesis learns from scratch alone")
        if why := _unresolved(self) or _unselectable(self):
            raise ValueError(why)
        if why := misfit(self):
            raise ValueError(why)
        if self.labels.of == "patient" and self.images.channels:
            raise ValueError("labels.of: either a patient's series are one case, or several are its channels")
        return self

    @classmethod
    def parse(cls, text: str | bytes, *, where: str = "recipe") -> Self:
        """Read TOML, of a file's bytes in UTF-8.

        Raises RecipeError naming each bad key and, for an unknown one, the nearest known key.
        """
        try:
            data = tomllib.loads(text if isinstance(text, str) else text.decode("utf-8-sig"))
        except ValueError as error:  # TOMLDecodeError, another encoding, or an integer of thousands of digits
            raise RecipeError(f"not valid TOML: {error}", where=where) from None
        except RecursionError:
            raise RecipeError("not valid TOML: brackets within brackets without end", where=where) from None
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RecipeError("; ".join(_explained(error, data)), where=where) from None

    @property
    def learns_masks(self) -> bool:
        """Whether the truth are masks, from which patches are cut."""
        return self.kind in ("segmentation", "detection")

    @property
    def segments(self) -> bool:
        """Whether the network gives each voxel a class: a segmentation, or a detection made of one."""
        return self.kind == "segmentation" or (self.kind == "detection" and self.detection.segments)

    @property
    def background(self) -> bool:
        """Whether the network's first output is what belongs to no class."""
        return self.segments and not self.labels.regions

    @property
    def key(self) -> str:
        """Content hash: two recipes that mean the same have the same key."""
        return content_key("recipe", self.model_dump(mode="json"))

    @property
    def learning_key(self) -> str:
        """As `key`, over what shapes the weights alone: judging or delivering otherwise does not train again."""
        return content_key("learning", self.model_dump(mode="json", exclude=dict(_NOT_LEARNT)))

    @property
    def planning_key(self) -> str:
        """As `learning_key`, but for where weights come from and what a night keeps: a kept plan must have the same."""
        return content_key("planning", self.model_dump(mode="json", exclude={**_NOT_LEARNT, **_NOT_PLANNED}))

    @property
    def follows(self) -> bool:
        """Whether a night builds on the model that serves: on its weights, or on its plan."""
        return self.start.source == "champion" or self.nights.plan != "every-night"


def _unresolved(recipe: Recipe) -> str | None:
    """Why the recipe cannot have the resolution that it asks for, and what to write instead."""
    wish = recipe.network.resolution
    if wish not in ("low", "cascade"):
        return None
    if not recipe.segments:
        return f'network.resolution: "{wish}" is for what gives each voxel a class: write "auto"'
    if recipe.network.dimensions == 2:
        return f'network.resolution: "{wish}" is for three dimensions: write "auto", or network.dimensions = 3'
    if wish == "cascade" and recipe.start.source == "pretraining":
        return 'network.resolution: a cascade has two grids, pretraining one: write "full" or "low"'
    return None


def _unselectable(recipe: Recipe) -> str | None:
    """Why the recipe cannot choose among configurations, and what to write instead."""
    if not recipe.network.select:
        return None
    if not recipe.segments and (recipe.kind != "classification" or recipe.labels.of == "patient"):
        return "network.select: for segmentations, and classifications of images: name one network.name"
    if recipe.train.folds < 2:
        return "network.select: configurations are compared by cross-validation: write train.folds = 5, at least 2"
    if recipe.start.source != "scratch":
        return (
            "network.select: each configuration starts from scratch: leave start.source out, or name one network.name"
        )
    for name, network in recipe.network.candidates().items():
        if why := _unresolved(recipe.model_copy(update={"network": network})):
            return f"network.select: {name}: {why}"
    return None


def _explained(error: ValidationError, data: Mapping[str, Any]) -> list[str]:
    """Each mistake, once: where a value may be "auto", pydantic names that as a second mistake."""
    found = error.errors()
    autos = {e["loc"][:-1] for e in found if e["loc"][-1:] == (_AUTO,)}
    return [_explain(e, data, autos) for e in found if e["loc"][-1:] != (_AUTO,)]


def _explain(error: Any, data: Mapping[str, Any], autos: Collection[tuple[int | str, ...]]) -> str:
    place = _place(error, data)
    dotted = ".".join(place)
    if error["type"] != "extra_forbidden":
        message = str(error["msg"]).removeprefix("Value error, ")
        message += ', or "auto"' if error["loc"][:-1] in autos else ""
        return f"{dotted}: {message}" if dotted else message
    known = _known_keys(place[:-1])
    near = difflib.get_close_matches(place[-1], known, n=1, cutoff=0.4)
    return f"unknown key {dotted!r}" + (f": did you mean {near[0]!r}?" if near else f"; known here: {', '.join(known)}")


def _place(error: Any, data: Any) -> list[str]:
    """The keys and indices as the file has them: pydantic's names of a union's members are none."""
    place = []
    for part in error["loc"]:
        in_list = isinstance(data, Sequence) and isinstance(part, int) and part < len(data)
        if in_list or (isinstance(data, Mapping) and part in data):
            data = data[part]
        elif error["type"] != "missing" or part != error["loc"][-1]:
            continue
        place.append(str(part))
    return place


def _known_keys(path: list[str]) -> list[str]:
    """The keys that the recipe knows at `path`; indices on the way are skipped."""
    models: list[type[BaseModel]] = [Recipe]
    for part in path:
        inner = [m for model in models for m in _models_in(getattr(model.model_fields.get(part), "annotation", None))]
        models = inner or models
    return sorted({name for model in models for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
