"""The whole recipe: its six sections and top-level keys.

Six sections, one a stage, plus a few keys at the top; `data` has a file of its own. Only the
standard library and pydantic are imported, so a wrong recipe is refused before anything heavy is
loaded.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from hf_lm.recipe.sections.base import Section
from hf_lm.recipe.sections.data import DataRecipe
from hf_lm.recipe.sections.evaluation import EvaluationRecipe
from hf_lm.recipe.sections.hub import HubRecipe
from hf_lm.recipe.sections.model import ModelRecipe
from hf_lm.recipe.sections.tokenizer import TokenizerRecipe
from hf_lm.recipe.sections.training import TrainingRecipe


class Recipe(Section):
    """One run: text in; a trained, measured, published model out."""

    schema_: str | None = Field(None, alias="$schema", description="path of the JSON Schema")
    hf_lm_version: str | None = Field(
        None, pattern=r"^\d+\.\d+(\.\d+)?$", description="oldest hf_lm that can read this recipe"
    )
    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$", description="short name of the run"
    )
    output_dir: str | None = Field(
        None, min_length=1, description='folder of the run; "runs/NAME" unless set'
    )
    seed: int = Field(42, ge=0, lt=2**32, description="of python, numpy, torch and the data order")
    data: DataRecipe = Field(DataRecipe(), description="where the text comes from")
    tokenizer: TokenizerRecipe = Field(TokenizerRecipe(), description="text to tokens")
    model: ModelRecipe = Field(ModelRecipe(), description="the network")
    training: TrainingRecipe = Field(TrainingRecipe(), description="optimization")
    evaluation: EvaluationRecipe = Field(EvaluationRecipe(), description="metrics and samples")
    hub: HubRecipe = Field(HubRecipe(), description="publishing")

    @property
    def folder(self) -> Path:
        """Where the run takes place; absolute in a recipe that was loaded from a file."""
        return Path(self.output_dir or f"runs/{self.name}")
