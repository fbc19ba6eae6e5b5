"""Read the documents of a text, Markdown, JSONL, JSON, CSV or Parquet file.

Text is what the file says: UTF-8, without a byte-order mark, its lines ended by line feeds alone.
Compressed files are refused, not unpacked: a small archive can hold a disk.
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

MAX_DOCUMENT = 256 * 2**20  # bytes; a tokenizer takes about 20 times its text in memory


MAX_PROBLEMS = 20  # lines shown of one kind of trouble; a wrong column breaks every row


BINARY_SHARE = 0.1  # control characters a text may hold before it is taken for a binary file


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
    """What was met on the way: problems stop the run, counts are told."""

    problems: list[str] = field(default_factory=list)
    empty: int = 0
    bad_bytes: int = 0
    control_characters: int = 0

    def problem(self, place: str, rule: str) -> None:
        """Note one problem."""
        self.problems.append(f"{place}: {rule}")

    @property
    def full(self) -> bool:
        """Whether there is enough to show; reading on would only repeat it."""
        return len(self.problems) >= MAX_PROBLEMS


def archive_kind(path: Path) -> str | None:
    """The kind of compressed file this is by its first bytes, whatever its name says."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((kind for magic, kind in ARCHIVES.items() if head.startswith(magic)), None)


def read_documents(
    path: Path, *, columns: Columns, sample_by: str, on_bad_bytes: str, report: Report
) -> Iterator[str]:
    """The documents of one file, in order; empty ones are counted and left out."""
    reader = READERS.get(path.suffix.lower())
    if reader:
        found = reader(path, columns, on_bad_bytes, report)
    elif not columns.plain:
        report.problem(str(path), f"has no rows; name files of {', '.join(READERS)} alone")
        return
    else:
        found = read_text(path, sample_by, on_bad_bytes, report)
    for place, text in found:
        if report.full:
            return
        if not text.strip():
            report.empty += 1
        elif accepted(place, text, report):
            yield text


def accepted(place: str, text: str, report: Report) -> bool:
    """Whether a document is text: small enough, encodable and not binary."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        report.problem(place, "holds a lone surrogate, which no UTF-8 text can")
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
        report.problem(place, f"{controls:,} control characters; this is no text")
        return False
    report.control_characters += controls
    return True


def decoded(raw: bytes, place: str, on_bad_bytes: str, report: Report, line: int = 1) -> str | None:
    """UTF-8 bytes as text, or None where they are not and may not be replaced."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        bad = error.start
    report.bad_bytes += 1
    if on_bad_bytes == "replace":
        return raw.decode("utf-8", errors="replace")
    if on_bad_bytes == "error":
        report.bad_bytes -= 1
        here = line + raw[:bad].count(b"\n")
        rule = (
            f"line {here}, byte {bad}: is not UTF-8{likely_encoding(raw)}; save it as UTF-8, or "
            'set data.on_bad_bytes to "replace" or "skip"'
        )
        report.problem(place, rule)
    return None


def likely_encoding(raw: bytes) -> str:
    """A guess at the encoding of bytes that are not UTF-8, in words."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or raw[:64].count(0) > len(raw[:64]) // 4:
        return ", it looks like UTF-16"
    high = sum(byte >= 0x80 for byte in raw[:65536])
    return ", it looks like Latin-1" if high < len(raw[:65536]) // 4 else ""


def read_text(
    path: Path, sample_by: str, on_bad_bytes: str, report: Report
) -> Iterator[tuple[str, str]]:
    """A text file as one document, or one a paragraph (parted by empty lines) or a line."""
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
    """Each line of a file with its place, read one at a time; only a line feed ends one."""
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
    """One JSON object, or string, a line."""
    for place, line in numbered_lines(path, on_bad_bytes, report):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            report.problem(place, f"is no JSON: {error}")
            continue
        yield from row_text(row, place, columns, report)


def read_json(
    path: Path, columns: Columns, on_bad_bytes: str, report: Report
) -> Iterator[tuple[str, str]]:
    """A JSON list of objects or strings, or an object that holds such a list under "data"."""
    text = decoded(path.read_bytes(), str(path), on_bad_bytes, report)
    if text is None:
        return
    try:
        rows = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        hint = "; one object a line is .jsonl" if "Extra data" in str(error) else ""
        report.problem(str(path), f"is no JSON: {error}{hint}")
        return
    rows = rows.get("data", [rows]) if isinstance(rows, dict) else rows
    if not isinstance(rows, list):
        report.problem(str(path), "expected a JSON list of objects")
        return
    for number, row in enumerate(rows):
        yield from row_text(row, f"{path}: item {number}", columns, report)


def row_text(row: Any, place: str, columns: Columns, report: Report) -> Iterator[tuple[str, str]]:
    """The text of one row, if it has one."""
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
    """A CSV file with a header row; quoted cells may hold line ends."""
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
        report.problem(f"{path}:{rows.line_num}", f"is no CSV: {error}")


def read_parquet(
    path: Path, columns: Columns, on_bad_bytes: str, report: Report
) -> Iterator[tuple[str, str]]:
    """A Parquet file, one batch of rows in memory at a time; its strings are always UTF-8."""
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
        report.problem(str(path), f"is no Parquet file: {one_line(error)}")


READERS = {
    ".parquet": read_parquet,
    ".csv": read_csv,
    ".jsonl": read_jsonl,
    ".json": read_json,
}
