"""Test runs on full, read-only and odd disks, with wrong clocks and closed terminals."""

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
from hf_lm.run_dir import directory, lock
from hf_lm.run_dir.directory import RunDirectory, check_filesystem
from hf_lm.terminal.streams import SafeStream
from hf_lm.workflows.check import check


@pytest.mark.promise("69")
def test_directory_that_cannot_be_written_to_is_refused_first(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "file").write_text("mine")
    assert main([str(write_recipe(output_dir="file/run"))]) == 2
    assert "output_dir = " in (line := capsys.readouterr().err)
    assert "cannot be written to (Not a directory); name another folder" in line


@pytest.mark.promise("69")
@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOSPC])
def test_failure_of_any_call_of_the_filesystem_check_is_one_line(
    code: int, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_dir = RunDirectory(load_recipe(write_recipe()).folder)
    for name in ("write_bytes", "replace", "mkdir"):
        with monkeypatch.context() as patch:

            def fail(*args: Any, **options: Any) -> None:
                raise OSError(code, os.strerror(code))

            patch.setattr(Path, name, fail)
            with (
                pytest.raises(RecipeError, match=r"cannot be written to \(") as caught,
                run_dir.lock(),
            ):
                pytest.fail("the lock was taken")
        assert os.strerror(code) in str(caught.value)
        assert not run_dir.path.exists()


@pytest.mark.promise("70")
def test_file_system_without_locks_or_fsync_is_used_with_notes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lockf_without_locks(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    def fsync_without_fsync(handle: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(fcntl, "lockf", lockf_without_locks)
    monkeypatch.setattr(os, "fsync", fsync_without_fsync)
    with RunDirectory(tmp_path / "run").lock() as notes:
        first, second = notes
    assert "has no locks, so a second run here would not be noticed" in first
    assert "has no fsync, so a checkpoint may be lost in a power cut" in second
    files = dict.fromkeys(("state.json",), lambda path: path.write_text("{}"))
    assert CheckpointStore(tmp_path).write(1, files).is_dir()


@pytest.mark.promise("70")
def test_ordinary_file_system_needs_no_note(tmp_path: Path) -> None:
    assert check_filesystem(tmp_path) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.promise("72")
def test_disk_too_small_for_the_checkpoints_is_refused_before_training(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = write_recipe()
    small = SimpleNamespace(total=10**9, used=0, free=10**5)
    monkeypatch.setattr(directory.shutil, "disk_usage", lambda path: small)
    assert main([str(path)]) == 2
    line = capsys.readouterr().err
    assert "checkpoints and model need about 0.00048 GB, 0.0001 GB are free" in line
    assert "lower training.save_total_limit" in line
    assert not (path.parent / "run").exists()
    assert "not on this machine: output_dir = " in str(check(load_recipe(path)))


@pytest.mark.promise("72")
def test_existing_checkpoints_count_as_free_space(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint_bytes = sum(
        file.stat().st_size for path in tiny_run.glob("checkpoint-*") for file in path.iterdir()
    )
    full = SimpleNamespace(total=10**9, used=0, free=0)
    monkeypatch.setattr(directory.shutil, "disk_usage", lambda path: full)
    assert RunDirectory(tiny_run).disk_shortfall(checkpoint_bytes) == ()
    assert RunDirectory(tiny_run).disk_shortfall(checkpoint_bytes + 1)


@pytest.mark.promise("72")
def test_planned_disk_space_is_what_a_run_uses(tiny_run: Path) -> None:
    """One more checkpoint than the limit exists before the oldest is deleted."""
    sizes = [
        sum(file.stat().st_size for file in path.iterdir() if file.suffix == ".safetensors")
        for path in tiny_run.glob("checkpoint-*")
    ]
    model = 11_952 * 4
    planned = 12 * 11_952
    assert planned == pytest.approx(sizes[0], rel=0.15)  # Names and random states are not planned.
    assert sum(sizes) + model < 3 * planned + model


@pytest.mark.promise("85")
def test_clock_that_jumps_back_affects_no_checkpoint_or_duration(
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
def test_missing_best_checkpoint_is_an_error(
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
    if best == 8:  # The last one was the best, so its steps are trained again.
        assert code == 0
    else:
        assert code == 3
        assert f"checkpoint-{best}: holds the best model" in capsys.readouterr().err


@pytest.mark.promise("102")
def test_run_continues_after_the_machine_sleeps(
    write_recipe: Callable[..., Path],
    run_recipe: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """SIGSTOP and SIGCONT act like closing and opening the lid of a laptop."""
    path, log = write_recipe(training__max_steps=60), tmp_path / "run" / "log.jsonl"

    def sleep() -> None:
        while not log.is_file() or log.stat().st_size < 200:
            time.sleep(0.01)
        pid = lock.read_owner(tmp_path / "run")["pid"]
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    run_recipe(path)
    thread.join()


class ClosedStream:
    """A stream whose reader is gone."""

    encoding = "ascii"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, text: str) -> None:
        """Raise the error."""
        raise self.error

    def isatty(self) -> bool:
        """Return False."""
        return False

    def fileno(self) -> int:
        """Raise, because there is no file descriptor."""
        raise OSError("no descriptor")


@pytest.mark.promise("103")
@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(errno.EIO, "I/O error"), ValueError("closed file")]
)
def test_output_without_a_reader_is_discarded(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream in (ClosedStream(error), None):
        monkeypatch.setattr(sys, "stdout", stream)
        safe_stream = SafeStream("stdout")
        assert safe_stream.write("a\n") == 2
        assert safe_stream.write("b") == 1
        assert not safe_stream.isatty()
        assert safe_stream.encoding in ("utf-8", "ascii")
        safe_stream.flush()
        assert sys.stdout is None


@pytest.mark.promise("103")
def test_log_that_cannot_be_written_does_not_stop_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = RunDirectory(tmp_path).log
    log.append({"step": 0, "loss": 1.0})
    (tmp_path / "log.jsonl").unlink()
    (tmp_path / "log.jsonl").mkdir()
    log.append({"step": 2, "loss": 1.0})
    assert log.error == "log.jsonl: Is a directory"
    assert log.step == 2


@pytest.mark.promise("96")
def test_two_runs_started_at_the_same_time_leave_one(tmp_path: Path) -> None:
    """Thirty times, up to 29 ms apart, each time in a directory that does not exist yet."""
    from processes import child, exit_code, hold

    for number in range(30):
        folder = tmp_path / str(number)

        def start(folder: Path = folder, delay: float = number / 1000) -> None:
            time.sleep(delay)
            hold(folder, tmp_path / "held", seconds=0.2)

        pids = [
            child(start),
            child(lambda folder=folder: hold(folder, tmp_path / "h", seconds=0.2)),
        ]
        assert sorted(exit_code(pid) for pid in pids) == [0, 75], number
        assert not folder.exists()


@pytest.mark.promise("96")
def test_directory_in_use_is_not_changed(
    tiny_run: Path, write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    from processes import child, exit_code, hold, wait_for

    shutil.copytree(tiny_run, tmp_path / "run")
    path = write_recipe(training__max_steps=99)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}

    pid = child(lambda: hold(tmp_path / "run", tmp_path / "held"))
    wait_for(tmp_path / "held")
    assert main([str(path)]) == 75
    assert f"another run holds it, process {pid} on " in capsys.readouterr().err
    after = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    assert {file: after[file] for file in before} == before
    assert after.keys() - before.keys() == {tmp_path / "run" / ".lock"}
    os.kill(pid, signal.SIGKILL)
    exit_code(pid)


@pytest.mark.promise("96")
def test_force_unlock_takes_the_lock_of_another_machine(
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
def test_shipped_launcher_file_asks_for_a_free_port() -> None:
    text = (Path(__file__).parents[2] / "accelerate_config.yaml").read_text()
    assert "\nmain_process_port: 0" in text
