"""Generate samples from prompts."""

# Shapes: B blocks, T tokens predicted in a block, V vocabulary.

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.errors import RecipeError
from hf_lm.evaluation.evaluate import evaluation_mode

TEMPERATURE, TOP_P = 0.8, 0.95  # of samples: a little sharper than the model itself


def eager_mode(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Run compiled blocks as they were written: each new length would compile them again."""
    compiled = any(module._compiled_call_impl for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def generate_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    seed: int = 0,
    temperature: float = TEMPERATURE,
    chat: bool = False,
) -> list[dict[str, str]]:
    """Continue each prompt, or with `chat` answer it as what a user says; a seed gives one text.

    Returns:
        One {"prompt", "text"} a prompt; the text is what the model added.
    """
    choice: dict[str, Any] = {"do_sample": False}
    if temperature > 0:
        choice = {"do_sample": True, "temperature": temperature, "top_p": TOP_P}
    found = []
    with evaluation_mode(model), eager_mode(model):
        model.set_attn_implementation("sdpa")  # ours has no mask, which a cache may need
        for prompt in prompts:
            torch.manual_seed(seed)
            ids = prompt_ids(tokenizer, prompt, limit=max(1, context_length(model) - 1), chat=chat)
            added = continued(model, ids, max_new_tokens=max_new_tokens, **choice)
            text = tokenizer.decode(added, skip_special_tokens=True)
            found.append({"prompt": prompt, "text": str(text)})
    return found


def continued(
    model: PreTrainedModel, ids: list[int], *, max_new_tokens: int, **choice: Any
) -> list[int]:
    """The ids a model adds, until it ends the text or there are enough.

    When its context is full it goes on from the last half: learned positions do not reach further,
    and moving on by one token would compute the whole context again for each.
    """
    ends = np.atleast_1d(cast("Any", model).generation_config.eos_token_id)
    added: list[int] = []
    while len(added) < max_new_tokens:
        room = max(1, min(max_new_tokens - len(added), context_length(model) - len(ids)))
        inputs = torch.tensor([ids], device=model.device)
        output = cast("Any", model).generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=room,
            use_cache=True,
            **choice,
        )
        new = output[0, len(ids) :].tolist()
        added += new
        if len(new) < room or new[-1] in ends:
            break
        ids = [*ids, *new][-max(1, context_length(model) // 2) :]
    return added


def context_length(model: PreTrainedModel) -> int:
    """The most tokens the model sees at once."""
    return getattr(model.config, "max_position_embeddings", None) or 2**31


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, *, limit: int, chat: bool = False
) -> list[int]:
    """The last `limit` ids of a prompt; an empty one begins a document.

    Raises:
        RecipeError: the tokenizer has no token for a character, or no chat template.
    """
    if not prompt:
        return [tokenizer.eos_token_id]
    try:
        if chat:
            message = {"role": "user", "content": prompt}
            rendered: Any = tokenizer.apply_chat_template([message], add_generation_prompt=True)
            return rendered["input_ids"][-limit:]
        return tokenizer(prompt, add_special_tokens=False)["input_ids"][-limit:]
    except Exception as error:  # tokenizers raises bare Exception for a character it does not know
        raise RecipeError(f"prompt {prompt!r}: the tokenizer cannot encode it: {error}") from None
