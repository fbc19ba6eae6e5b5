"""Start runs as forks of a process with all imports done, and send them signals at random moments.

A start takes a fraction of a second instead of ten: the fork server of the standard library imports
torch and transformers once, and every run is a fork of it that calls `hf_lm.run.main`. The server
computes nothing, because a process whose OpenMP threads have run cannot be forked.
"""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from hf_lm.checkpoints.manifest import verify
from hf_lm.checkpoints.store import PARTIAL, TRASH, CheckpointStore
from recipes import write_corpus

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "pytest",  # every child imports the main program again, which may be pytest
        "transformers.models.gpt2.modeling_gpt2",
        "transformers.integrations.integration_utils",
        "transformers.models.auto.processing_auto",
        "transformers.pipelines",
        "evaluate",
        "torch.distributed.launcher.api",
        "torch.distributed.elastic.rendezvous.static_tcp_rendezvous",
        "hf_lm.cli",
        "hf_lm.run",
        "hf_lm.workflows.train",
        "hf_lm.model.attention",
        "hf_lm.training.muon",
    ]
)

STEPS, SAVE, EVAL = 60, 3, 7
RECIPE: dict[str, Any] = {
    "name": "chaos",
    "output_dir": "run",
    "data": {"source": "corpus", "block_size": 16, "validation": {"holdout": 0.2}},
    "tokenizer": {"train": {"kind": "bpe", "vocab_size": 320}},
    "model": {"n_layer": 1, "n_head": 2, "n_embd": 32, "dropout": 0.1},
    "training": {
        "max_steps": STEPS,
        "tokens_per_step": 128,
        "learning_rate": 0.01,
        "precision": "fp32",
        "device": "cpu",
        "logging_steps": 1,
        "eval_steps": EVAL,
        "save_steps": SAVE,
        "save_total_limit": 2,
    },
    "evaluation": {"prompts": ["The "], "max_new_tokens": 4, "max_blocks": 40},
}
MIXTURE = [{"source": "corpus/0*.txt", "weight": 1}, {"source": "corpus/1*.txt", "weight": 2}]
VARIANTS: dict[str, dict[str, Any]] = {
    "prepared": {},
    "streamed": {"data": {"streaming": True}},
    "mixed": {"data": {"source": MIXTURE}},
    "best": {"training": {"load_best_model_at_end": True, "eval_steps": SAVE}},
}

# Ways to kill a run: the signals to send, and the exit codes that the run may have after them.
KILLS: dict[str, tuple[tuple[int, ...], set[int]]] = {
    "SIGKILL": ((signal.SIGKILL,), {-signal.SIGKILL}),
    "SIGTERM": ((signal.SIGTERM,), {143}),
    "SIGINT": ((signal.SIGINT,), {130}),
    "SIGTERM twice": ((signal.SIGTERM, signal.SIGTERM), {143, -signal.SIGTERM}),
    "SIGSTOP and SIGKILL": ((signal.SIGSTOP, signal.SIGKILL), {-signal.SIGKILL}),
}
KILL_WEIGHTS = (70, 9, 7, 7, 7)  # per 100 kills, in the order of KILLS
TEMPORARY_NAMES = (PARTIAL, TRASH, ".model")  # during a save, a deletion and the final save
AIMED_SHARE = 0.3  # of the kills wait for such a name, which random moments seldom meet
EXIT_CODES_WHEN_DONE = {0, 130, 143, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL}
LIMIT = 60.0  # seconds within which every process has to end


