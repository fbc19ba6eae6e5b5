"""Export a model to ONNX Runtime, with a cache of keys and values.

The names and the layout are those that Optimum and transformers.js read: `onnx/model.onnx` takes
`input_ids`, `attention_mask`, `position_ids` and `past_key_values.N.key` and `.value`, and returns
`logits` and `present.N.key` and `.value`. Its logits are compared with those of the model before
the directory gets its name.
"""

from __future__ import annotations

import inspect
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.errors import RecipeError
from hf_lm.exporters.onnx_session import CachedSession, largest_difference, largest_divergence
from hf_lm.system.files import replace_directory

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

FILES = {"f32": "model.onnx", "int8": "model_quantized.onnx"}  # as transformers.js names them
UNITS = {"f32": "of the largest", "int8": "nats"}
JS_DTYPES = {"f32": "fp32", "int8": "q8"}

TRACED = {"batch": 2, "tokens": 3, "past": 5}  # any sizes but 0 and 1, which a trace would fix

LARGEST_FILE = 2**31 - 2**20  # bytes of weights; protobuf ends at 2 GiB

MAX_DIFFERENCE = 1e-4  # of the largest logit; another order of summation made 1e-6
# Nats. The matrices and what they are multiplied with are rounded: 5e-4 for small.json, and 0.6 for
# SmolLM2-135M, whose activations have outliers that int8 cannot hold.
MAX_DIVERGENCE = 5e-2


class CachedStep(torch.nn.Module):
    """A model whose cache is given and returned as tensors."""

    def __init__(self, model: PreTrainedModel, *, has_positions: bool) -> None:
        super().__init__()
        self.model = model
        self.has_positions = has_positions

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """Return logits, and the keys and values of each layer in turn.

        Args:
            input_ids: the new tokens, [B, T].
            attention_mask: of the P cached tokens and the new ones, [B, P + T].
            position_ids: of the new tokens, [B, T].
            past: keys and values of each layer in turn, each [B, H, P, K].
        """
        cache = DynamicCache()
        for layer in range(len(past) // 2):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        positions = {"position_ids": position_ids} if self.has_positions else {}
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=True,
            **positions,
        )
        layers: Any = output.past_key_values.layers
        present = [part for layer in layers for part in (layer.keys, layer.values)]
        return output.logits, *present


def export_onnx(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, dtype: str
) -> float:
    """Write a model for ONNX Runtime with its tokenizer, atomically.

    Args:
        model: in fp32, on a CPU.
        tokenizer: written to the same directory.
        folder: the directory to create.
        dtype: "f32", or "int8" for matrices that are rounded by `quantize_dynamic`.

    Returns:
        For f32, the largest difference of a logit, as a fraction of the largest logit. For int8,
        the largest divergence of the probabilities from the model's, in nats.

    Raises:
        RecipeError: the model has no cache of keys and values, or the logits of the graph differ
            from those of the model.
    """
    shapes = cache_shapes(model.eval())
    with replace_directory(folder) as staging:
        path = staging / "onnx" / FILES[dtype]
        path.parent.mkdir()
        is_large = sum(tensor.nbytes for tensor in model.parameters()) > LARGEST_FILE
        write_graph(model, shapes, path, is_large=is_large)
        if dtype == "int8":
            quantize(path)
        session = CachedSession(path, shapes)
        if dtype == "f32":
            found, limit = largest_difference(model, session), MAX_DIFFERENCE
        else:
            found, limit = largest_divergence(model, session), MAX_DIVERGENCE
        if not found <= limit:
            raise RecipeError(
                f"{folder}: not written: the logits of ONNX Runtime differ by {found:.1e} "
                f"{UNITS[dtype]}, and {limit:g} is the most that rounding to {dtype} explains"
            )
        tokenizer.save_pretrained(staging)
        write_configs(model, staging, dtype=dtype, is_large=is_large and dtype == "f32")
    return found


