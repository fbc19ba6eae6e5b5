"""Find every problem of a corpus in one pass, before anything heavy is imported.

Still nothing heavy: all local text is read once here, so that a bad file is named before a
tokenizer or a network is loaded.

The hash decides which documents are held out, so the split stays when files are renamed or
reordered, and identical documents stand on one side. The price: the held-out share is met on
average only. A corpus of one document is cut in two instead, at the line end nearest to the share,
and its tail held out, as nanoGPT does for Shakespeare.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from hf_lm.data.cache import build_once, cache_root, is_whole, key_of
from hf_lm.data.text.documents import SPLITS, DocumentReader, HubTexts, Progress, fingerprint
from hf_lm.data.text.holdout import Holdout, choose_holdout
from hf_lm.data.text.sources import Corpus
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe

SCAN = "scan.json"


@dataclass(frozen=True)
class Scan:
    """What one pass over the text found."""

    documents: int
    train_bytes: int  # of UTF-8, before anything is held out of them
    validation_bytes: int  # of sources of their own
    duplicates: int  # documents that were left out
    overlap: int  # validation documents that also stand in the training text
    hash_threshold: int
    cut: int | None
    notes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Bytes of all text."""
        return self.train_bytes + self.validation_bytes

    @property
    def split(self) -> Holdout:
        """Which documents are held out."""
        return Holdout(self.hash_threshold, self.cut)


def scan_documents(
    data: DataRecipe,
    corpus: Corpus,
    hub: HubTexts | None = None,
    *,
    keep: bool = False,
    whole: bool = False,
    report: Progress | None = None,
) -> Scan:
    """Read all text once, to find whatever is wrong with it before any long work.

    Args:
        data: how the text is read.
        corpus: the files and Hub ids.
        hub: the text columns of those Hub ids; without it local text alone is read.
        keep: whether the result of a local corpus is kept for the next run.
        whole: whether nothing is to be held out, as of text to evaluate on.
        report: told the documents and bytes of each document that was read.

    Raises:
        DataError: one line a problem.
    """
    if corpus.prepared:
        return Scan(0, 0, 0, 0, 0, 0, None, ())
    keep = keep and corpus.local
    names = [file.path for split in SPLITS for source in corpus.of(split) for file in source.files]
    key = key_of("scan", fingerprint(data, corpus), data.block_size, names) if keep else ""
    if keep and is_whole(cache_root() / "scans" / key):
        found = json.loads((cache_root() / "scans" / key / SCAN).read_text())
        found["notes"] = tuple(found["notes"])
        return Scan(**found)
    scan = scan_now(data, corpus, hub or {}, whole=whole, report=report)
    if keep:
        build_once("scans", key, partial(write_scan, scan))
    return scan


def write_scan(scan: Scan, folder: Path) -> None:
    """Keep a scan for the next run."""
    (folder / SCAN).write_text(json.dumps(asdict(scan)))


def scan_now(
    data: DataRecipe, corpus: Corpus, hub: HubTexts, *, whole: bool, report: Progress | None
) -> Scan:
    """What one pass over the text finds, with nothing written."""
    reader, count, first = DocumentReader(data, corpus, hub), 0, ""
    sizes = dict.fromkeys(SPLITS, 0)
    for document in reader:
        first = first or document.text
        count, sizes[document.split] = count + 1, sizes[document.split] + document.size
        if report:
            report(1, document.size)
    complete = corpus.local or bool(hub)
    if not reader.report.problems and complete:
        reader.report.problems += too_little(count, sum(sizes.values()), data, corpus)
    if reader.report.problems:
        raise DataError(reader.report.problems)
    split = Holdout(0)
    if complete and not whole:
        split = choose_holdout(reader.seen["train"], first, data.validation.holdout)
    notes = (*corpus.notes, *scan_notes(reader))
    return Scan(
        documents=count,
        train_bytes=sizes["train"],
        validation_bytes=sizes["validation"],
        duplicates=reader.duplicates,
        overlap=reader.overlap,
        hash_threshold=split.hash_threshold,
        cut=split.cut,
        notes=notes,
    )


def too_little(count: int, size: int, data: DataRecipe, corpus: Corpus) -> Iterator[str]:
    """Why so little text cannot be trained on; a token is at least a byte, or ends a document."""
    names = ", ".join(source.name for source in corpus.train)
    if not count:
        yield f"{names}: no text: every document is empty or white space"
    elif size + count <= data.block_size and data.train_on == "text":
        yield (
            f"{names}: at most {size + count:,} tokens of text, one block needs "
            f"{data.block_size + 1:,}; lower data.block_size"
        )


def scan_notes(reader: DocumentReader) -> Iterator[str]:
    """What a person should know about text that was accepted."""
    report = reader.report
    if report.empty:
        yield f"{report.empty:,} empty documents were left out"
    if report.bad_bytes:
        yield f"{report.bad_bytes:,} documents that are not UTF-8 were replaced or skipped"
    if report.control_characters:
        yield f"{report.control_characters:,} control characters were kept"
    if reader.duplicates:
        yield f"{reader.duplicates:,} duplicate documents were left out (data.deduplicate)"
    if reader.overlap:
        yield f"{reader.overlap:,} validation documents also stand in the training text"
