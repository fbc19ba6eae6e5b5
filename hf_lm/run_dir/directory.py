"""The output directory of one run: its files, its owner and its status.

    recipe.json  provenance.json  log.jsonl  metrics.json  status.json  checkpoint-N/  model/

Every file is written beside its name and moved into place, so a reader never meets half of one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from hf_lm import __version__
from hf_lm.errors import RecipeError, StoppedError
from hf_lm.recipe import Recipe, recipe_text
from hf_lm.run_dir import compatibility as changes
from hf_lm.run_dir.lock import LOCK, locked
from hf_lm.run_dir.log import line_of
from hf_lm.system.files import fsync, json_safe, size_of

RECIPE, PROVENANCE, LOG = "recipe.json", "provenance.json", "log.jsonl"


METRICS, STATUS, MODEL = "metrics.json", "status.json", "model"


class RunDirectory:
    """The folder of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = self.path / MODEL
        self.is_main_process = os.environ.get("RANK", "0") == "0"  # of all processes, one
        self.step, self.state = 0, ""
        self.log_error = ""  # why a row of the log is missing

    @property
    def started(self) -> bool:
        """Whether a run of ours has been here."""
        return (self.path / RECIPE).is_file() and (self.path / STATUS).is_file()

    @property
    def is_ours(self) -> bool:
        """Whether one was about to be: its state is written first."""
        try:
            return {"state", "reason"} <= self.read(STATUS).keys()
        except (OSError, ValueError, AttributeError):
            return False

    @property
    def is_complete(self) -> bool:
        """Whether the run here has finished."""
        return self.started and self.read(STATUS).get("state") == "done"

    @property
    def micro_batch_size(self) -> int | None:
        """That of the run here; None before there is one."""
        return self.provenance.get("micro_batch_size")

    def read(self, name: str) -> dict[str, Any]:
        """One of our JSON files."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """One of our JSON files, strict and whole."""
        text = json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        self.write_text(name, text)

    def write_text(self, name: str, text: str) -> None:
        """A file of the folder, whole: beside its name, then into place."""
        if self.is_main_process:
            staging = self.path / f".{name}"
            try:
                staging.write_text(text, encoding="utf-8")
                fsync(staging)
                staging.replace(self.path / name)
                fsync(self.path)
            finally:
                staging.unlink(missing_ok=True)

    @contextmanager
    def lock(self, *, force: bool = False) -> Iterator[list[str]]:
        """Hold the folder against other runs; one process does it for all.

        Args:
            force: take it over from a process of another machine.

        Yields:
            Notes about the file system.

        Raises:
            RecipeError: it is somebody else's, or cannot be written to.
            LockedError: another run holds it.
        """
        self.check_owner()
        if not self.is_main_process:
            yield []
            return
        with ExitStack() as stack:
            try:
                exclusive = stack.enter_context(locked(self.path, force=force))
                notes = [] if exclusive else [UNLOCKED.format(self.path)]
                notes += check_filesystem(self.path)
            except OSError as error:
                raise RecipeError(
                    f"output_dir = {json.dumps(str(self.path))}: cannot be written to "
                    f"({error.strerror}); name another folder"
                ) from None
            yield notes

    def facts(self) -> dict[str, Any]:
        """What a checkpoint says of its run: hashes of its recipe, text and tokenizer, and more."""
        recipe = hashlib.sha256((self.path / RECIPE).read_bytes()).hexdigest()
        content = {name: self.provenance[name] for name in ("data", "tokenizer", "world_size")}
        return {"recipe": recipe, **content, "hf_lm": __version__}

    def check_owner(self) -> None:
        """Refuse a folder that is somebody else's, or a file.

        Raises:
            RecipeError: it is no folder, or holds files and no run of ours.
        """
        key = f"output_dir = {json.dumps(str(self.path))}"
        if self.path.exists() and not self.path.is_dir():
            raise RecipeError(f"{key}: is a file; name a folder")
        found = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        if found and LOCK not in found and not self.is_ours:
            raise RecipeError(f"{key}: is not empty and holds no run of hf_lm; name a new folder")

    def check_compatible(self, recipe: Recipe, accepted: Sequence[str]) -> dict[str, str]:
        """Compare the recipe with the one the run here was started with.

        Returns:
            The changed keys that were accepted, with what they were and are.

        Raises:
            MismatchError: one line for each other changed key.
        """
        if not self.started:
            return {}
        now = json.loads(recipe_text(recipe, self.path))
        return changes.check_same_recipe(self.path, self.read(RECIPE), now, accepted)

    @property
    def provenance(self) -> dict[str, Any]:
        """That of the run here; empty before there is one."""
        return self.read(PROVENANCE) if (self.path / PROVENANCE).is_file() else {}

    def disk_shortfall(self, needed: int) -> tuple[str, ...]:
        """A line, if there is no room for so many bytes of checkpoints and model."""
        there = next(path for path in (self.path, *self.path.resolve().parents) if path.exists())
        own = [size_of(path) for path in self.path.glob("checkpoint-*[0-9]") if path.is_dir()]
        free = shutil.disk_usage(there).free + sum(own)
        if needed <= free:
            return ()
        return (
            f"output_dir = {json.dumps(str(self.path))}: checkpoints and model need about "
            f"{needed / 1e9:.2g} GB, {free / 1e9:.2g} GB are free; name another folder or lower "
            "training.save_total_limit",
        )

    @contextmanager
    def track_status(
        self, recipe: Recipe, provenance: Mapping[str, Any], accepted: Sequence[str]
    ) -> Iterator[None]:
        """Claim the folder for a run, and say in status.json how it ended.

        Raises:
            MismatchError: the text, the tokenizer or the number of processes is another.
        """
        before = self.provenance
        changed = changes.check_same_content(self.path, before, provenance, accepted)
        if self.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
        self.status("preparing")
        self.write_text(RECIPE, recipe_text(recipe, self.path))
        accepted = sorted({*before.get("accepted_changes", []), *accepted, *changed})
        numerics_changes = [*before.get("drift", []), *changes.numerics_changes(before, provenance)]
        accepts = {"accepted_changes": accepted, "drift": numerics_changes}
        self.write(PROVENANCE, {**provenance, **accepts})
        try:
            yield
        except (KeyboardInterrupt, StoppedError) as error:
            with suppress(OSError):  # which matters less
                self.status("stopped", reason=str(error) or "stopped by a signal")
            raise
        except BaseException as error:
            with suppress(OSError):
                self.status("failed", reason=f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        self.status("done")

    def status(self, state: str, *, reason: str = "") -> None:
        """Say where the run stands: preparing, training, done, stopped or failed."""
        self.state = state
        self.write(STATUS, {"state": state, "reason": reason, "step": self.step})

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of log.jsonl; one cut off by a crash ends it."""
        if not (self.path / LOG).is_file():
            return
        for line in (self.path / LOG).read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return

    def secure_log(self) -> None:
        """Have the rows so far on the disk, as a checkpoint behind them will be."""
        if (self.path / LOG).is_file():
            fsync(self.path / LOG)

    def continue_log(self, checkpoint: Path | None) -> None:
        """Drop the rows behind a checkpoint, which will be written again."""
        step = int(checkpoint.name.split("-")[1]) if checkpoint else 0
        self.step = step
        kept = [row for row in self.rows() if row["step"] <= step]
        self.write_text(LOG, "".join(f"{line_of(row)}\n" for row in kept))

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Append one row to log.jsonl."""
        try:
            self.step = row["step"]
            if self.state != "training" and self.step > 0:
                self.status("training")
            with (self.path / LOG).open("a", encoding="utf-8") as file:
                file.write(line_of(row) + "\n")
        except OSError as error:  # a full disk: the checkpoint will say so, and matters more
            self.log_error = self.log_error or f"{LOG}: {error.strerror}"

    def save_model(self, save: Callable[[Path], None]) -> None:
        """Let `save` fill a folder beside "model" and put it in place."""
        if not self.is_main_process:
            return
        staging = self.path / f".{MODEL}"
        shutil.rmtree(staging, ignore_errors=True)
        save(staging)
        for path in (*staging.iterdir(), staging):
            fsync(path)
        shutil.rmtree(self.model, ignore_errors=True)
        staging.rename(self.model)
        fsync(self.path)


UNLOCKED = "{}: its file system has no locks, so a second run here would not be noticed"


UNSECURED = "{}: its file system has no fsync, so a checkpoint may be lost when power is cut"


def check_filesystem(folder: Path) -> list[str]:
    """Try what a checkpoint needs of a file system: to write, secure and rename.

    Returns:
        Notes about what is not as it should be, but works.

    Raises:
        OSError: it does not work.
    """
    first, second = folder / ".probe", folder / ".probed"
    try:
        first.write_bytes(b"\0")
        secured = fsync(first)
        first.replace(second)
    finally:
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)
    return [] if secured else [UNSECURED.format(folder)]


def next_free_path(path: Path) -> Path:
    """The first of PATH, PATH-2, PATH-3 … that does not exist."""
    taken, number = path, 1
    while taken.exists():
        number += 1
        taken = path.with_name(f"{path.name}-{number}")
    return taken
