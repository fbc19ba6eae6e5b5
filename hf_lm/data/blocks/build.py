"""Tokenize and group documents with two map() steps, and write the blocks to Arrow files.

A row holds `block_size + 1` token ids once and nothing else, as uint16 if the vocabulary allows:
about 2 bytes per token. Text is processed in batches, so memory does not grow with its size, and
no step writes an intermediate copy to disk.
"""

# Shapes: B blocks, T tokens predicted in a block (`block_size`).

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerBase

from hf_lm.data.blocks.byte_counts import count_block_bytes, counts_bytes
from hf_lm.data.blocks.chat_tokenization import TokenizeCompletions
from hf_lm.data.blocks.dataset import BYTES, COUNTS, LOSS_BIT, BlockDataset, SplitCounts, table_of
from hf_lm.data.blocks.grouping import Group, Grouper, make_grouper
from hf_lm.data.blocks.tokenization import Tokenize, id_type
from hf_lm.data.cache import build_once, key_of
from hf_lm.data.prefetch import prefetch
from hf_lm.data.text.documents import Documents, Progress, hub_selection, subsets
from hf_lm.recipe import DataRecipe
from hf_lm.tokenizer import vocabulary_size

WRITTEN_ROWS = 10_000  # blocks per Arrow record batch


def make_groupers(
    names: Sequence[str], tokenizer: PreTrainedTokenizerBase, data: DataRecipe
) -> dict[str, Grouper]:
    """Create a grouper for each subset of the text.

    The validation text is always concatenated, so that the loss of runs with different `grouping`
    compares. Conversations are an exception: they are never cut, because an answer cannot be
    learned without its question, and those longer than a block are dropped.

    Args:
        names: the names of the subsets: "train" or "train-<source>", and "validation".
        tokenizer: its end-of-text id pads blocks, and its vocabulary decides the type of an id.
        data: how the ids are grouped.

    Returns:
        The groupers by subset.
    """
    eos, is_text = tokenizer.eos_token_id, data.train_on == "text"
    return {
        subset: make_grouper(
            "concat" if subset == "validation" and is_text else data.grouping,
            block_size=data.block_size,
            eos=eos if isinstance(eos, int) else 0,
            dtype=id_type(vocabulary_size(tokenizer)) if is_text else np.int32,
            drop_long_documents=not is_text,
        )
        for subset in names
    }


def make_tokenize(
    tokenizer: PreTrainedTokenizerBase, data: DataRecipe
) -> Tokenize | TokenizeCompletions:
    """Create the first map step that the recipe asks for."""
    if data.train_on == "completion":
        return TokenizeCompletions(tokenizer)
    return Tokenize(tokenizer, append_eos=data.append_eos, cores=data.num_proc)


def block_rows(
    documents: Documents,
    tokenize: Tokenize | TokenizeCompletions,
    groupers: dict[str, Grouper],
) -> IterableDataset:
    """Apply both map steps; each row has the "blocks" [B, T+1] that a batch of text completed."""
    batches = IterableDataset.from_generator(partial(read_batches_ahead, documents))
    tokens = batches.map(tokenize, remove_columns=["text"])
    return tokens.map(Group(groupers))


def read_batches_ahead(documents: Documents) -> Iterator[dict[str, object]]:
    """Iterate over batches of documents; the next one is read while one is tokenized."""
    return prefetch(documents.batches(), batch_size=1, depth=1)


class BlockCounter:
    """Counts documents, tokens and blocks per subset while the blocks are iterated.

    Args:
        groupers: by subset; they know how many ids are unused and padded.
        report: called with the documents and bytes of each batch of text.
        has_loss_bits: whether the ids carry LOSS_BIT.
    """

    def __init__(
        self, groupers: dict[str, Grouper], report: Progress | None, *, has_loss_bits: bool
    ) -> None:
        self.groupers, self.report, self.has_loss_bits = groupers, report, has_loss_bits
        self.counts = dict.fromkeys(groupers, SplitCounts())

    def iterate(self, rows: IterableDataset) -> Iterator[tuple[str, np.ndarray]]:
        """Count and yield the subset and the blocks [B, T+1] of each row."""
        for row in rows:
            subset, blocks = row["subset"], row["blocks"]
            documents, tokens = len(row["ends"]), len(row["input_ids"])
            in_loss = int(np.count_nonzero(blocks[:, 1:] & LOSS_BIT)) if self.has_loss_bits else 0
            self.counts[subset] += SplitCounts(
                documents, row["size"], tokens, len(blocks), completion_tokens=in_loss
            )
            if self.report:
                self.report(documents, row["size"])
            yield subset, blocks

    def count_splits(self) -> dict[str, SplitCounts]:
        """Return the counts of both splits; call it after all rows were iterated."""
        split_counts = {split: SplitCounts() for split in ("train", "validation")}
        for subset, counts in self.counts.items():
            grouper = self.groupers[subset]
            rest = SplitCounts(unused_tokens=grouper.unused, padded_tokens=grouper.padded)
            split_counts[split_of(subset)] += counts + rest
        return split_counts


