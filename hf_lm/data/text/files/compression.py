"""Open compressed files as streams of bytes.

The first bytes of a file say how it is compressed, not its name. A small file that grows without
end is refused while it is read, so it fills neither memory nor disk.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

# Text shrinks to a third or a fifth, and the most repetitive logs to a hundredth.
MAX_RATIO, ALWAYS_READ = 300, 64 * 2**20

CHUNK = 2**18  # packed bytes read at once

SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".zstd")

MAGIC = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf": "7z",
    b"Rar!": "rar",
}


def open_zstd(path: Path) -> BinaryIO:
    """Open a zstd file; pyarrow, which datasets requires, can read it."""
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


class Members:
    """The unpacked bytes of a file of bzip2 or xz, which may have several members.

    The classes of the standard library end without a word at bytes that are no member.

    Args:
        path: the file.
        new_decompressor: makes a decompressor for one member.
    """

    def __init__(self, path: Path, new_decompressor: Callable[[], Any]) -> None:
        self.file, self.new_decompressor = path.open("rb"), new_decompressor
        self.decompressor = new_decompressor()

    def read(self, size: int) -> bytes:
        """Return at most so many bytes; none at the end.

        Raises:
            EOFError: the last member is cut off.
            OSError: bytes after a member are no other one; `lzma.LZMAError` for xz.
        """
        while True:
            raw = b""
            if self.decompressor.eof:
                if not (raw := self.after_member()):
                    return b""
                self.decompressor = self.new_decompressor()
            elif self.decompressor.needs_input and not (raw := self.file.read(CHUNK)):
                raise EOFError("it ends before its end marker")
            if unpacked := self.decompressor.decompress(raw, size):
                return unpacked

    def after_member(self) -> bytes:
        """Return what follows a member; zeros may fill the last block of a tape or disk."""
        raw = self.decompressor.unused_data.lstrip(b"\0")
        while not raw and (chunk := self.file.read(CHUNK)):
            raw = chunk.lstrip(b"\0")
        return raw

    def close(self) -> None:
        """Close the file."""
        self.file.close()


OPENERS: dict[str, Callable[[Path], Any]] = {
    "gzip": gzip.GzipFile,
    "bzip2": partial(Members, new_decompressor=bz2.BZ2Decompressor),
    "xz": partial(Members, new_decompressor=lzma.LZMADecompressor),
    "zstd": open_zstd,
}


class CompressionBombError(ValueError):
    """A compressed file grows beyond what text can."""


def max_unpacked(size: int) -> int:
    """Return the most bytes that a file of some bytes may unpack to."""
    return max(ALWAYS_READ, MAX_RATIO * size)


class Unpacked(io.RawIOBase):
    """The unpacked bytes of a file, up to MAX_RATIO times its size.

    Args:
        path: the file.
        kind: how it is compressed.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.source = OPENERS[kind](path)
        self.limit = max_unpacked(path.stat().st_size)
        self.count = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Fill a buffer; return the number of bytes.

        Raises:
            CompressionBombError: the file is over the limit.
        """
        data = self.source.read(len(buffer))
        self.count += len(data)
        if self.count > self.limit:
            raise CompressionBombError(
                f"unpacks to over {self.limit:,} bytes, more than {MAX_RATIO} times its size; "
                "unpack it yourself if that is right"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self.source.close()
        super().close()


def compression_of(path: Path) -> str | None:
    """Return the kind of compression that the first bytes of a file show; None for none."""
    with path.open("rb") as file:
        head = file.read(8)
    return next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading; a compressed one gives its unpacked bytes."""
    kind = compression_of(path)
    if kind in OPENERS:
        return io.BufferedReader(Unpacked(path, kind), 2**20)
    return path.open("rb")


def plain_suffix(path: Path) -> str:
    """Return the suffix of a file in lower case, without that of its compression."""
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix in SUFFIXES else suffix
