"""Make text that people or models wrote safe to show."""

from __future__ import annotations

import unicodedata

# Marks that turn the direction of text around, with which a name can look like another.
DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def printable(text: object) -> str:
    """Replace control characters; line ends and tabs stay.

    Spaces of any kind and joiners are kept: they are in names of files and in many languages.
    """
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if is_control(c) and c not in "\n\t" else c for c in str(text)
    )


def on_one_line(text: object) -> str:
    """Return a text with an arrow for each line end, and without control characters."""
    arrow = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}"
    return printable(str(text).replace("\n", arrow).replace("\t", " "))


def is_control(character: str) -> bool:
    """Return whether a character controls its surroundings, or stands for nothing."""
    kind = unicodedata.category(character)
    return (
        kind in ("Cc", "Cs", "Co", "Cn", "Zl", "Zp")
        or unicodedata.bidirectional(character) in DIRECTIONS
    )
