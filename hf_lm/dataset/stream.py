"""A Hub dataset read while it is trained on: the same blocks, from a source without an end.

A document belongs to the held-out part by its content hash, as elsewhere; the first ones of that
part are read before training. Documents are shuffled in a buffer, and a new pass is begun when one
ends. Each process reads its own shards. A resumed run reads the stream again up to its position:
exact, at the price of the time that takes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from datasets import Dataset, IterableDataset, interleave_datasets
from datasets.distributed import split_dataset_by_node
from torch.utils.data import IterableDataset as TorchIterableDataset
from transformers import PreTrainedTokenizerBase

from hf_lm.dataset.blocks import PartCounts, cut, encode, id_type
from hf_lm.dataset.documents import HASHES, content_hash
from hf_lm.dataset.hub import open_hub
from hf_lm.dataset.sources import Corpus
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe

SHUFFLE_BUFFER = 10_000  # documents; about 50 MB of web text
READ_BATCH = 256  # documents tokenized at once


def is_held_out(row: Mapping[str, Any], *, holdout: float) -> bool:
    """Whether a document belongs to the held-out part."""
    return bool(row["text"]) and content_hash(row["text"]) < holdout * HASHES


def is_trained_on(row: Mapping[str, Any], *, holdout: float) -> bool:
    """Whether a document belongs to the training part."""
    return bool(row["text"]) and content_hash(row["text"]) >= holdout * HASHES


def stream_documents(
    data: DataRecipe, corpus: Corpus, *, seed: int
) -> tuple[dict[str, IterableDataset], tuple[str, ...]]:
    """Both parts as streams of documents with the column "text", and the commits they are of.

    Args:
        data: which split, configuration and column.
        corpus: the Hub ids.
        seed: of the shuffling and the mixing of sources.
    """
    opened = [open_hub(source.name, data, part="train") for source in corpus.train]
    commits = [f"{s.name}@{commit}" for s, (_, commit) in zip(corpus.train, opened, strict=True)]
    train = mixed([rows for rows, _ in opened], [s.weight for s in corpus.train], seed=seed)
    if data.max_documents:
        train = train.take(data.max_documents)
    holdout = data.validation.holdout
    if holdout is None:
        name = (corpus.validation or corpus.train)[0].name
        held_out, commit = open_hub(name, data, part="validation")
        commits.append(f"{name}@{commit}")
    else:
        held_out = train.filter(is_held_out, fn_kwargs={"holdout": holdout})
        train = train.filter(is_trained_on, fn_kwargs={"holdout": holdout})
    train = train.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER)
    return {"train": train, "validation": held_out}, tuple(commits)


def mixed(streams: list[IterableDataset], weights: list[float], *, seed: int) -> IterableDataset:
    """Streams mixed by weight, until each has been read once."""
    if len(streams) == 1:
        return streams[0]
    shares = np.array(weights) / sum(weights)
    return interleave_datasets(
        streams, probabilities=shares.tolist(), seed=seed, stopping_strategy="all_exhausted"
    )


def token_stream(
    texts: list[str | None], *, tokenizer: PreTrainedTokenizerBase, append_eos: bool
) -> np.ndarray:
    """The ids of documents end to end, each closed by end-of-text [N]."""
    end = [tokenizer.eos_token_id] if append_eos else []
    rows = encode([text for text in texts if text], tokenizer)
    flat = itertools.chain.from_iterable([*row, *end] for row in rows)
    return np.fromiter(flat, dtype=id_type(len(tokenizer)))


class BlockStream(TorchIterableDataset):
    """Blocks of T+1 ids, without an end, from a stream of documents."""

    def __init__(
        self,
        documents: IterableDataset,
        token_ids: Callable[[list[str | None]], np.ndarray],
        *,
        block_size: int,
    ) -> None:
        self.documents, self.token_ids, self.block_size = documents, token_ids, block_size

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        tail = self.token_ids([])
        for epoch in itertools.count():
            self.documents.set_epoch(epoch)
            found = 0
            for batch in self.documents.iter(batch_size=READ_BATCH):
                stream = np.concatenate([tail, self.token_ids(batch["text"])])
                rows = cut(stream, block_size=self.block_size)
                tail = stream[len(rows) * self.block_size :]
                found += len(rows)
                yield from ({"input_ids": row} for row in rows)
            if not found:
                raise DataError("a pass over the stream fills no block; lower data.block_size")


def stream_blocks(
    documents: Mapping[str, IterableDataset],
    tokenizer: PreTrainedTokenizerBase,
    data: DataRecipe,
    *,
    held_out: int,
    rank: int,
    world_size: int,
) -> tuple[dict[str, Any], dict[str, PartCounts]]:
    """This process's share of the training stream, and the first blocks of the held-out part.

    Args:
        documents: both parts as streams.
        tokenizer: text to ids.
        data: how the text is cut.
        held_out: blocks to hold out.
        rank: of this process, which reads its own shards.
        world_size: processes that share them.

    Returns:
        The blocks, and the counts of the held-out part.
    """
    ids = partial(token_stream, tokenizer=tokenizer, append_eos=data.append_eos)
    needed = held_out * data.block_size + 1
    pieces, count, total = [ids([])], 0, 0
    for batch in documents["validation"].iter(batch_size=READ_BATCH):
        pieces.append(ids(batch["text"]))
        count, total = count + len(batch["text"]), total + len(pieces[-1])
        if total >= needed:
            break
    rows = cut(np.concatenate(pieces)[:needed], block_size=data.block_size)
    if not len(rows):
        raise DataError("no held-out text in this stream; raise data.validation.holdout")
    blocks = Dataset.from_dict({"input_ids": list(rows)}).with_format("numpy")
    unused = max(0, total - 1 - len(rows) * data.block_size)
    share = split_dataset_by_node(documents["train"], rank=rank, world_size=world_size)
    train = BlockStream(share, ids, block_size=data.block_size)
    counts = {"validation": PartCounts(count, total, len(rows), unused)}
    return {"train": train, "validation": blocks}, counts
