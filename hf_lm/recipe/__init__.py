"""The JSON recipe: read, validated and resolved into frozen pydantic models."""

from hf_lm.recipe.load import load_recipe, make_recipe, recipe_dict, recipe_text
from hf_lm.recipe.sections.base import count_steps
from hf_lm.recipe.sections.data import DataRecipe, template_fields
from hf_lm.recipe.sections.evaluation import EvaluationRecipe
from hf_lm.recipe.sections.hub import HubRecipe
from hf_lm.recipe.sections.model import LoraRecipe, ModelRecipe
from hf_lm.recipe.sections.recipe import Recipe
from hf_lm.recipe.sections.tokenizer import TokenizerRecipe, TrainTokenizer
from hf_lm.recipe.sections.training import TrainingRecipe
from hf_lm.recipe.validation.checks import warnings
from hf_lm.recipe.validation.suggestions import nearest

__all__ = [
    "DataRecipe",
    "EvaluationRecipe",
    "HubRecipe",
    "LoraRecipe",
    "ModelRecipe",
    "Recipe",
    "TokenizerRecipe",
    "TrainTokenizer",
    "TrainingRecipe",
    "count_steps",
    "load_recipe",
    "make_recipe",
    "nearest",
    "recipe_dict",
    "recipe_text",
    "template_fields",
    "warnings",
]
