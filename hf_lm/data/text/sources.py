"""Resolve `data.source` to files with their SHA-256, or to Hub dataset ids.

Nothing heavy is imported: a missing, empty, compressed or unreadable file is named within a second.
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


PREPARED = "blocks.json"  # in a folder that `hf-lm prepare` wrote


# Test folders differ between distributions, pydoc_data is generated prose, installed packages are
# not the standard library, and _sysconfigdata names the folders the interpreter was built in.
EMBEDDED_SKIPS = {"test", "tests", "idle_test", "pydoc_data", "site-packages", "dist-packages"}


MAX_FILES = 100_000  # a glob that matches more is a typo, or wants a Hub dataset


SUFFIXES = frozenset(
    f".{name}"
    for names in (
        "txt text md markdown rst tex html xml jsonl json csv parquet",
        "py pyi c h cc cpp hpp cu rs go java kt scala js jsx ts tsx css rb php pl lua r jl hs ml",
        "swift m sh sql toml yaml yml ini cfg",
    )
    for name in names.split()
)


@dataclass(frozen=True)
class SourceFile:
    """A data file as it was when it was found."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Source:
    """One entry of `data.source`: local files, or a Hub dataset if there are none."""

    name: str
    weight: float | None = None  # None: read after the source before it, not mixed
    files: tuple[SourceFile, ...] = ()

    @property
    def local(self) -> bool:
        """Whether the text is on this machine."""
        return bool(self.files)


@dataclass(frozen=True)
class Corpus:
    """Where the text to train on and the text to hold out come from."""

    train: tuple[Source, ...]
    validation: tuple[Source, ...]  # none: a share of the training documents is held out
    notes: tuple[str, ...] = ()
    prepared: Path | None = None  # a folder with blocks in place of text

    @property
    def tokenizer(self) -> str | None:
        """The folder of the tokenizer that comes with prepared blocks."""
        return str(self.prepared / "tokenizer") if self.prepared else None

    def of(self, split: str) -> tuple[Source, ...]:
        """The sources of "train" or "validation"."""
        return self.train if split == "train" else self.validation

    @property
    def local(self) -> bool:
        """Whether all of it is on this machine."""
        return all(source.local for source in (*self.train, *self.validation))

    @property
    def size(self) -> int:
        """Bytes of all local files."""
        return sum(f.size for source in (*self.train, *self.validation) for f in source.files)

    @property
    def weights(self) -> list[float]:
        """The share of the training tokens that each lane of them has."""
        if not self.mixed:
            return [1.0]
        weights = [source.weight or 0.0 for source in self.train]
        return [weight / sum(weights) for weight in weights]

    @property
    def mixed(self) -> bool:
        """Whether blocks of several sources are mixed by weight."""
        return len(self.train) > 1 and all(s.weight is not None for s in self.train)


def find_corpus(data: DataRecipe) -> Corpus:
    """The files of every source, hashed.

    Raises:
        DataError: one line for each file or pattern that cannot be used.
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
    held = data.validation
    validation: tuple[Source, ...] = ()
    if held.holdout is None:
        own = held.source if held.source is not None else data.source
        names = own if isinstance(own, tuple) else (own,)
        plain = [name if isinstance(name, str) else name.source for name in names]
        validation = tuple(find_source(name, None, problems) for name in plain)
        if held.source is None and any(source.local for source in validation):
            problems.append(
                "data.validation: names part of a Hub dataset, and data.source is local text; give "
                'it a source, or {"holdout": 0.05}'
            )
    if problems:
        raise DataError(problems)
    once = data.deduplicate and not data.streaming
    return Corpus(train, validation, tuple(repeated_files(train, deduplicate=once)))


def check_foreign_directory(folder: Path) -> None:
    """Refuse to write prepared blocks where something else is.

    Raises:
        DataError: the folder is there and is not one of ours.
    """
    if folder.exists() and not (folder / PREPARED).is_file() and any(folder.iterdir()):
        raise DataError(f"{folder}: is not empty and holds no prepared blocks; name a new folder")


def repeated_files(sources: tuple[Source, ...], *, deduplicate: bool) -> Iterator[str]:
    """A note for each file that is listed more than once."""
    counts = Counter(file.path for source in sources for file in source.files)
    for path, count in counts.items():
        if count > 1:
            once = "once (data.deduplicate)" if deduplicate else f"{count} times"
            yield f"{path} is listed {count} times and counts {once}"


def find_source(name: str, weight: float | None, problems: list[str]) -> Source:
    """One source with its files; a Hub id has none."""
    if name == EMBEDDED:
        paths = embedded_files()
    elif not Path(name).is_absolute():
        return Source(name, weight)  # a Hub id: recipe paths are absolute by now
    else:
        paths = matching_files(Path(name), problems)
    wrong = [problem for path in paths if (problem := file_problem(path))]
    problems += wrong
    if wrong:
        return Source(name, weight)
    return Source(name, weight, tuple(SourceFile(p, p.stat().st_size, sha256(p)) for p in paths))


def embedded_files() -> list[Path]:
    """The Python files of the interpreter's own standard library."""
    paths = []
    for folder, folders, names in os.walk(sysconfig.get_path("stdlib")):
        folders[:] = [name for name in folders if name not in EMBEDDED_SKIPS]
        paths += [Path(folder, name) for name in names if name.endswith(".py")]
    kept = (p for p in paths if not p.name.startswith("_sysconfigdata") and p.stat().st_size > 0)
    return sorted(kept)


def matching_files(pattern: Path, problems: list[str]) -> list[Path]:
    """The files that a file name, folder or glob stands for, by name."""
    name = str(pattern)
    if pattern.is_dir():
        paths = [p for p in pattern.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()]
        paths = [p for p in paths if not hidden(p.relative_to(pattern))]
        if not paths:
            problems.append(f"{name}: no data file in this folder ({shown_suffixes()})")
    elif os.path.lexists(pattern) or not glob.has_magic(name):
        paths = [pattern]
    else:
        root = Path(pattern.anchor)
        found = list(root.glob(str(pattern.relative_to(root))))
        paths = [p for p in found if p.is_file() and not p.name.startswith(".")]
        if not paths:
            problems.append(f"{name}: no file matches (current folder: {Path.cwd()})")
    if len(paths) > MAX_FILES:
        problems.append(f"{name}: {len(paths):,} files, at most {MAX_FILES:,} are read")
        return []
    return sorted(paths)


def shown_suffixes() -> str:
    """The data suffixes worth naming."""
    return ".txt .md .py .jsonl .json .csv .parquet and other text suffixes"


def hidden(path: Path) -> bool:
    """Whether a name on the way starts with a dot, or is a cache of Python's."""
    return any(split.startswith(".") or split == "__pycache__" for split in path.parts)


def file_problem(path: Path) -> str | None:
    """Why a file cannot be read as data, if it cannot."""
    if not path.exists():
        return f"{path}: no such file or folder (current folder: {Path.cwd()})"
    if not path.is_file():
        return f"{path}: is no regular file"
    try:
        if path.stat().st_size == 0:
            return f"{path}: is empty"
        kind = archive_kind(path)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return f"{path}: is {kind}-compressed; unpack it first" if kind else None
