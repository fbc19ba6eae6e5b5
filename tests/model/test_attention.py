"""Both of our attentions give what transformers' own give, for every family and any dropout."""

import pytest
import torch

from hf_lm.model import attention
from hf_lm.model.attention import FUSED, PLAIN, plain_attention
from hf_lm.model.build import build_model
from hf_lm.model.config import FAMILIES, Vocabulary
from hf_lm.recipe import ModelRecipe


@pytest.mark.parametrize("span", [4, 5, 128])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_equal_masked_attention(
    family: str, span: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "SPAN", span)
    network = ModelRecipe(family=family, n_layer=2, n_head=2, n_embd=16)
    model = build_model(network, Vocabulary(50, 0, 0), block_size=12)
    ids = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    found = {}
    for kernel in ("eager", "sdpa", FUSED, PLAIN):
        model.set_attn_implementation(kernel)
        logits = model(ids, use_cache=False).logits
        logits.square().sum().backward()
        found[kernel] = [logits.detach(), *(p.grad for p in model.parameters())]
        model.zero_grad()
    for kernel in ("sdpa", FUSED, PLAIN):
        for ours, stock in zip(found[kernel], found["eager"], strict=True):
            torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5)


def test_grouped_query_heads_are_repeated() -> None:
    layer = torch.nn.Module()
    layer.num_key_value_groups = 2
    query, key = torch.randn(1, 4, 6, 8), torch.randn(1, 2, 6, 8)
    found, _ = plain_attention(layer, query, key, key, None)
    both = key.repeat_interleave(2, dim=1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, both, both, is_causal=True)
    torch.testing.assert_close(found, expected.transpose(1, 2))


def test_attention_dropout_applies_to_probabilities_and_only_in_training() -> None:
    layer = torch.nn.Module()
    query, ones = torch.zeros(8, 1, 64, 4), torch.ones(8, 1, 64, 4)
    kept, _ = plain_attention(layer, query, query, ones, None, dropout=0.5)
    assert kept.std() > 0.1  # sums of kept probabilities, doubled: 1 on average
    assert kept.mean().item() == pytest.approx(1, abs=0.1)
    plain, _ = plain_attention(layer.eval(), query, query, ones, None, dropout=0.5)
    torch.testing.assert_close(plain, torch.ones_like(plain))
