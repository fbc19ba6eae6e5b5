"""Find the data files that a path, a folder or a glob stands for.

Folders follow the conventions of `datasets`: "train", "validation" and "test" in the names of files
or folders are splits, README.md beside tables or splits is the card of a dataset, and what
`save_to_disk` wrote is read as such. What is in a folder and is not read is counted by its kind.
"""

from __future__ import annotations

import glob
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hf_lm.data.text.files.converted import CONVERTERS, INSTALL, can_convert
from hf_lm.data.text.formats import READERS, is_data_file, plain_suffix
from hf_lm.errors import DataError

MAX_FILES = 100_000  # a glob that matches more is a typo, or needs a Hub dataset
KNOWN_SUFFIXES = ".txt .md .py .jsonl .json .csv .tsv .parquet .arrow and other text suffixes"

SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
SPLIT_OF_WORD = {word: split for split, words in SPLIT_WORDS.items() for word in words}
# A word of a name, as in "wiki.train-00000.parquet".
WORD = re.compile(r"(?:^|(?<=[-_.0-9 ]))[A-Za-z]+(?=$|[-_.0-9 ])")

# Files that `save_to_disk` writes beside the tables.
SAVED_SPLITS, SAVED_STATE, SAVED_INFO = "dataset_dict.json", "state.json", "dataset_info.json"
SAVED_FILES = (SAVED_SPLITS, SAVED_STATE, SAVED_INFO)
ABOUT_DATA = ("README.md", SAVED_INFO, "dataset_infos.json")  # at the top of a folder of the Hub


class Found(NamedTuple):
    """The files of a source.

    Attributes:
        paths: the files in the order in which they are read.
        notes: what was left out.
        has_splits: True if the files are those of one split.
    """

    paths: list[Path]
    notes: list[str]
    has_splits: bool = False


def find_files(pattern: Path, split: str) -> Found:
    """Return the files that a path, folder or glob stands for.

    Args:
        pattern: an absolute path; a glob if there is no such file and it has *, ? or [.
        split: the split to read, of a folder with splits.

    Raises:
        DataError: there are none, or too many.
    """
    if pattern.is_dir():
        found = folder_files(pattern, split)
    elif os.path.lexists(pattern) or not glob.has_magic(str(pattern)):
        found = Found([pattern], [])
    else:
        paths = sorted(matching_files(pattern))
        if not paths:
            raise DataError(f"{pattern}: no file matches (current folder: {Path.cwd()})")
        found = Found(paths, glob_notes(pattern, paths))
    if len(found.paths) > MAX_FILES:
        raise DataError(f"{pattern}: {len(found.paths):,} files, at most {MAX_FILES:,} are read")
    return found


def matching_files(pattern: Path) -> Iterator[Path]:
    """Yield the files that match a glob; folders that exist are taken as they are written."""
    root = Path(pattern.anchor)
    parts = pattern.relative_to(root).parts
    while parts and (root / parts[0]).is_dir():
        root, parts = root / parts[0], parts[1:]
    if "**" not in parts:
        paths: Iterable[Path] = root.glob(str(Path(*parts)))
    else:
        # Path.glob does not enter linked folders before Python 3.13.
        from fsspec.utils import glob_translate

        match = re.compile(glob_translate(str(Path(*parts)))).match
        paths = (p for p in walk(root) if match(str(p.relative_to(root))))
    names_hidden = any(part.startswith(".") for part in parts)
    return (
        path
        for path in paths
        if path.is_file() and (names_hidden or not is_hidden(path.relative_to(root)))
    )


def walk(folder: Path) -> Iterator[Path]:
    """Yield all files under a folder; linked folders are entered, each real folder once."""
    entered = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        place = os.path.realpath(name)
        if place in entered:
            folders.clear()
            continue
        entered.add(place)
        folders.sort()
        yield from (Path(name, file) for file in files)


