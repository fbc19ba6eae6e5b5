"""Iterate over the deduplicated documents of a corpus, split into train and validation.

Nothing heavy is imported, and no text is kept: documents are read again from their files by whoever
needs them, which costs a few percent of tokenizing them and no disk.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from hf_lm.data.text.columns import columns_of
from hf_lm.data.text.formats import Report, read_documents
from hf_lm.data.text.holdout import Holdout, content_hash
from hf_lm.data.text.sources import EMBEDDED, Corpus, Source
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe
from hf_lm.system.files import sha256

SPLITS = ("train", "validation")


PORTION = 8 * 2**20  # bytes of text tokenized at once: 4 MB was 3 % slower on two cores


Progress = Callable[[int, int], None]  # documents and bytes done, for whoever watches


HubTexts = Mapping[tuple[str, str], Iterable[str | None]]  # text columns by part and Hub id


class Document(NamedTuple):
    """One text to train on or to hold out."""

    split: str  # of the recipe's two origins of text
    source: int  # position among the sources of that part
    text: str
    hash: int
    size: int  # bytes of UTF-8


def fingerprint(data: DataRecipe, corpus: Corpus, commits: tuple[str, ...] = ()) -> str:
    """A hash of what documents depend on: bytes of files, or Hub commits, and how they are read."""
    files = [
        [[file.sha256 for file in source.files] for source in corpus.of(split)] for split in SPLITS
    ]
    how = [data.text_column, data.text_template, data.sample_by, data.on_bad_bytes]
    how += [] if data.train_on == "text" else [data.train_on]
    limits = [data.max_documents, data.max_bytes, data.deduplicate, data.validation.holdout]
    content = json.dumps([files, how, limits, commits])
    return hashlib.sha256(content.encode()).hexdigest()


def local_documents(source: Source, data: DataRecipe, report: Report) -> Iterator[str]:
    """The documents of a local source, and a problem for each file that changed meanwhile."""
    columns = columns_of(data)
    on_bad_bytes = "skip" if source.name == EMBEDDED else data.on_bad_bytes
    for file in source.files:
        yield from read_documents(
            file.path,
            columns=columns,
            sample_by=data.sample_by,
            on_bad_bytes=on_bad_bytes,
            report=report,
        )
        if sha256(file.path) != file.sha256:
            report.problem(str(file.path), "changed while it was being read; run again")
        if report.full:
            return


class DocumentReader:
    """All documents of a corpus in order, and what was met on the way.

    Args:
        data: how the text is read.
        corpus: the local files and the names of Hub datasets.
        hub: the text columns of those Hub datasets.
        limit: bytes of text to read of each part; None is all.

    Attributes:
        report: problems and counts of what was read.
        duplicates: documents left out, because their text had been there in the same part.
        seen: the content hashes of each part.
    """

    def __init__(
        self, data: DataRecipe, corpus: Corpus, hub: HubTexts, *, limit: int | None = None
    ) -> None:
        self.data, self.corpus, self.hub, self.limit = data, corpus, hub, limit
        self.report, self.duplicates = Report(), 0
        self.seen: dict[str, set[int]] = {split: set() for split in SPLITS}

    def __iter__(self) -> Iterator[Document]:
        own = first_of(self.documents("train"), self.data.max_documents, self.data.max_bytes)
        yield from first_of(own, None, self.limit)
        yield from first_of(self.documents("validation"), None, self.limit)

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of one part, each text once if the recipe says so."""
        seen = self.seen[split]
        for position, source in enumerate(self.corpus.of(split)):
            for text in self.texts(source, split):
                raw = text.encode()
                value = content_hash(raw)
                if value in seen and self.data.deduplicate and not self.data.streaming:
                    self.duplicates += 1
                    continue
                seen.add(value)
                yield Document(split, position, text, value, len(raw))

    def texts(self, source: Source, split: str) -> Iterator[str]:
        """The texts of one source that are not empty."""
        if source.local:
            return local_documents(source, self.data, self.report)
        return (text for text in self.hub.get((split, source.name), ()) if text and text.strip())

    @property
    def overlap(self) -> int:
        """Validation documents that also stand in the training text."""
        return len(self.seen["train"] & self.seen["validation"])


