"""The folder of a run on disks, clocks and terminals that are not as they should be."""

import errno
import fcntl
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace
from typing import Any

import pytest

from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.errors import RecipeError
from hf_lm.recipe import load_recipe
from hf_lm.run import main
from hf_lm.run_dir import directory as run_folder
from hf_lm.run_dir import lock
from hf_lm.run_dir.directory import RunDirectory, check_filesystem
from hf_lm.terminal.streams import SafeStream
from hf_lm.workflows.check import check


@pytest.mark.promise("69")
def test_a_folder_that_cannot_be_written_to_is_told_before_anything_is_done(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main([str(write_recipe(output_dir="file/run"))]) == 2
    assert "output_dir = " in (line := capsys.readouterr().err)
    assert "cannot be written to (Not a directory); name another folder" in line


@pytest.mark.promise("69")
@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOSPC])
def test_whatever_call_the_probe_fails_at_it_is_one_line(
    code: int, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = RunDirectory(load_recipe(write_recipe()).folder)
    for name in ("write_bytes", "replace", "mkdir"):
        with monkeypatch.context() as patch:

            def fail(*args: Any, **options: Any) -> None:
                raise OSError(code, os.strerror(code))

            patch.setattr(Path, name, fail)
            with (
                pytest.raises(RecipeError, match=r"cannot be written to \(") as caught,
                folder.lock(),
            ):
                pytest.fail("it was held")
        assert os.strerror(code) in str(caught.value)
        assert not folder.path.exists()


@pytest.mark.promise("70")
def test_a_file_system_without_locks_or_fsync_is_told_and_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unlockable(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def unsynced(handle: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "lockf", unlockable)
    monkeypatch.setattr(os, "fsync", unsynced)
    with RunDirectory(tmp_path / "run").lock() as notes:
        first, second = notes
    assert "has no locks, so a second run here would not be noticed" in first
    assert "has no fsync, so a checkpoint may be lost when power is cut" in second
    files = dict.fromkeys(("state.json",), lambda path: path.write_text("{}"))
    assert CheckpointStore(tmp_path).write(1, files).is_dir()


@pytest.mark.promise("70")
def test_an_ordinary_file_system_needs_no_note(tmp_path: Path) -> None:
    assert check_filesystem(tmp_path) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.promise("72")
def test_a_disk_too_small_for_the_checkpoints_is_told_before_the_start(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = write_recipe()
    small = SimpleNamespace(total=10**9, used=0, free=10**5)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda there: small)
    assert main([str(path)]) == 2
    line = capsys.readouterr().err
    assert "checkpoints and model need about 0.00048 GB, 0.0001 GB are free" in line
    assert "lower training.save_total_limit" in line
    assert not (path.parent / "run").exists()
    check(load_recipe(path))
    assert "not on this machine: output_dir = " in capsys.readouterr().out


@pytest.mark.promise("72")
def test_checkpoints_that_are_there_need_no_more_room(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = sum(
        file.stat().st_size for path in tiny_run.glob("checkpoint-*") for file in path.iterdir()
    )
    none = SimpleNamespace(total=10**9, used=0, free=0)
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda path: none)
    assert RunDirectory(tiny_run).disk_shortfall(there) == ()
    assert RunDirectory(tiny_run).disk_shortfall(there + 1)


@pytest.mark.promise("72")
def test_what_was_planned_is_what_a_run_takes(tiny_run: Path) -> None:
    """One more is written before the oldest goes."""
    sizes = [
        sum(file.stat().st_size for file in path.iterdir() if file.suffix == ".safetensors")
        for path in tiny_run.glob("checkpoint-*")
    ]
    model = 11_952 * 4
    planned = 12 * 11_952
    assert planned == pytest.approx(sizes[0], rel=0.15)  # names and random numbers come on top
    assert sum(sizes) + model < 3 * planned + model


@pytest.mark.promise("85")
def test_a_clock_that_jumps_moves_no_checkpoint_and_no_duration(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jumps = iter(range(0, -(10**7), -3600))
    monkeypatch.setattr(time, "time", lambda: 1.6e9 + next(jumps))
    changes = {"training__save_steps": 2, "training__save_total_limit": 1}
    assert main([str(write_recipe(**changes))]) == 0
    assert CheckpointStore(tmp_path / "run").steps() == [8]
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert all(0 <= value < 600 for value in seconds)


@pytest.mark.promise("88")
def test_a_best_checkpoint_that_is_gone_is_told(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    changes = {"training__load_best_model_at_end": True, "training__learning_rate": 0.01}
    path = write_recipe(**changes)
    assert main([str(path)]) == 0
    run = tmp_path / "run"
    state = json.loads((run / "checkpoint-8" / "trainer_state.json").read_text())
    best = state["best_global_step"]
    for name in ("model", f"checkpoint-{best}"):
        shutil.rmtree(run / name)
    (run / "status.json").write_text('{"state": "stopped", "reason": "", "step": 8}')
    code = main([str(path)])
    if best == 8:  # the last one was the best: its steps are taken again
        assert code == 0
    else:
        assert code == 3
        assert f"checkpoint-{best}: holds the best model" in capsys.readouterr().err


@pytest.mark.promise("102")
def test_a_run_that_sleeps_wakes_up(
    write_recipe: Callable[..., Path],
    run_recipe: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """As a laptop whose lid is closed."""
    path, log = write_recipe(training__max_steps=60), tmp_path / "run" / "log.jsonl"

    def doze() -> None:
        while not log.is_file() or log.stat().st_size < 200:
            time.sleep(0.01)
        pid = lock.holder_of(tmp_path / "run")["pid"]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=doze, daemon=True)
    thread.start()
    run_recipe(path)
    thread.join()


class Gone:
    """A stream whose reader has gone."""

    encoding = "ascii"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, text: str) -> None:
        """Fails."""
        raise self.error

    def isatty(self) -> bool:
        """No more."""
        return False

    def fileno(self) -> int:
        """None."""
        raise OSError("none")


@pytest.mark.promise("103")
@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(errno.EIO, "I/O error"), ValueError("closed file")]
)
def test_nobody_has_to_read_what_is_printed(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (Gone(error), None):
        monkeypatch.setattr(sys, "stdout", stream)
        patient = SafeStream("stdout")
        assert patient.write("a\n") == 2
        assert patient.write("b") == 1
        assert not patient.isatty()
        assert patient.encoding in ("utf-8", "ascii")
        patient.flush()
        assert sys.stdout is None


@pytest.mark.promise("103")
def test_a_log_that_cannot_be_written_costs_rows_and_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RunDirectory(tmp_path)
    folder.write_row({"step": 0, "loss": 1.0})
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").mkdir()
    folder.write_row({"step": 2, "loss": 1.0})
    assert folder.log_error == "log.jsonl: Is a directory"
    assert folder.step == 2


@pytest.mark.promise("96")
def test_two_starts_at_once_leave_one_run(tmp_path: Path) -> None:
    """Many times, a few milliseconds apart, each time into a folder that is not there yet."""
    from processes import child, ended, hold

    for number in range(30):
        folder = tmp_path / str(number)

        def start(folder: Path = folder, delay: float = number / 1000) -> None:
            time.sleep(delay)
            hold(folder, tmp_path / "held", seconds=0.2)

        both = [
            child(start),
            child(lambda folder=folder: hold(folder, tmp_path / "h", seconds=0.2)),
        ]
        assert sorted(ended(pid) for pid in both) == [0, 75], number
        assert not folder.exists()


@pytest.mark.promise("96")
def test_a_folder_in_use_is_not_touched(
    tiny_run: Path, write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    from processes import child, ended, wait_for

    shutil.copytree(tiny_run, tmp_path / "run")
    path = write_recipe(training__max_steps=99)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}

    def with_micro_batch_size() -> None:
        with lock.locked(tmp_path / "run"):
            (tmp_path / "held").touch()
            time.sleep(60)

    pid = child(with_micro_batch_size)
    wait_for(tmp_path / "held")
    assert main([str(path)]) == 75
    assert f"another run holds it, process {pid} on " in capsys.readouterr().err
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    assert {file: after[file] for file in before} == before
    assert after.keys() - before.keys() == {tmp_path / "run" / ".lock"}
    os.kill(pid, signal.SIGKILL)
    ended(pid)


@pytest.mark.promise("96")
def test_force_unlock_is_for_another_machine(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    path = write_recipe()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").write_text('{"host": "elsewhere", "pid": 7, "start": "then"}')
    assert main([str(path)]) == 75
    assert "process 7 on elsewhere since then; if it is gone" in capsys.readouterr().err
    assert main([str(path), "--force-unlock"]) == 0
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.promise("107")
def test_the_shipped_launcher_file_asks_for_a_free_port() -> None:
    text = (Path(__file__).parents[2] / "accelerate_config.yaml").read_text()
    assert "\nmain_process_port: 0" in text
