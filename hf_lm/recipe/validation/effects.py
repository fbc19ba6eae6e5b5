"""Refuse keys that change nothing in the recipe at hand.

A key that is accepted and ignored hides a mistake. Keys whose effect depends on the files
are checked when these are found (data/text/sources.py), and keys of which one excludes the other,
such as `model.size` and `model.n_layer`, beside the rules of their section.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import NamedTuple

from hf_lm.recipe.sections.recipe import Recipe
from hf_lm.recipe.validation.conflicts import Conflict, conflict


class Effect(NamedTuple):
    """When a key has an effect.

    Attributes:
        applies: returns whether the key changes anything in a recipe.
        reason: why it does not otherwise.
        other_keys: the keys that decide it.
    """

    applies: Callable[[Recipe], bool]
    reason: str
    other_keys: str


def optimizer_of(recipe: Recipe) -> str:
    """Return the optimizer of a recipe, with a name in place of "auto"."""
    chosen = recipe.training.optimizer
    return chosen if chosen != "auto" else "adamw" if recipe.model.pretrained else "muon"


OPTIMIZER = "training.optimizer model.pretrained"

EFFECTS = {
    "training.matrix_learning_rate": Effect(
        lambda recipe: optimizer_of(recipe) == "muon",
        "it is for training.optimizer muon",
        OPTIMIZER,
    ),
    "training.momentum": Effect(
        lambda recipe: optimizer_of(recipe) in ("muon", "sgd"),
        "it is for training.optimizer muon and sgd",
        OPTIMIZER,
    ),
    "training.betas": Effect(
        lambda recipe: optimizer_of(recipe) != "sgd",
        "training.optimizer sgd has none",
        OPTIMIZER,
    ),
    "training.eps": Effect(
        lambda recipe: optimizer_of(recipe) != "sgd",
        "training.optimizer sgd has none",
        OPTIMIZER,
    ),
    "training.decay_steps": Effect(
        lambda recipe: recipe.training.schedule == "wsd",
        "it is for training.schedule wsd",
        "training.schedule",
    ),
    "training.min_lr_ratio": Effect(
        lambda recipe: recipe.training.schedule != "constant",
        "training.schedule constant does not decay",
        "training.schedule",
    ),
    "training.dataloader_pin_memory": Effect(
        lambda recipe: recipe.training.device != "cpu",
        "it is for CUDA, and training.device is cpu",
        "training.device",
    ),
    "data.near_duplicate_threshold": Effect(
        lambda recipe: recipe.data.near_duplicates != "off",
        "data.near_duplicates is off",
        "data.near_duplicates",
    ),
    "data.fresh_blocks": Effect(
        lambda recipe: recipe.data.grouping == "concat" and not recipe.data.streaming,
        "it is for data.grouping concat, and a stream is cut anew anyway",
        "data.grouping data.streaming",
    ),
    "data.num_proc": Effect(
        lambda recipe: recipe.data.train_on == "text",
        "conversations of data.train_on completion are tokenized on one core",
        "data.train_on",
    ),
    "evaluation.max_new_tokens": Effect(
        lambda recipe: bool(recipe.evaluation.prompts),
        "evaluation.prompts is empty",
        "evaluation.prompts",
    ),
}


def check_effects(recipe: Recipe) -> Iterator[Conflict]:
    """Check that every key that is not as by default has an effect."""
    if recipe.hf_lm_version:  # a run wrote it, with every key, and maybe before a rule was there
        return
    for key, effect in EFFECTS.items():
        name, field = key.split(".")
        section = getattr(recipe, name)
        if section.is_changed(field) and not effect.applies(recipe):
            usual = json.dumps(section.default_of(field))
            rule = f"has no effect, because {effect.reason}; remove it, or set it to {usual}"
            yield conflict(key, rule, getattr(section, field), other_keys=effect.other_keys)
