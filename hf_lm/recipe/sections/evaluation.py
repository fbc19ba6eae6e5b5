"""Recipe section `evaluation`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hf_lm.recipe.sections.base import Section


class EvaluationRecipe(Section):
    """What is measured and what is sampled."""

    prompts: tuple[str, ...] = Field(("",), description="beginnings to continue at each evaluation")
    max_new_tokens: int = Field(64, gt=0, description="tokens of one sample")
    max_blocks: int | None = Field(
        None, gt=0, description="evaluate the first blocks only, for speed"
    )
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="blocks evaluated at a time; no result depends on it"
    )
