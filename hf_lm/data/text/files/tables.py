"""Read CSV, Parquet and Arrow files as rows."""

from __future__ import annotations

import csv
import io
import itertools
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from hf_lm.data.text.columns import Columns, quoted
from hf_lm.data.text.files.encoding import MAX_DOCUMENT, decoded, read_utf8
from hf_lm.data.text.files.report import Report
from hf_lm.errors import one_line
from hf_lm.recipe import DataRecipe

Rows = Iterator[tuple[str, Any]]  # a place, and a row

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
SAMPLE = 20  # rows that show the delimiter


class InvalidTextError(ValueError):
    """A row has bytes that are not UTF-8."""


def read_csv(path: Path, data: DataRecipe, columns: Columns, report: Report) -> Rows:
    """Yield the rows of a table in text with a header; quoted cells may contain line ends."""
    csv.field_size_limit(min(MAX_DOCUMENT, sys.maxsize))
    text = read_utf8(path, data, report)
    if text is None:
        return
    delimiter = data.delimiter or find_delimiter(text)
    if delimiter != ",":
        report.note(f"{path.name}: its columns are separated by {DELIMITERS[delimiter]}")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next((row for row in lines if any(row)), [])  # after empty lines
        if not is_unambiguous(header, path, columns, report):
            return
        for row in lines:
            place = f"{path}:{lines.line_num}"
            if len(row) > len(header):
                rule = f"has more cells than the header ({len(header)}); quote text with delimiters"
                report.problem(place, rule)
            elif row:
                yield place, dict(itertools.zip_longest(header, map(with_line_feeds, row)))
    except csv.Error as error:
        report.problem(f"{path}:{lines.line_num}", f"is not CSV: {error}")


def is_unambiguous(header: list[str], path: Path, columns: Columns, report: Report) -> bool:
    """Return whether each column that is used is in a header once; report it if not."""
    twice = {name for name in header if header.count(name) > 1}
    used = [name for name in columns.chosen(header) if name in twice]
    if used:
        report.problem(str(path), f"has several columns {quoted(used)}; rename all but one")
    elif twice:
        report.note(f"{path.name}: has several columns {quoted(sorted(twice))}")
    return not used


def with_line_feeds(cell: str) -> str:
    """Return a cell whose line ends are line feeds, as in text files."""
    return cell.replace("\r\n", "\n").replace("\r", "\n") if "\r" in cell else cell


def find_delimiter(text: str) -> str:
    """Return the delimiter that gives the first rows as many cells as the header.

    A comma is preferred, then what gives the most columns. A table of one column has a comma.
    """
    widths = {delimiter: width_with(text, delimiter) for delimiter in DELIMITERS}
    if widths[","] > 1:
        return ","
    return max(DELIMITERS, key=lambda delimiter: widths[delimiter])


def width_with(text: str, delimiter: str) -> int:
    """Return the number of columns that a delimiter gives; 1 if the first rows differ in it."""
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [row for row in itertools.islice(lines, SAMPLE + 1) if row]
    except csv.Error:
        return 1
    widths = {len(row) for row in rows}
    return widths.pop() if len(widths) == 1 else 1


def read_parquet(path: Path, data: DataRecipe, columns: Columns, report: Report) -> Rows:
    """Yield the rows of a Parquet file, read in batches."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        names = file.schema_arrow.names
        if missing := columns.missing([*names, *nested_names(file.schema_arrow)]):
            report.problem(str(path), missing)
            return
        if not is_unambiguous(names, path, columns, report):
            return
        batches = file.iter_batches(batch_size=1024, columns=[*columns.chosen(names)])
        yield from batch_rows(batches, path, data, report)
    except (pa.ArrowInvalid, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        report.problem(str(path), f"is not a Parquet file: {one_line(error)}")


def read_arrow(path: Path, data: DataRecipe, columns: Columns, report: Report) -> Rows:
    """Yield the rows of an Arrow file, in the format of streams (datasets) or of files."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            try:
                reader: Any = pa.ipc.open_stream(source)
                batches: Iterable[Any] = reader
            except pa.ArrowInvalid:
                reader = pa.ipc.open_file(source)
                batches = map(reader.get_batch, range(reader.num_record_batches))
            names = reader.schema.names
            if missing := columns.missing([*names, *nested_names(reader.schema)]):
                report.problem(str(path), missing)
                return
            if not is_unambiguous(names, path, columns, report):
                return
            chosen = [*columns.chosen(names)]
            yield from batch_rows((b.select(chosen) for b in batches), path, data, report)
    except pa.ArrowInvalid as error:
        report.problem(str(path), f"is not an Arrow file: {one_line(error)}")


def batch_rows(batches: Iterable[Any], path: Path, data: DataRecipe, report: Report) -> Rows:
    """Yield the rows of Arrow batches; text that is stored as bytes is decoded."""
    start = 0
    for batch in batches:
        for number, row in enumerate(batch_values(batch, path, start, report), start):
            place = f"{path}: row {number}"
            with suppress(InvalidTextError):
                yield place, with_text(row, place, data, report)
        start += batch.num_rows


def with_text(value: Any, place: str, data: DataRecipe, report: Report) -> Any:
    """Return a value in which bytes are decoded.

    Raises:
        InvalidTextError: some are not UTF-8, which is reported, and must not be replaced.
    """
    if isinstance(value, bytes):
        if (text := decoded(value, place, data, report)) is None:
            raise InvalidTextError
        return text
    if isinstance(value, dict):
        return {name: with_text(inner, place, data, report) for name, inner in value.items()}
    if isinstance(value, list):
        return [with_text(inner, place, data, report) for inner in value]
    return value


def batch_values(batch: Any, path: Path, start: int, report: Report) -> list[dict[str, Any]]:
    """Return the rows of an Arrow batch; text that is not UTF-8 stays bytes."""
    import pyarrow as pa

    try:
        try:
            return batch.to_pylist()
        except UnicodeDecodeError:
            columns = [column.cast(as_binary(column.type)) for column in batch.columns]
            return pa.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()
    except (ValueError, OverflowError, pa.ArrowException) as error:  # a date that Python has not
        place = f"{path}: rows {start} to {start + batch.num_rows - 1}"
        report.problem(place, f"cannot be read: {one_line(error)}")
        return []


def as_binary(kind: Any) -> Any:
    """Return an Arrow type with bytes in place of text, in structures and lists, too."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(as_binary(field.type)) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(kind.value_field.with_type(as_binary(kind.value_type)))
    return {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}.get(kind, kind)


def nested_names(schema: Any) -> list[str]:
    """Return the names of fields in columns that are structures, such as "data.text"."""
    return [
        f"{column.name}.{inner.name}"
        for column in schema
        if str(column.type).startswith("struct")
        for inner in column.type
    ]
