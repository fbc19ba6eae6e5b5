"""The whole recipe: its six sections and top-level keys.

Only the standard library and pydantic are imported, so a mistake in a recipe is reported before
anything heavy is loaded.
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
    """A recipe: everything that a run depends on."""

    schema_: str | None = Field(None, alias="$schema", description="path of the JSON Schema")
    hf_lm_version: str | None = Field(
        None, pattern=r"^\d+\.\d+(\.\d+)?$", description="oldest hf_lm that can read this recipe"
    )
    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$", description="short name of the run"
    )
    output_dir: str | None = Field(
        None, min_length=1, description='folder of the run; null: "runs/NAME"'
    )
    seed: int = Field(
        42, ge=0, lt=2**32, description="seed of python, numpy, torch and the order of the data"
    )
    data: DataRecipe = Field(DataRecipe(), description="sources and blocks of text")
    tokenizer: TokenizerRecipe = Field(TokenizerRecipe(), description="the tokenizer")
    model: ModelRecipe = Field(ModelRecipe(), description="the model")
    training: TrainingRecipe = Field(TrainingRecipe(), description="length, batches, optimizer")
    evaluation: EvaluationRecipe = Field(EvaluationRecipe(), description="metrics and samples")
    hub: HubRecipe = Field(HubRecipe(), description="publishing")

    @property
    def folder(self) -> Path:
        """The output directory; absolute in a recipe that was loaded from a file."""
        return Path(self.output_dir or f"runs/{self.name}")
