"""Read files in any encoding as UTF-8, and report what is not valid in it."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from hf_lm.data.text.files.compression import open_binary
from hf_lm.data.text.files.report import Report
from hf_lm.recipe import DataRecipe

CHUNK = 2**20  # bytes decoded at once

MAX_DOCUMENT = 256 * 2**20  # bytes; a tokenizer needs about 20 times the size of the text in memory


class AsUtf8(io.RawIOBase):
    """The bytes of a file as UTF-8.

    Args:
        source: the bytes in their own encoding.
        encoding: the name of that encoding.
        errors: "strict" raises UnicodeDecodeError for bytes that are not valid, "replace" does not.
    """

    def __init__(self, source: BinaryIO, encoding: str, errors: str) -> None:
        self.source, self.waiting = source, b""
        self.decoder = codecs.getincrementaldecoder(encoding)(errors)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer; return the number of bytes."""
        while not self.waiting:
            raw = self.source.read(CHUNK)
            text = self.decoder.decode(raw, final=not raw)
            self.waiting = text.encode("utf-8", "surrogatepass")
            if not raw:
                break
        data, self.waiting = self.waiting[: len(buffer)], self.waiting[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self.source.close()
        super().close()


def is_utf8(data: DataRecipe) -> bool:
    """Return whether a recipe says that files are UTF-8."""
    return codecs.lookup(data.encoding).name in ("utf-8", "utf-8-sig")


def open_utf8(path: Path, data: DataRecipe) -> BinaryIO:
    """Open a file, unpacked and as UTF-8; the bytes of one that is UTF-8 are not checked."""
    file = open_binary(path)
    if is_utf8(data):
        return file
    errors = "replace" if data.on_bad_bytes == "replace" else "strict"
    return io.BufferedReader(AsUtf8(file, data.encoding, errors), CHUNK)


def read_utf8(path: Path, data: DataRecipe, report: Report) -> str | None:
    """Return the text of a file without a byte-order mark; None if it is not valid."""
    with open_utf8(path, data) as file:
        text = decoded(file.read(), str(path), data, report)
    return None if text is None else text.removeprefix("\ufeff")


def decoded(
    raw: bytes, place: str, data: DataRecipe, report: Report, *, line: int = 1
) -> str | None:
    """Decode UTF-8 bytes; return None if they are not UTF-8 and must not be replaced."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        position = error.start
    if data.on_bad_bytes != "error":
        report.bad_bytes += 1
    if data.on_bad_bytes == "replace":
        return raw.decode("utf-8", errors="replace")
    if data.on_bad_bytes == "error":
        bad_line = line + raw[:position].count(b"\n")
        rule = (
            f"line {bad_line}, byte {position}: is not UTF-8{likely_encoding(raw)}; save it as "
            'UTF-8, or set data.on_bad_bytes to "replace" or "skip"'
        )
        report.problem(place, rule)
    return None


def likely_encoding(raw: bytes) -> str:
    """Guess the encoding of bytes that are not UTF-8, and say which key reads it."""
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff") or raw[:64].count(0) > len(raw[:64]) // 4:
        return ', it looks like UTF-16: set data.encoding to "utf-16"'
    high = sum(byte >= 0x80 for byte in raw[:65536])
    is_western = high < len(raw[:65536]) // 4
    return ', it looks like Latin-1: set data.encoding to "cp1252"' if is_western else ""


def numbered_lines(path: Path, data: DataRecipe, report: Report) -> Iterator[tuple[str, str]]:
    """Yield each line of a file with its place; only a line feed ends a line."""
    with open_utf8(path, data) as file:
        number = 0
        while raw := file.readline(MAX_DOCUMENT + 2):
            number += 1
            place = f"{path}:{number}"
            if len(raw) > MAX_DOCUMENT:
                report.problem(place, f"line of over {MAX_DOCUMENT:,} bytes")
                return
            line = decoded(raw, str(path), data, report, line=number)
            if report.full:
                return
            if line is not None:
                yield place, line.removeprefix("\ufeff" if number == 1 else "").rstrip("\r\n")
