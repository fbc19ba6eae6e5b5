"""The base class of every recipe section, and shared field types."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A section of a recipe: frozen, strictly typed, without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def default_of(cls, name: str) -> Any:
        """Return the default of a key."""
        return cls.model_fields[name].get_default(call_default_factory=True)

    def is_changed(self, name: str) -> bool:
        """Return whether a key has another value than its default."""
        return getattr(self, name) != self.default_of(name)


Share = Annotated[float, Field(ge=0, lt=1)]

# A number of steps, or a fraction of all steps, as in transformers.
Steps = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]


def count_steps(steps: float, total: int) -> int:
    """Convert a number of steps, or a fraction of `total` (at least one step), to steps."""
    return int(steps) if steps >= 1 or steps == 0 else max(1, round(steps * total))
