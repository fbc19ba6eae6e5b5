"""Show a run and its checkpoints on one screen."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.errors import CheckpointError, DataError
from hf_lm.run_dir.directory import LOG, STATUS, RunDirectory
from hf_lm.run_dir.lock import read_owner, is_this_machine
from hf_lm.system.files import size_of
from hf_lm.terminal.console import duration


def verify(given: argparse.Namespace) -> None:
    """Check every file of every checkpoint of a run against its manifest.

    Raises:
        DataError: there is none.
        CheckpointError: some are damaged.
    """
    from hf_lm.checkpoints.manifest import verify
    from hf_lm.checkpoints.store import CheckpointStore
    from hf_lm.terminal.console import show_rows

    checkpoints = CheckpointStore(given.run)
    paths = [checkpoints.path(step) for step in checkpoints.steps()]
    found = {path.name: list(verify(path)) for path in paths}
    if not found:
        raise DataError(f"{given.run}: holds no checkpoint")
    show_rows(str(given.run), [(name, "; ".join(bad) or "whole") for name, bad in found.items()])
    damaged = [f"{given.run / name}: {bad[0]}" for name, bad in found.items() if bad]
    if damaged:
        raise CheckpointError([*damaged, "a run continues from the newest that is whole"])


def status_rows(path: Path) -> list[tuple[str, str]]:
    """The lines about a run.

    Raises:
        DataError: there is none in that folder.
    """
    folder = RunDirectory(path)
    if not folder.is_started:
        raise DataError(f"{path}: holds no run of hf_lm (current folder: {Path.cwd()})")
    rows = list(folder.log.rows())
    last: dict[str, Any] = {}
    for row in rows:
        last |= row
    return [
        ("state", state_text(folder)),
        ("step", step_text(folder, last)),
        *learning_rows(last),
        ("checkpoints", checkpoints_text(path)),
        *([("last row", age_text(path / LOG))] if rows else []),
    ]


def state_text(folder: RunDirectory) -> str:
    """The state, and whether somebody is at it."""
    status, holder = folder.read(STATUS), read_owner(folder.path)
    state, reason = status["state"], status["reason"]
    if state in ("preparing", "training"):
        if holder and (not is_this_machine(holder) or lives(holder)):
            return f"{state}, process {holder['pid']} on {holder['host']} since {holder['start']}"
        return f"killed while {state}; the same command continues"
    return f"{state}: {reason}" if reason else state


def lives(holder: Mapping[str, Any]) -> bool:
    """Whether a process of this machine is still there."""
    try:
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def step_text(folder: RunDirectory, last: Mapping[str, Any]) -> str:
    """How far it is, and how long it will take from here."""
    step, total = last.get("step", 0), folder.provenance.get("max_steps")
    text = f"{step:,}" + (f" of {total:,}" if total else "")
    if not step or not last.get("seconds"):
        return text
    text += f" in {duration(last['seconds'])}"
    left = (total - step) * last["seconds"] / step if total else 0
    return text + (f", about {duration(left)} left" if left > 0 else "")


def learning_rows(last: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the log says, as far as it does."""
    named = (
        ("loss", "loss", "{}"),
        ("held out", "eval_loss", "{}"),
        ("rate", "learning_rate", "{:.2g}"),
        ("speed", "tokens_per_second", "{:,.0f} tokens a second"),
    )
    return [
        (label, form.format(round(last[key], 4) if form == "{}" else last[key]))
        for label, key, form in named
        if isinstance(last.get(key), (int, float))
    ]


def checkpoints_text(path: Path) -> str:
    """Which there are, unverified."""
    found = CheckpointStore(path)
    steps = found.steps()
    size = sum(size_of(found.path(step)) for step in steps)
    if not steps:
        return "none yet"
    return f"steps {', '.join(map(str, steps))}; {size / 1e9:.2g} GB; hf-lm verify checks them"


def age_text(path: Path) -> str:
    """How long ago a file was written."""
    return f"{duration(max(0, time.time() - path.stat().st_mtime))} ago"
