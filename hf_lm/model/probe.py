"""Try a model before a run relies on it."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_lm.errors import HfLmError, RecipeError
from hf_lm.model.build import has_fast_paths
from hf_lm.model.pretrained import load_config, load_pretrained

LENGTH = 6  # tokens of each of two documents

PROBED = 256  # tokens on which the fast paths are tried: 2 s for GPT-2 on two cores
ERROR = 1e-3  # relative; what is equal up to rounding differs by 1e-6


def check_pretrained(name: str, *, separates: bool) -> None:
    """Check that a published model can be trained as a run needs it, before any text is tokenized.

    Args:
        name: a directory or a Hub id.
        separates: whether the documents of a block must not see each other.

    Raises:
        RecipeError: it is no causal language model, or it does not separate documents.
    """
    config = load_config(name)
    key = f"model.pretrained = {json.dumps(name)}"
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise RecipeError(
            f"{key}: {config.model_type} is no causal language model of transformers; choose "
            "another model"
        )
    if has_fast_paths(config):
        return
    model = load_pretrained(name)
    if not is_causal(model):
        raise RecipeError(
            f"{key}: {config.model_type} sees the tokens that it has to predict; choose a model "
            "that reads from left to right"
        )
    if separates and not separates_documents(model):
        raise RecipeError(
            f"{key}: {config.model_type} has no positions that separate the documents of a block, "
            "as data.document_mask and conversations need them; do without, or choose another model"
        )


@torch.no_grad()
def check_fast_paths(model: PreTrainedModel, *, block_size: int) -> None:
    """Check that a model has the loss that transformers' own attention and loss give.

    Args:
        model: on a CPU, in fp32.
        block_size: tokens of a block.

    Raises:
        HfLmError: it has another one.
    """
    config: Any = model.config
    if not has_fast_paths(config):
        return
    size = config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(size, (1, min(block_size, PROBED) + 1), generator=generator)
    inputs = {"input_ids": ids[:, :-1], "use_cache": False}
    was_training, attention = model.training, config._attn_implementation
    model.eval()
    ours = float(model(**inputs, labels=ids[:, :-1], shift_labels=ids[:, 1:]).loss)
    model.set_attn_implementation("sdpa")
    stock = float(functional.cross_entropy(model(**inputs).logits[0].float(), ids[0, 1:]))
    model.set_attn_implementation(attention)
    model.train(was_training)
    if not abs(ours - stock) <= ERROR * max(1.0, stock):
        raise HfLmError(
            f"the fast attention and loss of hf_lm give {ours:.4f} on random tokens, and those of "
            f"transformers {stock:.4f}: a defect of hf_lm for this {config.model_type} model; "
            "please report it with the config.json of the model"
        )


def is_causal(model: PreTrainedModel) -> bool:
    """Return whether the logits of a token do not depend on later tokens."""
    one, other, first = documents(model)
    return same_logits(
        model,
        [torch.cat([first, last], dim=1) for last in (one, other)],
        slice(None, LENGTH),
    )


def separates_documents(model: PreTrainedModel) -> bool:
    """Return whether positions that start again keep a document from seeing the one before it."""
    one, other, last = documents(model)
    positions = torch.arange(LENGTH).repeat(2)[None]
    try:
        return same_logits(
            model,
            [torch.cat([first, last], dim=1) for first in (one, other)],
            slice(LENGTH, None),
            position_ids=positions,
        )
    except TypeError:  # it takes no positions
        return False


def documents(model: PreTrainedModel) -> tuple[torch.Tensor, ...]:
    """Return three documents [1, LENGTH] of random ids."""
    size = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(size, (1, LENGTH), generator=generator) for _ in range(3))


@torch.no_grad()
def same_logits(
    model: PreTrainedModel, inputs: list[torch.Tensor], part: slice, **options: Any
) -> bool:
    """Return whether a model gives the same logits for a part of the tokens of two inputs."""
    model.eval()
    logits = [model(input_ids=ids, use_cache=False, **options).logits[:, part] for ids in inputs]
    return bool(torch.allclose(*logits, rtol=1e-3, atol=1e-4))
