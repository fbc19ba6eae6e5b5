"""Choose the attention kernel, the loss and whether to compile, each with a reason."""

from __future__ import annotations

import os
import shutil
from typing import NamedTuple

from transformers import PreTrainedModel

from hf_lm.model.attention import FUSED, PLAIN
from hf_lm.model.build import has_fast_paths
from hf_lm.model.loss import has_linear_loss
from hf_lm.recipe import Recipe

COMPILED_FLOPS = 3e13  # a shorter run (5 minutes on a CPU) does not regain the time of compiling
COMPILED_MINUTES = 5  # the same for a run of training.max_minutes


class Kernels(NamedTuple):
    """The kernels of a run.

    Attributes:
        attention: the name of the attention implementation.
        compile: whether the transformer blocks are compiled.
        reasons: one text each for the attention, the compilation and the loss.
    """

    attention: str
    compile: bool
    reasons: tuple[str, ...]

    def provenance(self) -> dict[str, object]:
        """Return the fields of provenance.json about the kernels; rounding depends on them."""
        return {"attention": self.attention, "compile": self.compile}


def choose_kernels(
    recipe: Recipe, model: PreTrainedModel, *, device: str, precision: str, flops: float
) -> Kernels:
    """Choose the fastest kernels for a recipe; a resumed run gets the same ones.

    Args:
        recipe: the recipe, with `training.compile`, `data.document_mask` and `model.dropout`.
        model: the model of the recipe; its weights may be on the meta device.
        device: "cpu" or "cuda".
        precision: of matrix products.
        flops: FLOPs of the whole run, to judge whether compiling pays.
    """
    attention, attention_reason = choose_attention(
        recipe, model, device=device, precision=precision
    )
    model_type = model.config.model_type
    is_short = flops < COMPILED_FLOPS
    if minutes := recipe.training.max_minutes:  # its FLOPs are not known yet
        is_short = minutes < COMPILED_MINUTES
    compiled, compile_reason = choose_compile(
        recipe, device, precision, model_type, is_short=is_short
    )
    loss = "loss without logits" if has_linear_loss(model) else "loss from logits"
    return Kernels(attention, compiled, (attention_reason, compile_reason, loss))


def choose_attention(
    recipe: Recipe, model: PreTrainedModel, *, device: str, precision: str
) -> tuple[str, str]:
    """Return the name of an attention implementation and the reason for it."""
    if not has_fast_paths(model.config):
        stock = str(model.config.get_text_config()._attn_implementation)
        return stock, "attention of transformers (another family)"
    is_bf16, has_dropout = precision == "bf16", recipe.model.dropout > 0
    if recipe.data.document_mask:  # transformers makes the mask only for its own implementations
        name = "eager" if device == "cpu" and is_bf16 else "sdpa"
        return name, "attention with a document mask"
    if device == "cpu" and (is_bf16 or has_dropout):
        return PLAIN, f"plain attention ({'bf16' if is_bf16 else 'dropout'} on a CPU)"
    return FUSED, "fused attention"


def choose_compile(
    recipe: Recipe, device: str, precision: str, model_type: str, *, is_short: bool
) -> tuple[bool, str]:
    """Return whether to compile the blocks, and the reason.

    On a CPU in fp32, compiling takes 4 to 24 seconds. It makes a step of qwen3 10 % faster, does
    not change gpt2, and makes a step with dropout 11 % slower.
    """
    requested = recipe.training.compile
    if requested != "auto":
        return requested, f"{'' if requested else 'not '}compiled (the recipe)"
    if device == "cuda":  # Triton builds a launcher with a C compiler
        compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
        return bool(compiler), "compiled" if compiler else "not compiled (no C compiler)"
    compiler = shutil.which("g++") or shutil.which("clang++")
    reasons_against = {
        "slower with dropout": recipe.model.dropout > 0,
        "no faster for gpt2 in fp32": model_type == "gpt2" and precision == "fp32",
        "the run is too short": is_short,
        "no C++ compiler": not compiler,
    }
    reason = next((reason for reason, applies in reasons_against.items() if applies), None)
    return (False, f"not compiled ({reason})") if reason else (True, "compiled")
