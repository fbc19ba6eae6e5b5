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


CHECK_BYTES = 32 * 2**20  # of text that a check tokenizes, in about 10 s; the rest is estimated


class Sample(NamedTuple):
    """A sample of the documents, for a check.

    Attributes:
        corpus: the sources.
        scan: the result of the scan.
        documents: the documents of both splits.
        whole: whether they are all documents.
        notes: what the user should know about the sample.
    """

    corpus: Corpus
    scan: Scan
    documents: Any
    whole: bool
    notes: tuple[str, ...] = ()


def sample_documents(data: DataRecipe, corpus: Corpus, scan: Scan) -> Sample:
    """Take the first documents of each split; none of a Hub dataset, which is not downloaded.

    Args:
        data: the `data` section.
        corpus: the files and Hub ids.
        scan: the result of a scan of the corpus.
    """
    if corpus.prepared:
        return Sample(corpus, scan, {}, whole=True)
    if corpus.local:
        whole = scan.size <= CHECK_BYTES
        limit = None if whole else CHECK_BYTES
        readable = corpus.without(scan.left_out)
        documents = Documents(data, readable, {}, scan.holdout, limit=limit)
        return Sample(corpus, scan, documents, whole)
    names = [s.name for split in (corpus.train, corpus.validation) for s in split if not s.local]
    note = f"{', '.join(names)}: not looked at; a check does not download data, so none is counted"
    return Sample(corpus, scan, {"train": (), "validation": ()}, whole=False, notes=(note,))


def sample_counts(data: DataRecipe, sample: Sample, tokenizer: Any) -> Mapping[str, SplitCounts]:
    """Estimate the counts of both splits from a sample.

    Raises:
        DataError: the sample is all text, and a split is shorter than one block.
    """
    from hf_lm.data.blocks.build import blocks_in_memory
    from hf_lm.data.blocks.open import require_blocks
    from hf_lm.data.blocks.prepared import open_prepared

    if sample.corpus.prepared:
        return open_prepared(sample.corpus.prepared, data, tokenizer, seed=0).counts
    if not sample.corpus.local:
        return {}
    counts = blocks_in_memory(sample.documents, tokenizer, data)[1]
    if sample.whole:
        require_blocks(counts, data)
    train, validation = counts["train"], counts["validation"]
    if not sample.corpus.validation:  # both splits are of the same text
        factor = sample.scan.size / (train.bytes + validation.bytes)
        return {split: row.scaled(factor) for split, row in counts.items()}
    return {
        "train": train.scaled(sample.scan.train_bytes / train.bytes),
        "validation": validation.scaled(sample.scan.validation_bytes / validation.bytes),
    }
