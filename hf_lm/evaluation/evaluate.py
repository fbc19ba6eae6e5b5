"""Compute token-weighted loss and accuracy on held-out blocks.

Every metric is a ratio of sums over tokens, so it does not depend on the batch size or the number
of processes. Logits are freed as soon as they are scored.
"""

# Shapes: B blocks, T tokens predicted in a block, V vocabulary.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from hf_lm.evaluation.metrics import metric_class
from hf_lm.model.loss import IGNORE_INDEX, LOGIT_BYTES
from hf_lm.recipe import EvaluationRecipe

# The most tokens of a batch. With a small vocabulary, LOGIT_BYTES alone would allow a whole text,
# which took 1.8 GB for a model of 0.7 M parameters.
BATCH_TOKENS = 2**14

Rows = Sequence[dict[str, Any]]
Collate = Callable[[Rows], dict[str, torch.Tensor]]


def evaluate(
    model: PreTrainedModel,
    blocks: Rows,
    recipe: EvaluationRecipe,
    *,
    collate: Collate,
    token_bytes: np.ndarray,
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, float]:
    """Compute the metrics of a model on blocks.

    Args:
        model: any causal language model; its mode and random generators are restored afterwards.
        blocks: rows of T+1 token ids.
        recipe: the `evaluation` section: how many blocks, and how many in a batch.
        collate: makes a batch with "shift_labels" from rows.
        token_bytes: [V], the bytes of text of each token.
        rank: the rank of this process, which scores every `world_size`-th batch.
        world_size: the number of processes that share the blocks.

    Returns:
        loss (nats per token), perplexity, accuracy, bits_per_byte, loss_stderr, tokens and bytes.
    """
    count = min(len(blocks), recipe.max_blocks or len(blocks))
    size = recipe.batch_size
    if size == "auto":
        length = len(blocks[0]["input_ids"]) - 1
        block_bytes = 4 * length * model.config.get_text_config().vocab_size  # of the logits
        size = min(LOGIT_BYTES[model.device.type] // block_bytes, BATCH_TOKENS // length) or 1
    table = torch.from_numpy(token_bytes).to(model.device)
    spans = [range(start, min(start + size, count)) for start in range(0, count, size)]
    with evaluation_mode(model):
        rows = [
            row
            for span in spans[rank::world_size]
            for row in score_blocks(model, [blocks[index] for index in span], collate, table)
        ]
    if world_size > 1:
        from accelerate.utils import gather_object

        rows = gather_object(rows)
    metric = metric_class()(keep_in_memory=True)
    metric.add_batch(**{name: [row[name] for row in rows] for name in rows[0]})
    return metric.compute()


def score_blocks(
    model: PreTrainedModel, blocks: Rows, collate: Collate, table: torch.Tensor
) -> Iterator[dict[str, float | int]]:
    """Yield the sums of each block; its own "bytes" count where ids do not tell them."""
    for block, sums in zip(blocks, score(model, collate(blocks), table), strict=True):
        yield {**sums, "bytes": block["bytes"]} if "bytes" in block else sums


def score(
    model: PreTrainedModel, batch: dict[str, torch.Tensor], table: torch.Tensor
) -> Iterator[dict[str, float | int]]:
    """Yield the sums of each block of a batch: nll, correct, tokens and bytes."""
    batch = {name: tensor.to(model.device) for name, tensor in batch.items() if name != "labels"}
    targets_BT = batch.pop("shift_labels")
    logits_BTV = model(**batch, use_cache=False).logits.float()
    nll_N = functional.cross_entropy(
        logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none"
    )
    is_target_BT = targets_BT != IGNORE_INDEX
    sums = {
        "nll": nll_N.view_as(targets_BT).double(),
        "correct": logits_BTV.argmax(dim=-1) == targets_BT,
        "tokens": is_target_BT,
        "bytes": table[targets_BT.clamp(min=0)] * is_target_BT,
    }
    rows = [sum_BT.sum(dim=1).tolist() for sum_BT in sums.values()]
    yield from (dict(zip(sums, row, strict=True)) for row in zip(*rows, strict=True))


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Put a model in evaluation mode; restore its mode, attention and random generators after."""
    attention, training = str(model.config._attn_implementation), model.training
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        model.eval()
        yield
    model.train(training)
    if model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)
