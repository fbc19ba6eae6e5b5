"""Resolve `data.source` to files with their SHA-256, or to Hub dataset ids.

Nothing heavy is imported: a missing, empty, compressed or unreadable file is reported within a
second.
"""

from __future__ import annotations

import glob
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hf_lm.data.text.formats import archive_kind
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe
from hf_lm.system.files import sha256

EMBEDDED = "python-stdlib"
PREPARED = "blocks.json"  # the manifest in a directory that `hf-lm prepare` wrote

# Test directories differ between distributions, pydoc_data is generated prose, and installed
# packages are not the standard library.
EMBEDDED_SKIPS = {"test", "tests", "idle_test", "pydoc_data", "site-packages", "dist-packages"}

MAX_FILES = 100_000  # a glob that matches more is a typo, or needs a Hub dataset

SUFFIXES = frozenset(
    f".{name}"
    for names in (
        "txt text md markdown rst tex html xml jsonl json csv parquet",
        "py pyi c h cc cpp hpp cu rs go java kt scala js jsx ts tsx css rb php pl lua r jl hs ml",
        "swift m sh sql toml yaml yml ini cfg",
    )
    for name in names.split()
)
KNOWN_SUFFIXES = ".txt .md .py .jsonl .json .csv .parquet and other text suffixes"


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
    """

    name: str
    weight: float | None = None
    files: tuple[SourceFile, ...] = ()

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

    def of(self, split: str) -> tuple[Source, ...]:
        """Return the sources of "train" or "validation"."""
        return self.train if split == "train" else self.validation

    @property
    def local(self) -> bool:
        """True if all text is on this machine."""
        return all(source.local for source in (*self.train, *self.validation))

    @property
    def size(self) -> int:
        """Bytes of all local files."""
        return sum(f.size for source in (*self.train, *self.validation) for f in source.files)

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
        find_source(entry, None, problems)
        if isinstance(entry, str)
        else find_source(entry.source, entry.weight, problems)
        for entry in entries
    )
    keys = data.validation
    validation: tuple[Source, ...] = ()
    if keys.holdout is None:
        source = keys.source if keys.source is not None else data.source
        entries = source if isinstance(source, tuple) else (source,)
        names = [entry if isinstance(entry, str) else entry.source for entry in entries]
        validation = tuple(find_source(name, None, problems) for name in names)
        if keys.source is None and any(source.local for source in validation):
            problems.append(
                "data.validation: names a split of a Hub dataset, and data.source is local text; "
                'give it a source, or {"holdout": 0.05}'
            )
    if problems:
        raise DataError(problems)
    is_deduplicated = data.deduplicate and not data.streaming
    return Corpus(train, validation, tuple(repeated_files(train, deduplicate=is_deduplicated)))


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
            yield f"{path} is listed {count} times and counts {once}"


def find_source(name: str, weight: float | None, problems: list[str]) -> Source:
    """Find the files of a source, and add what is wrong with them to the problems."""
    if name == EMBEDDED:
        paths = embedded_files()
    elif not Path(name).is_absolute():
        return Source(name, weight)  # a Hub id: the paths of a recipe are absolute
    else:
        paths = matching_files(Path(name), problems)
    file_problems = [problem for path in paths if (problem := file_problem(path))]
    problems += file_problems
    if file_problems:
        return Source(name, weight)
    return Source(name, weight, tuple(SourceFile(p, p.stat().st_size, sha256(p)) for p in paths))


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


def matching_files(pattern: Path, problems: list[str]) -> list[Path]:
    """Return the files that a path, directory or glob stands for, sorted by name."""
    name = str(pattern)
    if pattern.is_dir():
        paths = [p for p in pattern.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        paths = [p for p in paths if not is_hidden(p.relative_to(pattern))]
        if not paths:
            problems.append(f"{name}: no data file in this folder ({KNOWN_SUFFIXES})")
    elif os.path.lexists(pattern) or not glob.has_magic(name):
        paths = [pattern]
    else:
        root = Path(pattern.anchor)
        matches = root.glob(str(pattern.relative_to(root)))
        paths = [p for p in matches if p.is_file() and not p.name.startswith(".")]
        if not paths:
            problems.append(f"{name}: no file matches (current folder: {Path.cwd()})")
    if len(paths) > MAX_FILES:
        problems.append(f"{name}: {len(paths):,} files, at most {MAX_FILES:,} are read")
        return []
    return sorted(paths)


def is_hidden(path: Path) -> bool:
    """Return whether a part of a path starts with a dot or is __pycache__."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def file_problem(path: Path) -> str | None:
    """Return why a file cannot be read as data; None if it can."""
    if not path.exists():
        return f"{path}: no such file or folder (current folder: {Path.cwd()})"
    if not path.is_file():
        return f"{path}: is not a regular file"
    try:
        if path.stat().st_size == 0:
            return f"{path}: is empty"
        kind = archive_kind(path)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return f"{path}: is {kind}-compressed; unpack it first" if kind else None
