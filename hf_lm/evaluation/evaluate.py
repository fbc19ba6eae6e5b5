"""Compute token-weighted loss and accuracy on held-out blocks.

Every figure is a sum over tokens divided by another, so none depends on the batch size or on the
number of processes, and logits are dropped as soon as they are scored.
"""

# Shapes: B blocks, T tokens predicted in a block, V vocabulary.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedModel

from hf_lm.evaluation.metrics import metric_class
from hf_lm.model.loss import IGNORE_INDEX, LOGIT_BYTES
from hf_lm.recipe import EvaluationRecipe

# Of one evaluated batch, beside LOGIT_BYTES: of a small vocabulary those alone would hold a whole
# text, 1.8 GB for a network of 0.7 M parameters.
BATCH_TOKENS = 2**14


Rows = Sequence[dict[str, np.ndarray]]


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
    with evaluation_mode(model):
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
    kept_BT = targets_BT != IGNORE_INDEX
    sums = {
        "nll": nll_N.view_as(targets_BT).double(),
        "correct": logits_BTV.argmax(dim=-1) == targets_BT,
        "tokens": kept_BT,
        "bytes": table[targets_BT.clamp(min=0)] * kept_BT,
    }
    rows = [sum_BT.sum(dim=1).tolist() for sum_BT in sums.values()]
    yield from (dict(zip(sums, row, strict=True)) for row in zip(*rows, strict=True))


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Evaluate without a trace: random streams, training mode and attention are put back."""
    attention, training = str(model.config._attn_implementation), model.training
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        model.eval()
        yield
    model.train(training)
    if model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)
