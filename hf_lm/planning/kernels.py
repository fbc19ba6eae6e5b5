"""Choose attention, loss and compilation, and say why."""

from __future__ import annotations

import shutil
from typing import Any, NamedTuple

from hf_lm.model.attention import FUSED, PLAIN
from hf_lm.model.config import FAMILIES
from hf_lm.recipe import Recipe

COMPILED_FLOPS = 3e13  # of a run on a CPU, about 5 minutes: less does not win back compiling


class Kernels(NamedTuple):
    """How a run is computed."""

    attention: str
    compile: bool
    reasons: tuple[str, ...]

    def facts(self) -> dict[str, Any]:
        """What rounding depends on, for provenance.json."""
        return {"attention": self.attention, "compile": self.compile}

    def rows(self) -> list[tuple[str, str]]:
        """The line of the plan about them."""
        return [("kernels", "; ".join(self.reasons))]


def choose_kernels(
    recipe: Recipe, *, device: str, precision: str, model_type: str, flops: float
) -> Kernels:
    """The fastest kernels that give the recipe's results; the same for every part of a run.

    Args:
        recipe: whether to compile, to mask documents and to drop.
        device: "cpu" or "cuda".
        precision: of the products.
        model_type: the family, in transformers' words.
        flops: of the whole run, for what takes time to prepare.
    """
    attention, why = choose_attention(recipe, device, precision, model_type)
    compiled, because = choose_compile(recipe, device, precision, model_type, flops)
    loss = "loss without logits" if model_type in FAMILIES else "loss from logits"
    return Kernels(attention, compiled, (why, because, loss))


def choose_attention(
    recipe: Recipe, device: str, precision: str, model_type: str
) -> tuple[str, str]:
    """The name of an attention, and the words for it."""
    if model_type not in FAMILIES:
        return "sdpa", "attention of transformers (another family)"
    bf16, drops = precision == "bf16", recipe.model.dropout > 0
    if recipe.data.document_mask:  # transformers makes it from the positions, for its names alone
        return ("eager" if device == "cpu" and bf16 else "sdpa"), "attention with a document mask"
    if device == "cpu" and (bf16 or drops):
        return PLAIN, f"plain attention ({'bf16' if bf16 else 'dropout'} on a CPU)"
    return FUSED, "fused attention"


def choose_compile(
    recipe: Recipe, device: str, precision: str, model_type: str, flops: float
) -> tuple[bool, str]:
    """Whether blocks are compiled.

    Measured on a CPU in fp32: 10 % a step for qwen3, nothing for gpt2, and a loss of 11 % with
    dropout, for 4 to 24 seconds of compiling.
    """
    asked = recipe.training.compile
    if asked != "auto":
        return asked, f"{'' if asked else 'not '}compiled (the recipe)"
    compiler = shutil.which("g++") or shutil.which("clang++")
    against = {
        "slower with dropout": recipe.model.dropout > 0,
        "no faster for gpt2 in fp32": model_type == "gpt2" and precision == "fp32",
        "too short to win it back": flops < COMPILED_FLOPS,
        "no C++ compiler": not compiler,
    }
    why = next((reason for reason, applies in against.items() if applies), None)
    if why and device == "cpu":
        return False, f"not compiled ({why})"
    return True, "compiled"
