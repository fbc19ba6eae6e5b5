"""T11: random signals to a launcher and the two ranks it started end all, and the run resumes."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from harness import (
    LIMIT,
    SAVE,
    Reference,
    Run,
    count_lost_steps,
    leftovers,
    newest_step,
    rows_of,
    run_recipe,
    run_uninterrupted,
    wait_for_end,
    wait_until,
    write_recipe,
)
from safetensors.torch import load_file

from hf_lm.checkpoints.manifest import verify

pytestmark = pytest.mark.slow

SIGNALS = int(os.environ.get("HF_LM_SIGNALS", "2"))  # of each kind
SEED = int(os.environ.get("HF_LM_SEED", "0"))
STEPS = 40
TARGETS = {  # the processes that get a signal; 2 is the launcher
    "launcher": (2,),
    "rank 0": (0,),
    "rank 1": (1,),
    "both ranks": (0, 1),
    "launcher and ranks": (2, 0, 1),
}
SKEW = 0.5  # most seconds between the signals to two processes
GONE = 10.0  # seconds within which all processes end after one was killed


def two_ranks(recipe: Path, pids: Path, entry: Callable[[Path, Path], None] | None = None) -> None:
    """Launch two ranks as torch.distributed.run does, but as forks."""
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
    """Run one of the two ranks, after writing its pid to a file."""
    from hf_lm.run import main

    staging = pids / f".{os.environ['RANK']}"
    staging.write_text(str(os.getpid()))
    staging.rename(pids / os.environ["RANK"])
    sys.exit(main([str(recipe)]))


def rank_with_infinite_gradient(recipe: Path, pids: Path) -> None:
    """Run a rank; the second one computes an infinite gradient in its fifth step."""

    def spoil(model: Any, is_spoiled: Callable[[], bool]) -> None:
        weight = model.transformer.h[0].mlp.c_fc.weight
        weight.register_hook(lambda grad: grad * float("inf") if is_spoiled() else grad)

    spoiled_rank(spoil, recipe, pids)


def rank_with_infinite_loss(recipe: Path, pids: Path) -> None:
    """Run a rank; only the loss of the second one is infinite, which the first cannot see."""

    def spoil(model: Any, is_spoiled: Callable[[], bool]) -> None:
        def add(module: Any, inputs: Any, out: Any) -> None:
            if module.training and is_spoiled():
                out.loss = out.loss + float("inf")

        model.register_forward_hook(add)

    spoiled_rank(spoil, recipe, pids)


def rank_killed_before_rendezvous(recipe: Path, pids: Path) -> None:
    """Run a rank; the second one is killed before the two are connected."""
    from hf_lm.planning import agreement

    connect = agreement.connect

    def kill_second(*args: Any, **options: Any) -> Any:
        if os.environ["RANK"] == "1":
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        return connect(*args, **options)

    agreement.connect = kill_second
    rank(recipe, pids)


def rank_with_little_memory(recipe: Path, pids: Path) -> None:
    """Run a rank; the second one has memory for two blocks at a time."""
    from hf_lm.planning import hardware
    from hf_lm.planning.plan import Plan

    Plan.needed_memory = property(lambda plan: plan.micro_batch_size * 1_000_000)
    if os.environ["RANK"] == "1":
        hardware.free_memory = lambda kind: 2 * 3_000_000  # shared between two; 80% are used
    rank(recipe, pids)


def rank_with_other_text(recipe: Path, pids: Path) -> None:
    """Run a rank; the second one has less text, as a disk of its own may have."""
    from hf_lm.run import main

    is_second = os.environ["RANK"] == "1"
    sys.exit(main([str(recipe), *(["--set", "data.max_documents=15"] if is_second else [])]))


def rank_with_its_own_disk(recipe: Path, pids: Path) -> None:
    """Run a rank; the second one has another folder under the name of the run's."""
    from hf_lm.planning import agreement

    check = agreement.check_shared_folder
    if os.environ["RANK"] == "1":
        agreement.check_shared_folder = lambda folder, hardware: check(pids, hardware)
    rank(recipe, pids)


