"""Generate text from prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.errors import RecipeError
from hf_lm.evaluation.evaluate import evaluation_mode
from hf_lm.model.attention import FUSED, PLAIN
from hf_lm.tokenizer import document_prefix, unknown_character

TEMPERATURE, TOP_P = 0.8, 0.95  # slightly sharper than the model's own distribution


@contextmanager
def generation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Let a model generate; what it needs for that is undone after."""
    with evaluation_mode(model), eager_mode(model):
        if model.config._attn_implementation in (FUSED, PLAIN):
            model.set_attn_implementation("sdpa")  # ours do not support a cache
        yield


def sampling_options(temperature: float) -> dict[str, Any]:
    """Return the options of `generate` for a temperature; 0 takes the likeliest token."""
    if temperature > 0:
        return {"do_sample": True, "temperature": temperature, "top_p": TOP_P}
    return {"do_sample": False}


def eager_mode(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Run compiled blocks without compilation; each new length would compile them again."""
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
    """Generate a continuation of each prompt.

    Args:
        model: any causal language model.
        tokenizer: the tokenizer of the model.
        prompts: texts; an empty one begins a document.
        max_new_tokens: the most tokens to add to a prompt.
        seed: the same seed gives the same text.
        temperature: 0 takes the likeliest token.
        chat: answer each prompt as a user's message, by the chat template.

    Returns:
        A dict with "prompt" and "text" for each prompt; the text is what the model added.
    """
    sampling = sampling_options(temperature)
    samples = []
    with generation_mode(model):
        for prompt in prompts:
            torch.manual_seed(seed)
            ids = prompt_ids(tokenizer, prompt, limit=max(1, context_length(model) - 1), chat=chat)
            new_ids = generate_ids(model, ids, max_new_tokens=max_new_tokens, **sampling)
            text = tokenizer.decode(new_ids, skip_special_tokens=True)
            samples.append({"prompt": prompt, "text": str(text)})
    return samples


def generate_ids(model: Any, ids: list[int], *, max_new_tokens: int, **options: Any) -> list[int]:
    """Generate ids until the model ends the text or there are enough.

    When the context is full, generation continues from its last half: learned positions end there,
    and moving the context by one token would compute all of it again for each new token.
    """
    eos_ids = np.atleast_1d(model.generation_config.eos_token_id)
    new_ids: list[int] = []
    while len(new_ids) < max_new_tokens:
        count = max(1, min(max_new_tokens - len(new_ids), context_length(model) - len(ids)))
        inputs = torch.tensor([ids], device=model.device)
        output = model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=count,
            use_cache=True,
            **options,
        )
        added = output[0, len(ids) :].tolist()
        new_ids += added
        if len(added) < count or added[-1] in eos_ids:
            break
        ids = [*ids, *added][-max(1, context_length(model) // 2) :]
    return new_ids


def context_length(model: PreTrainedModel) -> int:
    """Return the number of tokens that a model can see at once."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**31


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, prompt: str, *, limit: int, chat: bool = False
) -> list[int]:
    """Return the last `limit` ids of a prompt, which begins a document as the tokenizer does.

    Raises:
        RecipeError: the tokenizer has no token for a character, or has no chat template.
    """
    prefix = document_prefix(tokenizer)
    if not prompt:
        return prefix or [tokenizer.eos_token_id]
    try:
        if chat:
            message = {"role": "user", "content": prompt}
            rendered: Any = tokenizer.apply_chat_template([message], add_generation_prompt=True)
            return rendered["input_ids"][-limit:]
        ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        return [*prefix, *ids][-limit:]
    except Exception as error:  # tokenizers raises a bare Exception for an unknown character
        reason = str(error)
        if character := unknown_character(tokenizer, prompt):
            reason = f"it has no token for {character!r} (U+{ord(character):04X})"
        raise RecipeError(f"prompt {prompt!r}: the tokenizer cannot encode it: {reason}") from None
