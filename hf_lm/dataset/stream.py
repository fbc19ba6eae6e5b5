"""Text read while it is trained on: the same blocks, from sources without an end.

Documents are shuffled in windows rather than in a buffer, whose content would be lost: WINDOW
neighbours are read and permuted, then the next. So a resumed stream repeats one window at most.
Where documents end, another pass begins, in another order. Readers share sources by shards, or
document by document where there are too few.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from hf_lm.dataset.blocks import BlockRows, Blocks, PartCounts, make_groupers, table_of
from hf_lm.dataset.documents import HASHES, content_hash, local_documents
from hf_lm.dataset.endless import BlockStream, Reader, SourceReader
from hf_lm.dataset.grouping import Grouper
from hf_lm.dataset.hub import open_hub
from hf_lm.dataset.readers import Report
from hf_lm.dataset.sources import Corpus, Source, SourceFile
from hf_lm.dataset.tokens import Tokenize
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe

if TYPE_CHECKING:
    from hf_lm.dataset import Share

WINDOW = 10_000  # documents shuffled together; about 50 MB of web text
PORTION = 2**20  # bytes of text tokenized at once: the first block of a stream waits for one


class StreamedSource(NamedTuple):
    """A source opened for streaming."""

    rows: IterableDataset  # with the column "text"
    below: int  # documents with a lower content hash are held out


def stream_rows(source: Source, data: DataRecipe, part: str) -> tuple[IterableDataset, str]:
    """The documents of a source with the column "text", and what stands for their content."""
    if not source.local:
        return open_hub(source.name, data, part=part)
    arguments = {"files": list(source.files), "source": source, "data": data}
    return IterableDataset.from_generator(local_rows, gen_kwargs=arguments), ""


def local_rows(
    files: Sequence[SourceFile], source: Source, data: DataRecipe
) -> Iterator[dict[str, str]]:
    """The documents of some files of a source."""
    report, some = Report(), Source(source.name, source.weight, tuple(files))
    yield from ({"text": text} for text in local_documents(some, data, report))
    if report.problems:
        raise DataError(report.problems)


class StreamedDocuments(Mapping[str, Any]):
    """The documents of both parts of a stream, one source after the other in turn."""

    def __init__(self, data: DataRecipe, corpus: Corpus) -> None:
        opened = [stream_rows(source, data, "train") for source in corpus.train]
        own = [stream_rows(source, data, "validation") for source in corpus.validation]
        self.commits = tuple(commit for _, commit in [*opened, *own] if commit)
        self.weights = corpus.weights
        below = int((data.validation.holdout or 0) * HASHES)
        streams = [rows for rows, _ in opened]
        if len(streams) > 1 and not corpus.mixed:  # one after the other
            streams = [concatenate_datasets(streams)]
        if data.max_documents:
            streams = [rows.take(data.max_documents) for rows in streams]
        self.train = [StreamedSource(rows, below) for rows in streams]
        self.held_out = [rows for rows, _ in own]

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[str]:
        return iter(("train", "validation"))

    def __getitem__(self, part: str) -> Iterator[Mapping[str, str]]:
        sides = [self.side(n, part) for n in range(len(self.train))]
        if part == "validation" and self.held_out:
            sides = [iter(rows) for rows in self.held_out]
        turns = itertools.zip_longest(*sides)
        return (row for turn in turns for row in turn if row and row["text"])

    def side(self, number: int, part: str) -> Iterator[Mapping[str, str]]:
        """The documents of one training source that belong to a part."""
        source = self.train[number]
        for row in source.rows:
            if row["text"] and row["text"].strip():
                held_out = content_hash(row["text"].encode()) < source.below
                if held_out == (part == "validation"):
                    yield row


def window(
    rows: dict[str, list[Any]],
    places: list[int],
    *,
    below: int,
    shuffle: Sequence[int],
    number: int,
    readers: int,
) -> dict[str, list[Any]]:
    """Neighbouring documents as portions in random order: those of the training part.

    Args:
        rows: the column "text".
        places: of those documents in the source.
        below: content hashes that are held out.
        shuffle: seeds of the order.
        number: of the reader, which takes every `readers`-th document.
        readers: that share the documents.
    """
    texts = [
        text
        for place, text in zip(places, rows["text"], strict=True)
        if place % readers == number
        and text
        and text.strip()
        and content_hash(text.encode()) >= below
    ]
    order = np.random.default_rng([*shuffle, places[0]]).permutation(len(texts))
    portions: list[list[str]] = []
    size = PORTION
    for place in order:
        if size >= PORTION:
            portions.append([])
            size = 0
        portions[-1].append(texts[place])
        size += len(texts[place])
    return {"lane": ["train"] * len(portions), "text": portions}


def stream_blocks(
    documents: StreamedDocuments,
    tokenizer: PreTrainedTokenizerBase,
    data: DataRecipe,
    *,
    held_out: int,
    seed: int,
    share: Share,
) -> Blocks:
    """This process's share of the training stream, and the first blocks of the held-out part.

    Args:
        documents: both parts as streams.
        tokenizer: text to ids.
        data: how the text is cut.
        held_out: blocks to hold out.
        seed: of the order and the mixing.
        share: this process among all, and the threads it reads with.
    """
    tokenize = Tokenize(tokenizer, append_eos=data.append_eos, cores=data.num_proc)
    readers = [
        Reader(
            [
                SourceReader(
                    partial(
                        open_pass,
                        source=copy.deepcopy(source),  # it keeps the place of one reader in itself
                        tokenize=tokenize,
                        shuffle=(seed, position),
                        number=number,
                        readers=share.readers,
                    ),
                    partial(train_grouper, tokenizer=tokenizer, data=data),
                )
                for position, source in enumerate(documents.train)
            ],
            documents.weights,
            seed=seed,
            number=number,
            readers=share.readers,
        )
        for number in share.numbers
    ]
    validation, counts = first_blocks(documents["validation"], tokenize, tokenizer, data, held_out)
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
    rows, share = source.rows, {"number": number, "readers": readers}
    if rows.num_shards >= readers:
        rows = rows.shard(num_shards=readers, index=number)
        share = {"number": 0, "readers": 1}
    order = (*shuffle, number_of_pass)
    portions = rows.map(
        window,
        batched=True,
        batch_size=WINDOW,
        with_indices=True,
        remove_columns=["text"],
        fn_kwargs={"below": source.below, "shuffle": order, **share},
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
) -> tuple[BlockRows, PartCounts]:
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
    counts = PartCounts(documents, size, tokens, len(blocks), max(0, unused), 0)
    return BlockRows(Dataset(table_of(blocks))), counts
