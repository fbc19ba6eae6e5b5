"""Export a finished model for another runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hf_lm.workflows.stages import check_model_path, load_model


def export(model: str | Path, output: str | Path, *, to: Literal["onnx"] = "onnx") -> float:
    """Write a model for another runtime and compare its logits with the original.

    Args:
        model: a directory or a Hub id.
        output: the directory to make; it appears complete or not at all.
        to: "onnx" for ONNX Runtime.

    Returns:
        The largest difference between logits, as a share of the largest logit.

    Raises:
        RecipeError: a package is missing, the directory exists, or the logits differ.

    Example:
        >>> export("runs/small/model", "runs/small/onnx")
    """
    check_model_path(str(model))

    from hf_lm.exporters.onnx import check_export, export_onnx

    output = Path(output)
    check_export(output)
    network, tokenizer = load_model(str(model), device="cpu")
    return export_onnx(network, tokenizer, output)
