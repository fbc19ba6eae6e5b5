"""Documents in, shifted blocks out, by two `map()` steps: tokenize, then group.

A row holds `block_size + 1` token ids once, so that its first `block_size` predict its last; rows
overlap by one token, so every token of a part but its first is predicted exactly once. Ids are
uint16 where the vocabulary allows. Documents are joined end to end and nothing is padded. The
price: a block may span documents (`document_mask` hides one from the other), and grouping holds one
part's ids in memory, 2 bytes a token.
"""

# Shapes: B blocks, T tokens predicted in a block (`block_size`), N tokens of a part.

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from hf_lm.dataset.cache import build_once, key_of
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe

COUNTS = "counts.json"
MAP_BATCH = 1_000  # documents per map call; a batch is encoded on all cores
MAX_ENCODED = 8 * 2**20  # characters encoded at once: an encoding takes about 100 bytes of each


@dataclass(frozen=True)
class PartCounts:
    """What became of the text of one part."""

    documents: int
    tokens: int  # of the stream, end-of-text tokens included
    blocks: int
    unused_tokens: int  # the tail that fills no block

    def scaled(self, factor: float) -> PartCounts:
        """The same for a text `factor` times as long."""
        documents, tokens, blocks, unused = astuple(self)
        if factor == 1:
            return self
        return PartCounts(
            round(documents * factor), round(tokens * factor), round(blocks * factor), unused
        )


def tokenize(
    documents: pa.Table, *, tokenizer: PreTrainedTokenizerBase, append_eos: bool
) -> pa.Table:
    """Token ids of each document, closed by end-of-text; a special token's text stays text.

    Args:
        documents: a column "text".
        tokenizer: text to ids.
        append_eos: whether documents are closed.

    Returns:
        A column "input_ids", lists of uint16 or int32.
    """
    end = [tokenizer.eos_token_id] if append_eos else []
    rows = [
        np.asarray([*ids, *end], dtype=id_type(len(tokenizer)))
        for ids in encode(documents.column("text").to_pylist(), tokenizer)
    ]
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    values = np.concatenate(rows) if rows else np.empty(0, id_type(len(tokenizer)))
    return pa.table({"input_ids": pa.LargeListArray.from_arrays(offsets, values)})


def encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text; one over MAX_ENCODED is encoded in pieces, cut at line ends."""
    pieces = [pieces_of(text) for text in texts]
    flat = [piece for row in pieces for piece in row]
    encoded = iter(
        tokenizer(
            flat,
            add_special_tokens=False,
            split_special_tokens=True,
            return_attention_mask=False,
            verbose=False,  # documents are longer than the model's context by design
        )["input_ids"]
        if flat
        else []
    )
    return [list(chain.from_iterable(next(encoded) for _ in row)) for row in pieces]


def pieces_of(text: str) -> list[str]:
    """The text, cut at the last line end before each MAX_ENCODED characters."""
    pieces = []
    while len(text) > MAX_ENCODED:
        end = text.rfind("\n", 0, MAX_ENCODED) + 1 or MAX_ENCODED
        pieces.append(text[:end])
        text = text[end:]
    return [*pieces, text]


def id_type(vocab_size: int) -> type[np.generic]:
    """The smallest integer that holds every token id."""
    return np.uint16 if vocab_size <= 2**16 else np.int32


def group(documents: pa.Table, *, block_size: int) -> pa.Table:
    """All documents of a part as one stream, cut into rows of T+1 ids that overlap by one.

    Args:
        documents: a column "input_ids" of lists, the whole part.
        block_size: T.

    Returns:
        A column "input_ids", fixed-size lists [B, T+1]; the last up to T tokens are left out.
    """
    chunks = documents.column("input_ids").chunks
    stream = np.concatenate([chunk.flatten().to_numpy() for chunk in chunks])
    rows = cut(stream, block_size=block_size)
    values = pa.array(np.ascontiguousarray(rows).reshape(-1))
    return pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(values, block_size + 1)})


def cut(stream: np.ndarray, *, block_size: int) -> np.ndarray:
    """The stream [N] as a view [B, T+1]: each row begins with the last id of the one before."""
    if len(stream) <= block_size:
        return np.empty((0, block_size + 1), stream.dtype)
    windows = np.lib.stride_tricks.sliding_window_view(stream, block_size + 1)
    return windows[::block_size]


def collate(
    rows: Sequence[dict[str, np.ndarray]], *, separator: int | None = None
) -> dict[str, torch.Tensor]:
    """Rows of T+1 ids as a batch; `shift_labels` stand at the position that predicts them.

    transformers shifts nothing when `shift_labels` is there, but computes no loss without `labels`.

    Args:
        rows: blocks, each with "input_ids" [T+1].
        separator: end-of-text id; if given, positions restart behind it, which transformers takes
            for the bounds of documents that do not see each other.

    Returns:
        input_ids, labels, shift_labels [B, T], and position_ids [B, T] with a separator.
    """
    blocks = torch.from_numpy(np.stack([row["input_ids"] for row in rows]).astype(np.int64))
    inputs = blocks[:, :-1].contiguous()
    batch = {
        "input_ids": inputs,
        "labels": inputs,
        "shift_labels": blocks[:, 1:].contiguous(),
    }
    if separator is not None:
        batch["position_ids"] = positions(inputs, separator=separator)
    return batch


def positions(ids: torch.Tensor, *, separator: int) -> torch.Tensor:
    """The place of each token [B, T] in its own document, counted from the block's start."""
    index = torch.arange(ids.shape[1]).expand_as(ids)
    starts = torch.zeros_like(ids)
    starts[:, 1:] = torch.where(ids[:, :-1] == separator, index[:, 1:], 0)
    return index - starts.cummax(dim=1).values


