"""The rich console: tables, notes and durations."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from hf_lm.terminal.streams import SafeStream

# Of all processes, the first speaks.
console = Console(
    file=cast("TextIO", SafeStream("stdout")),
    highlight=False,
    soft_wrap=True,
    quiet=os.environ.get("RANK", "0") != "0",
)


def quiet_libraries() -> None:
    """Leave the terminal to this file: only errors of the libraries show, and no bars of theirs."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not console.is_terminal:
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when datasets is imported


@contextmanager
def preparing(step: str, size: int | None) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal while text goes by, and a line behind it if any did.

    Args:
        step: what is done with the text.
        size: bytes of all of it, if known.

    Yields:
        A function to call with the documents and bytes that have just been done.
    """
    began, documents, done = time.monotonic(), 0, 0
    bar = Progress(
        TextColumn(f"[bold]{step}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[row]}"),
        TimeRemainingColumn(),
        TextColumn("left"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    task = bar.add_task("", total=size, row="")

    def row() -> str:
        """What has been done, and how fast."""
        speed = done / 1e6 / max(time.monotonic() - began, 1e-3)
        return f"{documents:,} documents, {done / 1e6:,.1f} MB, {speed:,.1f} MB/s"

    def report(more: int, size: int) -> None:
        """Move on."""
        nonlocal documents, done
        documents, done = documents + more, done + size
        bar.update(task, completed=done, row=row() if bar.live.is_started else "")

    with bar:
        yield report
    if done:
        console.print(f"{step}: {row()}, {duration(time.monotonic() - began)}")


def show_rows(title: str, rows: Iterable[tuple[str, str]], *, notes: Iterable[str] = ()) -> None:
    """A title, lines of a label and a text, and what is right but worth knowing."""
    console.print(Text(title, style="bold cyan"))
    rows = list(rows)
    width = max(len(label) for label, _ in rows) + 2
    for label, text in rows:
        console.print(Text.assemble((label.ljust(width), "bold"), text))
    for note in notes:
        show_note(note)


def show_note(note: str) -> None:
    """What is right but worth knowing."""
    console.print(Text(f"note: {note}", style="yellow"))


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(path: Path) -> str:
    """A path as a person would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
