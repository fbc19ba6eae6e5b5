"""Documents with content hashes in; a train part and a validation part that share none out.

Prepared once and memory-mapped from then on.

The hash decides, so the split stays when files are renamed or reordered, and identical documents
stand on one side. The price: the held-out share is met on average only. A corpus of one document is
cut in two instead, at the line end nearest to the share, and its tail held out, as nanoGPT does for
Shakespeare.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
from datasets import Dataset, Features, Value

from hf_lm.dataset.cache import build_once
from hf_lm.dataset.documents import HASHES, PARTS, HubTexts, document_rows, documents_key
from hf_lm.dataset.sources import Corpus
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe

TYPES = {"text": Value("large_string"), "hash": Value("int64"), "source": Value("int32")}


def split_corpus(
    data: DataRecipe, corpus: Corpus, hub: HubTexts, commits: tuple[str, ...]
) -> dict[str, Dataset]:
    """The documents of a corpus: "train" and "validation", each with the string column "text".

    Args:
        data: how the text is read and how much is held out.
        corpus: the local files and the names of Hub datasets.
        hub: the text columns of those Hub datasets.
        commits: what stands for their content in the key of the prepared data.
    """
    key = documents_key(data, corpus, commits)

    def build(folder: Path) -> None:
        raw = {
            part: Dataset.from_generator(
                partial(document_rows, part, data, corpus, hub),
                features=Features(TYPES),
                cache_dir=str(folder / "raw"),
                fingerprint=f"{key}-{part}",  # or it would be hashed, slowly
            )
            for part in PARTS
            if corpus.of(part)
        }
        for part, documents in parted(raw, data, corpus).items():
            documents.save_to_disk(str(folder / part))
        shutil.rmtree(folder / "raw")

    folder = build_once("documents", key, build)
    return {part: Dataset.load_from_disk(str(folder / part)) for part in PARTS}


def first_documents(data: DataRecipe, corpus: Corpus, *, limit: int) -> dict[str, Dataset]:
    """As `split_corpus`, for the first `limit` bytes of local text, with nothing written."""
    raw = {}
    for part in PARTS:
        rows, size = [], 0
        for row in document_rows(part, data, corpus, {}):
            rows.append(row)
            size += len(row["text"].encode())
            if size >= limit:
                break
        if rows:
            raw[part] = Dataset.from_list(rows, features=Features(TYPES))
    return parted(raw, data, corpus)


def all_documents(data: DataRecipe, corpus: Corpus, hub: HubTexts) -> Dataset:
    """Every document of the training sources, in memory, with nothing held out."""
    rows = list(document_rows("train", data, corpus, hub))
    weights = [source.weight for source in corpus.train]
    return weighted(Dataset.from_list(rows, features=Features(TYPES)), weights=weights)


def parted(raw: dict[str, Dataset], data: DataRecipe, corpus: Corpus) -> dict[str, Dataset]:
    """The two parts of what was read, weighted; the second is held out if it has no source."""
    weights = [source.weight for source in corpus.train]
    if data.validation.holdout is not None:
        return split_documents(raw["train"], holdout=data.validation.holdout, weights=weights)
    return {
        "train": weighted(raw["train"], weights=weights),
        "validation": weighted(raw["validation"], weights=[1.0] * len(corpus.validation)),
    }


def split_documents(
    documents: Dataset, *, holdout: float, weights: Sequence[float] = (1.0,)
) -> dict[str, Dataset]:
    """Hold whole documents back for evaluation, so that none of their text is trained on.

    Args:
        documents: columns "text", "hash" (`content_hash`) and "source", a position in `weights`.
        holdout: share of the documents to hold out.
        weights: passes over the documents of each source in one epoch.

    Raises:
        DataError: there are fewer than two different documents, and no line to cut one at.
    """
    hashes = column(documents, "hash")
    different = np.unique(hashes)
    if len(different) == 1:
        return cut_in_two(documents[0]["text"], holdout=holdout)
    held_out = hashes < int(holdout * HASHES)
    if not held_out.any():
        held_out = hashes == different[0]
    if held_out.all():
        held_out = hashes != different[-1]
    train = np.flatnonzero(~held_out)
    copies = passes(hashes[train], np.asarray(weights)[column(documents, "source")[train]])
    return {
        "train": chosen(documents, np.repeat(train, copies)),
        "validation": chosen(documents, np.flatnonzero(held_out)),
    }


def weighted(documents: Dataset, *, weights: Sequence[float]) -> Dataset:
    """Documents repeated or thinned out by the weight of their source."""
    hashes = column(documents, "hash")
    copies = passes(hashes, np.asarray(weights)[column(documents, "source")])
    return chosen(documents, np.repeat(np.arange(len(hashes)), copies))


def passes(hashes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """How often each document stands in an epoch: 2.5 is twice, and three times for every second.

    The low half of the hash decides about the fraction: the high half has decided the split.
    """
    whole = np.floor(weights).astype(np.int64)
    share = (hashes & (2**32 - 1)) / 2**32
    return whole + (share < weights - whole)


def column(documents: Dataset, name: str) -> np.ndarray:
    """A number column as an array."""
    return documents.data.column(name).to_numpy()


def chosen(documents: Dataset, places: np.ndarray) -> Dataset:
    """The documents at some places, with their text alone."""
    return cast("Dataset", documents.select(places).select_columns(["text"]))


def cut_in_two(text: str, *, holdout: float) -> dict[str, Dataset]:
    """One document as two: its tail, from the line end nearest to the share, is held out."""
    goal = round(len(text) * (1 - holdout))
    ends = [text.rfind("\n", 0, goal) + 1, text.find("\n", goal) + 1]
    ends = [end for end in ends if 0 < end < len(text)]
    if not ends:
        raise DataError(
            "the text is one line of one document: nothing can be held out; add documents, or give "
            "data.validation a source of its own"
        )
    end = min(ends, key=lambda place: abs(place - goal))
    parts = {"train": text[:end], "validation": text[end:]}
    return {name: Dataset.from_dict({"text": [part]}) for name, part in parts.items()}
