"""Run an exported graph with its cache, and compare it with its model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

PROMPTS = ((1, 1), (2, 16), (3, 31))  # [B, T]; all rows but the first have padding on the left

STEPS = 20  # tokens that are written after each prompt, one at a time


class CachedSession:
    """A graph in ONNX Runtime with the cache of one batch.

    Args:
        path: the graph.
        shapes: heads and their width, [H, K], of the keys and of the values of each layer in turn.
    """

    def __init__(self, path: Path, shapes: list[tuple[int, int]]) -> None:
        from onnxruntime import InferenceSession

        self.session: Any = InferenceSession(path)
        self.inputs = {value.name for value in self.session.get_inputs()}
        self.past = [name for name in self.inputs if name.startswith("past_key_values.")]
        self.past.sort(key=lambda name: (int(name.split(".")[1]), name.split(".")[2]))
        self.shapes = shapes
        self.cache: list[np.ndarray] = []

    def start(self, batch: int) -> None:
        """Empty the cache, for a batch of B rows."""
        self.cache = [np.zeros((batch, h, 0, k), np.float32) for h, k in self.shapes]

    def run(self, ids: np.ndarray, mask: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Return the logits [B, T, V] of new tokens, whose keys and values join the cache."""
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        feed |= dict(zip(self.past, self.cache, strict=True))
        present = [name.replace("past_key_values", "present") for name in self.past]
        given = {name: value for name, value in feed.items() if name in self.inputs}
        logits, *self.cache = self.session.run(["logits", *present], given)
        return logits


def largest_difference(model: PreTrainedModel, session: CachedSession) -> float:
    """Return the largest difference of a logit, as a fraction of the largest logit."""
    return max(
        float(np.abs(found - expected).max() / np.abs(expected).max())
        for expected, found in compared(model, session)
    )


def largest_divergence(model: PreTrainedModel, session: CachedSession) -> float:
    """Return the largest Kullback-Leibler divergence from the model, in nats."""
    return max(
        float((np.exp(wanted) * (wanted - log_softmax(found))).sum(-1).max())
        for wanted, found in ((log_softmax(a), b) for a, b in compared(model, session))
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities of logits [N, V], in double precision."""
    return torch.log_softmax(torch.from_numpy(logits).double(), -1).numpy()


def compared(
    model: PreTrainedModel, session: CachedSession
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield logits [N, V] of a model and of its graph: of prompts, and of twenty tokens after each.

    The tokens are the likeliest ones of the model. The model sees the whole text each time, the
    graph one new token and its cache. Logits at padded positions are left out.
    """
    for shape in PROMPTS:
        ids, mask = prompt(model, shape)
        session.start(len(ids))
        new = ids.shape[1]
        for _ in range(STEPS + 1):
            if ids.shape[1] > model.config.max_position_embeddings:
                break
            positions = (mask.cumsum(-1) - 1).clamp(min=0)
            given = {"position_ids": positions} if "position_ids" in session.inputs else {}
            with torch.no_grad():
                expected = model(input_ids=ids, attention_mask=mask, **given).logits
            arrays = (ids[:, -new:].numpy(), mask.numpy(), positions[:, -new:].numpy())
            is_token = mask[:, -new:].bool().numpy()
            found = session.run(*arrays)[is_token]
            yield expected[:, -new:].numpy()[is_token], found
            ids = torch.cat([ids, expected[:, -1:].argmax(-1)], 1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            new = 1


def prompt(model: PreTrainedModel, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw ids and a mask of shape [B, T]; all rows but the first have padding on the left."""
    config: Any = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    ids = ids[:, : config.max_position_embeddings]
    mask = torch.ones_like(ids)
    mask[1:, : ids.shape[1] // 2] = 0
    return ids, mask