def check_export(folder: Path) -> None:
    """Check, before a model is loaded, that it can be exported.

    Raises:
        RecipeError: a package is missing, or the directory exists.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise RecipeError(f"export needs {', '.join(missing)}; pip install 'hf_lm[onnx]'")
    if folder.exists():
        raise RecipeError(f"{folder}: exists already; name a new folder")


def cache_shapes(model: PreTrainedModel) -> list[tuple[int, int]]:
    """Return the heads and their width, [H, K], of keys and values of each layer in turn.

    Raises:
        RecipeError: the model keeps something else between tokens.
    """
    with torch.no_grad():
        output = model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True)
    layers = getattr(getattr(output, "past_key_values", None), "layers", [])
    parts: list[Any] = [
        getattr(layer, name, None) for layer in layers for name in ("keys", "values")
    ]
    if not parts or any(part is None or part.ndim != 4 for part in parts):
        raise RecipeError(
            f"{model.config.model_type} has no cache of keys and values in every layer, which is "
            "all that ONNX graphs are written with"
        )
    return [(part.shape[1], part.shape[3]) for part in parts]


def cache_names(prefix: str, parts: int) -> list[str]:
    """Return the names of the keys and of the values of each layer in turn."""
    return [f"{prefix}.{i // 2}.{('key', 'value')[i % 2]}" for i in range(parts)]


def write_graph(
    model: PreTrainedModel, shapes: list[tuple[int, int]], path: Path, *, is_large: bool
) -> None:
    """Trace a model for any batch, any number of new tokens and any number of cached ones.

    The weights of a large model go to a second file, whose name is the first one's and "_data".
    """
    import onnx

    batch, tokens, past = TRACED.values()
    positions = torch.arange(past, past + tokens).repeat(batch, 1)
    has_positions = "position_ids" in inspect.signature(type(model).forward).parameters
    example = (
        torch.zeros(batch, tokens, dtype=torch.long),
        torch.ones(batch, past + tokens, dtype=torch.long),
        positions,
        [torch.zeros(batch, heads, past, width) for heads, width in shapes],
    )
    new = {0: "batch_size", 1: "sequence_length"}
    every = {0: "batch_size", 1: "total_sequence_length"}
    cached = {0: "batch_size", 2: "past_sequence_length"}
    names = ["input_ids", "attention_mask", "position_ids"]
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            CachedStep(model, has_positions=has_positions),
            example,
            input_names=[*names, *cache_names("past_key_values", len(shapes))],
            output_names=["logits", *cache_names("present", len(shapes))],
            dynamic_shapes=(new, every, new, [cached] * len(shapes)),
            dynamo=True,
            verbose=False,
        )
    graph: Any = program
    onnx.save_model(
        graph.model_proto, path, save_as_external_data=is_large, location=f"{path.name}_data"
    )


def quantize(path: Path) -> None:
    """Round the matrices of a graph to int8 in place, by ONNX Runtime's dynamic quantization.

    The weights are unsigned: on AVX2 the sums of signed ones overflow, which made 50 times the
    divergence. Transposed matrices are folded first, as only constants are quantized.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = path.with_name("folded.onnx")
    with quiet():
        quant_pre_process(path, folded, skip_symbolic_shape=True)
        quantize_dynamic(
            folded,
            path,
            weight_type=QuantType.QUInt8,
            per_channel=True,
            extra_options={"WeightSymmetric": True},
        )
    folded.unlink()


def write_configs(model: PreTrainedModel, folder: Path, *, dtype: str, is_large: bool) -> None:
    """Write config.json, which says to transformers.js which file to read, and the others."""
    config: Any = model.config
    model.generation_config.save_pretrained(folder)
    config.save_pretrained(folder)
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    browser: dict[str, Any] = {"dtype": JS_DTYPES[dtype]}
    if is_large:
        browser["use_external_data_format"] = True
    values["transformers.js_config"] = browser
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the messages that the exporter prints for its developers."""
    logs = [logging.getLogger("torch.onnx"), logging.getLogger()]  # the quantizer uses the root
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
