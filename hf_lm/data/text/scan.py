"""Find every problem of a corpus in one pass, before anything heavy is imported.

All local text is read once, so that a bad file is reported before a tokenizer or model is loaded.

A content hash decides which documents are held out: the validation set stays the same when files
are renamed or reordered, and identical documents are in one split. The price: the share is met only
on average. A corpus of one document is cut in two at a line end instead, and the end is held out,
as nanoGPT does for Shakespeare.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from hf_lm.data.cache import build_once, cache_root, is_whole, key_of
from hf_lm.data.text.documents import (
    MAX_SIZES,
    SPLITS,
    DocumentReader,
    Documents,
    HubTexts,
    Progress,
    fingerprint,
    hub_selection,
)
from hf_lm.data.text.holdout import Holdout, choose_holdout
from hf_lm.data.text.near_duplicates import NearDuplicates, check_rensa, find_near_duplicates
from hf_lm.data.text.sources import Corpus
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe
from hf_lm.system.text import on_one_line

SCANS, FILE = "scans", "scan.json"
SHOWN = 10  # damaged files that a note names
FAR_FROM_GOAL = 2  # times more or less held-out text than asked is worth a note


@dataclass(frozen=True)
class Scan:
    """The result of one pass over the text.

    Attributes:
        documents: the number of documents.
        train_bytes: bytes of UTF-8, including the documents that are held out of it.
        validation_bytes: bytes of a separate validation source.
        duplicates: documents that were skipped.
        overlap: validation documents that are in the training text, too.
        hash_threshold: of the `Holdout`.
        cut: of the `Holdout`.
        notes: what the user should know about the text.
        dropped: of the `Holdout`.
        left_out: the files that could not be converted to text.
    """

    documents: int
    train_bytes: int
    validation_bytes: int
    duplicates: int
    overlap: int
    hash_threshold: int
    cut: int | None
    notes: tuple[str, ...]
    dropped: tuple[int, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of all text."""
        return self.train_bytes + self.validation_bytes

    @property
    def holdout(self) -> Holdout:
        """The rule that says which text is held out."""
        return Holdout(self.hash_threshold, self.cut, frozenset(self.dropped))


def scan_documents(
    data: DataRecipe,
    corpus: Corpus,
    hub: HubTexts | None = None,
    *,
    commits: tuple[str, ...] = (),
    keep: bool = False,
    whole: bool = False,
    report: Progress | None = None,
) -> Scan:
    """Read all text once, to find every problem with it before any long work.

    Args:
        data: the `data` section.
        corpus: the files and Hub ids.
        hub: the text columns of these Hub ids; None reads local text only.
        commits: the commits of these Hub ids.
        keep: cache the result for the next run; of Hub datasets, one process reads for all.
        whole: hold nothing out, for text to evaluate on.
        report: called with the documents and bytes since the last call.

    Raises:
        DataError: the text cannot be used; one line per problem.
    """
    if corpus.prepared:
        return Scan(0, 0, 0, 0, 0, 0, None, ())
    read = partial(scan_now, data, corpus, hub or {}, whole=whole, report=report)
    if not keep or not (corpus.local or commits):
        return read()
    names = [file.path for file in corpus.files]
    compared = (data.near_duplicates, data.near_duplicate_threshold)
    content = (fingerprint(data, corpus, commits), hub_selection(data), whole)
    key = key_of("scan-2", *content, data.block_size, names, compared)
    is_kept = is_whole(cache_root() / SCANS / key)
    # Local text is read before the cache is touched: text that is refused leaves no trace.
    found = read() if corpus.local and not is_kept else None

    def write(folder: Path) -> None:
        """Write the result to a directory of the cache."""
        (folder / FILE).write_text(json.dumps(asdict(found or read())), encoding="utf-8")

    path = build_once(SCANS, key, write) / FILE
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kept |= {name: tuple(kept[name]) for name in ("notes", "dropped", "left_out")}
    return Scan(**kept)


