"""Iterate over the deduplicated documents of a corpus, split into train and validation.

Nothing heavy is imported and no text is stored: documents are read from their files each time they
are needed. That takes a few percent of the time of tokenizing them, and no disk space. PDF and
other documents that have to be converted are converted once in a process.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from hf_lm.data.text.columns import columns_of
from hf_lm.data.text.files.compression import plain_suffix
from hf_lm.data.text.files.converted import CONVERTERS, converter_versions
from hf_lm.data.text.files.report import Report
from hf_lm.data.text.formats import read_documents
from hf_lm.data.text.holdout import Holdout, content_hash
from hf_lm.data.text.sources import EMBEDDED, Corpus, Source
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe
from hf_lm.system.files import sha256

SPLITS = ("train", "validation")

MAX_SIZES = 1_000  # documents: with more, the share that is held out is near what was asked

BATCH_BYTES = 8 * 2**20  # of text tokenized at once: 4 MB was 3 % slower on two cores

Progress = Callable[[int, int], None]  # called with the documents and bytes since the last call
HubTexts = Mapping[tuple[str, str], Iterable[str | None]]  # text columns by split and Hub id


class Document(NamedTuple):
    """A document.

    Attributes:
        split: "train" or "validation".
        source: the index of its source among those of the split.
        text: its text.
        hash: its content hash.
        size: bytes of UTF-8.
    """

    split: str
    source: int
    text: str
    hash: int
    size: int


def fingerprint(data: DataRecipe, corpus: Corpus, commits: tuple[str, ...] = ()) -> str:
    """Hash what documents depend on: files or Hub commits, and the keys that say how to read."""
    files = [
        [[file.sha256 for file in source.files] for source in corpus.of(split)] for split in SPLITS
    ]
    how = [data.text_column, data.text_template, data.sample_by, data.on_bad_bytes]
    how += [] if data.train_on == "text" else [data.train_on]
    # Keys of later versions count where they are not as before, so that older text stays the same.
    later = ("on_missing_text", "encoding", "delimiter")
    how += [[name, getattr(data, name)] for name in later if data.is_changed(name)]
    if data.near_duplicates == "drop":
        how += [["near_duplicates", data.near_duplicate_threshold]]
    if any(plain_suffix(file.path) in CONVERTERS for file in corpus.files):
        how += converter_versions()
    limits = [data.max_documents, data.max_bytes, data.deduplicate, data.validation.holdout]
    content = json.dumps([files, how, limits, commits])
    return hashlib.sha256(content.encode()).hexdigest()


def hub_selection(data: DataRecipe) -> list[str | None]:
    """Return what is read of a Hub dataset beside its commit, for the keys of the cache.

    It is not in the fingerprint, which runs of earlier versions compare; the recipe's keys are
    compared as well.
    """
    keys = data.validation
    return [data.config, data.split, keys.config, keys.split]


def local_documents(source: Source, data: DataRecipe, report: Report) -> Iterator[str]:
    """Yield the documents of a local source; report each file that changed while it was read."""
    columns = columns_of(data)
    if source.name == EMBEDDED:  # its encoding is known, and some files are not valid on purpose
        data = data.model_copy(update={"on_bad_bytes": "skip", "encoding": "utf-8"})
    for file in source.files:
        yield from read_documents(file.path, data=data, columns=columns, report=report)
        if sha256(file.path) != file.sha256:
            report.problem(str(file.path), "changed while it was being read; run again")
        if report.full:
            return


class DocumentReader:
    """Reads all documents of a corpus in order, and counts problems and duplicates.

    Args:
        data: the `data` section.
        corpus: the local files and the names of Hub datasets.
        hub: the text columns of these Hub datasets.
        limit: bytes of text to read of each split; None reads all.

    Attributes:
        report: problems and counts of the documents read so far.
        duplicates: documents that were skipped because their text is in the same split already.
        seen: the content hashes of each split.
        sizes: bytes of the first MAX_SIZES training documents, by content hash.
    """

    def __init__(
        self, data: DataRecipe, corpus: Corpus, hub: HubTexts, *, limit: int | None = None
    ) -> None:
        self.data, self.corpus, self.hub, self.limit = data, corpus, hub, limit
        self.report, self.duplicates = Report(), 0
        self.seen: dict[str, set[int]] = {split: set() for split in SPLITS}
        self.sizes: dict[int, int] = {}

    def __iter__(self) -> Iterator[Document]:
        train = first_of(self.documents("train"), self.data.max_documents, self.data.max_bytes)
        yield from first_of(train, None, self.limit)
        yield from first_of(self.documents("validation"), None, self.limit)

    def documents(self, split: str) -> Iterator[Document]:
        """Yield the documents of a split, without duplicates if the recipe says so."""
        seen = self.seen[split]
        for position, source in enumerate(self.corpus.of(split)):
            for text in self.texts(source, split):
                raw = text.encode()
                value = content_hash(raw)
                if value in seen and self.data.deduplicate and not self.data.streaming:
                    self.duplicates += 1
                    continue
                seen.add(value)
                if split == "train" and len(self.sizes) <= MAX_SIZES:
                    self.sizes[value] = len(raw)
                yield Document(split, position, text, value, len(raw))

    def texts(self, source: Source, split: str) -> Iterator[str]:
        """Yield the texts of a source that are not empty."""
        if source.local:
            yield from local_documents(source, self.data, self.report)
            return
        for number, text in enumerate(self.hub.get((split, source.name), ())):
            if self.report.full:
                return
            if isinstance(text, str):
                if text.strip():
                    yield text
                else:
                    self.report.empty += 1
            elif text is None and self.data.on_missing_text == "skip":
                self.report.missing += 1
            else:
                rule = f"its text is {'null' if text is None else type(text).__name__}"
                self.report.problem(f"{source.name}: row {number}", rule)

    @property
    def problems(self) -> list[str]:
        """The problems of the text; a source of which no file can be converted is one, too."""
        unreadable = self.report.unreadable
        sources = (*self.corpus.train, *self.corpus.validation)
        lost = [s for s in sources if s.files and all(f.path in unreadable for f in s.files)]
        return self.report.problems_with(file.path for source in lost for file in source.files)

    @property
    def overlap(self) -> int:
        """The number of validation documents that are in the training text, too."""
        return len(self.seen["train"] & self.seen["validation"])


def first_of(
    documents: Iterator[Document], count: int | None, size: int | None
) -> Iterator[Document]:
    """Yield documents up to a number of documents, and up to the one that reaches a size."""
    read_bytes = 0
    for document in itertools.islice(documents, count):
        yield document
        read_bytes += document.size if size else 0
        if size and read_bytes >= size:
            return


class Documents(Mapping[str, Iterable[Mapping[str, str]]]):
    """The documents of both splits as rows with a "text", read from the files at each iteration.

    Args:
        data: the `data` section.
        corpus: the local files and the names of Hub datasets.
        hub: the text columns of these Hub datasets.
        holdout: which documents are held out.
        limit: bytes of text to read of each split; None reads all.
    """

    def __init__(
        self,
        data: DataRecipe,
        corpus: Corpus,
        hub: HubTexts,
        holdout: Holdout,
        *,
        limit: int | None = None,
    ) -> None:
        self.data, self.corpus, self.hub = data, corpus, hub
        self.holdout, self.limit = holdout, limit

    def __len__(self) -> int:
        return len(SPLITS)

    def __iter__(self) -> Iterator[str]:
        return iter(SPLITS)

    def __getitem__(self, split: str) -> Iterable[Mapping[str, str]]:
        return Rows(self, split)

    def all(self) -> Iterator[Document]:
        """Yield every document with its split.

        Raises:
            DataError: a file has become unreadable, or has changed, since it was scanned.
        """
        reader = DocumentReader(self.data, self.corpus, self.hub, limit=self.limit)
        for document in reader:
            yield from self.assign_split(document)
        # The scan has left out what cannot be converted, so a file that fails now is new.
        if problems := reader.report.problems_with(reader.report.unreadable):
            raise DataError(problems)

    def assign_split(self, document: Document) -> Iterator[Document]:
        """Yield a document with its final split; a corpus of one document is cut in two."""
        is_validation = document.split == "validation"
        cut = None if is_validation else self.holdout.cut
        if cut is not None:
            for split, text in (
                ("train", document.text[:cut]),
                ("validation", document.text[cut:]),
            ):
                yield document._replace(split=split, text=text, size=len(text.encode()))
            return
        is_validation = is_validation or document.hash < self.holdout.hash_threshold
        if not (is_validation and document.hash in self.holdout.dropped):
            yield document._replace(split="validation" if is_validation else "train")

    def batches(self) -> Iterator[dict[str, object]]:
        """Yield texts in batches of about BATCH_BYTES, each of one subset.

        A subset is a split, or one source of a mixture: the blocks of sources are mixed later. An
        empty batch ends each subset.

        Yields:
            "subset", "text" (a list) and "size" (bytes).
        """
        waiting: dict[str, list[str]] = {subset: [] for subset in subsets(self.corpus)}
        sizes = dict.fromkeys(waiting, 0)
        for document in self.all():
            subset = subset_of(document, self.corpus)
            waiting[subset].append(document.text)
            sizes[subset] += document.size
            if sizes[subset] >= BATCH_BYTES:
                yield {"subset": subset, "text": waiting[subset], "size": sizes[subset]}
                waiting[subset], sizes[subset] = [], 0
        for subset, texts in waiting.items():
            if texts:
                yield {"subset": subset, "text": texts, "size": sizes[subset]}
            yield {"subset": subset, "text": [], "size": 0}


class Rows:
    """The documents of a split as rows; each iteration reads them from the start."""

    def __init__(self, documents: Documents, split: str) -> None:
        self.documents, self.split = documents, split

    def __iter__(self) -> Iterator[Mapping[str, str]]:
        return ({"text": d.text} for d in self.documents.all() if d.split == self.split)


def subsets(corpus: Corpus) -> list[str]:
    """Return the names of the subsets that are grouped separately; see `Documents.batches`."""
    train = [f"train-{n}" for n in range(len(corpus.train))] if corpus.mixed else ["train"]
    return [*train, "validation"]


def subset_of(document: Document, corpus: Corpus) -> str:
    """Return the subset of a document."""
    in_mixture = document.split == "train" and corpus.mixed
    return f"train-{document.source}" if in_mixture else document.split
