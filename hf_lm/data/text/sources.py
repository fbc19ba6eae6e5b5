"""Resolve `data.source` to files with their SHA-256, or to Hub dataset ids.

Nothing heavy is imported: a missing, empty, compressed or unreadable file is reported within a
second.
"""

from __future__ import annotations

import json
import os
import sysconfig
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hf_lm.data.text.files.compression import OPENERS, compression_of, plain_suffix
from hf_lm.data.text.files.converted import CONVERTERS, ZIP_BASED
from hf_lm.data.text.folders import Found, counted, find_files
from hf_lm.data.text.formats import READERS, TEXT_SUFFIXES
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe
from hf_lm.system.files import sha256
from hf_lm.system.text import on_one_line

EMBEDDED = "python-stdlib"
PREPARED = "blocks.json"  # the manifest in a directory that `hf-lm prepare` wrote

# Test directories differ between distributions, pydoc_data is generated prose, and installed
# packages are not the standard library.
EMBEDDED_SKIPS = {"test", "tests", "idle_test", "pydoc_data", "site-packages", "dist-packages"}

TABLE_SUFFIXES = (".csv", ".tsv", ".tab")
BINARY_SUFFIXES = (".parquet", ".arrow", ".pdf", ".docx", ".epub")  # they know their encoding

# Keys about formats, and the kinds of files that have no use for them: suffixes, or python-stdlib,
# whose encoding is known. The content of a file with another suffix says what it is, so every key
# may be of use.
PLAIN_TEXT = TEXT_SUFFIXES | {*CONVERTERS, EMBEDDED}
UNUSED_BY = {
    "text_column": PLAIN_TEXT,
    "text_template": PLAIN_TEXT,
    "delimiter": PLAIN_TEXT | {suffix for suffix in READERS if suffix not in TABLE_SUFFIXES},
    "sample_by": frozenset(READERS),
    "encoding": frozenset((*BINARY_SUFFIXES, EMBEDDED)),
    "on_bad_bytes": frozenset((".pdf", ".docx", ".epub", EMBEDDED)),
    "on_missing_text": PLAIN_TEXT,
}


