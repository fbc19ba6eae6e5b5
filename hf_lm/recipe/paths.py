"""Decide which strings of a recipe are local paths, and what they are relative to.

Relative paths start at the recipe's directory, so a recipe means the same from everywhere; those
given to `--set` start at the current directory. A string is a path if it looks like one (it is
absolute, starts with `.` or `~`, contains `*` or a backslash, or ends like a data file) or exists;
otherwise it is a Hub id.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_lm.recipe.sections.recipe import Recipe
from hf_lm.recipe.strict_json import Problem

PATH_KEYS = (
    ("output_dir",),
    ("data", "source"),
    ("data", "validation", "source"),
    ("tokenizer", "pretrained"),
    ("model", "pretrained"),
)


SCHEMA_FILE = Path(__file__).with_name("recipe.schema.json")

EMBEDDED = "python-stdlib"
ALWAYS_PATH = {("output_dir",)}
TEMPLATE = ("tokenizer", "chat_template")
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$")
DATA_SUFFIXES = (
    *(".txt", ".md", ".py", ".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv"),
    *(".parquet", ".arrow", ".gz", ".bz2", ".xz", ".zst", ".zip"),
    *(".pdf", ".docx", ".epub", ".html", ".htm", ".ipynb"),
)


def is_path(text: str, folder: Path) -> bool:
    """Return whether a string of a recipe is a local path."""
    if Path(text).is_absolute() or text.startswith((".", "~")):
        return True
    if any(mark in text for mark in "*?[\\"):
        return True
    return text.lower().endswith(DATA_SUFFIXES) or os.path.lexists(folder / text)


def absolute(value: object, folder: Path, key: tuple[str, ...]) -> object:
    """Make the paths in a value absolute; return any other value unchanged."""
    if isinstance(value, list):
        return [absolute(item, folder, key) for item in value]
    if isinstance(value, dict) and "source" in value:
        return value | {"source": absolute(value["source"], folder, key)}
    if not isinstance(value, str) or value in ("", EMBEDDED) or invalid_path_reason(value):
        return value
    if key not in ALWAYS_PATH and ("://" in value or not is_path(value, folder)):
        return value
    return os.path.normpath(folder / Path(value).expanduser())


def resolve_paths(
    raw: dict[str, object], folder: Path, *, only: tuple[str, ...] | None = None
) -> object:
    """Make the paths of a raw recipe absolute, in place: all of them, or those under one key."""
    for key in PATH_KEYS:
        if only and key[: len(only)] != only and only[: len(key)] != key:
            continue
        section: object = raw
        for name in key[:-1]:
            section = section.get(name) if isinstance(section, dict) else None
        if isinstance(section, dict) and key[-1] in section:
            section[key[-1]] = absolute(section[key[-1]], folder, key)
    return raw


def read_template(
    raw: dict[str, Any], folder: Path, *, only: tuple[str, ...] = ()
) -> Iterator[Problem]:
    """Replace the path of a chat template by its text, in place, so that a recipe is complete.

    Args:
        raw: the raw recipe.
        folder: the directory that a relative path starts at.
        only: a key; nothing is done unless the template is under it.

    Yields:
        A problem, if the file cannot be read.
    """
    if TEMPLATE[: len(only)] != only:
        return
    section: Any = raw.get(TEMPLATE[0])
    name = section.get(TEMPLATE[1]) if isinstance(section, dict) else None
    if not isinstance(name, str) or not name.endswith(".jinja") or invalid_path_reason(name):
        return
    try:
        text = (folder / Path(name).expanduser()).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8"
        yield Problem(TEMPLATE, f"cannot be read: {reason}", name)
    else:
        section[TEMPLATE[1]] = text


def set_default_output_dir(raw: dict[str, object], folder: Path) -> None:
    """Set the output directory of a raw recipe to runs/NAME if it has none."""
    name = raw.get("name", Recipe.default_of("name"))
    raw.setdefault("output_dir", os.path.normpath(folder / "runs" / str(name)))


def invalid_path_reason(text: str) -> str | None:
    """Return why a text cannot be a path on any file system; None if it can."""
    kinds = {unicodedata.category(character) for character in text}
    if "Cs" in kinds:
        return "contains bytes that are not UTF-8"
    if "Cc" in kinds:  # Others, such as the narrow spaces of macOS screenshots, are in file names.
        return "contains a control character"
    if any(len(part.encode()) > 255 for part in text.split("/")):
        return "has a part longer than 255 bytes"
    return None


def strings(recipe: Recipe) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield every string of a recipe that is a path or a Hub id, with its key."""
    for key in PATH_KEYS:
        value: Any = recipe
        for name in key:
            value = getattr(value, name)
        for item in value if isinstance(value, tuple) else (value,):
            text = item if isinstance(item, str) or item is None else item.source
            if text is not None:
                yield key, text


def path_problems(recipe: Recipe) -> list[Problem]:
    """Return a problem for each string that is not a valid path, Hub id or existing model."""
    return [
        Problem(key, rule, text) for key, text in strings(recipe) if (rule := name_rule(key, text))
    ]


def name_rule(key: tuple[str, ...], text: str) -> str | None:
    """Return the rule that a path or Hub id breaks; None if it is valid."""
    if reason := invalid_path_reason(text):
        return reason
    if "://" in text:
        return "is a URL; download it first, or name a Hub id"
    path = Path(text)
    if key in ALWAYS_PATH:
        shared = {Path(path.anchor), Path.home(), Path.cwd(), *Path.cwd().parents}
        is_own = path.resolve() not in shared and ".git" not in path.parts
        return None if is_own else "is not a folder of its own; name a new one, such as runs/NAME"
    if path.is_absolute():
        is_missing = key[-1] == "pretrained" and not path.is_dir()
        return "no such folder" if is_missing else None
    is_id = HUB_ID.match(text) and ".." not in text and not text.endswith(".git")
    return None if is_id else "is not a path and not a Hub id (USER/NAME)"
