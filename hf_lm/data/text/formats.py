"""Read the documents of a text, Markdown, JSONL, JSON, CSV or Parquet file.

Text is UTF-8; a byte-order mark is removed, and line ends become line feeds. Compressed files are
refused, not unpacked: a small archive can fill a disk.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_lm.data.text.columns import Columns
from hf_lm.errors import one_line

MAX_DOCUMENT = 256 * 2**20  # bytes; a tokenizer needs about 20 times the size of the text in memory

MAX_PROBLEMS = 20  # a wrong column is a problem of every row

BINARY_SHARE = 0.1  # a file with a larger share of control characters is binary

ARCHIVES = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
}


# All but \b \t \n \v \f \r and escape.
CONTROL = bytes([*range(0x08), *range(0x0E, 0x1B), *range(0x1C, 0x20)])


@dataclass
class Report:
    """Problems, which stop the run, and counts, which are shown as notes."""

    problems: list[str] = field(default_factory=list)
    empty: int = 0
    bad_bytes: int = 0
    control_characters: int = 0

    def problem(self, place: str, rule: str) -> None:
        """Add a problem."""
        self.problems.append(f"{place}: {rule}")

    @property
    def full(self) -> bool:
        """True if there are as many problems as are shown; reading stops then."""
        return len(self.problems) >= MAX_PROBLEMS


def archive_kind(path: Path) -> str | None:
    """Return the kind of compression that the first bytes of a file show; None for none."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((kind for magic, kind in ARCHIVES.items() if head.startswith(magic)), None)


def read_documents(
    path: Path, *, columns: Columns, sample_by: str, on_bad_bytes: str, report: Report
) -> Iterator[str]:
    """Yield the documents of a file in order; empty ones are counted and skipped.

    Args:
        path: the file; its suffix says how it is read.
        columns: the columns of its rows that hold text.
        sample_by: what a document of a text file is: "document", "paragraph" or "line".
        on_bad_bytes: "error", "replace" or "skip".
        report: problems and counts are added to it.
    """
    reader = READERS.get(path.suffix.lower())
    if reader:
        texts = reader(path, columns, on_bad_bytes, report)
    elif not columns.accepts_plain_text:
        report.problem(str(path), f"has no rows; use only files of {', '.join(READERS)}")
        return
    else:
        texts = read_text(path, sample_by, on_bad_bytes, report)
    for place, text in texts:
        if report.full:
            return
        if not text.strip():
            report.empty += 1
        elif is_valid(place, text, report):
            yield text


def is_valid(place: str, text: str, report: Report) -> bool:
    """Return whether a document is encodable, small enough and not binary; report it if not."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        report.problem(place, "contains a lone surrogate, which UTF-8 cannot encode")
        return False
    if len(raw) > MAX_DOCUMENT:
        rule = (
            f"a document of {len(raw):,} bytes is over the limit of {MAX_DOCUMENT:,}; split it, or "
            'set data.sample_by to "paragraph" or "line"'
        )
        report.problem(place, rule)
        return False
    controls = len(raw) - len(raw.translate(None, CONTROL))
    if controls > BINARY_SHARE * len(text):
        report.problem(place, f"{controls:,} control characters; this is not text")
        return False
    report.control_characters += controls
    return True


def decoded(raw: bytes, place: str, on_bad_bytes: str, report: Report, line: int = 1) -> str | None:
    """Decode UTF-8 bytes; return None if they are not UTF-8 and must not be replaced."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        position = error.start
    if on_bad_bytes != "error":
        report.bad_bytes += 1
    if on_bad_bytes == "replace":
        return raw.decode("utf-8", errors="replace")
    if on_bad_bytes == "error":
        bad_line = line + raw[:position].count(b"\n")
        rule = (
            f"line {bad_line}, byte {position}: is not UTF-8{likely_encoding(raw)}; save it as "
            'UTF-8, or set data.on_bad_bytes to "replace" or "skip"'
        )
        report.problem(place, rule)
    return None