def first_of(
    documents: Iterator[Document], count: int | None, size: int | None
) -> Iterator[Document]:
    """So many documents, or those up to so many bytes and the one that passes them."""
    found = 0
    for document in itertools.islice(documents, count):
        yield document
        found += document.size if size else 0
        if size and found >= size:
            return


class Documents(Mapping[str, Iterable[Mapping[str, str]]]):
    """The documents to train on and those held out: rows with a "text", read anew each time.

    Args:
        data: how the text is read and how much of it.
        corpus: the local files and the names of Hub datasets.
        hub: the text columns of those Hub datasets.
        split: which documents are held out.
        limit: bytes of text to read of each part; None is all.
    """

    def __init__(
        self,
        data: DataRecipe,
        corpus: Corpus,
        hub: HubTexts,
        split: Holdout,
        *,
        limit: int | None = None,
    ) -> None:
        self.data, self.corpus, self.hub = data, corpus, hub
        self.split, self.limit = split, limit

    def __len__(self) -> int:
        return len(SPLITS)

    def __iter__(self) -> Iterator[str]:
        return iter(SPLITS)

    def __getitem__(self, split: str) -> Iterable[Mapping[str, str]]:
        return Rows(self, split)

    def all(self) -> Iterator[Document]:
        """Every document with the part it belongs to.

        Raises:
            DataError: a file has become unreadable, or changed, since it was scanned.
        """
        reader = DocumentReader(self.data, self.corpus, self.hub, limit=self.limit)
        for document in reader:
            yield from self.sides(document)
        if reader.report.problems:
            raise DataError(reader.report.problems)

    def sides(self, document: Document) -> Iterator[Document]:
        """A document on the side of the split it belongs to; the only one on both."""
        held_out = document.split == "validation"
        cut = None if held_out else self.split.cut
        if cut is not None:
            for split, text in (
                ("train", document.text[:cut]),
                ("validation", document.text[cut:]),
            ):
                yield document._replace(split=split, text=text, size=len(text.encode()))
            return
        held_out = held_out or document.hash < self.split.hash_threshold
        yield document._replace(split="validation" if held_out else "train")

    def portions(self) -> Iterator[dict[str, Any]]:
        """Texts in portions of about PORTION bytes, each of one lane: a part, or a source of it.

        An empty portion ends each lane. Sources of a mixture are lanes of their own, because their
        blocks are mixed; what is held out is one.

        Yields:
            "lane", "text" (a list) and "size" (bytes).
        """
        waiting: dict[str, list[str]] = {subset: [] for subset in lanes(self.corpus)}
        sizes = dict.fromkeys(waiting, 0)
        for document in self.all():
            subset = lane_of(document, self.corpus)
            waiting[subset].append(document.text)
            sizes[subset] += document.size
            if sizes[subset] >= PORTION:
                yield {"lane": subset, "text": waiting[subset], "size": sizes[subset]}
                waiting[subset], sizes[subset] = [], 0
        for subset, texts in waiting.items():
            if texts:
                yield {"lane": subset, "text": texts, "size": sizes[subset]}
            yield {"lane": subset, "text": [], "size": 0}


class Rows:
    """The documents of one part as rows, from the start each time they are iterated."""

    def __init__(self, documents: Documents, split: str) -> None:
        self.documents, self.split = documents, split

    def __iter__(self) -> Iterator[Mapping[str, str]]:
        return ({"text": d.text} for d in self.documents.all() if d.split == self.split)


def lanes(corpus: Corpus) -> list[str]:
    """What is grouped into blocks apart: each source of a mixture, and what is held out."""
    train = [f"train-{n}" for n in range(len(corpus.train))] if corpus.mixed else ["train"]
    return [*train, "validation"]


def lane_of(document: Document, corpus: Corpus) -> str:
    """The lane of a document."""
    in_mixture = document.split == "train" and corpus.mixed
    return f"train-{document.source}" if in_mixture else document.split