@dataclass(frozen=True)
class SourceFile:
    """A data file with the size and SHA-256 that it had when the corpus was found."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """An entry of `data.source`.

    Attributes:
        name: the path, glob or Hub id.
        weight: its weight in a mixture; None if sources are read one after the other.
        files: its local files; empty for a Hub dataset.
        notes: what was left out of a folder.
        has_splits: True for a Hub dataset, and for a folder of which one split is read.
    """

    name: str
    weight: float | None = None
    files: tuple[SourceFile, ...] = ()
    notes: tuple[str, ...] = ()
    has_splits: bool = False

    @property
    def local(self) -> bool:
        """True if the text is on this machine."""
        return bool(self.files)


@dataclass(frozen=True)
class Corpus:
    """The sources of both splits.

    Attributes:
        train: the sources of the training text.
        validation: the sources of the validation set; empty if it is held out of the training text.
        notes: what the user should know about the files.
        prepared: the directory of prepared blocks, which replaces the sources.
    """

    train: tuple[Source, ...]
    validation: tuple[Source, ...]
    notes: tuple[str, ...] = ()
    prepared: Path | None = None

    @property
    def tokenizer(self) -> str | None:
        """The directory of the tokenizer that belongs to prepared blocks."""
        return str(self.prepared / "tokenizer") if self.prepared else None

    def without(self, paths: Collection[str]) -> Corpus:
        """Return the corpus without some files."""
        train, validation = (
            tuple(
                replace(s, files=tuple(f for f in s.files if str(f.path) not in paths))
                for s in sources
            )
            for sources in (self.train, self.validation)
        )
        return replace(self, train=train, validation=validation)

    def of(self, split: str) -> tuple[Source, ...]:
        """Return the sources of "train" or "validation"."""
        return self.train if split == "train" else self.validation

    @property
    def local(self) -> bool:
        """True if all text is on this machine."""
        return all(source.local for source in (*self.train, *self.validation))

    @property
    def files(self) -> list[SourceFile]:
        """All local files."""
        return [file for source in (*self.train, *self.validation) for file in source.files]

    @property
    def size(self) -> int:
        """Bytes of all local files."""
        return sum(file.size for file in self.files)

    @property
    def weights(self) -> list[float]:
        """The share of the training tokens that each source of a mixture has."""
        if not self.mixed:
            return [1.0]
        weights = [source.weight or 0.0 for source in self.train]
        return [weight / sum(weights) for weight in weights]

    @property
    def mixed(self) -> bool:
        """True if the blocks of several sources are mixed by weight."""
        return len(self.train) > 1 and all(s.weight is not None for s in self.train)


def find_corpus(data: DataRecipe) -> Corpus:
    """Find and hash the files of every source.

    Raises:
        DataError: a file, directory or pattern cannot be used; one line for each.
    """
    if isinstance(data.source, str) and (Path(data.source) / PREPARED).is_file():
        return Corpus((), (), prepared=Path(data.source))
    problems: list[str] = []
    entries = data.source if isinstance(data.source, tuple) else (data.source,)
    train = tuple(
        find_source(entry, data.split, problems)
        if isinstance(entry, str)
        else find_source(entry.source, data.split, problems, weight=entry.weight)
        for entry in entries
    )
    keys = data.validation
    validation: tuple[Source, ...] = ()
    if keys.holdout is None:
        source = keys.source if keys.source is not None else data.source
        entries = source if isinstance(source, tuple) else (source,)
        names = [entry if isinstance(entry, str) else entry.source for entry in entries]
        split = keys.split or ("validation" if keys.source is None else "train")
        validation = tuple(find_source(name, split, problems) for name in names)
    problems += [*keys_without_effect(data, train, validation)]
    problems += [*format_keys_without_effect(data, (*train, *validation))]
    if problems:
        raise DataError(problems)
    is_deduplicated = data.deduplicate and not data.streaming
    notes = dict.fromkeys(note for source in (*train, *validation) for note in source.notes)
    return Corpus(train, validation, (*notes, *repeated_files(train, deduplicate=is_deduplicated)))


def keys_without_effect(
    data: DataRecipe, train: tuple[Source, ...], validation: tuple[Source, ...]
) -> Iterator[str]:
    """Yield a problem for each key about splits or the Hub that none of the sources has use for."""
    for section, sources, keys in (
        ("data", train, data),
        ("data.validation", validation, data.validation),
    ):
        if not sources or any(not source.files for source in sources):
            continue  # a Hub dataset, or a source with a problem of its own
        for name in ("config", "split", "revision"):
            is_split = name == "split"
            is_used = is_split and any(source.has_splits for source in sources)
            if keys.is_changed(name) and not is_used:
                has = "no splits" if is_split else "local text only"
                yield (
                    f'{section}.{name} = "{getattr(keys, name)}": has no effect, because '
                    f"{sources[0].name} has {has}; remove it"
                )


def format_keys_without_effect(data: DataRecipe, sources: tuple[Source, ...]) -> Iterator[str]:
    """Yield a problem for each key about formats that no file has use for."""
    if not all(source.files for source in sources):
        return  # a Hub dataset, or a source with a problem of its own
    kinds = {
        EMBEDDED if source.name == EMBEDDED else plain_suffix(file.path)
        for source in sources
        for file in source.files
    }
    for name, unused_by in UNUSED_BY.items():
        if data.is_changed(name) and kinds <= unused_by:
            yield (
                f"data.{name} = {json.dumps(getattr(data, name))}: has no effect on "
                f"{', '.join(sorted(kinds))} files, and {sources[0].name} has no others; remove it"
            )


def check_foreign_directory(folder: Path) -> None:
    """Check that prepared blocks would not overwrite other files.

    Raises:
        DataError: the directory is not empty and does not hold prepared blocks.
    """
    if folder.exists() and not (folder / PREPARED).is_file() and any(folder.iterdir()):
        raise DataError(f"{folder}: is not empty and holds no prepared blocks; name a new folder")


def repeated_files(sources: tuple[Source, ...], *, deduplicate: bool) -> Iterator[str]:
    """Yield a note for each file that is listed more than once."""
    counts = Counter(file.path for source in sources for file in source.files)
    for path, count in counts.items():
        if count > 1:
            once = "once (data.deduplicate)" if deduplicate else f"{count} times"
            yield f"{path.name} is listed {count} times and counts {once}"


def find_source(
    name: str, split: str, problems: list[str], *, weight: float | None = None
) -> Source:
    """Find the files of a source, and add what is wrong with them to the problems."""
    if name == EMBEDDED:
        found = Found(embedded_files(), [])
    elif not Path(name).is_absolute():
        return Source(name, weight, has_splits=True)  # a Hub id: paths of a recipe are absolute
    else:
        try:
            found = find_files(Path(name), split)
        except DataError as error:
            problems += error.problems
            return Source(name, weight)
    rules = {path: rule for path in found.paths if (rule := file_problem(path))}
    paths = [path for path in found.paths if path not in rules]
    is_named = found.paths == [Path(name)]
    if rules and (is_named or not paths):
        problems += [f"{on_one_line(path)}: {rule}" for path, rule in rules.items()]
        return Source(name, weight)
    notes = [*found.notes]
    if rules:  # of a folder or glob
        counts = Counter(rule.removeprefix("is ").partition(";")[0] for rule in rules.values())
        notes.append(f"{Path(name).name}: files that were left out: {counted(counts)}")
    files = tuple(SourceFile(path, path.stat().st_size, sha256(path)) for path in paths)
    return Source(name, weight, files, tuple(notes), found.has_splits)


def embedded_files() -> list[Path]:
    """Return the Python files of the interpreter's standard library."""
    paths = []
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [name for name in folders if name not in EMBEDDED_SKIPS]
        paths += [Path(folder, name) for name in names if name.endswith(".py")]
    # _sysconfigdata contains the directories in which the interpreter was built.
    return sorted(
        p for p in paths if not p.name.startswith("_sysconfigdata") and p.stat().st_size > 0
    )


def file_problem(path: Path) -> str | None:
    """Return why a file cannot be read as data; None if it can."""
    if not path.exists():
        return f"no such file or folder (current folder: {Path.cwd()})"
    if not path.is_file():
        return "is not a regular file"
    try:
        if path.stat().st_size == 0:
            return "is empty"
        kind = compression_of(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    suffix = plain_suffix(path)
    is_packed = kind in OPENERS and suffix in (".parquet", ".arrow")  # they are compressed inside
    is_archive = kind is not None and kind not in OPENERS and suffix not in ZIP_BASED
    return f"is {kind}-compressed; unpack it first" if is_archive or is_packed else None
