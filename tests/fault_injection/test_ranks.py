"""T11: two processes that a launcher started, and signals to any of the three at random moments."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import (
    LIMIT,
    SAVE,
    Run,
    Whole,
    ended,
    newest,
    rows_of,
    steps_lost,
    strays,
    wait_until,
    whole,
    write_recipe,
)
from safetensors.torch import load_file

from hf_lm.checkpoints.manifest import verify

pytestmark = pytest.mark.slow

SIGNALS = int(os.environ.get("HF_LM_SIGNALS", "2"))  # of each kind
SEED = int(os.environ.get("HF_LM_SEED", "0"))
STEPS = 40
TARGETS = {  # who gets a signal; 2 is the launcher
    "launcher": (2,),
    "rank 0": (0,),
    "rank 1": (1,),
    "both ranks": (0, 1),
    "launcher and ranks": (2, 0, 1),
}
SKEW = 0.5  # seconds between two processes' signals, at most
GONE = 10.0  # seconds until everything is over when a process was killed


def two_ranks(recipe: Path, pids: Path, entry: Callable[[Path, Path], None] | None = None) -> None:
    """What torch.distributed.run does, with processes that are forks."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    os.environ["ACCELERATE_USE_CPU"] = "true"
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        start_method="fork",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
    )
    try:
        elastic_launch(config, entry or rank)(recipe, pids)
    except ChildFailedError:
        sys.exit(1)


def rank(recipe: Path, pids: Path) -> None:
    """One of the two; says its pid first."""
    from hf_lm.run import main

    staging = pids / f".{os.environ['RANK']}"
    staging.write_text(str(os.getpid()))
    staging.rename(pids / os.environ["RANK"])
    sys.exit(main([str(recipe)]))


def rank_with_infinite_gradient(recipe: Path, pids: Path) -> None:
    """The same, but the second one computes an infinite gradient in its fifth step."""

    def spoil(model: Any, spoils: Callable[[], bool]) -> None:
        weight = model.transformer.h[0].mlp.c_fc.weight
        weight.register_hook(lambda grad: grad * float("inf") if spoils() else grad)

    spoiled_rank(spoil, recipe, pids)


def rank_with_infinite_loss(recipe: Path, pids: Path) -> None:
    """The same, but the loss alone is infinite, which the other process cannot see."""

    def spoil(model: Any, spoils: Callable[[], bool]) -> None:
        def add(module: Any, given: Any, out: Any) -> None:
            if module.training and spoils():
                out.loss = out.loss + float("inf")

        model.register_forward_hook(add)

    spoiled_rank(spoil, recipe, pids)


def rank_that_is_missed(recipe: Path, pids: Path) -> None:
    """The same, but the second one is killed before the two have found each other."""
    from hf_lm.workflows import train as fit

    find = fit.latest_checkpoint

    def missed(*args: Any, **options: Any) -> Any:
        if os.environ["RANK"] == "1":
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        return find(*args, **options)

    fit.latest_checkpoint = missed
    rank(recipe, pids)


def spoiled_rank(
    spoil: Callable[[Any, Callable[[], bool]], None], recipe: Path, pids: Path
) -> None:
    """One of the two, whose model is spoiled in the fifth step of the second."""
    from hf_lm.workflows import train as fit

    make = fit.make_trainer

    def spoiled(*args: Any, **options: Any) -> Any:
        trainer = make(*args, **options)
        second = os.environ["RANK"] == "1"
        spoil(trainer.model, lambda: second and trainer.state.global_step == 4)
        return trainer

    fit.make_trainer = spoiled
    rank(recipe, pids)


def run_of(base: Path, name: str, **training: Any) -> Run:
    """A run of two processes."""
    changes = {"training": {"max_steps": STEPS, "micro_batch_size": 4, **training}}
    recipe = write_recipe(base / f"{name}.json", name, changes)
    pids = base / f"{name}-pids"
    pids.mkdir()
    return Run(two_ranks, (recipe, pids), base / name, base / "home")


