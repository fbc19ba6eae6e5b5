"""Run both map() steps and write the blocks to Arrow files.

A row holds `block_size + 1` token ids once, as uint16 where the vocabulary allows, and nothing
else: about 2 bytes a token. Text passes through in portions, so memory does not grow with it, and
no step leaves a copy of its own behind.
"""

# Shapes: B blocks, T tokens predicted in a block (`block_size`).

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerBase

from hf_lm.data.blocks.chat_tokenization import TokenizeCompletions
from hf_lm.data.blocks.dataset import COUNTS, LOSS_BIT, BlockDataset, SplitCounts, table_of
from hf_lm.data.blocks.grouping import Group, Grouper, make_grouper
from hf_lm.data.blocks.tokenization import Tokenize, id_type
from hf_lm.data.cache import build_once, key_of
from hf_lm.data.prefetch import prefetch
from hf_lm.data.text.documents import Documents, Progress, lanes
from hf_lm.recipe import DataRecipe

WRITTEN_ROWS = 10_000  # blocks of one Arrow record batch


def make_groupers(
    lanes: Sequence[str], tokenizer: PreTrainedTokenizerBase, data: DataRecipe
) -> dict[str, Grouper]:
    """A grouper for each lane; held-out text is one stream, whatever is trained on.

    A conversation is never cut: an answer is nothing to learn without its question.
    """
    eos, learns_all = tokenizer.eos_token_id, data.train_on == "text"
    return {
        subset: make_grouper(
            "concat" if subset == "validation" and learns_all else data.grouping,
            block_size=data.block_size,
            eos=eos if isinstance(eos, int) else 0,
            kind=id_type(len(tokenizer)) if learns_all else np.int32,
            whole=not learns_all,
        )
        for subset in lanes
    }


def make_tokenize(
    tokenizer: PreTrainedTokenizerBase, data: DataRecipe
) -> Tokenize | TokenizeCompletions:
    """The first map step that the recipe asks for."""
    if data.train_on == "completion":
        return TokenizeCompletions(tokenizer)
    return Tokenize(tokenizer, append_eos=data.append_eos, cores=data.num_proc)


def block_rows(
    documents: Documents,
    tokenize: Callable[[dict[str, Any]], dict[str, Any]],
    groupers: dict[str, Grouper],
) -> IterableDataset:
    """The two map steps; each row has the "blocks" [B, T+1] of one portion."""
    portions = IterableDataset.from_generator(partial(portions_ahead, documents))
    tokens = portions.map(tokenize, remove_columns=["text"])
    return tokens.map(Group(groupers))


def portions_ahead(documents: Documents) -> Iterator[dict[str, Any]]:
    """The portions of documents, the next one read while one is tokenized."""
    return prefetch(documents.portions(), batch_size=1, depth=1)


class BlockCounter:
    """Counts of each lane while its blocks go by."""

    def __init__(
        self, groupers: dict[str, Grouper], report: Progress | None, *, marked: bool
    ) -> None:
        self.groupers, self.report, self.marked = groupers, report, marked
        self.counts = dict.fromkeys(groupers, SplitCounts())

    def iterate(self, rows: IterableDataset) -> Iterator[tuple[str, np.ndarray]]:
        """The lane and blocks of each portion."""
        for row in rows:
            subset, blocks = row["lane"], row["blocks"]
            documents, tokens = len(row["ends"]), len(row["input_ids"])
            in_loss = int(np.count_nonzero(blocks[:, 1:] & LOSS_BIT)) if self.marked else 0
            self.counts[subset] += SplitCounts(
                documents, row["size"], tokens, len(blocks), completion_tokens=in_loss
            )
            if self.report:
                self.report(documents, row["size"])
            yield subset, blocks

    def splits(self) -> dict[str, SplitCounts]:
        """The counts of both parts, when all text has gone by."""
        found = {split: SplitCounts() for split in ("train", "validation")}
        for subset, counts in self.counts.items():
            grouper = self.groupers[subset]
            rest = SplitCounts(unused_tokens=grouper.unused, padded_tokens=grouper.padded)
            found[subset.split("-")[0]] += counts + rest
        return found


def blocks_in_memory(
    documents: Documents, tokenizer: PreTrainedTokenizerBase, data: DataRecipe
) -> tuple[dict[str, BlockDataset], dict[str, SplitCounts]]:
    """The blocks of both parts, with nothing written."""
    groupers = make_groupers(lanes(documents.corpus), tokenizer, data)
    tokenize = make_tokenize(tokenizer, data)
    tally = BlockCounter(groupers, None, marked=data.train_on == "completion")
    found: dict[str, list[np.ndarray]] = {"train": [], "validation": []}
    rows = block_rows(documents, tokenize, groupers)
    for subset, blocks in tally.iterate(rows):
        found[subset.split("-")[0]].append(blocks)
    splits = {
        split: BlockDataset(Dataset(table_of(np.concatenate(blocks))))
        for split, blocks in found.items()
    }
    return splits, tally.splits()


def build_blocks(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    data: DataRecipe,
    *,
    content: str,
    report: Progress | None = None,
) -> Path:
    """The folder with the blocks of all lanes, prepared once.

    Args:
        documents: the text of both parts.
        tokenizer: text to ids.
        data: how the ids are cut.
        content: the fingerprint of those documents.
        report: told the documents and bytes of each portion that is done.
    """
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(tokenizer)
    cutting: list[Any] = [data.block_size, data.append_eos, data.grouping, lanes(documents.corpus)]
    if data.train_on == "completion":
        cutting.append(str(tokenizer.chat_template))
    key = key_of("blocks", content, vocabulary, tokenizer.eos_token_id, *cutting)

    def build(folder: Path) -> None:
        """Write one Arrow file a lane, and the counts."""
        groupers = make_groupers(lanes(documents.corpus), tokenizer, data)
        tokenize = make_tokenize(tokenizer, data)
        tally = BlockCounter(groupers, report, marked=data.train_on == "completion")
        rows = block_rows(documents, tokenize, groupers)
        with ExitStack() as stack:
            schema = table_of(np.empty((0, data.block_size + 1), tokenize.type)).schema
            writers = {
                subset: stack.enter_context(
                    ArrowWriter(path=str(folder / f"{subset}.arrow"), schema=schema)
                )
                for subset in groupers
            }
            for subset, blocks in tally.iterate(rows):
                for start in range(0, len(blocks), WRITTEN_ROWS):
                    writers[subset].write_table(table_of(blocks[start : start + WRITTEN_ROWS]))
            for writer in writers.values():
                writer.finalize()
        counts = {split: asdict(counts) for split, counts in tally.splits().items()}
        (folder / COUNTS).write_text(json.dumps(counts))

    return build_once("blocks", key, build)
