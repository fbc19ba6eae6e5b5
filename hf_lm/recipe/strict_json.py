"""Read JSON strictly: duplicate keys, NaN, secrets and syntax errors are reported."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from hf_lm.errors import RecipeError

MAX_BYTES = 1_000_000  # a recipe is a page or two; anything larger is the wrong file
MAX_INT = 2**63 - 1
NO_VALUE = object()

# Tokens of Hugging Face, GitHub, OpenAI, AWS and Slack, private keys, and passwords inside URLs.
SECRET = re.compile(
    r"hf_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[A-Za-z0-9_-]{20,}"
    r"|(AKIA|ASIA)[A-Z0-9]{16}|xox[abprs]-[A-Za-z0-9-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/\s:@]+:[^/\s@]+@"
)


class Problem(NamedTuple):
    """A problem of one key.

    Attributes:
        path: the key, one item per level.
        rule: what is wrong and what to do.
        value: the value of the key; NO_VALUE if it is not shown.
    """

    path: tuple[str, ...]
    rule: str
    value: object = NO_VALUE

    def line(self, where: str) -> str:
        """Format the problem on one line: file, key, value and rule."""
        key = ".".join(self.path)
        if self.value is NO_VALUE:
            return f"{where}: {key}: {self.rule}" if key else f"{where}: {self.rule}"
        return f"{where}: {key} = {show(self.value)}: {self.rule}"


class NotFinite(NamedTuple):
    """A literal such as NaN that is not a JSON number; it is reported with its key later."""

    text: str


class Pairs(dict[str, object]):
    """A JSON object that knows which of its keys were repeated."""

    repeated: tuple[str, ...] = ()


def show(value: object) -> str:
    """Format a value as JSON on one line of at most 80 characters."""
    text = value.text if isinstance(value, NotFinite) else json.dumps(value, ensure_ascii=True)
    return text if len(text) <= 80 else f"{text[:77]}..."


def read_text(path: Path) -> str:
    """Read the text of a recipe file.

    Raises:
        RecipeError: there is no such file, or it is not a text file of the size of a recipe.
    """
    full = path.absolute()
    try:
        if path.is_dir():
            raise RecipeError(f"{full}: is a folder, expected a JSON file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise RecipeError(f"{full}: no such recipe") from None
    except (OSError, ValueError) as error:
        raise RecipeError(f"{full}: cannot be read: {error}") from None
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{full}: is over {MAX_BYTES:,} bytes; a recipe is a small JSON file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        is_utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in raw[:8]
        reason = "is UTF-16" if is_utf16 else f"is not UTF-8 (byte {error.start})"
        raise RecipeError(f"{path}: {reason}; save it as UTF-8") from None


def parse(text: str) -> object:
    """Parse JSON; `NotFinite` and `Pairs` mark what strict JSON does not allow.

    Raises:
        json.JSONDecodeError: the text is not JSON.
    """

    def number(literal: str) -> float | NotFinite:
        return float(literal) if math.isfinite(float(literal)) else NotFinite(literal)

    def whole(literal: str) -> int | NotFinite:
        small = len(literal) < 20 and abs(int(literal)) <= MAX_INT
        return int(literal) if small else NotFinite(literal)

    def pairs(items: list[tuple[str, object]]) -> Pairs:
        keys = [key for key, _ in items]
        raw = Pairs(items)
        raw.repeated = tuple(sorted({key for key in keys if keys.count(key) > 1}))
        return raw

    return json.loads(
        text,
        parse_float=number,
        parse_int=whole,
        parse_constant=NotFinite,
        object_pairs_hook=pairs,
    )


def read_raw(path: Path) -> Pairs:
    """Read the JSON object of a recipe file.

    Raises:
        RecipeError: the file cannot be read, or is not a JSON object.
    """
    text = read_text(path)
    if not text.strip():
        raise RecipeError(f"{path}: is empty, expected a JSON object")
    try:
        raw = parse(text)
    except RecursionError:
        raise RecipeError(f"{path}: is nested too deeply for a recipe") from None
    except json.JSONDecodeError as error:
        raise RecipeError(f"{path}: {syntax_problem(text, error)}") from None
    if not isinstance(raw, Pairs):
        raise RecipeError(
            f"{path}: the top level is {show(raw)}, expected an object of sections {{…}}"
        )
    return raw


def syntax_problem(text: str, error: json.JSONDecodeError) -> str:
    """Describe a syntax error: its position, the usual cause and the line."""
    line = text.split("\n")[error.lineno - 1].strip() if text else ""
    before = text[: error.pos].rstrip()
    if line.startswith(("//", "#", "/*")) or text[error.pos : error.pos + 1] in ("/", "#"):
        hint = "; JSON has no comments"
    elif before.endswith(",") or "trailing comma" in error.msg:
        hint = "; JSON allows no comma before a closing bracket"
    elif text[error.pos : error.pos + 1] == "'":
        hint = '; JSON strings need double quotes "…"'
    else:
        hint = ""
    return f"line {error.lineno} column {error.colno}: {error.msg}{hint}: {show(line)}"


def raw_problems(raw: object, path: tuple[str, ...] = ()) -> list[Problem]:
    """Return repeated keys, numbers that JSON does not have, and values that look like a secret."""
    if isinstance(raw, NotFinite):
        return [Problem(path, "is not a finite number in range", raw)]
    if isinstance(raw, str):
        rule = "looks like a secret; remove it and use `hf auth login` or HF_TOKEN instead"
        return [Problem(path, rule)] if SECRET.search(raw) else []
    if isinstance(raw, list):
        return [p for i, item in enumerate(raw) for p in raw_problems(item, (*path, str(i)))]
    if not isinstance(raw, dict):
        return []
    repeated = getattr(raw, "repeated", ())
    problems = [Problem((*path, key), "is given twice; keep one") for key in repeated]
    return problems + [p for key, item in raw.items() for p in raw_problems(item, (*path, key))]
