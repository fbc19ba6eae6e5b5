"""What a person reads: the plan before a run, notes, and the end after it."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from hf_lm.metrics import metric_rows
from hf_lm.patient import PatientStream

# Of all processes, the first speaks.
console = Console(
    file=cast("TextIO", PatientStream("stdout")),
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


def show_samples(samples: Sequence[Mapping[str, str]], *, chat: bool) -> None:
    """What the model writes, prompts in bold; an answer on a line of its own."""
    between = "\n" if chat else ""
    for sample in samples:
        console.print(Text("sample", style="bold cyan"))
        console.print(Text.assemble((sample["prompt"], "bold"), between, sample["text"]))
        console.print()


def show_end(
    model: Path,
    metrics: Mapping[str, Any],
    samples: Sequence[Mapping[str, str]],
    *,
    chat: bool = False,
) -> None:
    """The result of a run, and what to do with it."""
    console.print()
    show_samples(samples, chat=chat)
    seconds, speed = metrics["train_seconds"], metrics["tokens_per_second"]
    name = short(model)
    where = shlex.quote(name)
    prompt = next((s["prompt"] for s in samples if s["prompt"]), "Once upon a time")
    show_rows(
        "done",
        [
            *metric_rows(metrics),
            (
                "training",
                f"{metrics['train_tokens']:,} tokens in {duration(seconds)}, {speed:,.0f} a second",
            ),
            ("model", name),
            (
                "write with it",
                f"hf-lm generate {where}{' --chat' * chat} --prompt {shlex.quote(prompt)}",
            ),
            ("measure it", f"hf-lm evaluate {where} --source YOUR_TEXT"),
            ("in Python", f'AutoModelForCausalLM.from_pretrained("{name}")'),
        ],
    )


def show_complete(model: Path) -> None:
    """The same command again, after a run that is done."""
    console.print(f"already complete: {short(model)}; start anew with --fresh")


def short(path: Path) -> str:
    """A path as a person would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