def alive(pid: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids_of(run: Run) -> dict[int, int]:
    """The pids of the ranks that have begun."""
    return {int(path.name): int(path.read_text()) for path in run.arguments[1].glob("[01]")}


def strike(process: Any, run: Run, order: list[tuple[int, float]], number: int) -> None:
    """Send a signal to some, each behind a pause."""
    for who, pause in order:
        time.sleep(pause)
        pid = process.pid if who == 2 else pids_of(run).get(who)
        with contextlib.suppress(ProcessLookupError):
            if pid:
                os.kill(pid, number)


def settle_processes(process: Any, run: Run, seconds: float) -> list[str]:
    """What did not end in time, which is then made to tell where it stands, and killed."""
    began, found = time.monotonic(), []
    pids = pids_of(run)
    wait_until(lambda: process.exitcode is not None, seconds=seconds)
    wait_until(lambda: not any(map(alive, pids.values())), seconds=GONE)
    left = [number for number, pid in pids.items() if alive(pid)]
    if left or process.exitcode is None or time.monotonic() - began > seconds:
        found.append(f"ranks {left} and launcher {process.exitcode} after {seconds} s")
    for number in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[number], signal.SIGUSR2)
    time.sleep(0.5 if left else 0)
    for number in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[number], signal.SIGKILL)
    if not ended(process, run):
        found.append("the launcher hung")
    return found


def struck(run: Run, targets: tuple[int, ...], number: int, chance: random.Random, span: float,
           limit: float) -> list[str]:  # fmt: skip
    """Start two ranks, send a signal at a random moment, and see how they end."""
    process = run.start()
    wait_until(lambda: len(pids_of(run)) == 2 or process.exitcode is not None)
    process.join(chance.uniform(0, span))
    left = [pid for who, pid in pids_of(run).items() if who in targets and alive(pid)]
    done = process.exitcode is not None or not left  # to kill what has ended is no kill
    order = [(who, chance.uniform(0, SKEW) if i else 0.0) for i, who in enumerate(targets)]
    strike(process, run, order, number)
    found = settle_processes(process, run, limit)
    path = run.folder / f"checkpoint-{newest(run.folder)}"
    taken = max((row["step"] for row in rows_of(run.folder)), default=0)
    if path.exists():
        found += [f"{path.name}: {line}" for line in verify(path)]
    elif taken and number == signal.SIGTERM:
        found.append(f"{taken} steps were taken, and there is no checkpoint")
    if number == signal.SIGTERM and steps_lost(run.folder):
        found.append(f"{steps_lost(run.folder)} steps of {taken} are lost")
    if not done and process.exitcode == 0 and number == signal.SIGKILL:
        found.append("exit code 0")
    return [f"{problem}\n{run.tail()}" for problem in found]


def completed(run: Run, expected: Whole) -> list[str]:
    """Run it again to its end; what is wrong with that."""
    for path in run.arguments[1].iterdir():
        path.unlink()
    process = run.start()
    if not ended(process, run) or process.exitcode:
        return [f"run again: exit code {process.exitcode}\n{run.tail()}"]
    found = [] if run.bits() == expected.bits else ["other bits"]
    if rows_of(run.folder) != expected.rows:
        found.append("another log")
    return found + [f"{name} is left" for name in strays(run.folder)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Whole]:
    """A run of two that nothing interrupted, and its folder for others."""
    base = tmp_path_factory.mktemp("ranks")
    return base, whole(run_of(base, "whole"))


SENT = [
    *((signal.SIGTERM, who) for who in TARGETS),
    *((signal.SIGKILL, who) for who in ("rank 0", "rank 1")),
]