def split_of(subset: str) -> str:
    """Return the split of a subset: "train" for "train-0"."""
    return subset.split("-")[0]


def blocks_in_memory(
    documents: Documents, tokenizer: PreTrainedTokenizerBase, data: DataRecipe
) -> tuple[dict[str, BlockDataset], dict[str, SplitCounts]]:
    """Build the blocks and counts of both splits in memory, without writing a file."""
    groupers = make_groupers(subsets(documents.corpus), tokenizer, data)
    tokenize = make_tokenize(tokenizer, data)
    counter = BlockCounter(groupers, None, has_loss_bits=data.train_on == "completion")
    split_blocks: dict[str, list[np.ndarray]] = {"train": [], "validation": []}
    rows = block_rows(documents, tokenize, groupers)
    for subset, blocks in counter.iterate(rows):
        split_blocks[split_of(subset)].append(blocks)
    counts, splits = counter.count_splits(), {}
    for split, blocks in split_blocks.items():
        block_bytes = None
        if counts_bytes(tokenizer, data) and data.grouping == "concat":
            texts = (row["text"] for row in documents[split])
            block_bytes = count_block_bytes(texts, tokenizer, data, counts[split].blocks)
        splits[split] = BlockDataset(Dataset(table_of(np.concatenate(blocks))), block_bytes)
    return splits, counts


def build_blocks(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    data: DataRecipe,
    *,
    content: str,
    report: Progress | None = None,
) -> Path:
    """Return a cached folder with the blocks of all subsets, and build it if it is not cached.

    Args:
        documents: the text of both splits.
        tokenizer: turns text into ids.
        data: how the ids are grouped.
        content: the fingerprint of those documents.
        report: called with the documents and bytes of each batch of text.

    Returns:
        A folder with one Arrow file per subset and counts.json.
    """
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(tokenizer)
    settings: list[object] = [
        data.block_size,
        data.append_eos,
        data.grouping,
        subsets(documents.corpus),
        hub_selection(data),
    ]
    if data.train_on == "completion":
        settings.append(str(tokenizer.chat_template))
    key = key_of("blocks", content, vocabulary, tokenizer.eos_token_id, *settings)

    def build(folder: Path) -> None:
        """Write one Arrow file per subset, and the counts."""
        groupers = make_groupers(subsets(documents.corpus), tokenizer, data)
        tokenize = make_tokenize(tokenizer, data)
        counter = BlockCounter(groupers, report, has_loss_bits=data.train_on == "completion")
        rows = counter.iterate(block_rows(documents, tokenize, groupers))
        schema = table_of(np.empty((0, data.block_size + 1), tokenize.dtype)).schema
        write_arrow_files(folder, rows, names=list(groupers), schema=schema)
        if counts_bytes(tokenizer, data):
            texts = (row["text"] for row in documents["validation"])
            blocks = counter.counts["validation"].blocks
            np.save(folder / BYTES, count_block_bytes(texts, tokenizer, data, blocks))
        counts = {split: asdict(counts) for split, counts in counter.count_splits().items()}
        (folder / COUNTS).write_text(json.dumps(counts), encoding="utf-8")

    return build_once("blocks", key, build)


def write_arrow_files(
    folder: Path,
    rows: Iterator[tuple[str, np.ndarray]],
    *,
    names: Sequence[str],
    schema: pa.Schema,
) -> None:
    """Write the blocks [B, T+1] of each subset to its own Arrow file."""
    with ExitStack() as stack:
        writers = {
            subset: stack.enter_context(
                ArrowWriter(path=str(folder / f"{subset}.arrow"), schema=schema)
            )
            for subset in names
        }
        for subset, blocks in rows:
            for start in range(0, len(blocks), WRITTEN_ROWS):
                writers[subset].write_table(table_of(blocks[start : start + WRITTEN_ROWS]))
        for writer in writers.values():
            writer.finalize()
