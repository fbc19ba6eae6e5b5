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

from hf_lm.system.processes import is_main_process
from hf_lm.terminal.streams import SafeStream

# Only the main process prints. SafeStream writes to the sys.stdout of the moment, as notebooks and
# tests need; rich would take a Jupyter kernel for an HTML page and bypass it.
console = Console(
    file=cast("TextIO", SafeStream("stdout")),
    force_jupyter=False,
    highlight=False,
    markup=False,  # a path may be "run-[x]", and text is never markup
    emoji=False,
    soft_wrap=True,
    quiet=not is_main_process(),
)


@contextmanager
def shown_on_stderr() -> Iterator[None]:
    """Show everything on stderr, so that stdout has the result of a command alone."""
    file, no_color = console.file, console.no_color
    console.file = cast("TextIO", SafeStream("stderr"))
    console.no_color = no_color or not console.is_terminal
    try:
        yield
    finally:
        console.file, console.no_color = file, no_color


def quiet_libraries() -> None:
    """Let the libraries print errors only, and turn off their progress bars."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    if not console.is_terminal:
        os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"  # read when datasets is imported


@contextmanager
def preparing(step: str, size: int | None) -> Iterator[Callable[[int, int], None]]:
    """Show a progress bar on a terminal while text is processed, and one summary line at the end.

    Args:
        step: what is done with the text, such as "tokenize".
        size: the number of bytes of the whole text, if known.

    Yields:
        A function to call with the numbers of documents and bytes processed since the last call.
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
        """Format the documents and bytes processed, and the speed."""
        speed = done / 1e6 / max(time.monotonic() - began, 1e-3)
        return f"{documents:,} documents, {done / 1e6:,.1f} MB, {speed:,.1f} MB/s"

    def report(new_documents: int, new_bytes: int) -> None:
        """Add documents and bytes to the counts, and update the bar."""
        nonlocal documents, done
        documents, done = documents + new_documents, done + new_bytes
        bar.update(task, completed=done, row=row() if bar.live.is_started else "")

    with bar:
        yield report
    if done:
        console.print(f"{step}: {row()}, {duration(time.monotonic() - began)}")


def show_rows(title: str, rows: Iterable[tuple[str, str]], *, notes: Iterable[str] = ()) -> None:
    """Print a title, one line per label and text, and one line per note."""
    console.print(Text(title, style="bold cyan"))
    rows = list(rows)
    width = max(len(label) for label, _ in rows) + 2
    for label, text in rows:
        console.print(Text.assemble((label.ljust(width), "bold"), text))
    for note in notes:
        show_note(note)


def show_note(note: str) -> None:
    """Print a note: nothing is wrong, but the user may want to know."""
    console.print(Text(f"note: {note}", style="yellow"))


def duration(seconds: float) -> str:
    """Format seconds as h:mm:ss, or as m:ss below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def short(path: Path) -> str:
    """Return a path relative to the current folder, if it is inside that folder."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
