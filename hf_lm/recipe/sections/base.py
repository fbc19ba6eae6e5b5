"""The base class of every recipe section, and shared field types."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Frozen, strictly typed, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


Share = Annotated[float, Field(ge=0, lt=1)]


# A count of steps, or the share of all steps that it makes: transformers' own meaning of such keys.
Steps = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]


def count_steps(steps: float, total: int) -> int:
    """Optimizer steps, of `total`: a share comes to one at least, and 0 stays 0."""
    return int(steps) if steps >= 1 or steps == 0 else max(1, round(steps * total))
