"""Runs forked from a process that has imported everything, struck by signals at random moments.

A start costs a fraction of a second in place of ten: the standard library's fork server imports
torch and transformers once, computes nothing (a process whose OpenMP threads have run cannot be
forked), and every run is a fork of it, with `hf_lm.run.main` as its command.
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

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CORPUS = Path(__file__).parents[1] / "fixtures" / "corpus.txt"
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        "pytest",  # every child imports the main program again, which may be this one
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
SPLIT = [{"source": "corpus/0*.txt", "weight": 1}, {"source": "corpus/1*.txt", "weight": 2}]
VARIANTS: dict[str, dict[str, Any]] = {
    "prepared": {},
    "streamed": {"data": {"streaming": True}},
    "mixed": {"data": {"source": SPLIT}},
    "best": {"training": {"load_best_model_at_end": True, "eval_steps": SAVE}},
}

# The signals of a kill, and the exit codes a run may have behind it.
HOWS: dict[str, tuple[tuple[int, ...], set[int]]] = {
    "SIGKILL": ((signal.SIGKILL,), {-signal.SIGKILL}),
    "SIGTERM": ((signal.SIGTERM,), {143}),
    "SIGINT": ((signal.SIGINT,), {130}),
    "SIGTERM twice": ((signal.SIGTERM, signal.SIGTERM), {143, -signal.SIGTERM}),
    "SIGSTOP and SIGKILL": ((signal.SIGSTOP, signal.SIGKILL), {-signal.SIGKILL}),
}
SHARES = (70, 9, 7, 7, 7)  # of a hundred kills
AIMS = (
    PARTIAL,
    TRASH,
    ".model",
)  # names that are there for a moment: writing, deleting, final save
AIMED = 0.3  # share of kills that wait for one, as they would seldom meet it
EXPECTED_LATE = {0, 130, 143, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL}
LIMIT = 60.0  # seconds in which everything has to end


@dataclass
class Run:
    """A run that is started again and again.

    Attributes:
        target: what its process calls, with `arguments`.
        arguments: of it.
        folder: of the run.
        home: where prepared text is kept.
        weights: the file that two runs have to agree on.
        heeds: whether SIGTERM and SIGINT end it in order.
    """

    target: Callable[..., None]
    arguments: tuple[Any, ...]
    folder: Path
    home: Path
    weights: str = "model/model.safetensors"
    heeds: bool = True

    @property
    def output(self) -> Path:
        """What the process wrote; made when it is about to call `target`."""
        return self.folder.with_suffix(".out")

    def start(self) -> Any:
        """A process of it, which has begun."""
        self.output.unlink(missing_ok=True)
        process = CONTEXT.Process(
            target=begin, args=(self.output, self.home, self.target, self.arguments)
        )
        process.start()
        wait_until(lambda: self.output.exists() or process.exitcode is not None)
        return process

    def bits(self) -> str:
        """A hash of the finished weights."""
        return hashlib.sha256((self.folder / self.weights).read_bytes()).hexdigest()

    def tail(self) -> str:
        """The end of what the process wrote."""
        return self.output.read_text(errors="replace")[-3000:] if self.output.exists() else ""


def begin(output: Path, home: Path, target: Callable[..., None], arguments: tuple) -> None:
    """In the forked process: one thread, its own home, its words in a file; SIGUSR2 dumps."""
    import torch

    os.environ.update(HF_HOME=str(home), OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # multiprocessing would make a traceback of it
    handle = os.open(output.with_suffix(".begun"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    faulthandler.register(signal.SIGUSR2, file=handle, all_threads=True)
    output.with_suffix(".begun").rename(output)
    target(*arguments)


def ours(recipe: Path) -> None:
    """The command of a run."""
    from hf_lm.run import main

    sys.exit(main([str(recipe)]))


def wait_until(condition: Callable[[], object], *, seconds: float = LIMIT) -> bool:
    """Whether something came true within a time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.0005)
    return True


def write_corpus(folder: Path) -> None:
    """The test corpus as one document a paragraph."""
    if not folder.exists():
        folder.mkdir(parents=True)
        paragraphs = CORPUS.read_text(encoding="utf-8").split("\n\n")
        for number, paragraph in enumerate(paragraphs):
            (folder / f"{number:03}.txt").write_text(paragraph + "\n", encoding="utf-8")


def write_recipe(path: Path, output_dir: str, *changes: Mapping[str, Any]) -> Path:
    """The recipe of a run with changed sections, beside its corpus."""
    recipe: dict[str, Any] = {**RECIPE, "output_dir": output_dir}
    for change in changes:
        recipe = {**recipe, **{name: {**recipe[name], **keys} for name, keys in change.items()}}
    write_corpus(path.parent / "corpus")
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


