"""Read the documents of a data file: choose its reader, and the text of each row."""

from __future__ import annotations

import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hf_lm.data.text.columns import Columns
from hf_lm.data.text.files.compression import CompressionBombError, open_binary, plain_suffix
from hf_lm.data.text.files.converted import CONVERTERS, can_convert, read_converted
from hf_lm.data.text.files.encoding import MAX_DOCUMENT, is_utf8
from hf_lm.data.text.files.report import Report
from hf_lm.data.text.files.tables import read_arrow, read_csv, read_parquet
from hf_lm.data.text.files.text_files import Rows, read_json, read_jsonl, read_text
from hf_lm.errors import one_line
from hf_lm.recipe import DataRecipe

BINARY_SHARE = 0.1  # a file with a larger share of control characters is binary

MAX_ABSENT = 10_000  # rows without the column, at the start of a file, after which none is expected

# All but \b \t \n \v \f \r and escape.
CONTROL = bytes([*range(0x08), *range(0x0E, 0x1B), *range(0x1C, 0x20)])

Reader = Callable[[Path, DataRecipe, Columns, Report], Rows]

READERS: dict[str, Reader] = {
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".tab": read_csv,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".jsonlines": read_jsonl,
    ".json": read_json,
}

TEXT_SUFFIXES = frozenset(
    f".{name}"
    for names in (
        "txt text md markdown rst tex xml py pyi c h cc cpp hpp cu rs go java kt scala js jsx",
        "ts tsx css rb php pl lua r jl hs ml swift m sh sql toml yaml yml ini cfg log",
    )
    for name in names.split()
)


def is_data_file(path: Path) -> bool:
    """Return whether the suffix of a file says that it holds text."""
    suffix = plain_suffix(path)
    return suffix in READERS or suffix in TEXT_SUFFIXES or (suffix in CONVERTERS and can_convert())


def read_documents(
    path: Path, *, data: DataRecipe, columns: Columns, report: Report
) -> Iterator[str]:
    """Yield the documents of a file in order; empty ones are counted and left out.

    Args:
        path: the file; its suffix, or its content if that is unknown, says how it is read.
        data: the `data` section.
        columns: the columns of its rows that hold text.
        report: problems and counts are added to it.
    """
    reader = find_reader(path, report)
    if reader in (read_text, read_converted) and not columns.accepts_plain_text:
        report.problem(str(path), f"has no rows; use only files of {', '.join(READERS)}")
        return
    with damage_as_problem(path, data, report):
        for place, text in row_texts(reader(path, data, columns, report), data, columns, report):
            if not text.strip():
                report.empty += 1
            elif (valid := valid_text(place, text, data, report)) is not None:
                yield valid


@contextmanager
def damage_as_problem(path: Path, data: DataRecipe, report: Report) -> Iterator[None]:
    """Report a file that cannot be unpacked or decoded; errors of the disk are raised."""
    try:
        yield
    except CompressionBombError as error:
        report.problem(str(path), str(error))
    except UnicodeDecodeError as error:
        if data.on_bad_bytes == "skip" and not is_utf8(data):
            report.bad_bytes += 1
        else:
            rule = f"is not {data.encoding} (data.encoding): {one_line(error, limit=100)}"
            report.problem(str(path), rule)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        report.problem(str(path), f"is damaged and cannot be unpacked: {one_line(error)}")


def find_reader(path: Path, report: Report) -> Reader:
    """Return the reader of a file, by its suffix or else by its first bytes."""
    suffix = plain_suffix(path)
    if suffix in READERS:
        return READERS[suffix]
    if suffix in TEXT_SUFFIXES:
        return read_text
    if suffix in CONVERTERS:
        return read_converted
    with open_binary(path) as file:
        head = file.read(2**16)
    if head.startswith(b"%PDF-"):
        return read_converted
    known = {b"PAR1": ".parquet", b"ARROW1": ".arrow"}
    kind = next((kind for magic, kind in known.items() if head.startswith(magic)), None)
    if kind is None and is_json_object(head.split(b"\n")[0]):
        kind = ".jsonl"
    named = f'files named "*{suffix}"' if suffix else path.name
    if suffix or kind:
        report.note(f"{named}: unknown suffix, read as {kind or 'text'}")
    return READERS[kind] if kind else read_text


def is_json_object(line: bytes) -> bool:
    """Return whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def row_texts(
    rows: Rows, data: DataRecipe, columns: Columns, report: Report
) -> Iterator[tuple[str, str]]:
    """Yield the text of each row; rows without one are counted, or reported if the recipe says so.

    A column that no row of a file has is an error in the recipe.
    """
    absent, first, has_column = 0, ("", ""), False
    for place, row in rows:
        if report.full or (absent == MAX_ABSENT and not has_column):
            break
        found = text_of(row, columns, report)
        if found.is_absent:
            first, absent = first if absent else (place, found.rule), absent + 1
        has_column = has_column or not found.is_absent
        if found.text is not None:
            yield place, found.text
        elif found.is_invalid or data.on_missing_text == "error":
            report.problem(place, found.rule)
        else:
            report.missing += 1
    if absent and not has_column and data.on_missing_text == "skip":
        report.problem(*first, count=absent)


class RowText(NamedTuple):
    """The text of a row, or why it has none.

    Attributes:
        text: the text; None if there is none.
        rule: what the row lacks, as an error says it.
        is_absent: True if the row does not have the columns.
        is_invalid: True if a column has a value that is no text.
    """

    text: str | None
    rule: str = ""
    is_absent: bool = False
    is_invalid: bool = False


def text_of(row: Any, columns: Columns, report: Report) -> RowText:
    """Return the text of a row."""
    try:
        text = columns.text(row)
    except KeyError:
        return RowText(None, str(columns.missing(row)), is_absent=True)
    except ValueError as error:
        return RowText(None, str(error), is_invalid=True)
    if note := columns.note(row):
        report.note(note)
    return RowText(text, "its text is null (data.on_missing_text)")


def valid_text(place: str, text: str, data: DataRecipe, report: Report) -> str | None:
    """Return a document if it is encodable, small enough and not binary; report it if not."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        if data.on_bad_bytes == "error":
            rule = (
                "contains a lone surrogate, which UTF-8 cannot encode; set data.on_bad_bytes to "
                '"replace" or "skip"'
            )
            report.problem(place, rule)
            return None
        report.bad_bytes += 1
        if data.on_bad_bytes == "skip":
            return None
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        raw = text.encode()
    if len(raw) > MAX_DOCUMENT:
        rule = (
            f"a document of {len(raw):,} bytes is over the limit of {MAX_DOCUMENT:,}; split it, or "
            'set data.sample_by to "paragraph" or "line"'
        )
        report.problem(place, rule)
        return None
    controls = len(raw) - len(raw.translate(None, CONTROL))
    if controls > BINARY_SHARE * len(text):
        rule = f"{controls:,} control characters; this is not text"
        if text.count("\0") * 3 > len(text):
            rule += '; set data.encoding to "utf-16-le" or "utf-16-be" if it is UTF-16'
        report.problem(place, rule)
        return None
    report.control_characters += controls
    return text
