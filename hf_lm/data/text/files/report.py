"""Collect what is wrong with text, and what was left out of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from hf_lm.system.text import on_one_line

MAX_PROBLEMS = 20  # different ones; more say nothing new


@dataclass
class Report:
    """Problems, which stop the run, and counts and notes, which the plan shows.

    Attributes:
        found: the first place and the number of places of each problem.
        notes: how files were read, in the order in which they were first met.
        empty: documents that have only white space.
        missing: rows that have no text.
        bad_bytes: documents that are not valid in their encoding.
        control_characters: those that were kept.
        unreadable: the files that could not be converted to text, and why.
    """

    found: dict[str, tuple[str, int]] = field(default_factory=dict)
    notes: dict[str, None] = field(default_factory=dict)
    empty: int = 0
    missing: int = 0
    bad_bytes: int = 0
    control_characters: int = 0
    unreadable: dict[Path, str] = field(default_factory=dict)

    def problem(self, place: str, rule: str, *, count: int = 1) -> None:
        """Add a problem; the same one in another place is counted."""
        first, before = self.found.get(rule, (place, 0))
        self.found[rule] = first, before + count

    def note(self, text: str) -> None:
        """Add a note, once."""
        self.notes[text] = None

    @property
    def problems(self) -> list[str]:
        """One line for each problem, with its first place."""
        lines = (
            f"{place}: {rule}" + (f" ({count - 1:,} more places like it)" if count > 1 else "")
            for rule, (place, count) in self.found.items()
        )
        return [*map(on_one_line, lines)]

    def problems_with(self, unreadable: Iterable[Path]) -> list[str]:
        """Return the problems, or else those of files that could not be converted."""
        found = (path for path in unreadable if path in self.unreadable)
        return self.problems or [on_one_line(f"{p}: {self.unreadable[p]}") for p in found]

    @property
    def full(self) -> bool:
        """True if there are as many problems as are shown; reading stops then."""
        return len(self.found) >= MAX_PROBLEMS
