"""What a run leaves in OUTPUT_DIR, and how the next one finds it there.

    recipe.json  provenance.json  log.jsonl  metrics.json  status.json  checkpoint-N/  model/

Every file is written beside its name and moved into place, so a reader never meets half of one.
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hf_lm import __version__
from hf_lm.errors import MismatchError, RecipeError
from hf_lm.recipe import Recipe, recipe_text

RECIPE, PROVENANCE, LOG = "recipe.json", "provenance.json", "log.jsonl"
METRICS, STATUS, MODEL = "metrics.json", "status.json", "model"
CHECKPOINT = re.compile(r"^checkpoint-([1-9]\d*)$")
PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "accelerate", "evaluate")

ENDS = {"training.max_steps", "training.max_epochs", "training.max_tokens"}  # may be moved back
# Keys that change nothing about the weights: a run may be continued with other values.
FREE = {
    *("$schema", "hf_lm_version", "name", "output_dir", "data.num_proc", "hub"),
    *("training.logging_steps", "training.save_steps", "training.save_total_limit"),
    *("training.report_to", "training.dataloader_num_workers", "training.dataloader_pin_memory"),
    *("evaluation.prompts", "evaluation.max_new_tokens", "evaluation.batch_size"),
}


class RunFolder:
    """The folder of one run."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.model = self.path / MODEL
        self.writes = os.environ.get("RANK", "0") == "0"  # of all processes, one
        self.step = 0

    @property
    def started(self) -> bool:
        """Whether a run of ours has been here."""
        return (self.path / RECIPE).is_file() and (self.path / STATUS).is_file()

    @property
    def done(self) -> bool:
        """Whether the run here has finished."""
        return self.started and self.read(STATUS).get("state") == "done"

    @property
    def micro_batch_size(self) -> int | None:
        """That of the run here; None before there is one."""
        known = (self.path / PROVENANCE).is_file()
        return self.read(PROVENANCE).get("micro_batch_size") if known else None

    def read(self, name: str) -> dict[str, Any]:
        """One of our JSON files."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def write(self, name: str, value: Mapping[str, Any]) -> None:
        """One of our JSON files, strict and whole."""
        text = json.dumps(strict(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        self.write_text(name, text)

    def write_text(self, name: str, text: str) -> None:
        """A file of the folder, whole: beside its name, then into place."""
        if self.writes:
            staging = self.path / f".{name}"
            staging.write_text(text, encoding="utf-8")
            staging.replace(self.path / name)

    def refuse_others(self) -> None:
        """Refuse a folder that is somebody else's, or a file.

        Raises:
            RecipeError: it is no folder, or holds files and no run of ours.
        """
        key = f"output_dir = {json.dumps(str(self.path))}"
        if self.path.exists() and not self.path.is_dir():
            raise RecipeError(f"{key}: is a file; name a folder")
        if self.path.is_dir() and any(self.path.iterdir()) and not self.started:
            raise RecipeError(f"{key}: is not empty and holds no run of hf_lm; name a new folder")

    def refuse_changes(self, recipe: Recipe, accepted: Sequence[str]) -> list[str]:
        """Compare the recipe with the one the run here was started with.

        Returns:
            The changed keys that were accepted.

        Raises:
            RecipeError: the folder is somebody else's.
            MismatchError: one line for each other changed key.
        """
        self.refuse_others()
        if not self.started:
            return []
        before, now = flat(self.read(RECIPE)), flat(json.loads(recipe_text(recipe, self.path)))
        changed = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        changed = [key for key in changed if key not in FREE and key.split(".")[0] not in FREE]
        longer = [k for k in changed if k in ENDS and both_above(now.get(k), before.get(k))]
        refused = [key for key in changed if key not in accepted and key not in longer]
        if refused:
            lines = [
                f"{self.path}: {key} was {json.dumps(before.get(key))}, is now "
                f"{json.dumps(now.get(key))}"
                for key in refused
            ]
            raise MismatchError([*lines, remedy(refused)])
        return changed

    def refuse_content(self, provenance: Mapping[str, Any], accepted: Sequence[str]) -> list[str]:
        """Compare what the run here was trained on with what it would be continued on.

        Raises:
            MismatchError: the data, the tokenizer or the number of processes is another.
        """
        if not (self.path / PROVENANCE).is_file():
            return []
        before = self.read(PROVENANCE)
        changed = [
            key
            for key, name in CONTENT.items()
            if name in before and before[name] != provenance[name]
        ]
        refused = [key for key in changed if key not in accepted]
        if refused:
            lines = [
                f"{self.path}: {CONTENT[key]} was {before[CONTENT[key]]}, is now "
                f"{provenance[CONTENT[key]]}"
                for key in refused
            ]
            raise MismatchError([*lines, remedy(refused)])
        return changed

    @contextmanager
    def recorded(
        self, recipe: Recipe, provenance: Mapping[str, Any], accepted: Sequence[str]
    ) -> Iterator[None]:
        """Claim the folder for a run, and say in status.json how it ended.

        Raises:
            MismatchError: the text, the tokenizer or the number of processes is another.
        """
        changed = self.refuse_content(provenance, accepted)
        if self.writes:
            self.path.mkdir(parents=True, exist_ok=True)
        self.status("preparing")
        self.write_text(RECIPE, recipe_text(recipe, self.path))
        self.write(PROVENANCE, {**provenance, "accepted_changes": [*accepted, *changed]})
        try:
            yield
        except KeyboardInterrupt:
            self.status("stopped", reason="interrupted")
            raise
        except BaseException as error:
            self.status("failed", reason=f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        self.status("done")

    def status(self, state: str, *, reason: str = "") -> None:
        """Say where the run stands: preparing, training, done, stopped or failed."""
        self.write(STATUS, {"state": state, "reason": reason, "step": self.step})

    def newest_checkpoint(self) -> Path | None:
        """The checkpoint of the highest step; trainer_state.json is written last to each."""
        if not self.path.is_dir():
            return None
        steps = [
            int(match[1])
            for path in self.path.iterdir()
            if (match := CHECKPOINT.match(path.name)) and (path / "trainer_state.json").is_file()
        ]
        return self.path / f"checkpoint-{max(steps)}" if steps else None

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of log.jsonl; one cut off by a crash ends it."""
        if not (self.path / LOG).is_file():
            return
        for line in (self.path / LOG).read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return

    def continue_log(self, checkpoint: Path | None) -> float:
        """Drop the rows behind a checkpoint, which will be written again.

        Returns:
            The seconds the run had taken by then.
        """
        step = int(checkpoint.name.split("-")[1]) if checkpoint else 0
        kept = [row for row in self.rows() if row["step"] <= step]
        self.write_text(LOG, "".join(f"{line_of(row)}\n" for row in kept))
        return kept[-1]["seconds"] if kept else 0.0

    def write_row(self, row: Mapping[str, Any]) -> None:
        """Append one row to log.jsonl."""
        if row["step"] > 0 and self.step == 0:
            self.status("training")
        self.step = row["step"]
        with (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(line_of(row) + "\n")

    def save_model(self, save: Callable[[Path], None]) -> None:
        """Let `save` fill a folder beside "model" and put it in place."""
        if not self.writes:
            return
        staging = self.path / f".{MODEL}"
        shutil.rmtree(staging, ignore_errors=True)
        save(staging)
        shutil.rmtree(self.model, ignore_errors=True)
        staging.rename(self.model)


# What a changed content is called where it is accepted, and in provenance.json.
CONTENT = {"data.source": "data", "tokenizer": "tokenizer", "world_size": "world_size"}


def fresh_path(path: Path) -> Path:
    """The first of PATH, PATH-2, PATH-3 … that does not exist."""
    taken, number = path, 1
    while taken.exists():
        number += 1
        taken = path.with_name(f"{path.name}-{number}")
    return taken


def remedy(keys: Sequence[str]) -> str:
    """How to go on in spite of changed keys."""
    flags = " ".join(f"--accept-change {key}" for key in keys)
    return f"continue the run with {flags}, or start anew with --fresh"


def both_above(now: Any, before: Any) -> bool:
    """Whether an end of training was moved back, rather than exchanged for another kind."""
    return isinstance(now, (int, float)) and isinstance(before, (int, float)) and now > before


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """A nested object as one of dotted keys."""
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in flat(branch, f"{path}.{name}" if path else name).items()
    }


def strict(value: Any) -> Any:
    """JSON has no NaN and no infinity: they are written as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {key: strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return value


def line_of(row: Mapping[str, Any]) -> str:
    """A row as one line of strict JSON."""
    return json.dumps(strict(row), ensure_ascii=False, allow_nan=False)


def describe_run(data: str, tokenizer: str, machine: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights depend on besides the recipe; the fields of provenance.json.

    Args:
        data: fingerprint of the text.
        tokenizer: hash of the tokenizer.
        machine: device, threads, precision and number of processes.
    """
    return {
        "data": data,
        "tokenizer": tokenizer,
        **machine,
        "hf_lm": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": git_commit(),
    }


def git_commit() -> str | None:
    """The commit checked out in the current folder, marked where files differ from it."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