def run_of(base: Path, name: str, variant: str, home: Path) -> Run:
    """A run of ours."""
    recipe = write_recipe(base / f"{name}.json", name, VARIANTS[variant])
    return Run(ours, (recipe,), base / name, home)


@dataclass
class Tally:
    """What came of many kills."""

    kills: int = 0
    hows: Counter[str] = field(default_factory=Counter)
    moments: Counter[str] = field(default_factory=Counter)  # what a kill met
    lost: Counter[int] = field(default_factory=Counter)  # steps taken again
    refused: int = 0  # starts that ended by themselves, and not well
    completed: int = 0
    same: int = 0  # of the completed ones, those with the bits of an uninterrupted run
    problems: list[str] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """The kills of another worker, too."""
        for name, value in vars(other).items():
            if isinstance(value, Counter):
                getattr(self, name).update(value)
            else:
                setattr(self, name, getattr(self, name) + value)


@dataclass
class Whole:
    """A run that nothing interrupted.

    Attributes:
        bits: of its weights.
        rows: of its log.
        seconds: in which to kill others like it; what it took, until they show better.
    """

    bits: str
    rows: list[dict[str, Any]]
    seconds: float

    def learn(self, *, killed: bool) -> None:
        """Keep to about two kills of three starts, however fast the machine is by now."""
        self.seconds *= 1.1 if killed else 0.8


