"""Open sources as streams of documents, shuffled in windows.

Documents are shuffled in windows rather than in a buffer, whose content would be lost: WINDOW
neighbours are read and permuted, then the next. So a resumed stream repeats one window at most.
Where documents end, another pass begins, in another order. Readers share sources by shards, or
document by document where there are too few.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from datasets import IterableDataset, concatenate_datasets

from hf_lm.data.text.documents import local_documents
from hf_lm.data.text.formats import Report
from hf_lm.data.text.holdout import HASHES, content_hash
from hf_lm.data.text.hub_datasets import open_hub
from hf_lm.data.text.sources import Corpus, Source, SourceFile
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe

if TYPE_CHECKING:
    pass


WINDOW = 10_000  # documents shuffled together; about 50 MB of web text


PORTION = 2**20  # bytes of text tokenized at once: the first block of a stream waits for one


class StreamedSource(NamedTuple):
    """A source opened for streaming."""

    rows: IterableDataset  # with the column "text"
    hash_threshold: int  # documents with a lower content hash are held out


def stream_rows(source: Source, data: DataRecipe, split: str) -> tuple[IterableDataset, str]:
    """The documents of a source with the column "text", and what stands for their content."""
    if not source.local:
        return open_hub(source.name, data, split=split)
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
        hash_threshold = int((data.validation.holdout or 0) * HASHES)
        streams = [rows for rows, _ in opened]
        if len(streams) > 1 and not corpus.mixed:  # one after the other
            streams = [concatenate_datasets(streams)]
        if data.max_documents:
            streams = [rows.take(data.max_documents) for rows in streams]
        self.train = [StreamedSource(rows, hash_threshold) for rows in streams]
        self.num_validation_blocks = [rows for rows, _ in own]

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[str]:
        return iter(("train", "validation"))

    def __getitem__(self, split: str) -> Iterator[Mapping[str, str]]:
        sides = [self.side(n, split) for n in range(len(self.train))]
        if split == "validation" and self.num_validation_blocks:
            sides = [iter(rows) for rows in self.num_validation_blocks]
        turns = itertools.zip_longest(*sides)
        return (row for turn in turns for row in turn if row and row["text"])

    def side(self, number: int, split: str) -> Iterator[Mapping[str, str]]:
        """The documents of one training source that belong to a part."""
        source = self.train[number]
        for row in source.rows:
            if row["text"] and row["text"].strip():
                num_validation_blocks = content_hash(row["text"].encode()) < source.hash_threshold
                if num_validation_blocks == (split == "validation"):
                    yield row


def window(
    rows: dict[str, list[Any]],
    places: list[int],
    *,
    hash_threshold: int,
    shuffle: Sequence[int],
    number: int,
    readers: int,
) -> dict[str, list[Any]]:
    """Neighbouring documents as portions in random order: those of the training part.

    Args:
        rows: the column "text".
        places: of those documents in the source.
        hash_threshold: content hashes that are held out.
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
        and content_hash(text.encode()) >= hash_threshold
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
