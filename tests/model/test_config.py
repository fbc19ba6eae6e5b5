"""GPT-2's words reach each family's native configuration; wrong numbers are refused."""

from typing import Any

import pytest

from hf_lm.model.config import MODERN, GPTConfig

STATE_JSON: dict[str, Any] = {
    "vocab_size": 100,
    "n_positions": 64,
    "n_embd": 48,
    "n_layer": 3,
    "n_head": 4,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@pytest.mark.parametrize("family", ["gpt2", *MODERN])
def test_every_family_accepts_the_same_parameter_names(family: str) -> None:
    native = GPTConfig(**STATE_JSON, family=family, dropout=0.25).to_native()
    assert native.model_type == family
    assert type(native).__module__.startswith("transformers.")
    assert native.num_hidden_layers == 3
    assert native.num_attention_heads == 4
    assert native.hidden_size == 48
    assert native.max_position_embeddings == 64
    assert native.eos_token_id == native.bos_token_id == 0
    assert native.tie_word_embeddings is True
    assert native.to_dict().get("n_ctx") == (64 if family == "gpt2" else None)
    dropouts = {value for name, value in native.to_dict().items() if name.endswith("_pdrop")}
    assert dropouts == {0.25} if family == "gpt2" else native.attention_dropout == 0.25


@pytest.mark.parametrize("family", MODERN)
def test_modern_families_have_as_many_key_heads_as_query_heads(family: str) -> None:
    native = GPTConfig(**STATE_JSON, family=family).to_native()
    assert native.head_dim == 12
    assert native.num_key_value_heads == 4


@pytest.mark.parametrize("family", MODERN)
def test_heads_of_keys_their_width_and_the_rotary_base_are_set(family: str) -> None:
    config = GPTConfig(**STATE_JSON, family=family, n_kv_head=2, head_dim=16, rope_theta=5e5)
    native = config.to_native()
    assert (native.num_key_value_heads, native.head_dim) == (2, 16)
    assert native.rope_parameters["rope_theta"] == 5e5


def test_a_gated_mlp_has_two_thirds_of_the_width() -> None:
    assert GPTConfig(**STATE_JSON).inner == 192
    assert GPTConfig(**STATE_JSON, family="qwen3").inner == 128
    assert GPTConfig(**STATE_JSON, family="arcee").inner == 192
    assert GPTConfig(**STATE_JSON, family="qwen3", n_inner=77).inner == 77


def test_the_vocabulary_is_padded_on_request() -> None:
    assert GPTConfig(**STATE_JSON).vocab_size == 100
    assert GPTConfig(**STATE_JSON, pad_vocab_to_multiple_of=64).to_native().vocab_size == 128


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"n_embd": 50}, "n_embd = 50 must be a positive multiple of 4"),
        ({"n_embd": 36, "family": "qwen3"}, "n_embd = 36 must be a positive multiple of 8"),
        ({"n_layer": 0}, "positive"),
        ({"eos_token_id": 100}, "eos_token_id = 100 is outside the 100 tokens"),
        ({"bos_token_id": -1}, "bos_token_id = -1 is outside"),
        ({"family": "gpt3"}, "family = 'gpt3': must be one of"),
    ],
)
def test_invalid_numbers_are_refused(change: dict[str, Any], rule: str) -> None:
    with pytest.raises(Exception, match=rule):
        GPTConfig(**{**STATE_JSON, **change})