def likely_encoding(raw: bytes) -> str:
    """Guess the encoding of bytes that are not UTF-8."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or raw[:64].count(0) > len(raw[:64]) // 4:
        return ", it looks like UTF-16"
    high = sum(byte >= 0x80 for byte in raw[:65536])
    return ", it looks like Latin-1" if high < len(raw[:65536]) // 4 else ""


def read_text(
    path: Path, sample_by: str, on_bad_bytes: str, report: Report
) -> Iterator[tuple[str, str]]:
    """Yield a text file as one document, or its paragraphs (between empty lines), or its lines."""
    if sample_by == "line":
        yield from numbered_lines(path, on_bad_bytes, report)
        return
    text = decoded(path.read_bytes(), str(path), on_bad_bytes, report)
    if text is None:
        return
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if sample_by == "document":
        yield str(path), text
        return
    for paragraph in text.split("\n\n"):
        yield str(path), paragraph.strip("\n")


def numbered_lines(path: Path, on_bad_bytes: str, report: Report) -> Iterator[tuple[str, str]]:
    """Yield each line of a file with its place; only a line feed ends a line."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_DOCUMENT + 2):
            number += 1
            place = f"{path}:{number}"
            if len(raw) > MAX_DOCUMENT:
                report.problem(place, f"line of over {MAX_DOCUMENT:,} bytes")
                return
            line = decoded(raw, str(path), on_bad_bytes, report, line=number)
            if report.full:
                return
            if line is not None:
                yield place, line.removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")


def read_jsonl(
    path: Path, columns: Columns, on_bad_bytes: str, report: Report
) -> Iterator[tuple[str, str]]:
    """Yield the texts of a file with a JSON object or string on each line."""
    for place, line in numbered_lines(path, on_bad_bytes, report):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            report.problem(place, f"is not JSON: {error}")
            continue
        yield from row_text(row, place, columns, report)


def read_json(
    path: Path, columns: Columns, on_bad_bytes: str, report: Report
) -> Iterator[tuple[str, str]]:
    """Yield the texts of a JSON list of objects or strings, or of such a list under "data"."""
    text = decoded(path.read_bytes(), str(path), on_bad_bytes, report)
    if text is None:
        return
    try:
        rows = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        hint = "; a file with one object per line is .jsonl" if "Extra data" in str(error) else ""
        report.problem(str(path), f"is not JSON: {error}{hint}")
        return
    rows = rows.get("data", [rows]) if isinstance(rows, dict) else rows
    if not isinstance(rows, list):
        report.problem(str(path), "expected a JSON list of objects")
        return
    for number, row in enumerate(rows):
        yield from row_text(row, f"{path}: item {number}", columns, report)


def row_text(row: Any, place: str, columns: Columns, report: Report) -> Iterator[tuple[str, str]]:
    """Yield the text of a row, or report why it has none."""
    try:
        text = columns.text(row)
    except KeyError:
        report.problem(place, str(columns.missing(row)))
    except ValueError as error:
        report.problem(place, str(error))
    else:
        yield place, text


def read_csv(
    path: Path, columns: Columns, on_bad_bytes: str, report: Report
) -> Iterator[tuple[str, str]]:
    """Yield the texts of a CSV file with a header row; quoted cells may contain line ends."""
    csv.field_size_limit(min(MAX_DOCUMENT, sys.maxsize))
    text = decoded(path.read_bytes(), str(path), on_bad_bytes, report)
    if text is None:
        return
    rows = csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    try:
        for row in rows:
            yield from row_text(row, f"{path}:{rows.line_num}", columns, report)
            if report.full:
                return
    except csv.Error as error:
        report.problem(f"{path}:{rows.line_num}", f"is not CSV: {error}")


def read_parquet(
    path: Path, columns: Columns, on_bad_bytes: str, report: Report
) -> Iterator[tuple[str, str]]:
    """Yield the texts of a Parquet file, read in batches; its strings are always UTF-8."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        missing = columns.missing(names)
        if missing:
            report.problem(str(path), missing)
            return
        number = 0
        for batch in file.iter_batches(batch_size=1024, columns=[*columns.chosen(names)]):
            for row in batch.to_pylist():
                yield from row_text(row, f"{path}: row {number}", columns, report)
                number += 1
    except (pa.ArrowInvalid, OSError) as error:
        report.problem(str(path), f"is not a Parquet file: {one_line(error)}")


READERS = {
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".json": read_json,
}