@dataclass
class Run:
    """A run that is started as often as needed.

    Attributes:
        target: the function that its process calls with `arguments`.
        arguments: the arguments of `target`.
        folder: the run's output_dir.
        home: HF_HOME of the process, where prepared blocks are cached.
        weights: the file that has to be equal in two runs.
        handles_signals: whether SIGTERM and SIGINT stop it in order.
    """

    target: Callable[..., None]
    arguments: tuple[Any, ...]
    folder: Path
    home: Path
    weights: str = "model/model.safetensors"
    handles_signals: bool = True

    @property
    def output(self) -> Path:
        """The file of stdout and stderr; it appears when the process is about to call `target`."""
        return self.folder.with_suffix(".out")

    def start(self) -> Any:
        """Start a process of the run, and wait until it is about to call `target`."""
        self.output.unlink(missing_ok=True)
        process = CONTEXT.Process(
            target=begin, args=(self.output, self.home, self.target, self.arguments)
        )
        process.start()
        wait_until(lambda: self.output.exists() or process.exitcode is not None)
        return process

    def weights_hash(self) -> str:
        """Return a hash of the finished weights."""
        return hashlib.sha256((self.folder / self.weights).read_bytes()).hexdigest()

    def tail(self) -> str:
        """Return the end of what the process wrote."""
        return self.output.read_text(errors="replace")[-3000:] if self.output.exists() else ""


