"""Which images a model learns from: one series, or several of a study as channels, with what else is known."""

from __future__ import annotations

import re
from typing import Any, Literal, Protocol, Self

from pydantic import Field, field_validator, model_validator

from models.clinical import CHARACTERISTICS, EQUIPMENT
from models.recipe.base import Part, Share, Texts
from models.recipe.preprocess import NormalisationName

_KEPT = (*CHARACTERISTICS, *EQUIPMENT)


class Pictured(Protocol):
    """What `Images` asks of an image; a volume's catalog row has it. Thickness and spacing in mm."""

    modality: Any
    description: Any
    channels: Any
    shape_z: Any
    slice_thickness: Any
    spacing_z: Any


class Selection(Part):
    """Which series are meant."""

    modality: Texts = Field((), description="Modality (0008,0060); one or several")
    description: str | None = Field(None, description="regular expression that SeriesDescription must match")
    min_slices: int = Field(1, ge=1)
    max_slice_thickness: float | None = Field(None, gt=0, description="mm")
    colour: bool = Field(False, description="accept colour images, as three channels")
    allow_without_burned_in: Texts = Field(
        (), description="modalities (US, SC, XA, CR) accepted although BurnedInAnnotation is absent"
    )

    @field_validator("description")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return value

    def refusal(self, image: Pictured) -> str | None:
        """Why an image is not meant, or None where it is: one rule for datasets and for predictions."""
        if image.modality not in self.modality:
            return "other-modality"
        if self.description and not re.search(self.description, image.description, re.IGNORECASE):
            return "other-description"
        if image.channels > 1 and not self.colour:
            return "colour"
        if image.shape_z < self.min_slices:
            return "too-few-slices"
        thickness = image.slice_thickness if image.slice_thickness is not None else image.spacing_z
        if self.max_slice_thickness is not None and thickness > self.max_slice_thickness + 1e-3:
            return "slices-too-thick"
        return None


class Channel(Selection):
    """One channel of a many-channel image, and the series of a study that it comes from."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")
    normalise: NormalisationName | None = Field(
        None, description="this channel's normalisation (default: as `preprocess.normalise` says)"
    )


class Images(Selection):
    """Which series of a study are meant. With `channels`, a case is made of one series for each of them.

    The first channel is the reference: the others are resampled to its grid, and the labels lie on it.
    """

    channels: tuple[Channel, ...] = Field(
        (), description="several series of a study as channels; the first is the reference"
    )
    registration: Literal["none", "rigid"] = Field(
        "none", description="bring the other channels to the first by a rigid transform (SimpleITK)"
    )
    missing: Literal["refuse", "learn"] = Field(
        "refuse", description="a study without a further channel: set aside, or learnt and predicted with zeros there"
    )
    channel_dropout: Share = Field(
        0.2, description='missing = "learn": how often training hides a channel other than the first'
    )

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if not self.modality and not self.channels:
            raise ValueError('say which images: modality = "CT", or channels = [{name = …, modality = …}, …]')
        if self.channels and any(getattr(self, key) != field.default for key, field in Selection.model_fields.items()):
            raise ValueError("channels: rules on series stand in each channel, not beside `channels`")
        if any(channel.colour for channel in self.channels):
            raise ValueError("channels: a colour image is no channel of another")
        names = [channel.name for channel in self.channels]
        if len(set(names)) != len(names):
            raise ValueError("channels: two of them have the same name")
        if len(names) == 1:
            raise ValueError("channels: one channel is no case of many; give `modality` and the rest directly")
        if any(not channel.modality for channel in self.channels):
            raise ValueError("channels: each needs its modality")
        return self

    @property
    def modalities(self) -> tuple[str, ...]:
        """Every modality that is asked for, in order."""
        asked = (m for part in (self, *self.channels) for m in part.modality)
        return tuple(dict.fromkeys(asked))


class Variable(Part):
    """One clinical variable that joins the image in the network's head."""

    name: str = Field(description="a column of the table, or a DICOM keyword: " + ", ".join(_KEPT))
    kind: Literal["number", "category"] = "number"
    values: tuple[str, ...] = Field(
        (), description="category: the values, in order (default: those seen in training); others count as missing"
    )

    @model_validator(mode="after")
    def _of_its_kind(self) -> Self:
        if self.values and self.kind == "number":
            raise ValueError(f"clinical.variables: {self.name} has values, so it is of kind category")
        return self


class Clinical(Part):
    """What else is known of a patient or a study. Missing values are told to the network as missing."""

    source: Literal["CSV", "DICOM"] = Field(
        "CSV", description="a table (`nocturne clinical import`), or the images' own headers"
    )
    name: str | None = Field(None, description="CSV: the table's name, as given to `nocturne clinical import`")
    variables: tuple[Variable, ...] = ()

    @model_validator(mode="after")
    def _known(self) -> Self:
        names = [variable.name.casefold() for variable in self.variables]
        if len(set(names)) != len(names):
            raise ValueError("clinical.variables: two of them have the same name")
        unknown = [v.name for v in self.variables if self.source == "DICOM" and v.name not in _KEPT]
        if unknown:
            raise ValueError(f"clinical.variables: {', '.join(unknown)} is not kept; known are {', '.join(_KEPT)}")
        return self
