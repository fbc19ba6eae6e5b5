"""Escape untrusted text for Markdown."""

from __future__ import annotations

import re
from typing import Any

LONGEST = 2_000  # characters of a sample or a name


def visible(text: Any) -> str:
    """Text of a length that a page bears, without control characters."""
    kept = "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in str(text)
    )
    return kept if len(kept) <= LONGEST else f"{kept[:LONGEST]} …"


def plain(text: Any) -> str:
    """Text on one line in which nothing is markup, of Markdown or HTML."""
    line = " ".join(visible(text).split())
    return re.sub(r"([\\`*_\[\]<>#|&~])", r"\\\1", line)


def code(text: Any) -> str:
    """Text on one line as code, its backticks within longer ones."""
    line = " ".join(visible(text).split()).replace("|", "\N{BROKEN BAR}")
    ticks = "`" * (longest_ticks(line) + 1)
    space = " " if "`" in line else ""
    return f"{ticks}{space}{line}{space}{ticks}" if line else ""


def fenced(text: str, language: str = "") -> str:
    """Text as a block of code, its fence longer than any in it."""
    kept = visible(text) if not language else text
    ticks = "`" * max(3, longest_ticks(kept) + 1)
    return f"{ticks}{language}\n{kept}\n{ticks}"


def longest_ticks(text: str) -> int:
    """The backticks of the longest run of them."""
    return max((len(run) for run in re.findall("`+", text)), default=0)
