"""`data` of a recipe in; shifted blocks of token ids out, train and validation.

Reading order, which is the way of the text:
  sources.py    data.source -> local files with their hashes, or Hub ids
  readers.py    a file -> its documents
  documents.py  a corpus -> documents with content hashes, all problems found
  hub.py        a Hub id -> its text column
  split.py      documents -> train and validation parts
  blocks.py     documents -> token ids -> blocks, by two map() steps; the collator
  stream.py     the same blocks from a Hub dataset that is read while training
  cache.py      a key -> a prepared folder, built once

The first three import nothing heavy; nor does this file, whose functions import late.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_lm.dataset.documents import Scan, fingerprint, scan_documents
from hf_lm.dataset.sources import Corpus, find_corpus
from hf_lm.recipe import DataRecipe

if TYPE_CHECKING:
    from hf_lm.dataset.blocks import PartCounts

CHECK_BYTES = 32 * 2**20  # text that a check tokenizes, in about 20 seconds; the rest is estimated

__all__ = [
    "Corpus",
    "Sample",
    "Scan",
    "find_corpus",
    "load_blocks",
    "load_documents",
    "sample_counts",
    "sample_documents",
    "scan_documents",
    "text_blocks",
    "text_rows",
]


def load_documents(data: DataRecipe, corpus: Corpus, *, seed: int) -> tuple[Mapping[str, Any], str]:
    """The documents of both parts, and a fingerprint of their content.

    Args:
        data: how the text is read and how much is held out.
        corpus: the files and Hub ids.
        seed: of a stream's order.

    Returns:
        "train" and "validation", each with the string column "text": `Dataset`s, or
        `IterableDataset`s if the recipe streams.
    """
    if data.streaming:
        from hf_lm.dataset.stream import stream_documents

        streams, commits = stream_documents(data, corpus, seed=seed)
        return streams, fingerprint(data, corpus, commits)
    from hf_lm.dataset.hub import hub_texts
    from hf_lm.dataset.split import split_corpus

    texts, commits = hub_texts(data, corpus)
    return split_corpus(data, corpus, texts, commits), fingerprint(data, corpus, commits)


def load_blocks(
    data: DataRecipe,
    documents: Mapping[str, Any],
    tokenizer: Any,
    *,
    content: str,
    held_out: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[Mapping[str, Any], dict[str, PartCounts]]:
    """The blocks of both parts, and what became of their text.

    Args:
        data: how the text is cut.
        documents: as `load_documents` returns them.
        tokenizer: text to ids.
        content: the fingerprint of the documents.
        held_out: blocks to hold out of a stream.
        rank: of this process, which reads its own share of a stream.
        world_size: processes that share a stream.
    """
    if data.streaming:
        from hf_lm.dataset.stream import stream_blocks

        assert held_out is not None, "checked with the recipe"
        return stream_blocks(
            documents, tokenizer, data, held_out=held_out, rank=rank, world_size=world_size
        )
    from hf_lm.dataset.blocks import build_blocks

    return build_blocks(documents, tokenizer, data, content=content)


class Sample(NamedTuple):
    """Some of the documents, for a check: all of them if `share` is 1."""

    documents: Mapping[str, Any]
    share: float
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether nothing was left out."""
        return self.share == 1


def sample_documents(data: DataRecipe, corpus: Corpus, *, total: int) -> Sample:
    """The first documents, in memory; of a Hub dataset none, which a check does not download.

    Args:
        data: how the text is read.
        corpus: the files and Hub ids.
        total: bytes of all text.
    """
    from hf_lm.dataset.split import first_documents

    if corpus.local:
        documents = first_documents(data, corpus, limit=CHECK_BYTES)
        size = sum(len(text.encode()) for part in documents.values() for text in part["text"])
        return Sample(documents, 1.0 if size >= total else size / total)
    names = [s.name for part in (corpus.train, corpus.validation) for s in part if not s.local]
    note = f"{', '.join(names)}: not looked at; a check does not download data, so none is counted"
    return Sample({"train": (), "validation": ()}, 0.0, (note,))


def sample_counts(data: DataRecipe, sample: Sample, tokenizer: Any) -> dict[str, PartCounts]:
    """The counts of both parts, carried over from the sample to all text."""
    from hf_lm.dataset.blocks import blocks_in_memory

    if not sample.share:
        return {}
    return {
        part: blocks_in_memory(documents, tokenizer, data)[1].scaled(1 / sample.share)
        for part, documents in sample.documents.items()
    }


def text_blocks(data: DataRecipe, corpus: Corpus, tokenizer: Any) -> Any:
    """All text of a corpus as blocks, in memory and nothing held out, to evaluate a model on."""
    from hf_lm.dataset.blocks import blocks_in_memory, require_blocks
    from hf_lm.dataset.hub import hub_texts
    from hf_lm.dataset.split import all_documents

    texts, _ = hub_texts(data, corpus)
    blocks, counts = blocks_in_memory(all_documents(data, corpus, texts), tokenizer, data)
    require_blocks({"train": counts}, data)
    return blocks


def text_rows(
    data: DataRecipe, counts: Mapping[str, PartCounts], *, about: bool = False
) -> list[tuple[str, str]]:
    """The lines of the plan about the text; `about` marks an estimate."""
    mark, uncounted = "about " if about else "", "a stream" if data.streaming else "on the Hub"
    rows = []
    for part, label in (("train", "text"), ("validation", "held out")):
        c = counts.get(part)
        line = uncounted
        if c:
            line = (
                f"{mark}{c.documents:,} documents, {c.tokens:,} tokens, {c.blocks:,} blocks "
                f"({c.unused_tokens:,} tokens unused)"
            )
        rows.append((label, line))
    return rows
