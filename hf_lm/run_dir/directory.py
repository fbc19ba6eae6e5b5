"""The output directory of one run: its files, its owner and its status.

    recipe.json  provenance.json  log.jsonl  metrics.json  status.json  checkpoint-N/  model/

Every file but the log is written under another name and renamed, so that a reader never sees half
of it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from hf_lm import __version__
from hf_lm.errors import RecipeError, StoppedError, one_line
from hf_lm.recipe import Recipe, recipe_text
from hf_lm.recipe.defaults import EARLIER_DATA
from hf_lm.run_dir.compatibility import check_same_content, check_same_recipe, numerics_changes
from hf_lm.run_dir.lock import LOCK, lock_directory
from hf_lm.run_dir.log import TrainingLog
from hf_lm.system.files import fsync, json_safe, replace_directory, size_of, write_atomically
from hf_lm.system.launch import wait_for_main_process
from hf_lm.system.processes import is_main_process, rank
from hf_lm.system.signals import raise_lost_signal

RECIPE, PROVENANCE, LOG = "recipe.json", "provenance.json", "log.jsonl"
METRICS, STATUS, MODEL = "metrics.json", "status.json", "model"
REPORT = "report.html"

NO_LOCKS = "{}: its file system has no locks, so a second run here would not be noticed"
NO_FSYNC = "{}: its file system has no fsync, so a checkpoint may be lost in a power cut"


class TrainResult(NamedTuple):
    """The result of a finished run.

    Attributes:
        model_path: the directory of the model, for `from_pretrained`.
        metrics: the fields of metrics.json, such as "loss" and "bits_per_byte" on the validation
            set.
        samples: one object with "prompt" and "text" per prompt of the recipe.
    """

    model_path: Path
    metrics: Mapping[str, Any]
    samples: Sequence[Mapping[str, str]]


class RunDirectory:
    """The output directory of one run.

    Attributes:
        path: the directory.
        model: the directory of the finished model.
        log: the file log.jsonl.
        is_main_process: whether this process writes; the others only read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = self.path / MODEL
        self.is_main_process = is_main_process()
        self.log = TrainingLog(self.path / LOG, before_append=self.mark_training)
        self.state = ""

    @property
    def is_started(self) -> bool:
        """True if a run has written its recipe here."""
        return (self.path / RECIPE).is_file() and (self.path / STATUS).is_file()

    @property
    def is_ours(self) -> bool:
        """True if a run has written its status here, which it does first."""
        try:
            return {"state", "reason"} <= self.read(STATUS).keys()
        except (OSError, ValueError, AttributeError):
            return False

    @property
    def is_complete(self) -> bool:
        """True if the run has finished."""
        return self.is_started and self.read(STATUS).get("state") == "done"

    @property
    def provenance(self) -> dict[str, Any]:
        """The fields of provenance.json; empty before the run has started."""
        return self.read(PROVENANCE) if (self.path / PROVENANCE).is_file() else {}

    @property
    def micro_batch_size(self) -> int | None:
        """The micro batch size that the run was started with; None before."""
        return self.provenance.get("micro_batch_size")

    def steps_of(self, minutes: float) -> int | None:
        """Return the optimizer steps that the run here has for its minutes; None if it has none."""
        return self.provenance.get("max_steps") if self.minutes == minutes else None

    @property
    def minutes(self) -> float | None:
        """The minutes that the run was started with; None before, or if it has another end."""
        return self.read(RECIPE)["training"].get("max_minutes") if self.is_started else None

    def read(self, name: str) -> dict[str, Any]:
        """Read a JSON file of the directory."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file of the directory; NaN and infinity become strings."""
        text = json.dumps(json_safe(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        self.write_text(name, text)

    def write_text(self, name: str, text: str) -> None:
        """Write a text file of the directory atomically, on the main process."""
        if self.is_main_process:
            write_atomically(self.path / name, text)

    @contextmanager
    def lock(self, *, force: bool = False) -> Iterator[list[str]]:
        """Lock the directory against other runs; the main process does it for all processes.

        Args:
            force: take the lock over from a process of another machine.

        Yields:
            Notes about what the file system lacks.

        Raises:
            RecipeError: the directory holds other files, or cannot be written to.
            LockedError: another run holds the lock.
        """
        self.check_owner()
        if not self.is_main_process:
            yield []
            return
        with ExitStack() as stack:
            try:
                is_exclusive = stack.enter_context(lock_directory(self.path, force=force))
                notes = [] if is_exclusive else [NO_LOCKS.format(self.path)]
                notes += check_filesystem(self.path)
            except OSError as error:
                raise RecipeError(
                    f"output_dir = {json.dumps(str(self.path))}: cannot be written to "
                    f"({error.strerror}); name another folder"
                ) from None
            yield notes

    def checkpoint_provenance(self) -> dict[str, Any]:
        """Return what a checkpoint records of its run: hashes of its recipe, data and tokenizer."""
        recipe_hash = hashlib.sha256((self.path / RECIPE).read_bytes()).hexdigest()
        content = {name: self.provenance[name] for name in ("data", "tokenizer", "world_size")}
        return {"recipe": recipe_hash, **content, "hf_lm": __version__}

    def check_owner(self) -> None:
        """Check that the directory is new, empty, or holds a run of hf_lm.

        Raises:
            RecipeError: it is a file, or it holds files but not a run.
        """
        key = f"output_dir = {json.dumps(str(self.path))}"
        if self.path.exists() and not self.path.is_dir():
            raise RecipeError(f"{key}: is a file; name a folder")
        names = {path.name for path in self.path.iterdir()} if self.path.is_dir() else set()
        if names and LOCK not in names and not self.is_ours:
            raise RecipeError(f"{key}: is not empty and holds no run of hf_lm; name a new folder")

    def with_earlier_values(self, recipe: Recipe) -> Recipe:
        """Return a recipe with what the run here did before a key that neither names was there.

        Args:
            recipe: the recipe to resume with.
        """
        if not self.is_started:
            return recipe
        known = {*self.read(RECIPE)["data"], *recipe.data.model_fields_set}
        values = {key: value for key, value in EARLIER_DATA.items() if key not in known}
        return recipe.model_copy(update={"data": recipe.data.model_copy(update=values)})

    def check_compatible(self, recipe: Recipe, accepted: Sequence[str]) -> dict[str, str]:
        """Compare a recipe with the one that the run was started with.

        Args:
            recipe: the recipe to resume with.
            accepted: keys that the user allows to differ.

        Returns:
            The changed keys that are accepted, each with its old and new value as text.

        Raises:
            MismatchError: other keys differ; it has one line per key.
        """
        if not self.is_started:
            return {}
        now = json.loads(recipe_text(recipe, self.path))
        return check_same_recipe(self.path, self.read(RECIPE), now, accepted)

    def disk_shortfall(self, needed: int) -> tuple[str, ...]:
        """Check that the disk has room for checkpoints and model.

        The checkpoints that are already there count as room: they will be deleted.

        Args:
            needed: bytes of all checkpoints and the model.

        Returns:
            One line if there is not enough room, else none.
        """
        parents = (self.path, *self.path.resolve().parents)
        existing_folder = next(path for path in parents if path.exists())
        checkpoints = [path for path in self.path.glob("checkpoint-*[0-9]") if path.is_dir()]
        free = shutil.disk_usage(existing_folder).free + sum(map(size_of, checkpoints))
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
        """Record recipe and provenance when a run starts, and in status.json how it ends.

        Args:
            recipe: the recipe of the run.
            provenance: the fields of provenance.json.
            accepted: keys that the user allows to differ from an earlier start.

        Raises:
            MismatchError: the data, the tokenizer or the number of processes differs.
        """
        before = self.provenance
        changed = check_same_content(
            self.path, before, provenance, accepted, streaming=recipe.data.streaming
        )
        if self.is_main_process:
            self.path.mkdir(parents=True, exist_ok=True)
        self.write_status("preparing")
        self.write_text(RECIPE, recipe_text(recipe, self.path))
        history = {
            "accepted_changes": sorted({*before.get("accepted_changes", []), *accepted, *changed}),
            "drift": [*before.get("drift", []), *numerics_changes(before, provenance)],
        }
        self.write(PROVENANCE, {**provenance, **history})
        try:
            yield
            raise_lost_signal()
        except (KeyboardInterrupt, StoppedError) as error:
            self.write_end("stopped", str(error) or "stopped by a signal")
            raise
        except BaseException as error:
            self.write_end("failed", f"{type(error).__name__}: {one_line(error)}")
            raise
        self.write_status("done")

    def write_end(self, state: str, reason: str) -> None:
        """Write how a run ended; the reason of the process that failed first stays.

        The others fail because they have lost it, so the main process does not replace its reason.
        """
        with suppress(OSError):  # The error that ends the run matters more.
            if self.is_main_process and self.read(STATUS).get("state") != "failed":
                self.write_status(state, reason=reason)
            elif not self.is_main_process and state == "failed":
                wait_for_main_process()
                status = {"state": state, "reason": f"process {rank()}: {reason}"}
                write_atomically(
                    self.path / STATUS, json.dumps({**self.read(STATUS), **status}, indent=2)
                )

    def write_status(self, state: str, *, reason: str = "") -> None:
        """Write status.json: preparing, training, done, stopped or failed, and the step."""
        self.state = state
        self.write(STATUS, {"state": state, "reason": reason, "step": self.log.step})

    def mark_training(self, step: int) -> None:
        """Write the state "training" when the first row after step 0 is logged."""
        if self.state != "training" and step > 0:
            self.write_status("training")

    def save_model(self, save: Callable[[Path], None]) -> None:
        """Save the model atomically and durably, on the main process.

        Args:
            save: writes the model into a directory.
        """
        if self.is_main_process:
            staging = self.path / f".{MODEL}"
            with replace_directory(self.model, staging=staging, durable=True) as folder:
                save(folder)


def check_filesystem(folder: Path) -> list[str]:
    """Check that a file can be written, flushed to the disk and renamed, as checkpoints are.

    Returns:
        Notes about what the file system lacks.

    Raises:
        OSError: a file cannot be written or renamed.
    """
    first, second = folder / ".probe", folder / ".probed"
    try:
        first.write_bytes(b"\0")
        has_fsync = fsync(first)
        first.replace(second)
    finally:
        first.unlink(missing_ok=True)
        second.unlink(missing_ok=True)
    return [] if has_fsync else [NO_FSYNC.format(folder)]


def next_free_path(path: Path) -> Path:
    """Return the first of PATH, PATH-2, PATH-3 … that does not exist."""
    free_path, number = path, 1
    while free_path.exists():
        number += 1
        free_path = path.with_name(f"{path.name}-{number}")
    return free_path