def spoiled_rank(
    spoil: Callable[[Any, Callable[[], bool]], None], recipe: Path, pids: Path
) -> None:
    """Run a rank; the model of the second one is spoiled in its fifth step."""
    from hf_lm.workflows import train

    make = train.make_trainer

    def make_spoiled(*args: Any, **options: Any) -> Any:
        trainer = make(*args, **options)
        is_second = os.environ["RANK"] == "1"
        spoil(trainer.model, lambda: is_second and trainer.state.global_step == 4)
        return trainer

    train.make_trainer = make_spoiled
    rank(recipe, pids)


def run_of(base: Path, name: str, data: Mapping[str, Any] | None = None, **training: Any) -> Run:
    """Write the recipe of a run of two processes, and return the run."""
    changes = {
        "data": data or {},
        "training": {"max_steps": STEPS, "micro_batch_size": 4, **training},
    }
    recipe = write_recipe(base / f"{name}.json", name, changes)
    pids = base / f"{name}-pids"
    pids.mkdir()
    return Run(two_ranks, (recipe, pids), base / name, base / "home")


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids_of(run: Run) -> dict[int, int]:
    """Return the pids of the ranks that have started."""
    return {int(path.name): int(path.read_text()) for path in run.arguments[1].glob("[01]")}


def send_signals(process: Any, run: Run, order: list[tuple[int, float]], number: int) -> None:
    """Send a signal to processes, each after a pause."""
    for who, pause in order:
        time.sleep(pause)
        pid = process.pid if who == 2 else pids_of(run).get(who)
        with contextlib.suppress(ProcessLookupError):
            if pid:
                os.kill(pid, number)


def end_processes(process: Any, run: Run, seconds: float) -> list[str]:
    """Wait for all processes; those that do not end in time write their stacks and are killed.

    Returns:
        One line per problem.
    """
    began, problems = time.monotonic(), []
    pids = pids_of(run)
    wait_until(lambda: process.exitcode is not None, seconds=seconds)
    wait_until(lambda: not any(map(is_alive, pids.values())), seconds=GONE)
    left = [number for number, pid in pids.items() if is_alive(pid)]
    if left or process.exitcode is None or time.monotonic() - began > seconds:
        problems.append(f"ranks {left} and launcher {process.exitcode} after {seconds} s")
    for number in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[number], signal.SIGUSR2)
    time.sleep(0.5 if left else 0)
    for number in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[number], signal.SIGKILL)
    if not wait_for_end(process, run):
        problems.append("the launcher hung")
    return problems


def run_with_signal(run: Run, targets: tuple[int, ...], number: int, chance: random.Random,
                    span: float, limit: float) -> list[str]:  # fmt: skip
    """Start two ranks, send a signal at a random moment, and return problems with their end."""
    process = run.start()
    wait_until(lambda: len(pids_of(run)) == 2 or process.exitcode is not None)
    process.join(chance.uniform(0, span))
    left = [pid for who, pid in pids_of(run).items() if who in targets and is_alive(pid)]
    done = process.exitcode is not None or not left  # a signal after the end kills nothing
    order = [(who, chance.uniform(0, SKEW) if i else 0.0) for i, who in enumerate(targets)]
    send_signals(process, run, order, number)
    problems = end_processes(process, run, limit)
    path = run.folder / f"checkpoint-{newest_step(run.folder)}"
    last_step = max((row["step"] for row in rows_of(run.folder)), default=0)
    if path.exists():
        problems += [f"{path.name}: {line}" for line in verify(path)]
    elif last_step and number == signal.SIGTERM:
        problems.append(f"{last_step} steps were trained, and there is no checkpoint")
    if number == signal.SIGTERM and count_lost_steps(run.folder):
        problems.append(f"{count_lost_steps(run.folder)} steps of {last_step} are lost")
    if not done and process.exitcode == 0 and number == signal.SIGKILL:
        problems.append("exit code 0")
    return [f"{problem}\n{run.tail()}" for problem in problems]


