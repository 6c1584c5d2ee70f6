"""What every part of `nanhunt.yaml` is made of: a section that refuses unknown keys, numbers and texts that are none else."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Number", "Positive", "Section", "Text", "Whole"]

# strict: pydantic would otherwise take true for 1 and "50" for 50
Whole = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Text = Annotated[str, Field(strict=True, min_length=1)]
Positive = Annotated[Number, Field(gt=0)]


class Section(BaseModel):
    """A part of the config: values do not change, unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
