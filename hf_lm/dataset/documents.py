"""The files of a corpus in, documents out, each with a hash of its content.

Still nothing heavy: all local text is read once here, so that whatever is wrong with it is known
before a tokenizer or a network is loaded.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hf_lm.dataset.cache import key_of
from hf_lm.dataset.readers import Report, read_documents
from hf_lm.dataset.sources import EMBEDDED, Corpus, Source, sha256
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe

PARTS = ("train", "validation")
HASHES = 2**63  # Arrow has signed 64-bit numbers
Row = dict[str, Any]
HubTexts = dict[tuple[str, str], Iterable[str | None]]  # text columns by part and Hub id


@dataclass(frozen=True)
class Scan:
    """What one pass over the local text found."""

    documents: int
    size: int  # bytes of UTF-8
    notes: tuple[str, ...]


def fingerprint(data: DataRecipe, corpus: Corpus, commits: tuple[str, ...] = ()) -> str:
    """A hash of what documents depend on: bytes of files, or Hub commits, and how they are read."""
    files = [
        [(source.weight, [file.sha256 for file in source.files]) for source in corpus.of(part)]
        for part in PARTS
    ]
    how = [data.text_column, data.sample_by, data.on_bad_bytes, data.max_documents]
    content = json.dumps([files, how, data.validation.holdout, commits])
    return hashlib.sha256(content.encode()).hexdigest()


def documents_key(data: DataRecipe, corpus: Corpus, commits: tuple[str, ...] = ()) -> str:
    """The key of the prepared documents."""
    return key_of("documents", fingerprint(data, corpus, commits))


def local_documents(source: Source, data: DataRecipe, report: Report) -> Iterator[str]:
    """The documents of a local source, and a problem for each file that changed meanwhile."""
    on_bad_bytes = "skip" if source.name == EMBEDDED else data.on_bad_bytes
    for file in source.files:
        yield from read_documents(
            file.path,
            text_column=data.text_column,
            sample_by=data.sample_by,
            on_bad_bytes=on_bad_bytes,
            report=report,
        )
        if sha256(file.path) != file.sha256:
            report.problem(str(file.path), "changed while it was being read; run again")
        if report.full:
            return


def scan_documents(data: DataRecipe, corpus: Corpus) -> Scan:
    """Read all local text once, to find whatever is wrong with it before any heavy import.

    Raises:
        DataError: one line a problem.
    """
    report, size = Report(), 0
    hashes = {part: array("q") for part in PARTS}
    for part in PARTS:
        for text in itertools.chain(*(local_documents(s, data, report) for s in corpus.of(part))):
            size += len(text.encode())
            hashes[part].append(content_hash(text))
    trained = set(hashes["train"])
    shared = sum(value in trained for value in hashes["validation"])
    count = sum(map(len, hashes.values()))
    if not report.problems and corpus.local:
        report.problems += too_little(count, size, data, corpus)
    if report.problems:
        raise DataError(report.problems)
    return Scan(count, size, (*corpus.notes, *scan_notes(report, shared)))


def content_hash(text: str) -> int:
    """A number below HASHES that depends on a document's text alone: the start of its SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def too_little(count: int, size: int, data: DataRecipe, corpus: Corpus) -> Iterator[str]:
    """Why so little text cannot be trained on; a token is at least a byte, or ends a document."""
    names = ", ".join(source.name for source in corpus.train)
    if not count:
        yield f"{names}: no text: every document is empty or white space"
    elif size + count <= data.block_size:
        yield (
            f"{names}: at most {size + count:,} tokens of text, one block needs "
            f"{data.block_size + 1:,}; lower data.block_size"
        )


def scan_notes(report: Report, shared: int) -> Iterator[str]:
    """What a person should know about text that was accepted."""
    if report.empty:
        yield f"{report.empty:,} empty documents were left out"
    if report.bad_bytes:
        yield f"{report.bad_bytes:,} documents that are not UTF-8 were replaced or skipped"
    if report.control_characters:
        yield f"{report.control_characters:,} control characters were kept"
    if shared:
        yield f"{shared:,} validation documents also stand in the training text"


def document_rows(part: str, data: DataRecipe, corpus: Corpus, hub: HubTexts) -> Iterator[Row]:
    """Each document of a part with its content hash and the position of its source."""
    report = Report()
    rows = (
        {"text": text, "hash": content_hash(text), "source": position}
        for position, source in enumerate(corpus.of(part))
        for text in (
            local_documents(source, data, report) if source.local else hub[part, source.name]
        )
        if text and text.strip()
    )
    yield from itertools.islice(rows, data.max_documents if part == "train" else None)
    if report.problems:
        raise DataError(report.problems)
