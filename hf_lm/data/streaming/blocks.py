"""Turn streamed documents into this rank's share of the blocks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from hf_lm.data.blocks.build import make_groupers
from hf_lm.data.blocks.byte_counts import count_block_bytes, counts_bytes
from hf_lm.data.blocks.dataset import BlockDataset, Blocks, SplitCounts, table_of
from hf_lm.data.blocks.grouping import Grouper
from hf_lm.data.blocks.tokenization import Tokenize
from hf_lm.data.streaming.documents import (
    WINDOW,
    StreamedDocuments,
    StreamedSource,
    shuffle_window,
)
from hf_lm.data.streaming.reader import BlockStream, SourceReader, StreamReader
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe


class StreamShard(NamedTuple):
    """The share of a stream that a process reads.

    Attributes:
        rank: the rank of the process.
        world_size: the number of processes.
        threads: the threads of each process; each thread is a reader.
    """

    rank: int = 0
    world_size: int = 1
    threads: int = 1

    @property
    def readers(self) -> int:
        """The number of readers of all processes."""
        return self.world_size * self.threads

    @property
    def numbers(self) -> range:
        """The numbers of this process's readers."""
        return range(self.rank * self.threads, (self.rank + 1) * self.threads)


def stream_blocks(
    documents: StreamedDocuments,
    tokenizer: PreTrainedTokenizerBase,
    data: DataRecipe,
    *,
    num_validation_blocks: int,
    seed: int,
    shard: StreamShard,
) -> Blocks:
    """Open this process's share of the training stream, and read the validation blocks.

    Args:
        documents: both splits as streams.
        tokenizer: the tokenizer of the text.
        data: the `data` section.
        num_validation_blocks: the size of the validation set.
        seed: the seed of the order of documents and of the mixture.
        shard: the share of this process.

    Raises:
        DataError: there is no validation text.
    """
    tokenize = Tokenize(tokenizer, append_eos=data.append_eos, cores=data.num_proc)
    readers = [
        StreamReader(
            [
                SourceReader(
                    partial(
                        open_pass,
                        source=copy.deepcopy(source),  # it holds the position of one reader
                        tokenize=tokenize,
                        shuffle=(seed, position),
                        number=number,
                        readers=shard.readers,
                    ),
                    partial(train_grouper, tokenizer=tokenizer, data=data),
                )
                for position, source in enumerate(documents.train)
            ],
            documents.weights,
            seed=seed,
            number=number,
            readers=shard.readers,
        )
        for number in shard.numbers
    ]
    validation, counts = first_blocks(
        documents["validation"], tokenize, tokenizer, data, num_validation_blocks
    )
    return Blocks({"train": BlockStream(readers), "validation": validation}, {"validation": counts})


def train_grouper(
    tail: Sequence[int], *, tokenizer: PreTrainedTokenizerBase, data: DataRecipe
) -> Grouper:
    """Make a grouper of training text that starts with the ids that a position holds."""
    grouper = make_groupers(["train"], tokenizer, data)["train"]
    grouper.tail = np.asarray(tail, grouper.tail.dtype)
    return grouper


def open_pass(
    number_of_pass: int,
    *,
    source: StreamedSource,
    tokenize: Tokenize,
    shuffle: Sequence[int],
    number: int,
    readers: int,
) -> IterableDataset:
    """Open a reader's share of a source as rows of token ids, in the order of one pass.

    Readers with more shards than others would be in their first pass when others are in their
    second one. So the shards are divided into as many equal groups as possible, and the readers of
    a group take every n-th document of it.
    """
    rows = source.rows
    groups = math.gcd(rows.num_shards, readers)
    if groups > 1:
        rows = rows.shard(num_shards=groups, index=number % groups)
    shard = {"number": number // groups, "readers": readers // groups}
    order = (*shuffle, number_of_pass)
    batches = rows.map(
        shuffle_window,
        batched=True,
        batch_size=WINDOW,
        with_indices=True,
        remove_columns=["text"],
        fn_kwargs={"hash_threshold": source.hash_threshold, "shuffle": order, **shard},
    )
    tokens = batches.map(tokenize, remove_columns=["text"])
    tokens.set_epoch(number_of_pass)  # each pass has another order of the shards
    return tokens


def first_blocks(
    rows: Iterator[Mapping[str, str]],
    tokenize: Tokenize,
    tokenizer: PreTrainedTokenizerBase,
    data: DataRecipe,
    count: int,
) -> tuple[BlockDataset, SplitCounts]:
    """Read validation documents until there are enough blocks; return these and their counts.

    Raises:
        DataError: there is not enough text for one block.
    """
    grouper = make_groupers(["validation"], tokenizer, data)["validation"]
    rows_of_ids: list[np.ndarray] = []
    texts: list[str] = []
    documents = size = tokens = 0
    for row in rows:
        ids = tokenize({"text": [row["text"]]})
        rows_of_ids += list(grouper.add(ids["input_ids"], ids["ends"]))
        texts.append(row["text"])
        documents, tokens = documents + 1, tokens + len(ids["input_ids"])
        size += len(row["text"].encode())
        if len(rows_of_ids) >= count:
            break
    if not rows_of_ids:
        raise DataError("no validation text in this stream; raise data.validation.holdout")
    blocks = np.stack(rows_of_ids[:count])
    unused = tokens - 1 - blocks.shape[0] * data.block_size
    counts = SplitCounts(documents, size, tokens, len(blocks), max(0, unused), 0)
    block_bytes = None
    if counts_bytes(tokenizer, data):
        block_bytes = count_block_bytes(texts, tokenizer, data, len(blocks))
    return BlockDataset(Dataset(table_of(blocks)), block_bytes), counts
