"""A model and held-out blocks in; loss, perplexity, accuracy and bits per byte out, and samples.

Every figure is a sum over tokens divided by another, so none depends on the batch size or on the
number of processes, and logits are dropped as soon as they are scored.
"""

# Shapes: B blocks, T tokens predicted in a block, V vocabulary.

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.errors import RecipeError
from hf_lm.loss import IGNORED, LOGIT_BYTES
from hf_lm.recipe import EvaluationRecipe

# Of one evaluated batch, beside LOGIT_BYTES: of a small vocabulary those alone would hold a whole
# text, 1.8 GB for a network of 0.7 M parameters.
BATCH_TOKENS = 2**14
TEMPERATURE, TOP_P = 0.8, 0.95  # of samples: a little sharper than the model itself

Rows = Sequence[dict[str, np.ndarray]]
Collate = Callable[[Rows], dict[str, torch.Tensor]]


@cache
def metric_class() -> type:
    """The `evaluate.Metric` of language modeling; made late: evaluate takes 5 seconds to import."""
    import evaluate
    from datasets import Features, Value

    class LanguageModeling(evaluate.Metric):
        """Sums over blocks in, averages over tokens out; needs no network."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description="Loss, perplexity, accuracy and bits per byte of a language model.",
                citation="",
                inputs_description="Sums of each block: nll in nats, correct, tokens and bytes.",
                features=Features(
                    nll=Value("float64"),
                    correct=Value("int64"),
                    tokens=Value("int64"),
                    bytes=Value("int64"),
                ),
            )

        def _compute(self, **sums: Any) -> dict[str, float]:
            return averages(**sums)

    return LanguageModeling


def averages(
    *, nll: Sequence[float], correct: Sequence[int], tokens: Sequence[int], bytes: Sequence[int]
) -> dict[str, float]:
    """Averages from the sums of each block.

    The standard error takes blocks, not tokens, as independent: it is that of a ratio of sums over
    clusters (Cochran, 1977, section 6.4). `fsum` makes every figure independent of the order.
    """
    total, count, size = math.fsum(nll), sum(tokens), sum(bytes)
    loss, n = total / count, len(nll)
    spread = math.fsum((s - loss * t) ** 2 for s, t in zip(nll, tokens, strict=True))
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "accuracy": sum(correct) / count,
        "bits_per_byte": total / math.log(2) / size if size else math.inf,
        "loss_stderr": math.sqrt(spread * n / (n - 1)) / count if n > 1 else math.inf,
        "tokens": count,
        "bytes": size,
    }


def measure(
    model: PreTrainedModel,
    blocks: Rows,
    recipe: EvaluationRecipe,
    *,
    collate: Collate,
    token_bytes: np.ndarray,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, float]:
    """Score a model on blocks, each on its own.

    Args:
        model: any causal language model; put in evaluation mode meanwhile.
        blocks: rows of T+1 token ids.
        recipe: how many blocks, and how many at a time.
        collate: rows to a batch with "shift_labels".
        token_bytes: bytes of text each token stands for [V].
        rank: of this process, which scores every `world_size`-th batch.
        world_size: processes that share the blocks.

    Returns:
        loss (nats a token), perplexity, accuracy, bits_per_byte, loss_stderr, tokens, bytes.
    """
    count = min(len(blocks), recipe.max_blocks or len(blocks))
    size = recipe.batch_size
    if size == "auto":
        length = len(blocks[0]["input_ids"]) - 1
        logits = 4 * length * model.config.vocab_size  # bytes of a block
        size = min(LOGIT_BYTES[model.device.type] // logits, BATCH_TOKENS // length) or 1
    table = torch.from_numpy(token_bytes).to(model.device)
    spans = [range(start, min(start + size, count)) for start in range(0, count, size)]
    with undisturbed(model):
        rows = [
            row
            for span in spans[rank::world_size]
            for row in score(model, collate([blocks[place] for place in span]), table)
        ]
    if world_size > 1:
        from accelerate.utils import gather_object

        rows = gather_object(rows)
    metric = metric_class()(keep_in_memory=True)
    metric.add_batch(**{name: [row[name] for row in rows] for name in rows[0]})
    return metric.compute()


def score(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], table: torch.Tensor
) -> Iterator[dict[str, float | int]]:
    """The sums of each block of a batch."""
    batch = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
    targets_BT = batch.pop("shift_labels")
    logits_BTV = model(**batch, use_cache=False).logits.float()
    nll_N = functional.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none"
    )
    kept_BT = targets_BT != IGNORED
    sums = {
        "nll": nll_N.view_as(targets_BT).double(),
        "correct": logits_BTV.argmax(dim=-1) == targets_BT,
        "tokens": kept_BT,
        "bytes": table[targets_BT.clamp(min=0)] * kept_BT,
    }
    rows = [sum_BT.sum(dim=1).tolist() for sum_BT in sums.values()]
    yield from (dict(zip(sums, row, strict=True)) for row in zip(*rows, strict=True))


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """Evaluate without a trace: random streams, training mode and attention are put back."""
    attention, training = str(model.config._attn_implementation), model.training
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        model.eval()
        yield
    model.train(training)
    if model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)


def uncompiled(model: PreTrainedModel) -> AbstractContextManager[None]:
    """Run compiled blocks as they were written: each new length would compile them again."""
    compiled = any(module._compiled_call_impl for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def sample(
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
    with undisturbed(model), uncompiled(model):
        model.set_attn_implementation("sdpa")  # ours has no mask, which a cache may need
        for prompt in prompts:
            torch.manual_seed(seed)
            ids = prompt_ids(tokenizer, prompt, limit=max(1, context(model) - 1), chat=chat)
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
        room = max(1, min(max_new_tokens - len(added), context(model) - len(ids)))
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
        ids = [*ids, *new][-max(1, context(model) // 2) :]
    return added


def context(model: PreTrainedModel) -> int:
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
