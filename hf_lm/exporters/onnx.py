"""Export a model to ONNX Runtime and check its logits.

The exporter of transformers writes the graph. Its logits are compared with those of the model
before the graph is kept. It takes ids and a mask of any shape [B, T], returns logits, and has no
cache of keys and values.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.errors import RecipeError
from hf_lm.system.files import replace_directory

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

TRACED_SHAPE = (2, 16)  # [B, T]
CHECKED_SHAPES = (TRACED_SHAPE, (1, 5), (3, 31))

MAX_DIFFERENCE = 1e-4  # of the largest logit; another order of summation made 4e-7


def export_onnx(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> float:
    """Write a model for ONNX Runtime with its tokenizer, atomically.

    Args:
        model: in fp32, on a CPU.
        tokenizer: written to the same directory.
        folder: the directory to create.

    Returns:
        The largest difference of a logit, as a fraction of the largest logit.

    Raises:
        RecipeError: the logits of the graph differ from those of the model.
    """
    from onnxruntime import InferenceSession
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    model.config.use_cache = False
    with replace_directory(folder) as staging:
        with quiet():
            exporter: Any = OnnxExporter()
            example, auto = example_inputs(model, TRACED_SHAPE), torch.export.Dim.AUTO
            shapes = {name: {0: auto, 1: auto} for name in example}
            config = OnnxConfig(dynamic=True, dynamic_shapes=shapes)
            graph = exporter.export(model.eval(), example, config=config)
            if hasattr(graph, "save_pretrained"):
                graph.save_pretrained(staging)
            else:  # transformers 5.20, the last version for Python 3.10
                graph.save(staging / "model.onnx")
                model.config.save_pretrained(staging)
        session = InferenceSession(staging / "model.onnx")
        largest = max(difference(model, session, shape) for shape in CHECKED_SHAPES)
        if not largest <= MAX_DIFFERENCE:
            raise RecipeError(
                f"{folder}: not written: the logits of ONNX Runtime differ by {largest:.1e} of the "
                f"largest, and {MAX_DIFFERENCE:g} is the most that rounding explains"
            )
        tokenizer.save_pretrained(staging)
    return largest


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


def example_inputs(model: PreTrainedModel, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Draw ids and a mask of shape [B, T]; all rows but the first have padding on the left."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, shape, generator=generator)
    ids = ids[:, : model.config.max_position_embeddings]
    mask = torch.ones_like(ids)
    mask[1:, : ids.shape[1] // 2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def difference(model: PreTrainedModel, session: Any, shape: tuple[int, int]) -> float:
    """Return the largest difference of a logit of the graph, as a fraction of the largest logit.

    Logits at padded positions are not compared.
    """
    batch = example_inputs(model, shape)
    is_token = batch["attention_mask"].bool().numpy()
    with torch.no_grad():
        expected = model(**batch).logits.numpy()[is_token]
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    logits = session.run(["logits"], arrays)[0][is_token]
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


@contextmanager
def quiet() -> Iterator[None]:
    """Hide the messages that the exporter prints for its developers."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
