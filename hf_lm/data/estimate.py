"""Estimate the counts of all text from a sample, for `--check`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_lm.data.text.documents import Documents
from hf_lm.data.text.scan import Scan
from hf_lm.data.text.sources import Corpus
from hf_lm.recipe import DataRecipe

if TYPE_CHECKING:
    from hf_lm.data.blocks.dataset import SplitCounts


CHECK_BYTES = 32 * 2**20  # text that a check tokenizes, in about 10 seconds; the rest is estimated


class Sample(NamedTuple):
    """Some of the documents, for a check; all of them if `whole`."""

    corpus: Corpus
    scan: Scan
    documents: Any
    whole: bool
    notes: tuple[str, ...] = ()


def sample_documents(data: DataRecipe, corpus: Corpus, scan: Scan) -> Sample:
    """The first documents of each part; of a Hub dataset none, which a check does not download.

    Args:
        data: how the text is read.
        corpus: the files and Hub ids.
        scan: what was found in them.
    """
    if corpus.prepared:
        return Sample(corpus, scan, {}, whole=True)
    if corpus.local:
        whole = scan.size <= CHECK_BYTES
        limit = None if whole else CHECK_BYTES
        documents = Documents(data, corpus, {}, scan.split, limit=limit)
        return Sample(corpus, scan, documents, whole)
    names = [s.name for split in (corpus.train, corpus.validation) for s in split if not s.local]
    note = f"{', '.join(names)}: not looked at; a check does not download data, so none is counted"
    return Sample(corpus, scan, {"train": (), "validation": ()}, whole=False, notes=(note,))


def sample_counts(data: DataRecipe, sample: Sample, tokenizer: Any) -> Mapping[str, SplitCounts]:
    """The counts of both parts, carried over from the sample to all text.

    Raises:
        DataError: all text was looked at, and a part is shorter than one block.
    """
    from hf_lm.data.blocks.build import blocks_in_memory
    from hf_lm.data.blocks.dataset import require_blocks
    from hf_lm.data.blocks.prepared import open_prepared

    if sample.corpus.prepared:
        return open_prepared(sample.corpus.prepared, data, tokenizer, seed=0).counts
    if not sample.corpus.local:
        return {}
    counts = blocks_in_memory(sample.documents, tokenizer, data)[1]
    if sample.whole:
        require_blocks(counts, data)
    train, held_out = counts["train"], counts["validation"]
    if not sample.corpus.validation:  # both parts are of the same text
        factor = sample.scan.size / (train.bytes + held_out.bytes)
        return {split: row.scaled(factor) for split, row in counts.items()}
    return {
        "train": train.scaled(sample.scan.train_bytes / train.bytes),
        "validation": held_out.scaled(sample.scan.validation_bytes / held_out.bytes),
    }
