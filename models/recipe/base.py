"""What every part of a recipe is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

Kind = Literal["segmentation", "classification", "detection", "synthesis"]
Auto = Literal["auto"]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
SpacingMm = Annotated[tuple[Positive, Positive, Positive], Field(description="(z, y, x) mm")]
Size = Annotated[tuple[Count, Count, Count], Field(description="(z, y, x) voxels")]
Share = Annotated[float, Field(ge=0, le=1)]
Percent = Annotated[float, Field(ge=0, le=100)]


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the lower bound comes first")
    return bounds


Range = Annotated[tuple[float, float], AfterValidator(_ordered)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]
"""Several texts, or one that stands for itself."""


class Part(BaseModel):
    """A table of the recipe: unknown keys are refused, and so are NaN and infinity; values do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
