"""Collate block rows into a batch of tensors whose labels are shifted once."""

# Shapes: B blocks, T tokens predicted in a block (`block_size`).

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hf_lm.data.blocks.dataset import IDS, LOSS_BIT, NO_BLOCK, START_BIT
from hf_lm.model.loss import IGNORE_INDEX
from hf_lm.recipe import DataRecipe
from hf_lm.tokenizer import document_prefix


def collate(
    rows: Sequence[dict[str, Any]],
    *,
    separator: int | None = None,
    padding: int | None = None,
    prefix: Sequence[int] = (),
    marked: bool = False,
    numbered: bool = False,
) -> dict[str, Any]:
    """Make a batch from rows of T+1 ids; a shifted label is at the position that predicts it.

    transformers does not shift `shift_labels`, but computes no loss without `labels`.

    Args:
        rows: blocks, each with "input_ids" [T+1] and, with `numbered`, its "number".
        separator: the end-of-text id; positions restart after it, and transformers masks documents
            by the positions.
        padding: the end-of-text id; one that follows another is padding and is not predicted.
        prefix: ids that begin a document; they are given, and not predicted.
        marked: whether LOSS_BIT and START_BIT of the ids say what is in the loss and where a
            document starts.
        numbered: whether to return the numbers of the blocks.

    Returns:
        input_ids, labels and shift_labels [B, T]; position_ids [B, T] with a separator or marks;
        and "numbers", a list.
    """
    blocks = np.concatenate([row["input_ids"] for row in rows]).reshape(len(rows), -1)
    inputs = torch.from_numpy(blocks[:, :-1].astype(np.int64))
    targets = torch.from_numpy(blocks[:, 1:].astype(np.int64))
    is_start = None
    if marked:
        is_start, in_loss = (inputs & START_BIT) > 0, (targets & LOSS_BIT) > 0
        inputs, targets = inputs & IDS, torch.where(in_loss, targets & IDS, IGNORE_INDEX)
    elif separator is not None:
        is_start = torch.zeros_like(inputs, dtype=torch.bool)
        is_start[:, 1:] = inputs[:, :-1] == separator
    if padding is not None:
        targets[(inputs == padding) & (targets == padding)] = IGNORE_INDEX
    for token in prefix:
        targets[targets == token] = IGNORE_INDEX
    numbers = [row["number"] for row in rows] if numbered else []
    if NO_BLOCK in numbers:
        targets, numbers = torch.full_like(targets, IGNORE_INDEX), []
    batch = {"input_ids": inputs, "labels": inputs, "shift_labels": targets}
    if is_start is not None:
        batch["position_ids"] = positions(is_start)
    return {**batch, "numbers": numbers} if numbered else batch


def positions(is_start: torch.Tensor) -> torch.Tensor:
    """Return the position of each token in its document; a block starts at 0.

    Args:
        is_start: [B, T], whether a document starts at a token.
    """
    index = torch.arange(is_start.shape[1]).expand_as(is_start)
    return index - torch.where(is_start, index, 0).cummax(dim=1).values


def make_collate(
    data: DataRecipe, tokenizer: PreTrainedTokenizerBase, *, split: str
) -> Callable[[Sequence[dict[str, Any]]], dict[str, Any]]:
    """Return the collator of a split; validation blocks have no padding and no numbers."""
    eos, is_marked = tokenizer.eos_token_id, data.train_on == "completion"
    has_padding = data.grouping == "best_fit" and split == "train" and not is_marked
    prefix = [] if is_marked else document_prefix(tokenizer)
    if eos in prefix:  # OPT begins and ends a text with one token: two of them separate texts
        prefix, has_padding = [token for token in prefix if token != eos], True
    return partial(
        collate,
        separator=eos if data.document_mask else None,
        padding=eos if has_padding else None,
        prefix=prefix,
        marked=is_marked,
        numbered=split == "train",
    )
