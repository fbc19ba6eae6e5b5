"""Export a finished model for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hf_lm.errors import RecipeError
from hf_lm.workflows.stages import check_model_path, load_model, reach_hub

Dtype = Literal["f32", "f16", "bf16", "q8_0", "int8"]

DTYPES: dict[str, tuple[Dtype, ...]] = {  # the first is the default
    "onnx": ("f32", "int8"),
    "gguf": ("f16", "f32", "bf16", "q8_0"),
}


def export(
    model: str | Path,
    output: str | Path,
    *,
    to: Literal["onnx", "gguf"] = "onnx",
    dtype: Dtype | None = None,
) -> float | None:
    """Write a model for another runtime and compare what that computes with the original.

    Args:
        model: a directory or a Hub id.
        output: the directory to make; it appears complete or not at all.
        to: "onnx" for ONNX Runtime, or "gguf" for llama.cpp, Ollama and LM Studio.
        dtype: the type of the matrices: "f32" (None) or "int8" in ONNX; "f16" (None), "f32", "bf16"
            or "q8_0" in GGUF.

    Returns:
        For ONNX in f32, the largest difference between logits, as a share of the largest logit.
        Otherwise the largest divergence of the probabilities, in nats; None if llama.cpp is not
        installed.

    Raises:
        RecipeError: a package is missing, the directory exists, the family or the tokenizer cannot
            be written, or the runtime computes something else.

    Example:
        >>> export("runs/small/model", "runs/small/gguf", to="gguf", dtype="q8_0")
    """
    name, output = str(model), Path(output)
    check_model_path(name)
    dtype = dtype or DTYPES[to][0]
    if dtype not in DTYPES[to]:
        raise RecipeError(f"--dtype {dtype}: {to} is written as {', '.join(DTYPES[to])}")
    if to == "gguf":
        return write_gguf(name, output, dtype)

    from hf_lm.exporters.onnx import check_export, export_onnx

    check_export(output)
    network, tokenizer = load_model(name, device="cpu")
    return export_onnx(network, tokenizer, output, dtype=dtype)


def write_gguf(model: str, output: Path, dtype: Dtype) -> float | None:
    """Write a model as GGUF; see `export`."""
    from hf_lm.exporters.gguf import check_gguf, export_gguf
    from hf_lm.model.pretrained import load_config

    if not Path(model).is_dir():
        reach_hub()
    check_gguf(model, load_config(model), output)
    network, tokenizer = load_model(model, device="cpu")
    return export_gguf(network, tokenizer, output, dtype=dtype)
