"""How images become the network's input."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from models.recipe.base import Auto, Part, Percent, Size, SpacingMm

NormalisationName = Literal["auto", "ct", "zscore", "percentile", "minmax", "window", "none"]


class Median(Part):
    """Median filter over `size` voxels in each slice."""

    step: Literal["median"]
    size: int = Field(3, ge=3, le=15)


class Wavelet(Part):
    """Wavelet shrinkage (BayesShrink), slice by slice."""

    step: Literal["wavelet"]
    wavelet: str = "db2"
    levels: int | None = Field(None, ge=1, le=8)


class Clahe(Part):
    """Contrast-limited adaptive histogram equalisation, slice by slice."""

    step: Literal["clahe"]
    clip_limit: float = Field(0.01, gt=0, le=1)
    tiles: int = Field(8, ge=2, le=64)


class Window(Part):
    """Clip to [center − width/2, center + width/2], in the image's unit."""

    step: Literal["window"]
    center: float
    width: float = Field(gt=0)


FilterStep = Annotated[Median | Wavelet | Clahe | Window, Field(discriminator="step")]


class Preprocess(Part):
    """How images become the network's input. "auto" follows nnU-Net's published rules."""

    spacing: Auto | SpacingMm = "auto"
    normalise: NormalisationName = "auto"
    percentiles: tuple[Percent, Percent] = (0.5, 99.5)
    steps: tuple[FilterStep, ...] = Field((), description="filters before normalisation, in this order")
    crop: Literal["auto", "nonzero", "none"] = "auto"
    size: Auto | Size = Field("auto", description="classification: the fixed input size")
    outliers: Literal["none", "zscore", "iqr"] = Field(
        "iqr", description="cases whose intensities or size lie far from the rest are reported, never dropped"
    )

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if self.percentiles[0] >= self.percentiles[1]:
            raise ValueError("percentiles: the lower one comes first, such as [0.5, 99.5]")
        return self
