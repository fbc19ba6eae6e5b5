"""Causal attention over whole blocks without a mask tensor.

Its own "sdpa" and "eager" build a mask of [B, 1, T, T] for each batch, "sdpa" under torch.compile
always (transformers #48925), which keeps the flash kernels out. transformers makes no mask for a
name it does not know.
"""

# Shapes: B blocks, H heads, T tokens, D width of a head.

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from hf_lm.model.dropout import dropout as drop

FUSED, PLAIN = "hf_lm_fused", "hf_lm_plain"


SPAN = 64  # rows of scores at a time, each over the tokens before its last alone


def plain_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Scores, softmax and products as they are written, on a CPU.

    The fused kernel has no dropout there, and its backward pass is slow in bf16 (5.7 ms against 1.9
    in fp32); in fp32 without dropout it is the faster one.

    Args:
        module: the attention layer.
        query: [B, H, T, D].
        key: the same, with fewer heads if they are shared.
        value: as the key.
        attention_mask: none is made.
        scaling: of the scores; 1/√D unless given.
        dropout: share of the probabilities that is dropped.

    Returns:
        [B, T, H, D], and no weights.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    length = query.shape[-2]
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    rows = []
    for start in range(0, length, SPAN):
        end = min(start + SPAN, length)
        scores = query[:, :, start:end] @ key[:, :, :end].mT
        later = torch.ones(end - start, end, dtype=torch.bool, device=query.device).triu(start + 1)
        shares = scores.masked_fill(later, -torch.inf).softmax(dim=-1).to(value.dtype)
        rows.append(drop(shares, dropout if module.training else 0.0) @ value[:, :, :end])
    return torch.cat(rows, dim=2).transpose(1, 2), None


AttentionInterface.register(FUSED, sdpa_attention_forward)


AttentionInterface.register(PLAIN, plain_attention)
