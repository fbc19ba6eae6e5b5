"""The fast way is chosen without a setting, for a reason that the plan tells."""

import json
from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from hf_lm.model.attention import FUSED, PLAIN
from hf_lm.model.build import build_model
from hf_lm.model.config import Vocabulary
from hf_lm.planning import kernels
from hf_lm.planning.kernels import COMPILED_FLOPS, COMPILED_MINUTES, Kernels, choose_kernels
from hf_lm.recipe import ModelRecipe, Recipe

SLIDING = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


@cache
def tiny(family: Any) -> PreTrainedModel:
    """A model without weights."""
    network = ModelRecipe(family=family, n_layer=1, n_head=2, n_embd=8)
    return build_model(network, Vocabulary(50, 0, 0), block_size=8, meta=True)


@cache
def published(config: type[PreTrainedConfig], **changes: Any) -> PreTrainedModel:
    """A model as it may be published, without weights."""
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 4}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config(vocab_size=50, **shape, **changes))


def chosen(recipe: dict[str, Any] | None = None, **changes: Any) -> Kernels:
    """The kernels of a long run on a CPU, with changes."""
    given = {
        "device": "cpu",
        "precision": "fp32",
        "model": tiny("qwen3"),
        "flops": 2 * COMPILED_FLOPS,
    }
    made = Recipe.model_validate_json(json.dumps(recipe or {}))
    return choose_kernels(made, **{**given, **changes})


MASKED, DROPS = {"data": {"document_mask": True}}, {"model": {"dropout": 0.1}}


@pytest.mark.parametrize(
    ("recipe", "changes", "attention"),
    [
        ({}, {}, FUSED),
        ({}, {"precision": "bf16"}, PLAIN),
        ({}, {"precision": "bf16", "device": "cuda"}, FUSED),
        (DROPS, {}, PLAIN),
        (DROPS, {"device": "cuda"}, FUSED),
        (MASKED, {}, "sdpa"),
        (MASKED, {"precision": "bf16"}, "eager"),
        (MASKED, {"precision": "bf16", "device": "cuda"}, "sdpa"),
        ({}, {"model": published(Gemma3TextConfig)}, "sdpa"),
        (
            {},
            {
                "model": published(
                    Qwen3Config, use_sliding_window=True, sliding_window=4, max_window_layers=1
                )
            },
            "sdpa",
        ),
    ],
)
def test_attention_follows_from_device_precision_and_family(
    recipe: dict[str, Any], changes: dict[str, Any], attention: str
) -> None:
    assert chosen(recipe, **changes).attention == attention


def test_blocks_are_compiled_if_it_pays(monkeypatch: Any) -> None:
    monkeypatch.setattr(kernels.shutil, "which", lambda name: name)
    assert chosen().compile
    assert not chosen(flops=COMPILED_FLOPS / 2).compile
    assert not chosen(model=tiny("gpt2")).compile
    assert chosen(model=tiny("gpt2"), precision="bf16").compile
    assert not chosen(DROPS).compile
    assert chosen(DROPS, flops=1, device="cuda").compile
    assert chosen({"training": {"compile": True}}, flops=1).compile
    assert not chosen({"training": {"compile": False}}).compile
    monkeypatch.setattr(kernels.shutil, "which", lambda name: None)
    assert not chosen().compile
    assert "no C++ compiler" in chosen().reasons[1]


def test_a_run_of_minutes_is_compiled_if_they_are_many() -> None:
    for minutes, compiled in ((COMPILED_MINUTES, True), (COMPILED_MINUTES - 1, False)):
        recipe = {"training": {"max_minutes": minutes, "max_steps": None}}
        assert chosen(recipe, flops=0).compile == compiled


def test_every_kernel_has_a_reason() -> None:
    assert chosen(flops=1).reasons == (
        "fused attention",
        "not compiled (the run is too short)",
        "loss without logits",
    )
    assert "loss from logits" in chosen(model=published(Gemma3TextConfig)).reasons[2]


@pytest.mark.parametrize("found", ["gcc", "clang", None])
def test_nothing_is_compiled_on_a_gpu_without_a_c_compiler(
    found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: name if name == found else None)
    made = chosen(device="cuda", precision="bf16")
    assert made.compile == (found is not None)
    assert ("compiled" if found else "not compiled (no C compiler)") in made.reasons
    assert chosen({"training": {"compile": True}}, device="cuda").compile
