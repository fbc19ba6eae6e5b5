"""Causal attention over whole blocks without a mask tensor.

transformers' own "sdpa" and "eager" build a mask [B, 1, T, T] for each batch ("sdpa" always does
under torch.compile, transformers #48925), which excludes the flash kernels. transformers makes no
mask for an implementation whose name it does not know.
"""

# Shapes: B blocks, H heads, T tokens, D width of a head.

from __future__ import annotations

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

from hf_lm.model.dropout import dropout as drop

FUSED, PLAIN = "hf_lm_fused", "hf_lm_plain"

SPAN = 64  # rows of scores computed at once; later tokens of the block are not computed


def plain_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Compute attention from separate products and a softmax; used on CPUs.

    torch's fused CPU kernel has no dropout, and its backward pass is slow in bf16 (5.7 ms, compared
    with 1.9 ms in fp32). In fp32 without dropout the fused kernel is faster.

    Args:
        module: the attention layer.
        query: [B, H, T, D].
        key: [B, H, T, D], or with fewer heads if heads share keys.
        value: of the same shape as the key.
        attention_mask: not used; transformers makes none.
        scaling: the factor of the scores; None is 1/√D.
        dropout: the fraction of probabilities that is dropped.

    Returns:
        The output [B, T, H, D], and None in place of attention weights.
    """
    groups = getattr(module, "num_key_value_groups", 1)
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    length = query.shape[-2]
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    rows = []
    for start in range(0, length, SPAN):
        end = min(start + SPAN, length)
        scores = query[:, :, start:end] @ key[:, :, :end].mT
        is_later = torch.ones(end - start, end, dtype=torch.bool, device=query.device)
        is_later = is_later.triu(start + 1)
        weights = scores.masked_fill(is_later, -torch.inf).softmax(dim=-1).to(value.dtype)
        rows.append(drop(weights, dropout if module.training else 0.0) @ value[:, :, :end])
    return torch.cat(rows, dim=2).transpose(1, 2), None


AttentionInterface.register(FUSED, sdpa_attention_forward)
AttentionInterface.register(PLAIN, plain_attention)
