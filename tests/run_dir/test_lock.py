"""Test that one run at a time holds an output directory, and that a killed run releases it."""

import fcntl
import json
import os
import signal
from pathlib import Path

import pytest
from processes import child, exit_code, hold, wait_for

from hf_lm.errors import LockedError
from hf_lm.run_dir import lock
from hf_lm.run_dir.lock import LOCK, lock_directory


@pytest.mark.promise("96")
def test_second_run_is_refused_with_exit_code_75(tmp_path: Path) -> None:
    for number in range(20):
        pids = [child(lambda: hold(tmp_path, tmp_path / "held", seconds=0.3)) for _ in range(2)]
        assert sorted(exit_code(pid) for pid in pids) == [0, 75], number


@pytest.mark.promise("96")
def test_killed_run_releases_the_lock(tmp_path: Path) -> None:
    pid = child(lambda: hold(tmp_path, tmp_path / "held"))
    wait_for(tmp_path / "held")
    with (
        pytest.raises(LockedError, match=rf"process {pid} on .* since .*; wait for it, end it"),
        lock_directory(tmp_path),
    ):
        pass
    os.kill(pid, signal.SIGKILL)
    assert exit_code(pid) == -signal.SIGKILL
    with lock_directory(tmp_path):
        pass


@pytest.mark.promise("96")
def test_lock_of_another_machine_needs_force(tmp_path: Path) -> None:
    owner = {"host": "elsewhere", "pid": 7, "start": "2026-01-01 00:00:00"}
    (tmp_path / LOCK).write_text(json.dumps(owner))
    with (
        pytest.raises(LockedError, match=r"process 7 on elsewhere .* --force-unlock"),
        lock_directory(tmp_path),
    ):
        pass
    assert json.loads((tmp_path / LOCK).read_text()) == owner
    with lock_directory(tmp_path, force=True):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    with lock_directory(tmp_path):  # It was released.
        pass


@pytest.mark.promise("96")
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\x00"])
def test_lock_file_damaged_by_a_crash_is_ignored(text: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(text)
    with lock_directory(tmp_path):
        pass


@pytest.mark.promise("96")
def test_lock_of_a_stopped_container_on_this_machine_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boot_id").write_text("this start\n")
    monkeypatch.setattr(lock, "BOOT", tmp_path / "boot_id")
    owner = {"host": "gone", "boot": "this start", "pid": 7, "start": "2026-01-01 00:00:00"}
    (tmp_path / LOCK).write_text(json.dumps(owner))
    with lock_directory(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    (tmp_path / LOCK).write_text(json.dumps({**owner, "boot": "another"}))
    with pytest.raises(LockedError, match="process 7 on gone"), lock_directory(tmp_path):
        pytest.fail("the lock was taken")


@pytest.mark.promise("96")
def test_directory_and_lock_file_removed_by_another_run_are_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory disappears before the file is opened, and the file before it is locked."""
    folder = tmp_path / "run"
    real_open, real_lockf = os.open, fcntl.lockf
    removals = [folder.rmdir, (folder / LOCK).unlink]

    def open_after_removal(path: object, *args: int, **options: int) -> int:
        if path == folder / LOCK and len(removals) == 2:
            removals.pop(0)()
        return real_open(path, *args, **options)

    def lock_after_removal(*args: object) -> None:
        if len(removals) == 1:
            removals.pop()()
        real_lockf(*args)

    monkeypatch.setattr(os, "open", open_after_removal)
    monkeypatch.setattr(fcntl, "lockf", lock_after_removal)
    with lock_directory(folder):
        assert not removals
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    assert not folder.exists()
