"""Recipe section `evaluation`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hf_lm.recipe.sections.base import Section


class EvaluationRecipe(Section):
    """Metrics on the validation set, and samples."""

    prompts: tuple[str, ...] = Field(
        ("",), description="texts that the model continues at each evaluation"
    )
    max_new_tokens: int = Field(64, gt=0, description="tokens of one sample")
    max_blocks: int | None = Field(
        None, gt=0, description="evaluate only the first blocks, for speed"
    )
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="blocks evaluated at once; it does not change results"
    )
