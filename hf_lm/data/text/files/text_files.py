"""Read text, JSON and JSON Lines files as rows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_lm.data.text.columns import Columns
from hf_lm.data.text.files.encoding import numbered_lines, read_utf8
from hf_lm.data.text.files.report import Report
from hf_lm.recipe import DataRecipe

Rows = Iterator[tuple[str, Any]]  # a place, and a row: a mapping, or a text

SPACE = re.compile(r"[ \t\r\n]*")


def read_text(path: Path, data: DataRecipe, columns: Columns, report: Report) -> Rows:
    """Yield the documents of a text file; by lines it is not held in memory."""
    if data.sample_by == "line":
        yield from numbered_lines(path, data, report)
        return
    text = read_utf8(path, data, report)
    if text is None:
        return
    yield from documents_of(text, str(path), data)


def documents_of(text: str, place: str, data: DataRecipe) -> Rows:
    """Yield a text as one document, or its paragraphs (between empty lines), or its lines."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if data.sample_by == "document":
        yield place, text
        return
    for part in text.split("\n\n" if data.sample_by == "paragraph" else "\n"):
        yield place, part.strip("\n")


def read_jsonl(path: Path, data: DataRecipe, columns: Columns, report: Report) -> Rows:
    """Yield the rows of a file with a JSON object or string on each line."""
    for place, line in numbered_lines(path, data, report):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            report.problem(place, f"is not JSON: {error}")
            continue
        yield place, row


def read_json(path: Path, data: DataRecipe, columns: Columns, report: Report) -> Rows:
    """Yield the rows of a JSON file.

    It holds a list of objects or strings, such a list under "data", a list for each column, or
    objects one after the other.
    """
    text = read_utf8(path, data, report)
    if text is None:
        return
    try:
        values = list(json_values(text))
    except (ValueError, RecursionError) as error:
        report.problem(str(path), f"is not JSON: {error}")
        return
    rows = values[0] if len(values) == 1 else values
    if isinstance(rows, dict):
        rows = rows_of_object(rows, columns)
    if not isinstance(rows, list):
        report.problem(str(path), "expected a JSON list of objects")
        return
    for number, row in enumerate(rows):
        yield f"{path}: item {number}", row


def json_values(text: str) -> Iterator[Any]:
    """Yield the JSON values that follow each other in a text, with white space between them."""
    decoder, position = json.JSONDecoder(), after_space(text, 0)
    while position < len(text):
        value, end = decoder.raw_decode(text, position)
        yield value
        position = after_space(text, end)


def after_space(text: str, position: int) -> int:
    """Return the position of the first character from a position on that is no white space."""
    match = SPACE.match(text, position)
    return match.end() if match else position


def rows_of_object(values: dict[str, Any], columns: Columns) -> list[Any]:
    """Return the rows of a JSON object: those under "data", of its columns, or itself."""
    if isinstance(values.get("data"), list):
        return values["data"]
    lengths = {len(value) if isinstance(value, list) else -1 for value in values.values()}
    is_table = len(lengths) == 1 and lengths != {-1} and columns.missing(values) is None
    if is_table:
        return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return [values]
