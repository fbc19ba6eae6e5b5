"""Escape untrusted text for Markdown."""

from __future__ import annotations

import re

from hf_lm.system.text import printable

MAX_LENGTH = 2_000  # characters of a sample or a name


def shortened(text: object) -> str:
    """Return a printable text, cut to the length that a page can show."""
    clean = printable(text)
    return clean if len(clean) <= MAX_LENGTH else f"{clean[:MAX_LENGTH]} …"


def one_row(text: object) -> str:
    """Return a text on one line."""
    return re.sub(r"[ \n\t]+", " ", shortened(text)).strip(" ")


def plain(text: object) -> str:
    """Format a text as one line in which no character is Markdown or HTML markup."""
    line = one_row(text)
    return re.sub(r"([\\`*_\[\]<>#|&~])", r"\\\1", line)


def code(text: object) -> str:
    """Format a text as one line of inline code, with more backticks than the text contains."""
    line = one_row(text).replace("|", "\N{BROKEN BAR}")
    ticks = "`" * (longest_backtick_run(line) + 1)
    space = " " if "`" in line else ""
    return f"{ticks}{space}{line}{space}{ticks}" if line else ""


def fenced(text: str, language: str = "") -> str:
    """Format a text as a code block, with a fence longer than any in the text.

    Args:
        text: shown as it is if a language is given; it comes from us then.
        language: the language for highlighting, such as "json".
    """
    content = text if language else shortened(text)
    ticks = "`" * max(3, longest_backtick_run(content) + 1)
    return f"{ticks}{language}\n{content}\n{ticks}"


def longest_backtick_run(text: str) -> int:
    """Return the length of the longest run of backticks in a text."""
    return max((len(run) for run in re.findall("`+", text)), default=0)
