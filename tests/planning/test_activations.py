"""The memory of activations is known before any is allocated."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, MixtralConfig

from hf_lm.model.build import build_model
from hf_lm.model.config import Vocabulary
from hf_lm.planning import activations
from hf_lm.planning.activations import Activations, measure_activations, saved_bytes
from hf_lm.planning.costs import describe_model
from hf_lm.planning.plan import DeviceMemory, make_plan
from hf_lm.recipe import ModelRecipe, TrainingRecipe

BLOCK = 32


def network(family: Any = "gpt2", *, meta: bool = True, **keys: Any) -> Any:
    """A small network."""
    recipe = ModelRecipe(family=family, n_layer=3, n_head=2, n_embd=32, **keys)
    attention = "hf_lm_plain" if keys else "hf_lm_fused"
    vocabulary = Vocabulary(300, 0, 0)
    return build_model(recipe, vocabulary, block_size=BLOCK, meta=meta, attention=attention)


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keys", [{}, {"dropout": 0.1}])
def test_fake_tensors_save_what_real_ones_do(
    family: str, dtype: torch.dtype, keys: dict[str, Any]
) -> None:
    found = measure_activations(network(family, **keys), BLOCK, dtype=dtype)
    real = network(family, meta=False, **keys).train()
    for blocks in (1, 3, 8):
        with torch.enable_grad():
            expected = saved_bytes(real, blocks, BLOCK, dtype)
        chunks = found.of(0) - activations.LOGIT_BYTES["cpu"] * 3
        assert chunks + blocks * found.per_block == pytest.approx(expected, rel=0.03)


def test_activation_checkpointing_keeps_the_inputs_and_one_transformer_block() -> None:
    full = measure_activations(network(), BLOCK)
    less = measure_activations(network(), BLOCK, activation_checkpointing=True)
    inputs = 4 * BLOCK * 32 * 3
    assert less.per_block == inputs + full.per_block // 3


def test_a_family_that_fake_tensors_cannot_follow_is_estimated(caplog: Any, capfd: Any) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    config = MixtralConfig(
        vocab_size=50, intermediate_size=64, num_local_experts=4, num_key_value_heads=2, **shape
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    found = measure_activations(model, BLOCK)
    assert found == Activations(0, 40 * 4 * BLOCK * 32 * 2 + 8 * BLOCK * 50)
    assert not caplog.records
    assert not capfd.readouterr().err


def plan_of(memory: DeviceMemory) -> Any:
    """The plan of 32 blocks a step."""
    recipe = TrainingRecipe(tokens_per_step=32 * BLOCK, optimizer="adamw", max_steps=4)
    sizes = {"block_size": BLOCK, "train_blocks": 1_000, "world_size": 1}
    found = Activations(fixed=0, per_block=1_000)
    return make_plan(recipe, describe_model(network()), found, memory=memory, **sizes)


def test_the_copy_of_a_checkpoint_needs_memory_where_the_model_is_on_the_host() -> None:
    on_cpu = plan_of(DeviceMemory(10**9, used=5 * 10**8))
    on_gpu = plan_of(DeviceMemory(10**9, holds_copies=False))
    state = 16 * on_cpu.model_size.parameters
    assert on_cpu.checkpoint == 12 * on_cpu.model_size.parameters
    assert on_cpu.needed_memory == state + on_cpu.checkpoint + 32 * 1_000
    assert on_cpu.memory == on_cpu.needed_memory + 5 * 10**8
    assert on_gpu.needed_memory == state + 32 * 1_000
    (line,) = plan_of(DeviceMemory(state + on_cpu.checkpoint // 2)).unmet_requirements
    assert "GB are free" in line  # it would be killed at its first checkpoint