def resume_and_compare(run: Run, expected: Reference) -> list[str]:
    """Run again to the end, and return what differs from an uninterrupted run."""
    for path in run.arguments[1].iterdir():
        path.unlink()
    process = run.start()
    if not wait_for_end(process, run) or process.exitcode:
        return [f"run again: exit code {process.exitcode}\n{run.tail()}"]
    problems = [] if run.weights_hash() == expected.weights_hash else ["the weights differ"]
    if rows_of(run.folder) != expected.rows:
        problems.append("the logs differ")
    return problems + [f"{name} was not removed" for name in leftovers(run.folder)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reference]:
    """A folder for runs, and an uninterrupted run of two ranks in it."""
    base = tmp_path_factory.mktemp("ranks")
    return base, run_uninterrupted(run_of(base, "whole"))


SIGNAL_TARGETS = [
    *((signal.SIGTERM, who) for who in TARGETS),
    *((signal.SIGKILL, who) for who in ("rank 0", "rank 1")),
]


@pytest.mark.promise("T11", "91", "92", "93")
@pytest.mark.parametrize(("number", "who"), SIGNAL_TARGETS)
def test_a_signal_to_any_process_ends_all_and_the_run_resumes(
    number: signal.Signals, who: str, expected: tuple[Path, Reference]
) -> None:
    """A SIGTERM ends all processes at the same step, and no step is lost."""
    base, reference = expected
    limit = GONE if number == signal.SIGKILL else LIMIT
    for seed in range(SEED, SEED + SIGNALS):
        run = run_of(base, f"{number.name}-{who}-{seed}".replace(" ", "-"))
        chance = random.Random(f"{number.name} {who} {seed}")
        problems = run_with_signal(run, TARGETS[who], number, chance, reference.seconds, limit)
        problems += resume_and_compare(run, reference)
        assert not problems, f"seed {seed}: " + "\n".join(problems)


@pytest.mark.promise("T11", "93")
def test_a_process_that_waits_for_a_killed_one_ends(tmp_path: Path) -> None:
    run = run_of(tmp_path, "killed")
    run = Run(two_ranks, (*run.arguments, rank_killed_before_rendezvous), run.folder, run.home)
    process = run.start()
    assert wait_until(lambda: len(pids_of(run)) == 2)
    assert wait_until(lambda: not is_alive(pids_of(run)[1])), run.tail()
    assert not end_processes(process, run, GONE), run.tail()
    assert process.exitcode == 1


def test_processes_with_different_memory_plan_the_same_run(tmp_path: Path) -> None:
    losses = []
    for name, entry in (("even", rank), ("uneven", rank_with_little_memory)):
        run = run_of(tmp_path, name, micro_batch_size="auto")
        recipe = json.loads(run.arguments[0].read_text())  # dropout draws for each micro-batch
        run.arguments[0].write_text(
            json.dumps({**recipe, "model": {**recipe["model"], "dropout": 0}})
        )
        run = Run(two_ranks, (*run.arguments, entry), run.folder, run.home)
        process = run.start()
        assert wait_for_end(process, run), run.tail()
        assert process.exitcode == 0, run.tail()
        losses.append([row["loss"] for row in rows_of(run.folder) if "loss" in row])
        provenance = json.loads((run.folder / "provenance.json").read_text())
        assert provenance["micro_batch_size"] == (2 if name == "uneven" else 4)
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


@pytest.mark.parametrize(
    ("entry", "line"),
    [
        (rank_with_other_text, "data is "),
        (rank_with_its_own_disk, "process 1 does not see what process 0 writes there; several"),
    ],
)
def test_processes_that_do_not_see_the_same_files_are_refused(
    entry: Callable[[Path, Path], None], line: str, tmp_path: Path
) -> None:
    run = run_of(tmp_path, "other")
    run = Run(two_ranks, (*run.arguments, entry), run.folder, run.home)
    process = run.start()
    assert wait_for_end(process, run), run.tail()
    assert process.exitcode == 1, run.tail()
    assert line in run.output.read_text()
    assert not run.folder.exists()