def whole(run: Run) -> Whole:
    """The run that the struck ones are held against."""
    process = run.start()
    began = time.monotonic()
    process.join(5 * LIMIT)
    assert process.exitcode == 0, run.tail()
    return Whole(run.bits(), rows_of(run.folder), time.monotonic() - began)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows of a log, without what time made of them; a kill may have cut off the last."""
    timed = {"seconds", "tokens_per_second", "mfu"}
    found = []
    if (folder / "log.jsonl").exists():
        for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                found.append({k: v for k, v in json.loads(line).items() if k not in timed})
    return found


def state_of(folder: Path) -> str:
    """What status.json says."""
    with contextlib.suppress(OSError):
        return json.loads((folder / "status.json").read_text())["state"]
    return ""


def strike(process: Any, run: Run, chance: random.Random, seconds: float) -> tuple[str, bool]:
    """Wait for a random moment, and kill.

    Returns:
        How it was done, nothing if it had ended by then; and whether the run was done already.
    """
    how = chance.choices([*HOWS], SHARES)[0]
    aim = chance.choice(AIMS) if chance.random() < AIMED else ""
    moment, gap = chance.uniform(0, seconds), chance.choice([0.0, chance.uniform(0, 0.2)])
    first = chance.uniform(0, seconds) if aim else 0.0
    process.join(first or moment)
    if aim:
        wait_until(lambda: process.exitcode is not None or met(run.folder, aim), seconds=moment)
    if run.heeds and "KILL" not in how:  # the first millisecond is the interpreter's own
        wait_until(lambda: process.exitcode is not None or catches(process.pid, signal.SIGTERM))
    done = state_of(run.folder) == "done"
    if process.exitcode is not None:
        return "", done
    for number, signal_number in enumerate(HOWS[how][0]):
        if number:
            time.sleep(gap)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal_number)
    return how, done


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
    return bool(int(mask, 16) & 1 << number - 1)


def met(folder: Path, prefix: str) -> bool:
    """Whether a name of the folder begins so."""
    try:
        return any(path.name.startswith(prefix) for path in folder.iterdir())
    except OSError:
        return False


def moment_of(folder: Path) -> str:
    """What the run was at, by what it left."""
    names = {
        PARTIAL: "writing a checkpoint",
        TRASH: "deleting a checkpoint",
        ".model": "final save",
    }
    for prefix, moment in names.items():
        if met(folder, prefix):
            return moment
    states = {"": "start-up, text", "preparing": "preparing", "done": "behind the end"}
    return states.get(state_of(folder), "training")


def ended(process: Any, run: Run) -> bool:
    """Whether a process ended in time; it is made to tell where it stood, and killed, if not."""
    process.join(LIMIT)
    if process.exitcode is not None:
        return True
    os.kill(process.pid, signal.SIGUSR2)
    time.sleep(0.5)
    process.kill()
    process.join()
    return False


def endure(run: Run, expected: Whole, tally: Tally, seed: int, kills: int) -> None:
    """Start a run and kill it until it is done, or enough kills were made; note what went wrong."""
    chance = random.Random(seed)
    while True:
        before = Left.by(run.folder)
        process = run.start()
        how, done = "", False
        if tally.kills < kills:
            how, done = strike(process, run, chance, expected.seconds)
            expected.learn(killed=bool(how))
        in_time = ended(process, run)
        where = f"seed {seed}, kill {tally.kills}, {how or 'no kill'}, {run.folder.name}"
        found = problems(run, how, done, process.exitcode, before)
        if not in_time:
            found.append(f"did not end within {LIMIT:.0f} s")
        tally.problems += [f"{where}: {problem}\n{run.tail()}" for problem in found]
        if how:
            note_kill(run, how, tally)
        if process.exitcode == 0:
            return finish(run, expected, tally, where)
        if not how or not in_time:
            tally.refused += 1
            return None


def note_kill(run: Run, how: str, tally: Tally) -> None:
    """Count a kill, what it met and what it cost."""
    tally.kills += 1
    tally.hows[how] += 1
    tally.moments[moment_of(run.folder)] += 1
    tally.lost[steps_lost(run.folder)] += 1


def newest(folder: Path) -> int:
    """The step of the newest checkpoint; 0 without one."""
    return max(CheckpointStore(folder).steps(), default=0)


def steps_lost(folder: Path) -> int:
    """Steps that were logged and are in no checkpoint."""
    last = max((row["step"] for row in rows_of(folder)), default=0)
    return max(0, last - newest(folder))


class Left(NamedTuple):
    """What the starts before have left."""

    step: int  # of the newest checkpoint
    log: bytes  # with the seconds of each row: what is trained again is another one

    @classmethod
    def by(cls, folder: Path) -> Left:
        """What is in a folder now."""
        log = folder / "log.jsonl"
        return cls(newest(folder), log.read_bytes() if log.exists() else b"")


def problems(run: Run, how: str, done: bool, code: int, before: Left) -> list[str]:
    """What is wrong behind one start.

    Args:
        run: whose it was.
        how: it was killed; nothing if it was not.
        done: whether it was done by then.
        code: it ended with.
        before: what it found.
    """
    allowed = EXPECTED_LATE if done else HOWS[how][1] if how else {0}
    found = [f"exit code {code}"] if code not in allowed else []
    for step in CheckpointStore(run.folder).steps():
        path = run.folder / f"checkpoint-{step}"
        found += [f"{path.name}: {line}" for line in verify(path)]
    now = Left.by(run.folder)
    if now.step < before.step:
        found.append(f"checkpoint-{before.step} was there before, and checkpoint-{now.step}")
    # A checkpoint is written behind the next steps, and the next one waits for it.
    lost, most = steps_lost(run.folder), 2 * SAVE
    if lost > most:
        found.append(f"{lost} steps are lost, more than {most}")
    # A start begins by taking back the rows that an earlier kill has cost; one that was stopped
    # before has lost none of its own.
    heeded = how in ("SIGTERM", "SIGINT") and state_of(run.folder) == "stopped"
    if heeded and lost and now.log != before.log:
        found.append(f"{lost} steps are lost by a signal that is heeded")
    return found


def strays(folder: Path) -> list[str]:
    """Names that nobody needs behind the end."""
    names = [path.name for path in folder.iterdir()]
    return [name for name in names if name.startswith(".") or ".bad" in name]


def finish(run: Run, expected: Whole, tally: Tally, where: str) -> None:
    """Hold a run that is done against the one that nothing interrupted."""
    tally.completed += 1
    found = []
    if run.bits() == expected.bits:
        tally.same += 1
    else:
        found.append("other bits")
    if rows_of(run.folder) != expected.rows:
        found.append("another log")
    if state_of(run.folder) != "done":
        found.append(f"status {state_of(run.folder)!r}")
    found += [f"{name} is left" for name in strays(run.folder)]
    tally.problems += [f"{where}: at the end: {problem}" for problem in found]


def campaign(kills: int, seed: int, base: Path) -> Tally:
    """So many kills, over as many runs as they need, the next one with the next seed."""
    tally, expected = Tally(), {}
    for name in VARIANTS:
        expected[name] = whole(run_of(base, f"whole-{name}", name, base / "home"))
    while tally.kills < kills and len(tally.problems) < 10:
        name = [*VARIANTS][seed % len(VARIANTS)]
        own = seed // len(VARIANTS) % 2  # every other one tokenizes for itself
        run = run_of(base, f"{name}-{seed}", name, base / (f"home-{seed}" if own else "home"))
        before = len(tally.problems)
        endure(run, expected[name], tally, seed, kills)
        if len(tally.problems) == before:
            shutil.rmtree(run.folder, ignore_errors=True)
            shutil.rmtree(base / f"home-{seed}", ignore_errors=True)
        seed += 1
    return tally