def begin(output: Path, home: Path, target: Callable[..., None], arguments: tuple) -> None:
    """Set up the forked process: one thread, its HF_HOME, and its output in a file.

    SIGUSR2 writes the stacks of all threads to that file.
    """
    import torch

    os.environ.update(HF_HOME=str(home), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # multiprocessing would print a traceback
    started = output.with_suffix(".begun")
    handle = os.open(started, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    faulthandler.register(signal.SIGUSR2, file=handle, all_threads=True)
    started.rename(output)
    target(*arguments)


def run_recipe(recipe: Path) -> None:
    """Run a recipe as the command does."""
    from hf_lm.run import main

    sys.exit(main([str(recipe)]))


def wait_until(condition: Callable[[], object], *, seconds: float = LIMIT) -> bool:
    """Wait for a condition; return whether it became true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.0005)
    return True


def write_recipe(path: Path, output_dir: str, *changes: Mapping[str, Any]) -> Path:
    """Write a recipe with changed sections next to its corpus."""
    recipe: dict[str, Any] = {**RECIPE, "output_dir": output_dir}
    for change in changes:
        recipe = {**recipe, **{name: {**recipe[name], **keys} for name, keys in change.items()}}
    write_corpus(path.parent / "corpus")
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def run_of(base: Path, name: str, variant: str, home: Path) -> Run:
    """Write the recipe of a variant and return its run."""
    recipe = write_recipe(base / f"{name}.json", name, VARIANTS[variant])
    return Run(run_recipe, (recipe,), base / name, home)


@dataclass
class Tally:
    """The counts and problems of many kills."""

    kills: int = 0
    signals: Counter[str] = field(default_factory=Counter)  # kills by name in KILLS
    stages: Counter[str] = field(default_factory=Counter)  # kills by what the run was doing
    lost_steps: Counter[int] = field(default_factory=Counter)  # kills by steps to train again
    failed_starts: int = 0  # starts that failed without a kill
    completed: int = 0
    identical: int = 0  # completed runs with the same weights as an uninterrupted run
    problems: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Add the counts and problems of another worker."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)


@dataclass
class Reference:
    """An uninterrupted run, which killed runs are compared with.

    Attributes:
        weights_hash: hash of its weights.
        rows: rows of its log.
        seconds: kills come within so many seconds of a start; at first the run's own duration.
    """

    weights_hash: str
    rows: list[dict[str, Any]]
    seconds: float

    def adapt(self, *, killed: bool) -> None:
        """Change `seconds` so that about two of three starts are killed, at any speed."""
        self.seconds *= 1.1 if killed else 0.8


def run_uninterrupted(run: Run) -> Reference:
    """Run to the end without a kill."""
    process = run.start()
    began = time.monotonic()
    process.join(5 * LIMIT)
    assert process.exitcode == 0, run.tail()
    return Reference(run.weights_hash(), rows_of(run.folder), time.monotonic() - began)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a log without their times; a last row that a kill cut off is skipped."""
    timing_keys = {"seconds", "tokens_per_second", "mfu"}
    rows = []
    if (folder / "log.jsonl").exists():
        for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                rows.append({k: v for k, v in json.loads(line).items() if k not in timing_keys})
    return rows


def state_of(folder: Path) -> str:
    """Return the state in status.json, or an empty string."""
    with contextlib.suppress(OSError):
        return json.loads((folder / "status.json").read_text())["state"]
    return ""


def kill_at_random(
    process: Any, run: Run, chance: random.Random, seconds: float
) -> tuple[str, bool]:
    """Wait for a random moment, and kill a run.

    Returns:
        The name of the kill, empty if the process had ended before; and whether the run was already
        done.
    """
    kill = chance.choices([*KILLS], KILL_WEIGHTS)[0]
    aim = chance.choice(TEMPORARY_NAMES) if chance.random() < AIMED_SHARE else ""
    moment, gap = chance.uniform(0, seconds), chance.choice([0.0, chance.uniform(0, 0.2)])
    first = chance.uniform(0, seconds) if aim else 0.0
    process.join(first or moment)
    if aim:
        wait_until(
            lambda: process.exitcode is not None or has_name(run.folder, aim), seconds=moment
        )
    # Before Python has started, a signal ends the process without a handler.
    if run.handles_signals and "KILL" not in kill:
        wait_until(lambda: process.exitcode is not None or has_handler(process.pid, signal.SIGTERM))
    done = state_of(run.folder) == "done"
    if process.exitcode is not None:
        return "", done
    for number, signal_number in enumerate(KILLS[kill][0]):
        if number:
            time.sleep(gap)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal_number)
    return kill, done


def has_handler(pid: int, number: int) -> bool:
    """Return whether a process has a handler for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) & 1 << number - 1)


def has_name(folder: Path, prefix: str) -> bool:
    """Return whether a name in a folder starts with a prefix."""
    try:
        return any(path.name.startswith(prefix) for path in folder.iterdir())
    except OSError:
        return False


def stage_of(folder: Path) -> str:
    """Return what a killed run was doing, judged by the files it left."""
    stages = {
        PARTIAL: "writing a checkpoint",
        TRASH: "deleting a checkpoint",
        ".model": "final save",
    }
    for prefix, stage in stages.items():
        if has_name(folder, prefix):
            return stage
    states = {"": "start-up, text", "preparing": "preparing", "done": "after the end"}
    return states.get(state_of(folder), "training")


def wait_for_end(process: Any, run: Run) -> bool:
    """Wait until a process ends; one that does not in time writes its stacks and is killed.

    Returns:
        Whether it ended in time.
    """
    process.join(LIMIT)
    if process.exitcode is not None:
        return True
    os.kill(process.pid, signal.SIGUSR2)
    time.sleep(0.5)
    process.kill()
    process.join()
    return False


def kill_until_done(run: Run, expected: Reference, tally: Tally, seed: int, kills: int) -> None:
    """Start and kill a run until it is done or `kills` is reached; collect all problems."""
    chance = random.Random(seed)
    while True:
        before = Snapshot.of(run.folder)
        process = run.start()
        kill, done = "", False
        if tally.kills < kills:
            kill, done = kill_at_random(process, run, chance, expected.seconds)
            expected.adapt(killed=bool(kill))
        in_time = wait_for_end(process, run)
        where = f"seed {seed}, kill {tally.kills}, {kill or 'no kill'}, {run.folder.name}"
        problems = find_problems(run, kill, done, process.exitcode, before)
        if not in_time:
            problems.append(f"did not end within {LIMIT:.0f} s")
        tally.problems += [f"{where}: {problem}\n{run.tail()}" for problem in problems]
        if kill:
            count_kill(run, kill, tally)
        if process.exitcode == 0:
            return compare(run, expected, tally, where)
        if not kill or not in_time:
            tally.failed_starts += 1
            return None


def count_kill(run: Run, kill: str, tally: Tally) -> None:
    """Count a kill, what the run was doing, and how many steps it lost."""
    tally.kills += 1
    tally.signals[kill] += 1
    tally.stages[stage_of(run.folder)] += 1
    tally.lost_steps[count_lost_steps(run.folder)] += 1


def newest_step(folder: Path) -> int:
    """Return the step of the newest checkpoint, or 0 without one."""
    return max(CheckpointStore(folder).steps(), default=0)


def count_lost_steps(folder: Path) -> int:
    """Count the steps that were logged and are in no checkpoint."""
    last = max((row["step"] for row in rows_of(folder)), default=0)
    return max(0, last - newest_step(folder))


class Snapshot(NamedTuple):
    """The newest checkpoint and the log of a run at one moment."""

    step: int  # of the newest checkpoint
    log: bytes  # has the seconds of each row, so a step that is trained again changes it

    @classmethod
    def of(cls, folder: Path) -> Snapshot:
        """Read the newest step and the log of a run."""
        log = folder / "log.jsonl"
        return cls(newest_step(folder), log.read_bytes() if log.exists() else b"")


def find_problems(run: Run, kill: str, done: bool, code: int, before: Snapshot) -> list[str]:
    """Check what one start left in the folder of its run.

    Args:
        run: the run that was started.
        kill: name of the kill; empty if it was not killed.
        done: whether it was already done when the kill came.
        code: its exit code.
        before: the folder before the start.

    Returns:
        One line per problem.
    """
    allowed = EXIT_CODES_WHEN_DONE if done else KILLS[kill][1] if kill else {0}
    problems = [f"exit code {code}"] if code not in allowed else []
    for step in CheckpointStore(run.folder).steps():
        path = run.folder / f"checkpoint-{step}"
        problems += [f"{path.name}: {line}" for line in verify(path)]
    now = Snapshot.of(run.folder)
    if now.step < before.step:
        problems.append(
            f"the newest checkpoint was checkpoint-{before.step}, now it is checkpoint-{now.step}"
        )
    # A checkpoint is written while the next steps are trained; the next checkpoint waits for it.
    lost, limit = count_lost_steps(run.folder), 2 * SAVE
    if lost > limit:
        problems.append(f"{lost} steps are lost, more than {limit}")
    # Training starts by removing the log rows that an earlier kill has lost. If the log is
    # unchanged, the signal came before that, and the lost steps are those of the earlier kill.
    is_stopped = kill in ("SIGTERM", "SIGINT") and state_of(run.folder) == "stopped"
    if is_stopped and lost and now.log != before.log:
        problems.append(f"{lost} steps are lost although {kill} stopped the run in order")
    return problems


def leftovers(folder: Path) -> list[str]:
    """Return the names of temporary files and damaged checkpoints in a folder."""
    names = [path.name for path in folder.iterdir()]
    return [name for name in names if name.startswith(".") or ".bad" in name]


def compare(run: Run, expected: Reference, tally: Tally, where: str) -> None:
    """Compare a finished run with an uninterrupted one."""
    tally.completed += 1
    problems = []
    if run.weights_hash() == expected.weights_hash:
        tally.identical += 1
    else:
        problems.append("the weights differ")
    if rows_of(run.folder) != expected.rows:
        problems.append("the logs differ")
    if state_of(run.folder) != "done":
        problems.append(f"status {state_of(run.folder)!r}")
    problems += [f"{name} was not removed" for name in leftovers(run.folder)]
    tally.problems += [f"{where}: at the end: {problem}" for problem in problems]


def campaign(kills: int, seed: int, base: Path) -> Tally:
    """Make `kills` kills, over as many runs as they need; each run has the next seed."""
    tally, expected = Tally(), {}
    for name in VARIANTS:
        expected[name] = run_uninterrupted(run_of(base, f"whole-{name}", name, base / "home"))
    while tally.kills < kills and len(tally.problems) < 10:
        name = [*VARIANTS][seed % len(VARIANTS)]
        has_own_home = seed // len(VARIANTS) % 2  # half of the runs prepare their text themselves
        home = base / (f"home-{seed}" if has_own_home else "home")
        run = run_of(base, f"{name}-{seed}", name, home)
        num_problems = len(tally.problems)
        kill_until_done(run, expected[name], tally, seed, kills)
        if len(tally.problems) == num_problems:
            shutil.rmtree(run.folder, ignore_errors=True)
            shutil.rmtree(base / f"home-{seed}", ignore_errors=True)
        seed += 1
    return tally