def folder_files(folder: Path, split: str) -> Found:
    """Return the data files of a folder and its subfolders, sorted by name."""
    if is_saved(folder):
        return saved_files(folder, split)
    everything = sorted(walk(folder))
    hidden = [path for path in everything if is_hidden(path.relative_to(folder))]
    saved = {path.parent for path in everything if path.name in SAVED_FILES}
    saved = {inner for inner in saved if is_saved(inner)}
    about = {inner / name for inner in saved for name in SAVED_FILES}
    visible = sorted(set(everything) - set(hidden) - about)
    paths = [path for path in visible if is_data_file(path) and path.is_file()]
    unread = Counter(plain_suffix(p) or "no suffix" for p in visible if p not in set(paths))
    notes = unread_notes(folder, unread)
    if hidden:
        notes.append(f"{folder.name}/: hidden files that were not read: {len(hidden):,}")
    about_data = [folder / name for name in ABOUT_DATA if folder / name in paths]
    data_paths = [path for path in paths if path not in about_data]
    tables = [path for path in data_paths if plain_suffix(path) in READERS]
    splits = splits_of(tables, folder) or splits_of(data_paths, folder)
    if tables or splits:
        paths = data_paths
        names = [path.name for path in about_data]
        notes += [f"{folder.name}/: {name} is about its data and was not read" for name in names]
    if not splits:
        if not paths:
            found = "".join(f"; {note}" for note in unread_notes(folder, unread))
            raise DataError(f"{folder}: no data file in this folder ({KNOWN_SUFFIXES}){found}")
        return Found(paths, notes)
    others = Counter({name: len(files) for name, files in splits.items() if name != split})
    others["no split"] = len(paths) - sum(map(len, splits.values()))
    if +others:
        notes.append(f"{folder.name}/: split {split}; files of others: {counted(+others)}")
    return Found(chosen_split(splits, split, folder), notes, has_splits=True)


def unread_notes(folder: Path, unread: Counter[str]) -> list[str]:
    """Return notes about the files that are not read, by kind, and how more can be."""
    if not unread:
        return []
    more = ", ".join(kind for kind in sorted(unread) if kind in CONVERTERS)
    remedy = f" ({INSTALL} reads {more})" if more and not can_convert() else ""
    return [f"{folder.name}/: files that were not read: {counted(unread)}{remedy}"]


def counted(counts: Counter[str]) -> str:
    """Format counts by kind."""
    return ", ".join(f"{count:,} {kind}" for kind, count in sorted(counts.items()))


def splits_of(paths: Iterable[Path], folder: Path) -> dict[str, list[Path]]:
    """Return the files of each split; empty if the names say nothing about splits.

    The folders of a file count, from the top, then its own name: "test/a.txt", "en.train.jsonl". A
    folder without training files has no splits, and neither has one in which a file belongs to
    none: it is a folder of text in which somebody wrote tests.
    """
    splits: dict[str, list[Path]] = {}
    for path in paths:
        is_code = plain_suffix(path) not in (*READERS, *CONVERTERS, ".txt", ".text")
        names = () if is_code else path.relative_to(folder).parts
        split = next(filter(None, map(split_of_name, names)), None)
        if split is None:
            return {}
        splits.setdefault(split, []).append(path)
    return splits if "train" in splits and len(splits) > 1 else {}


def split_of_name(name: str) -> str | None:
    """Return the split that a name of a file or folder has; None without one or with several."""
    words = {SPLIT_OF_WORD.get(word.lower()) for word in WORD.findall(name)} - {None}
    return words.pop() if len(words) == 1 else None


def glob_notes(pattern: Path, paths: Sequence[Path]) -> list[str]:
    """Return a note if the files of a glob, all of which are read, have the names of splits."""
    splits = splits_of(paths, Path(os.path.commonpath([path.parent for path in paths])))
    counts = Counter({split: len(files) for split, files in splits.items()})
    if not splits:
        return []
    return [f"{pattern.name}: all files that match are read, of each split: {counted(counts)}"]


def chosen_split(splits: dict[str, list[Path]], split: str, folder: Path) -> list[Path]:
    """Return the files of a split.

    Raises:
        DataError: there is no such split.
    """
    if split not in splits:
        known = ", ".join(f'"{name}"' for name in splits)
        raise DataError(f'{folder}: has no split "{split}"; it has {known}')
    return splits[split]


def is_saved(folder: Path) -> bool:
    """Return whether `save_to_disk` wrote a folder."""
    for name, key in ((SAVED_SPLITS, "splits"), (SAVED_STATE, "_data_files")):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(found, dict) and key in found:
            return True
    return False


def saved_files(folder: Path, split: str) -> Found:
    """Return the Arrow files of a dataset, or of one split of several, that was saved to a disk.

    Raises:
        DataError: a file of `save_to_disk` cannot be read, or there is no such split.
    """
    try:
        if (folder / SAVED_SPLITS).is_file():
            names = json.loads((folder / SAVED_SPLITS).read_text(encoding="utf-8"))["splits"]
            splits = {name: saved_files(folder / name, split).paths for name in names}
            others = ", ".join(name for name in names if name != split)
            notes = [f"{folder.name}/: split {split}; not read: {others}"] if others else []
            return Found(chosen_split(splits, split, folder), notes, has_splits=True)
        state = json.loads((folder / SAVED_STATE).read_text(encoding="utf-8"))
        return Found([folder / item["filename"] for item in state["_data_files"]], [])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: is a saved dataset that cannot be read: {error!r}") from None


def is_hidden(path: Path) -> bool:
    """Return whether a part of a path starts with a dot or is __pycache__."""
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)