def scan_now(
    data: DataRecipe, corpus: Corpus, hub: HubTexts, *, whole: bool, report: Progress | None
) -> Scan:
    """Read all text once and return the result; nothing is written."""
    if data.near_duplicates != "off":
        check_rensa()
    reader, count, first = DocumentReader(data, corpus, hub), 0, ""
    sizes = dict.fromkeys(SPLITS, 0)
    for document in reader:
        first = first or document.text
        count, sizes[document.split] = count + 1, sizes[document.split] + document.size
        if report:
            report(1, document.size)
    is_complete = corpus.local or bool(hub)
    problems, left_out = reader.problems, tuple(map(str, reader.report.unreadable))
    if not problems and is_complete:
        problems = [*too_little(count, sum(sizes.values()), data, corpus)]
    if problems:
        raise DataError(problems)
    holdout = Holdout(0)
    if is_complete and not whole:
        holdout = choose_holdout(reader.seen["train"], first, data.validation.holdout)
    notes = [*corpus.notes, *scan_notes(reader), *holdout_notes(reader, data, holdout)]
    dropped: frozenset[int] = frozenset()
    if data.near_duplicates != "off" and is_complete and not whole:
        near = compare_splits(Documents(data, corpus.without(left_out), hub, holdout), data)
        notes.append(near_note(near, data))
        dropped = near.hashes if data.near_duplicates == "drop" else dropped
    return Scan(
        documents=count,
        train_bytes=sizes["train"],
        validation_bytes=sizes["validation"],
        duplicates=reader.duplicates,
        overlap=reader.overlap,
        hash_threshold=holdout.hash_threshold,
        cut=holdout.cut,
        notes=tuple(notes),
        dropped=tuple(sorted(dropped)),
        left_out=left_out,
    )


def compare_splits(documents: Documents, data: DataRecipe) -> NearDuplicates:
    """Find the held-out documents that are nearly in the training text.

    Raises:
        DataError: all of them are, and the recipe drops them.
    """
    near = find_near_duplicates(documents.all, threshold=data.near_duplicate_threshold)
    if data.near_duplicates == "drop" and near.documents and near.size == near.held_out:
        raise DataError(
            'data.near_duplicates = "drop": every held-out document is nearly in the training '
            "text, so nothing is left; hold out more, or name another data.validation.source"
        )
    return near


def near_note(near: NearDuplicates, data: DataRecipe) -> str:
    """Say how much of the held-out text is nearly in the training text."""
    alike = f"at least {data.near_duplicate_threshold:.0%} alike"
    found = (
        f"{len(near.hashes):,} of {near.documents:,} held-out documents, {near.share:.1%} of their "
        f"text, are nearly in the training text ({alike})"
    )
    if not near.hashes:
        return found
    if data.near_duplicates == "drop":
        return f"{found}; they were left out"
    return (
        f'{found}, which flatters held-out figures; data.near_duplicates = "drop" leaves them out'
    )


def too_little(count: int, size: int, data: DataRecipe, corpus: Corpus) -> Iterator[str]:
    """Yield a problem if there is not enough text for one block, at one token per byte."""
    names = ", ".join(source.name for source in corpus.train)
    if not count:
        yield f"{names}: no text: every document is empty or has only white space"
    elif size + count <= data.block_size and data.train_on == "text":
        yield (
            f"{names}: at most {size + count:,} tokens of text, one block needs "
            f"{data.block_size + 1:,}; lower data.block_size"
        )


def scan_notes(reader: DocumentReader) -> Iterator[str]:
    """Yield what the user should know about text that was accepted."""
    report = reader.report
    yield from map(on_one_line, report.notes)
    if report.unreadable:  # by name: provenance.json, which is published, contains no path
        shown = [f"{on_one_line(path.name)} {rule}" for path, rule in report.unreadable.items()][
            :SHOWN
        ]
        count = len(report.unreadable)
        files = "1 damaged file was" if count == 1 else f"{count:,} damaged files were"
        yield on_one_line(f"{files} left out: {'; '.join(shown)}")
    if report.missing:
        yield f"{report.missing:,} rows without text were left out (data.on_missing_text)"
    if report.empty:
        yield f"{report.empty:,} empty documents were skipped"
    if report.bad_bytes:
        yield f"{report.bad_bytes:,} documents with invalid bytes were replaced or skipped"
    if report.control_characters:
        yield f"{report.control_characters:,} control characters were kept"
    if reader.duplicates:
        yield f"{reader.duplicates:,} duplicate documents were skipped (data.deduplicate)"
    if reader.overlap:
        yield f"{reader.overlap:,} validation documents are in the training text, too"


def holdout_notes(reader: DocumentReader, data: DataRecipe, holdout: Holdout) -> Iterator[str]:
    """Yield a note if a few long documents make the held-out share other than what was asked."""
    sizes, goal = reader.sizes, data.validation.holdout
    if goal is None or data.streaming or holdout.cut is not None or not 1 < len(sizes) <= MAX_SIZES:
        return
    held_out = sum(size for value, size in sizes.items() if value < holdout.hash_threshold)
    share = held_out / sum(sizes.values())
    if not goal / FAR_FROM_GOAL <= share <= goal * FAR_FROM_GOAL:
        yield (
            f"{share:.0%} of the text is held out, data.validation.holdout asks for {goal:.0%}, "
            f'because there are {len(sizes)} documents; data.sample_by = "paragraph" divides them'
        )
