"""Open sources as streams of documents, shuffled in windows.

WINDOW neighbouring documents are read and permuted, then the next ones. A shuffle buffer would lose
its content when a run is resumed; with windows, at most one window is read again. At the end of the
documents another pass begins, in another order. Readers divide a source by its shards as far as
all of them get as many, and then by documents.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from datasets import IterableDataset, concatenate_datasets

from hf_lm.data.text.documents import local_documents
from hf_lm.data.text.files.report import Report
from hf_lm.data.text.holdout import HASHES, content_hash
from hf_lm.data.text.hub_datasets import open_hub
from hf_lm.data.text.sources import Corpus, Source, SourceFile
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe

WINDOW = 10_000  # documents shuffled together; about 50 MB of web text

BATCH_BYTES = 2**20  # of text tokenized at once: the first block of a stream waits for one batch


class StreamedSource(NamedTuple):
    """A source opened for streaming.

    Attributes:
        rows: its documents, with the column "text".
        hash_threshold: documents with a lower content hash are held out.
    """

    rows: IterableDataset
    hash_threshold: int


def stream_rows(source: Source, data: DataRecipe, split: str) -> tuple[IterableDataset, str]:
    """Open a source; return rows with the column "text", and the commit of a Hub dataset."""
    if not source.local:
        return open_hub(source.name, data, split=split)
    arguments = {"files": list(source.files), "source": source, "data": data}
    return IterableDataset.from_generator(local_rows, gen_kwargs=arguments), ""


def local_rows(
    files: Sequence[SourceFile], source: Source, data: DataRecipe
) -> Iterator[dict[str, str]]:
    """Yield the documents of some files of a source.

    Raises:
        DataError: a file cannot be read.
    """
    report, part = Report(), Source(source.name, source.weight, tuple(files))
    yield from ({"text": text} for text in local_documents(part, data, report))
    if problems := report.problems_with(report.unreadable):
        raise DataError(problems)


class StreamedDocuments(Mapping[str, Any]):
    """The documents of both splits as streams; sources of a mixture alternate.

    Args:
        data: the `data` section.
        corpus: the files and Hub ids.

    Attributes:
        train: the sources of the training text; one if they are not mixed.
        validation: the rows of separate validation sources; empty if documents are held out.
        weights: the share of each training source.
        commits: the commits of the Hub datasets.
    """

    def __init__(self, data: DataRecipe, corpus: Corpus) -> None:
        train = [stream_rows(source, data, "train") for source in corpus.train]
        validation = [stream_rows(source, data, "validation") for source in corpus.validation]
        self.commits = tuple(commit for _, commit in [*train, *validation] if commit)
        self.weights = corpus.weights
        hash_threshold = int((data.validation.holdout or 0) * HASHES)
        streams = [rows for rows, _ in train]
        if len(streams) > 1 and not corpus.mixed:  # read one after the other
            streams = [concatenate_datasets(streams)]
        if data.max_documents:
            streams = [rows.take(data.max_documents) for rows in streams]
        self.train = [StreamedSource(rows, hash_threshold) for rows in streams]
        self.validation = [rows for rows, _ in validation]

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> Iterator[str]:
        return iter(("train", "validation"))

    def __getitem__(self, split: str) -> Iterator[Mapping[str, str]]:
        streams = [self.split_rows(source, split) for source in self.train]
        if split == "validation" and self.validation:
            streams = [iter(rows) for rows in self.validation]
        turns = itertools.zip_longest(*streams)
        return (row for turn in turns for row in turn if row and row["text"])

    def split_rows(self, source: StreamedSource, split: str) -> Iterator[Mapping[str, str]]:
        """Yield the documents of a training source that belong to a split."""
        for row in source.rows:
            if row["text"] and row["text"].strip():
                is_validation = content_hash(row["text"].encode()) < source.hash_threshold
                if is_validation == (split == "validation"):
                    yield row


def shuffle_window(
    rows: dict[str, list[Any]],
    indices: list[int],
    *,
    hash_threshold: int,
    shuffle: Sequence[int],
    number: int,
    readers: int,
) -> dict[str, list[Any]]:
    """Shuffle a window of documents, and return its training texts in batches for the tokenizer.

    Args:
        rows: the column "text" of the window.
        indices: the indices of its documents in the source.
        hash_threshold: documents with a lower content hash are held out.
        shuffle: the seeds of the order.
        number: the number of the reader, which takes every `readers`-th document.
        readers: the number of readers that share the documents.
    """
    texts = [
        text
        for index, text in zip(indices, rows["text"], strict=True)
        if index % readers == number
        and text
        and text.strip()
        and content_hash(text.encode()) >= hash_threshold
    ]
    order = np.random.default_rng([*shuffle, indices[0]]).permutation(len(texts))
    batches: list[list[str]] = []
    size = BATCH_BYTES
    for index in order:
        if size >= BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(texts[index])
        size += len(texts[index])
    return {"subset": ["train"] * len(batches), "text": batches}
