"""Export a model to ONNX Runtime and check its logits.

transformers has the exporter; here its result is run beside the model before it is kept. The graph
takes ids and a mask of any size and gives logits, without a cache of keys.
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

NEEDED = ("onnx", "onnxscript", "onnxruntime")


TRACED = (2, 16)  # batch and length


CHECKED = ((1, 5), (3, 31))  # others


DIFFERENCE = 1e-4  # of the largest logit; sums in another order made 4e-7


def export_onnx(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> float:
    """Write a model with its tokenizer to a folder, whole or not at all.

    Args:
        model: in fp32, on a CPU.
        tokenizer: to stand beside it.
        folder: to make.

    Returns:
        The largest difference of a logit, as a share of the largest logit.

    Raises:
        RecipeError: the graph says something else.
    """
    from onnxruntime import InferenceSession
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    model.config.use_cache = False
    with replace_directory(folder) as staging:
        with quiet():
            exporter: Any = OnnxExporter()
            given, auto = inputs(model, TRACED), torch.export.Dim.AUTO
            shapes = {name: {0: auto, 1: auto} for name in given}
            free = OnnxConfig(dynamic=True, dynamic_shapes=shapes)
            done = exporter.export(model.eval(), given, config=free)
            done.save_pretrained(staging)
        session = InferenceSession(staging / "model.onnx")
        found = max(difference(model, session, shape) for shape in (TRACED, *CHECKED))
        if not found <= DIFFERENCE:
            raise RecipeError(
                f"{folder}: not written: the logits of ONNX Runtime differ by {found:.1e} of the "
                f"largest, and {DIFFERENCE:g} is the most that rounding explains"
            )
        tokenizer.save_pretrained(staging)
    return found


def check_export(folder: Path) -> None:
    """Find out, before a model is loaded, whether it could be written.

    Raises:
        RecipeError: a package is missing, or the folder is there.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise RecipeError(f"export needs {', '.join(missing)}; pip install 'hf_lm[onnx]'")
    if folder.exists():
        raise RecipeError(f"{folder}: is there already; name a new folder")


def inputs(model: PreTrainedModel, shape: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Any ids of a shape [B, T], as far as the model sees, padded on the left but for the first."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, shape, generator=draw)
    ids = ids[:, : model.config.max_position_embeddings]
    mask = torch.ones_like(ids)
    mask[1:, : ids.shape[1] // 2] = 0
    return {"input_ids": ids, "attention_mask": mask}


def difference(model: PreTrainedModel, session: Any, shape: tuple[int, int]) -> float:
    """How far a graph is from the model, as a share of the largest logit; padding has none."""
    given = inputs(model, shape)
    kept = given["attention_mask"].bool().numpy()
    with torch.no_grad():
        expected = model(**given).logits.numpy()[kept]
    logits = session.run(["logits"], {name: ids.numpy() for name, ids in given.items()})[0][kept]
    return float(np.abs(logits - expected).max() / np.abs(expected).max())


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what the exporter tells its own makers from the person who waits."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with redirect_stdout(StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
