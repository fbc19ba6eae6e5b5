"""Compare models on the same documents, whatever their tokenizers.

Bits per byte divide by the bytes of the text, so they do not depend on how a tokenizer divides it.
The differences are paired: both models read the same documents, and a document that is hard for one
is hard for the other. Their standard error is that of a ratio of sums over documents (Cochran,
1977, section 6.4), and much smaller than that of each model alone.
"""

# Shapes: B windows, T tokens of the longest one.

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.evaluation.evaluate import BATCH_TOKENS, evaluation_mode, score
from hf_lm.evaluation.generate import context_length
from hf_lm.model.loss import IGNORE_INDEX, LOGIT_BYTES
from hf_lm.tokenizer import document_prefix

LONGEST_WINDOW = 1024  # tokens of context, unless the model has fewer

REAL = 2.0  # standard errors; chance alone gives a larger difference once in twenty times

Window = tuple[int, list[int], int]  # the number of its document, ids, and how many only begin it


@dataclass(frozen=True)
class DocumentScores:
    """The scores of one model for each document.

    Attributes:
        nats: [documents], the negative log-likelihood of each text.
        tokens: predicted tokens of all.
        seconds: the time that took.
        parameters: of the model.
    """

    nats: np.ndarray
    tokens: int
    seconds: float
    parameters: int


@dataclass(frozen=True)
class ModelComparison:
    """A model beside the first one.

    Attributes:
        model: its directory or Hub id.
        bits_per_byte: of the whole text.
        difference: bits per byte above those of the first model; below 0 is better.
        difference_stderr: its standard error over documents; None for the first model, and where
            there is one document.
        verdict: what that means, in words; empty for the first model.
        tokens: tokens of the text in its vocabulary.
        tokens_per_second: how fast it read them on this machine.
        parameters: of the model.
    """

    model: str
    bits_per_byte: float
    difference: float
    difference_stderr: float | None
    verdict: str
    tokens: int
    tokens_per_second: float
    parameters: int


@dataclass(frozen=True)
class Comparison:
    """Models compared on a text.

    Attributes:
        documents: how many there are.
        bytes: of UTF-8 in them.
        models: one for each model, in the order given.
    """

    documents: int
    bytes: int
    models: tuple[ModelComparison, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return asdict(self)


def score_documents(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]
) -> DocumentScores:
    """Score each document: every token of its text is predicted once, and nothing else.

    A document begins as the tokenizer begins one, or after the token that ends the one before it.
    One that is longer than the context is read in windows that overlap by one token.

    Args:
        model: any causal language model.
        tokenizer: its tokenizer.
        texts: the documents.
    """
    began = time.perf_counter()
    length = min(context_length(model), LONGEST_WINDOW)
    windows = [*windows_of(texts, tokenizer, length)]
    windows.sort(key=lambda window: -len(window[1]))  # neighbours have one length, or nearly
    nats, tokens = np.zeros(len(texts)), 0
    vocab_size = model.config.get_text_config().vocab_size
    table = torch.zeros(vocab_size, dtype=torch.long, device=model.device)  # the texts have bytes
    with evaluation_mode(model):
        for batch in batches(windows, LOGIT_BYTES[model.device.type] // (4 * vocab_size)):
            rows = score(model, padded(batch), table)
            for (number, _, _), row in zip(batch, rows, strict=True):
                nats[number] += row["nll"]
                tokens += int(row["tokens"])
    seconds = time.perf_counter() - began
    return DocumentScores(nats, tokens, seconds, sum(p.numel() for p in model.parameters()))


def windows_of(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int
) -> Iterator[Window]:
    """Yield the documents in windows of at most `length` + 1 ids."""
    first = document_prefix(tokenizer)
    if not first:
        bos = tokenizer.bos_token_id
        first = [tokenizer.eos_token_id if bos is None else bos]
    for number, text in enumerate(texts):
        encoded: Any = tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        ids = [*first, *encoded["input_ids"]]
        for start in range(0, len(ids) - 1, length):
            yield number, ids[start : start + length + 1], 1 if start else len(first)


def batches(windows: Sequence[Window], most_tokens: int) -> Iterator[Sequence[Window]]:
    """Yield windows, the longest first, in batches of at most so many tokens, padding included."""
    start = 0
    while start < len(windows):
        length = len(windows[start][1]) - 1
        size = max(1, min(most_tokens, BATCH_TOKENS) // length)
        yield windows[start : start + size]
        start += size


def padded(windows: Sequence[Window]) -> dict[str, torch.Tensor]:
    """Make a batch of ids [B, T] and targets; what begins a document or pads it is no target."""
    width = max(len(ids) for _, ids, _ in windows) - 1
    inputs = torch.zeros(len(windows), width, dtype=torch.long)
    targets = torch.full_like(inputs, IGNORE_INDEX)
    for row, (_, ids, context) in enumerate(windows):
        inputs[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[row, context - 1 : len(ids) - 1] = torch.tensor(ids[context:])
    return {"input_ids": inputs, "shift_labels": targets}


def compare_scores(
    names: Sequence[str], scores: Sequence[DocumentScores], sizes: Sequence[int]
) -> Comparison:
    """Compare the scores of models on the same documents with those of the first model.

    Args:
        names: of the models.
        scores: of the models.
        sizes: bytes of UTF-8 of each document.
    """
    total = sum(sizes)
    models = []
    for number, (name, found) in enumerate(zip(names, scores, strict=True)):
        difference, error = paired(found.nats - scores[0].nats, np.array(sizes))
        models.append(
            ModelComparison(
                model=name,
                bits_per_byte=float(found.nats.sum()) / math.log(2) / total,
                difference=difference,
                difference_stderr=error if number else None,
                verdict=verdict(difference, error) if number else "",
                tokens=found.tokens,
                tokens_per_second=found.tokens / found.seconds,
                parameters=found.parameters,
            )
        )
    return Comparison(len(sizes), total, tuple(models))


def paired(nats: np.ndarray, sizes: np.ndarray) -> tuple[float, float | None]:
    """Return the mean difference in bits per byte, and its standard error over documents.

    Args:
        nats: [documents], the differences.
        sizes: [documents], their bytes.
    """
    bits, total, count = nats / math.log(2), sizes.sum(), len(sizes)
    difference = float(bits.sum() / total)
    if count < 2:
        return difference, None
    spread = ((bits - difference * sizes) ** 2).sum() * count / (count - 1)
    return difference, float(math.sqrt(spread) / total)


def verdict(difference: float, error: float | None) -> str:
    """Say in words what a difference and its standard error mean."""
    if error is None:
        return "one document: nothing can be said about chance"
    if abs(difference) <= REAL * error:
        return "no difference that this text can show"
    return "better" if difference < 0 else "worse"