@pytest.mark.promise("T11", "91", "92", "93")
@pytest.mark.parametrize(("number", "who"), SENT)
def test_a_signal_to_any_process_ends_all_and_the_run_resumes(
    number: signal.Signals, who: str, expected: tuple[Path, Whole]
) -> None:
    """A SIGTERM ends all at one step, behind which nothing is lost."""
    base, evaluation_mode = expected
    limit = GONE if number == signal.SIGKILL else LIMIT
    for seed in range(SEED, SEED + SIGNALS):
        run = run_of(base, f"{number.name}-{who}-{seed}".replace(" ", "-"))
        chance = random.Random(f"{number.name} {who} {seed}")
        found = struck(run, TARGETS[who], number, chance, evaluation_mode.seconds, limit)
        found += completed(run, evaluation_mode)
        assert not found, f"seed {seed}: " + "\n".join(found)


@pytest.mark.promise("T11", "93")
def test_a_process_that_waits_for_a_killed_one_ends(tmp_path: Path) -> None:
    run = run_of(tmp_path, "missed")
    run = Run(two_ranks, (*run.arguments, rank_that_is_missed), run.folder, run.home)
    process = run.start()
    assert wait_until(lambda: len(pids_of(run)) == 2)
    assert wait_until(lambda: not alive(pids_of(run)[1])), run.tail()
    assert not settle_processes(process, run, GONE), run.tail()
    assert process.exitcode == 1


@pytest.mark.promise("T11")
def test_both_processes_end_with_the_best_model(tmp_path: Path) -> None:
    worse = {"learning_rate": 1, "schedule": "constant"}  # from some step on
    run = run_of(tmp_path, "best", load_best_model_at_end=True, eval_steps=SAVE, **worse)
    process = run.start()
    assert ended(process, run), run.tail()
    assert process.exitcode == 0, run.tail()
    state = json.loads(
        (run.folder / f"checkpoint-{newest(run.folder)}" / "trainer_state.json").read_text()
    )
    assert state["best_global_step"] < newest(run.folder)
    best = load_file(run.folder / f"checkpoint-{state['best_global_step']}" / "model.safetensors")
    final = load_file(run.folder / "model" / "model.safetensors")
    assert all(value.equal(final[name]) for name, value in best.items() if name in final)


@pytest.mark.promise("T8", "99")
@pytest.mark.parametrize("entry", [rank_with_infinite_gradient, rank_with_infinite_loss])
def test_what_is_infinite_on_one_process_ends_all_before_the_step(
    entry: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    run = run_of(tmp_path, "infinite")
    run = Run(two_ranks, (*run.arguments, entry), run.folder, run.home)
    process = run.start()
    assert wait_until(lambda: len(rows_of(run.folder)) >= 5, seconds=LIMIT), run.tail()
    assert not settle_processes(process, run, GONE), run.tail()
    assert process.exitcode == 1
    status = json.loads((run.folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert "NonFiniteError: step 5: the loss or its gradient is NaN" in status["reason"]
    last = rows_of(run.folder)[-1]
    assert (last["step"], last["loss"]) == (5, "NaN")
    assert len(last["blocks"]) == 8  # of both
    assert newest(run.folder) == 3
    weights = load_file(run.folder / "checkpoint-3" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []


@pytest.mark.promise("T11", "91")
def test_no_process_outlives_accelerate_launch(tmp_path: Path) -> None:
    long = {"training": {"max_steps": 5000, "eval_steps": 1000}}
    recipe = write_recipe(tmp_path / "recipe.json", "run", long)
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch", "--num_processes", "1"]
    with (tmp_path / "out").open("w") as out:
        launcher = subprocess.Popen(
            [*launch, "--cpu", "-m", "hf_lm.run", str(recipe)],
            stdout=out,
            stderr=out,
            env={**os.environ, "HF_HOME": str(tmp_path / "home")},
        )
    folder = tmp_path / "run"
    try:
        assert wait_until(lambda: len(rows_of(folder)) > 10), (tmp_path / "out").read_text()
        started = children(launcher.pid)
        assert started
        launcher.send_signal(signal.SIGTERM)
        assert wait_until(lambda: not any(map(alive, started)), seconds=GONE)
    finally:
        launcher.kill()
        launcher.wait()
    assert not list(verify(folder / f"checkpoint-{newest(folder)}"))
    assert not steps_lost(folder)
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped"
