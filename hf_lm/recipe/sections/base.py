"""The base class of every recipe section, and shared field types."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of a recipe: frozen, strictly typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


Share = Annotated[float, Field(ge=0, lt=1)]

# A number of steps, or a fraction of all steps, as in transformers.
Steps = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]


def count_steps(steps: float, total: int) -> int:
    """Convert a number of steps, or a fraction of `total` (at least one step), to steps."""
    return int(steps) if steps >= 1 or steps == 0 else max(1, round(steps * total))
