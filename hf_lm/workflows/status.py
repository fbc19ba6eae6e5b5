"""Show a run and its checkpoints on one screen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from hf_lm.checkpoints.manifest import verify
from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.errors import CheckpointError, DataError
from hf_lm.run_dir.directory import LOG, STATUS, RunDirectory
from hf_lm.run_dir.lock import is_this_machine, read_owner
from hf_lm.system.files import size_of
from hf_lm.terminal.console import duration, show_rows

UNFINISHED = ("preparing", "training")


def verify_run(path: Path) -> dict[str, list[str]]:
    """Verify every file of every checkpoint of a run and show the result.

    Returns:
        The problems of each checkpoint, none of which has one.

    Raises:
        DataError: the directory does not hold a checkpoint.
        CheckpointError: some checkpoints are damaged.
    """
    store = CheckpointStore(path)
    checkpoints = [store.path(step) for step in store.steps()]
    problems = {checkpoint.name: list(verify(checkpoint)) for checkpoint in checkpoints}
    if not problems:
        raise DataError(f"{path}: holds no checkpoint")
    show_rows(str(path), [(name, "; ".join(lines) or "valid") for name, lines in problems.items()])
    damaged = [f"{path / name}: {lines[0]}" for name, lines in problems.items() if lines]
    if damaged:
        raise CheckpointError([*damaged, "a run continues from the newest valid checkpoint"])
    return problems


def started_run(path: Path) -> RunDirectory:
    """Open the directory of a run.

    Raises:
        DataError: the directory does not hold a run.
    """
    run_dir = RunDirectory(path)
    if not run_dir.is_started:
        raise DataError(f"{path}: holds no run of hf_lm (current folder: {Path.cwd()})")
    return run_dir


def last_values(run_dir: RunDirectory) -> dict[str, Any]:
    """Return the newest value of each column of the log."""
    last: dict[str, Any] = {}
    for row in run_dir.log.rows():
        last |= row
    return last


def follow(paths: Sequence[Path], *, seconds: float = 1.0) -> Iterator[bool]:
    """Yield at once and whenever a run has gone on, until none is at work.

    Args:
        paths: the directories of the runs.
        seconds: the time between two looks.

    Yields:
        Whether a run is still at work.

    Raises:
        DataError: a directory does not hold a run.
    """
    seen: list[tuple[float, ...]] = []
    while True:
        runs = [started_run(path) for path in paths]
        at_work = any(is_at_work(run_dir) for run_dir in runs)
        times = [change_times(run_dir.path) for run_dir in runs]
        if times != seen or not at_work:
            yield at_work
        if not at_work:
            return
        seen = times
        time.sleep(seconds)


def is_at_work(run_dir: RunDirectory) -> bool:
    """Return whether a process works on a run."""
    return run_dir.read(STATUS)["state"] in UNFINISHED and not is_killed(run_dir)


def change_times(folder: Path) -> tuple[float, ...]:
    """Return when the status and the log of a run were last written."""
    return tuple(path.stat().st_mtime for path in (folder / STATUS, folder / LOG) if path.exists())


def status_rows(path: Path) -> list[tuple[str, str]]:
    """Describe a run as pairs of a label and a text.

    Raises:
        DataError: the directory does not hold a run.
    """
    run_dir = started_run(path)
    last = last_values(run_dir)
    return [
        ("state", state_text(run_dir)),
        ("step", step_text(run_dir, last)),
        *learning_rows(last),
        ("checkpoints", checkpoints_text(path)),
        *([("last row", age_text(path / LOG))] if last else []),
    ]


def status_json(path: Path) -> dict[str, Any]:
    """Describe a run as values that JSON can hold.

    Returns:
        "state", with "killed" for a process that is gone, "reason", "max_steps", "checkpoints"
        (steps) and "last" (the newest value of each column of the log).

    Raises:
        DataError: the directory does not hold a run.
    """
    run_dir = started_run(path)
    status = run_dir.read(STATUS)
    return {
        "state": "killed" if is_killed(run_dir) else status["state"],
        "reason": status["reason"],
        "max_steps": run_dir.provenance.get("max_steps"),
        "checkpoints": CheckpointStore(path).steps(),
        "last": last_values(run_dir),
    }


def is_killed(run_dir: RunDirectory) -> bool:
    """Return whether the process of an unfinished run is gone."""
    owner = read_owner(run_dir.path)
    is_owned = owner and (not is_this_machine(owner) or is_alive(owner))
    return run_dir.read(STATUS)["state"] in UNFINISHED and not is_owned


def state_text(run_dir: RunDirectory) -> str:
    """Describe the state of a run, and the process that works on it."""
    status, owner = run_dir.read(STATUS), read_owner(run_dir.path)
    state, reason = status["state"], status["reason"]
    if is_killed(run_dir):
        return f"killed while {state}; the same command continues"
    if state in UNFINISHED and owner:
        return f"{state}, process {owner['pid']} on {owner['host']} since {owner['start']}"
    return f"{state}: {reason}" if reason else state


def is_alive(owner: Mapping[str, Any]) -> bool:
    """Return whether a process of this machine still exists."""
    return psutil.pid_exists(int(owner["pid"]))


def step_text(run_dir: RunDirectory, last: Mapping[str, Any]) -> str:
    """Describe the step, the time so far and the time left."""
    step, total = last.get("step", 0), run_dir.provenance.get("max_steps")
    text = f"{step:,}" + (f" of {total:,}" if total else "")
    if not step or not last.get("seconds"):
        return text
    text += f" in {duration(last['seconds'])}"
    left = (total - step) * last["seconds"] / step if total else 0
    return text + (f", about {duration(left)} left" if left > 0 else "")


def learning_rows(last: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Describe the newest values in the log."""
    columns = (
        ("loss", "loss", "{}"),
        ("validation loss", "eval_loss", "{}"),
        ("learning rate", "learning_rate", "{:.2g}"),
        ("speed", "tokens_per_second", "{:,.0f} tokens per second"),
    )
    return [
        (label, form.format(round(last[key], 4) if form == "{}" else last[key]))
        for label, key, form in columns
        if isinstance(last.get(key), (int, float))
    ]


def checkpoints_text(path: Path) -> str:
    """Describe the checkpoints without verifying them."""
    store = CheckpointStore(path)
    steps = store.steps()
    size = sum(size_of(store.path(step)) for step in steps)
    if not steps:
        return "none yet"
    return f"steps {', '.join(map(str, steps))}; {size / 1e9:.2g} GB; hf-lm verify checks them"


def age_text(path: Path) -> str:
    """Describe how long ago a file was written."""
    return f"{duration(max(0, time.time() - path.stat().st_mtime))} ago"
