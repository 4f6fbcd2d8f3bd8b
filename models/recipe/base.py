"""What every part of a recipe is made of."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Kind = Literal["segmentation", "classification", "detection", "synthesis"]
Auto = Literal["auto"]
SpacingMm = Annotated[tuple[float, float, float], Field(description="(z, y, x) mm")]
Size = Annotated[tuple[int, int, int], Field(description="(z, y, x) voxels")]
Share = Annotated[float, Field(ge=0, le=1)]


def _one_or_many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_one_or_many)]
"""Several texts, or one that stands for itself."""


class Part(BaseModel):
    """A table of the recipe: unknown keys are refused, and so are NaN and infinity; values do not change."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
