"""The fast paths of a run are compared with transformers' own before it trains."""

from typing import Any

import pytest
import torch

from hf_lm.errors import HfLmError
from hf_lm.model import attention
from hf_lm.model.build import build_model
from hf_lm.model.config import Vocabulary
from hf_lm.model.probe import check_fast_paths
from hf_lm.recipe import ModelRecipe


def network(family: Any, kernel: str) -> Any:
    """A small network with random weights that are large enough for attention to matter."""
    recipe = ModelRecipe(family=family, n_layer=2, n_head=2, n_embd=16)
    model = build_model(recipe, Vocabulary(50, 0, 0), block_size=32, attention=kernel)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "llama", "arcee"])
@pytest.mark.parametrize("kernel", [attention.FUSED, attention.PLAIN])
def test_the_fast_paths_pass_and_leave_the_model_as_it_was(family: str, kernel: str) -> None:
    model = network(family, kernel)
    was_training, state = model.training, torch.get_rng_state()
    check_fast_paths(model, block_size=32)
    assert model.config._attn_implementation == kernel
    assert model.training == was_training
    assert torch.equal(torch.get_rng_state(), state)


def test_another_attention_is_found() -> None:
    model = network("qwen3", attention.PLAIN)
    stock = attention.plain_attention

    def unscaled(*args: Any, **options: Any) -> Any:
        """An attention that ignores the scale of the model."""
        return stock(*args, **{**options, "scaling": 1.0})

    attention.AttentionInterface.register(attention.PLAIN, unscaled)
    try:
        with pytest.raises(HfLmError, match=r"a defect of hf_lm for this qwen3 model; please"):
            check_fast_paths(model, block_size=32)
    finally:
        attention.AttentionInterface.register(attention.PLAIN, stock)


def test_another_loss_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network("gpt2", attention.FUSED)
    monkeypatch.setattr("hf_lm.model.loss.mean_loss", lambda *args: torch.tensor(1.0))
    with pytest.raises(HfLmError, match=r"give 1\.0000 on random tokens"):
        check_fast_paths(model, block_size=32)
