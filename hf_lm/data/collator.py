"""Collate block rows into a batch of tensors whose labels are shifted once."""

# Shapes: B blocks, T tokens predicted in a block (`block_size`).

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hf_lm.data.blocks.dataset import IDS, LOSS_BIT, START_BIT
from hf_lm.model.loss import IGNORE_INDEX
from hf_lm.recipe import DataRecipe


def collate(
    rows: Sequence[dict[str, Any]],
    *,
    separator: int | None = None,
    padding: int | None = None,
    marked: bool = False,
    numbered: bool = False,
) -> dict[str, Any]:
    """Rows of T+1 ids as a batch; `shift_labels` stand at the position that predicts them.

    transformers shifts nothing when `shift_labels` is there, but computes no loss without `labels`.

    Args:
        rows: blocks, each with "input_ids" [T+1] and, if asked for, its "number".
        separator: end-of-text id; if given, positions restart behind it, which transformers takes
            for the bounds of documents that do not see each other.
        padding: end-of-text id; if given, one that follows another fills its block up, and is not
            predicted.
        marked: whether the ids say themselves which are learnt and where a document begins.
        numbered: whether to say which blocks they are.

    Returns:
        input_ids, labels, shift_labels [B, T], position_ids [B, T] with a separator or marks, and
        a list of numbers.
    """
    blocks = np.concatenate([row["input_ids"] for row in rows]).reshape(len(rows), -1)
    inputs = torch.from_numpy(blocks[:, :-1].astype(np.int64))
    targets = torch.from_numpy(blocks[:, 1:].astype(np.int64))
    begins = None
    if marked:
        begins, in_loss = (inputs & START_BIT) > 0, (targets & LOSS_BIT) > 0
        inputs, targets = inputs & IDS, torch.where(in_loss, targets & IDS, IGNORE_INDEX)
    elif separator is not None:
        begins = torch.zeros_like(inputs, dtype=torch.bool)
        begins[:, 1:] = inputs[:, :-1] == separator
    if padding is not None:
        targets[(inputs == padding) & (targets == padding)] = IGNORE_INDEX
    batch = {"input_ids": inputs, "labels": inputs, "shift_labels": targets}
    if begins is not None:
        batch["position_ids"] = positions(begins)
    return {**batch, "numbers": [row["number"] for row in rows]} if numbered else batch


def positions(begins: torch.Tensor) -> torch.Tensor:
    """The place of each token in its own document, counted from the block's start.

    Args:
        begins: [B, T], whether a document does.
    """
    index = torch.arange(begins.shape[1]).expand_as(begins)
    return index - torch.where(begins, index, 0).cummax(dim=1).values


def make_collate(
    data: DataRecipe, tokenizer: PreTrainedTokenizerBase, *, split: str
) -> Callable[[Sequence[dict[str, Any]]], dict[str, Any]]:
    """The collator the recipe asks for; blocks of held-out text are neither padded nor numbered."""
    eos, marked = tokenizer.eos_token_id, data.train_on == "completion"
    padded = data.grouping == "best_fit" and split == "train" and not marked
    return partial(
        collate,
        separator=eos if data.document_mask else None,
        padding=eos if padded else None,
        marked=marked,
        numbered=split == "train",
    )