def make_collate(
    data: DataRecipe, tokenizer: PreTrainedTokenizerBase
) -> Callable[[Sequence[dict[str, np.ndarray]]], dict[str, torch.Tensor]]:
    """The collator the recipe asks for."""
    return partial(collate, separator=tokenizer.eos_token_id if data.document_mask else None)


def token_stream(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataRecipe, **where: Any
) -> Dataset:
    """The first map step: one row of token ids a document."""
    tokens = documents.with_format("arrow").map(
        tokenize,
        batched=True,
        batch_size=MAP_BATCH,
        remove_columns=documents.column_names,
        fn_kwargs={"tokenizer": tokenizer, "append_eos": data.append_eos},
        num_proc=data.num_proc,
        new_fingerprint="tokens",  # never looked up: the folder's key says what it holds
        desc="tokenize",
        **where,
    )
    return cast("Dataset", tokens)


def block_rows(tokens: Dataset, data: DataRecipe, **where: Any) -> Dataset:
    """The second map step: fixed rows of block_size + 1 ids, read as numpy."""
    blocks = tokens.map(
        group,
        batched=True,
        batch_size=None,
        remove_columns=tokens.column_names,
        fn_kwargs={"block_size": data.block_size},
        new_fingerprint="blocks",
        desc="group",
        **where,
    )
    return cast("Dataset", blocks.with_format("numpy"))


def blocks_in_memory(
    documents: Dataset, tokenizer: PreTrainedTokenizerBase, data: DataRecipe
) -> tuple[Dataset, PartCounts]:
    """The blocks of one part, with nothing written."""
    tokens = token_stream(documents, tokenizer, data, keep_in_memory=True)
    blocks = block_rows(tokens, data, keep_in_memory=True)
    return blocks, count(tokens, blocks, data)


def count(tokens: Dataset, blocks: Dataset, data: DataRecipe) -> PartCounts:
    """How much of a part's stream its blocks predict."""
    total = sum(len(chunk.flatten()) for chunk in tokens.data.column("input_ids").chunks)
    unused = max(0, total - 1 - len(blocks) * data.block_size)
    return PartCounts(len(tokens), total, len(blocks), unused)


def build_blocks(
    documents: Mapping[str, Dataset],
    tokenizer: PreTrainedTokenizerBase,
    data: DataRecipe,
    *,
    content: str,
) -> tuple[dict[str, Dataset], dict[str, PartCounts]]:
    """The blocks of both parts, prepared once and memory-mapped from then on.

    Args:
        documents: "train" and "validation", each with the column "text".
        tokenizer: text to ids.
        data: how the ids are cut.
        content: the fingerprint of those documents.

    Returns:
        The blocks and the counts of each part.

    Raises:
        DataError: a part is shorter than one block.
    """
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(tokenizer)
    key = key_of("blocks", content, vocabulary, data.block_size, data.append_eos)

    def build(folder: Path) -> None:
        scratch = folder / "tokens"
        scratch.mkdir()
        counts = {}
        for part, texts in documents.items():
            file = scratch / f"{part}.arrow"
            tokens = token_stream(texts, tokenizer, data, cache_file_name=str(file))
            blocks = block_rows(tokens, data, cache_file_name=str(folder / f"{part}.arrow"))
            counts[part] = asdict(count(tokens, blocks, data))
        shutil.rmtree(scratch)
        (folder / COUNTS).write_text(json.dumps(counts))

    folder = build_once("blocks", key, build)
    counts = {
        part: PartCounts(**row) for part, row in json.loads((folder / COUNTS).read_text()).items()
    }
    require_blocks(counts, data)
    files = {part: str(folder / f"{part}.arrow") for part in documents}
    return {
        part: Dataset.from_file(file).with_format("numpy") for part, file in files.items()
    }, counts


def require_blocks(counts: dict[str, PartCounts], data: DataRecipe) -> None:
    """Refuse a part that fills no block."""
    problems = [
        f"{part} text: {row.tokens:,} tokens, one block needs {data.block_size + 1:,}; add text"
        + (", raise data.validation.holdout" if part == "validation" else "")
        + " or lower data.block_size"
        for part, row in counts.items()
        if not row.blocks
    ]
    if problems:
        raise DataError(problems)