@pytest.mark.promise("T11")
def test_both_processes_end_with_the_best_model(tmp_path: Path) -> None:
    worse = {
        "learning_rate": 1,
        "schedule": "constant",
    }  # so the loss rises at last
    run = run_of(tmp_path, "best", load_best_model_at_end=True, eval_steps=SAVE, **worse)
    process = run.start()
    assert wait_for_end(process, run), run.tail()
    assert process.exitcode == 0, run.tail()
    state = json.loads(
        (run.folder / f"checkpoint-{newest_step(run.folder)}" / "trainer_state.json").read_text()
    )
    assert state["best_global_step"] < newest_step(run.folder)
    best = load_file(run.folder / f"checkpoint-{state['best_global_step']}" / "model.safetensors")
    final = load_file(run.folder / "model" / "model.safetensors")
    assert all(value.equal(final[name]) for name, value in best.items() if name in final)


@pytest.mark.promise("T8", "99")
@pytest.mark.parametrize("entry", [rank_with_infinite_gradient, rank_with_infinite_loss])
def test_a_non_finite_value_on_one_process_ends_all_before_the_step(
    entry: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    run = run_of(tmp_path, "infinite")
    run = Run(two_ranks, (*run.arguments, entry), run.folder, run.home)
    process = run.start()
    assert wait_until(lambda: len(rows_of(run.folder)) >= 5, seconds=LIMIT), run.tail()
    assert not end_processes(process, run, GONE), run.tail()
    assert process.exitcode == 1
    status = json.loads((run.folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert "NonFiniteError: step 5: the loss or its gradient is NaN" in status["reason"]
    last = rows_of(run.folder)[-1]
    assert (last["step"], last["loss"]) == (5, "NaN")
    assert len(last["blocks"]) == 8  # blocks of both processes
    assert newest_step(run.folder) == 3
    weights = load_file(run.folder / "checkpoint-3" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def children(pid: int) -> list[int]:
    """Return the pids of the children of a process."""
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
        assert wait_until(lambda: not any(map(is_alive, started)), seconds=GONE)
    finally:
        launcher.kill()
        launcher.wait()
    assert not list(verify(folder / f"checkpoint-{newest_step(folder)}"))
    assert not count_lost_steps(folder)
    assert json.loads((folder / "status.json").read_text())["state"] == "stopped"


EPOCHS = {  # sources of text, each with a number of steps that is more than two passes over it
    "files": ({"source": "corpus/00[0-3].txt"}, 20),
    "mixture": (
        {
            "source": [
                {"source": "corpus/00[0-3].txt", "weight": 1},
                {"source": "corpus/01[0-3].txt", "weight": 2},
            ]
        },
        30,
    ),
    "stream": (
        {
            "source": "corpus/00[0-3].txt",
            "streaming": True,
            "validation": {"source": "corpus/02*.txt"},
        },
        20,
    ),
}


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("kind", EPOCHS)
def test_a_run_resumed_in_any_of_three_epochs_ends_in_the_same_bits(
    kind: str, world_size: int, tmp_path: Path
) -> None:
    data, steps = EPOCHS[kind]
    training = {"max_steps": steps, "save_steps": 2, "save_total_limit": None, "eval_steps": 50}
    run = run_of(tmp_path, "run", data, **training)
    if world_size == 1:
        run = Run(run_recipe, run.arguments[:1], run.folder, run.home)
    expected = run_uninterrupted(run)
    epoch_of = {
        int(path.name.split("-")[1]): json.loads((path / "trainer_state.json").read_text())["epoch"]
        for path in run.folder.glob("checkpoint-*")
    }
    assert kind == "stream" or max(epoch_of.values()) > 2
    for stop in (steps - 2, steps // 2, 2):
        for step in epoch_of:
            if step > stop:
                shutil.rmtree(run.folder / f"checkpoint-{step}", ignore_errors=True)
        shutil.rmtree(run.folder / "model")
        (run.folder / "status.json").write_text('{"state": "stopped", "reason": ""}')
        process = run.start()
        assert wait_for_end(process, run)
        assert process.exitcode == 0, run.tail()
        assert run.weights_hash() == expected.weights_hash
        assert rows_of(run.folder) == expected.rows
