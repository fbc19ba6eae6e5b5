"""Turn streamed documents into this rank's share of the blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from hf_lm.data.streaming.documents import WINDOW, StreamedDocuments, StreamedSource, window
from hf_lm.recipe import DataRecipe

if TYPE_CHECKING:
    from hf_lm.data.blocks.dataset import Blocks, SplitCounts
import copy
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase

from hf_lm.data.blocks.build import make_groupers
from hf_lm.data.blocks.dataset import BlockDataset, Blocks, SplitCounts, table_of
from hf_lm.data.blocks.grouping import Grouper
from hf_lm.data.blocks.tokenization import Tokenize
from hf_lm.data.streaming.reader import BlockStream, SourceReader, StreamReader
from hf_lm.errors import DataError


class StreamShard(NamedTuple):
    """This process among those that share a stream, and the threads it reads with."""

    rank: int = 0
    world_size: int = 1
    threads: int = 1

    @property
    def readers(self) -> int:
        """Threads of all processes."""
        return self.world_size * self.threads

    @property
    def numbers(self) -> range:
        """This process's own among them."""
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
    """This process's share of the training stream, and the first blocks of the held-out part.

    Args:
        documents: both parts as streams.
        tokenizer: text to ids.
        data: how the text is cut.
        num_validation_blocks: blocks to hold out.
        seed: of the order and the mixing.
        shard: this process among all, and the threads it reads with.
    """
    tokenize = Tokenize(tokenizer, append_eos=data.append_eos, cores=data.num_proc)
    readers = [
        StreamReader(
            [
                SourceReader(
                    partial(
                        open_pass,
                        source=copy.deepcopy(source),  # it keeps the place of one reader in itself
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
    """A grouper of training text that begins with ids left by an earlier part."""
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
    """One reader's share of a source as rows of token ids, in the order of one pass."""
    rows, shard = source.rows, {"number": number, "readers": readers}
    if rows.num_shards >= readers:
        rows = rows.shard(num_shards=readers, index=number)
        shard = {"number": 0, "readers": 1}
    order = (*shuffle, number_of_pass)
    portions = rows.map(
        window,
        batched=True,
        batch_size=WINDOW,
        with_indices=True,
        remove_columns=["text"],
        fn_kwargs={"hash_threshold": source.hash_threshold, "shuffle": order, **shard},
    )
    tokens = portions.map(tokenize, remove_columns=["text"])
    tokens.set_epoch(number_of_pass)  # another order of the shards
    return tokens


def first_blocks(
    rows: Iterator[Mapping[str, str]],
    tokenize: Tokenize,
    tokenizer: PreTrainedTokenizerBase,
    data: DataRecipe,
    count: int,
) -> tuple[BlockDataset, SplitCounts]:
    """The first held-out blocks, and the text they took.

    Raises:
        DataError: there is not enough text for one.
    """
    grouper = make_groupers(["validation"], tokenizer, data)["validation"]
    found: list[np.ndarray] = []
    documents = size = tokens = 0
    for row in rows:
        ids = tokenize({"text": [row["text"]]})
        found += list(grouper.add(ids["input_ids"], ids["ends"]))
        documents, tokens = documents + 1, tokens + len(ids["input_ids"])
        size += len(row["text"].encode())
        if len(found) >= count:
            break
    if not found:
        raise DataError("no held-out text in this stream; raise data.validation.holdout")
    blocks = np.stack(found[:count])
    unused = tokens - 1 - blocks.shape[0] * data.block_size
    counts = SplitCounts(documents, size, tokens, len(blocks), max(0, unused), 0)
    return BlockDataset(Dataset(table_of(blocks))), counts
