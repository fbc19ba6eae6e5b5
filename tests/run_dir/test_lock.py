"""One run a folder: whoever is killed lets it go, and who is on another machine is asked about."""

import fcntl
import json
import os
import signal
from pathlib import Path

import pytest
from processes import child, ended, hold, wait_for

from hf_lm.errors import LockedError
from hf_lm.run_dir import lock
from hf_lm.run_dir.lock import LOCK, locked


@pytest.mark.promise("96")
def test_of_two_runs_one_wins_and_the_other_exits_75(tmp_path: Path) -> None:
    for number in range(20):
        both = [child(lambda: hold(tmp_path, tmp_path / "held", seconds=0.3)) for _ in range(2)]
        assert sorted(ended(pid) for pid in both) == [0, 75], number


@pytest.mark.promise("96")
def test_a_killed_run_lets_go(tmp_path: Path) -> None:
    pid = child(lambda: hold(tmp_path, tmp_path / "held"))
    wait_for(tmp_path / "held")
    with (
        pytest.raises(LockedError, match=rf"process {pid} on .* since .*; wait for it, end it"),
        locked(tmp_path),
    ):
        pass
    os.kill(pid, signal.SIGKILL)
    assert ended(pid) == -signal.SIGKILL
    with locked(tmp_path):
        pass


@pytest.mark.promise("96")
def test_a_lock_of_another_machine_is_taken_by_force_alone(tmp_path: Path) -> None:
    holder = {"host": "elsewhere", "pid": 7, "start": "2026-01-01 00:00:00"}
    (tmp_path / LOCK).write_text(json.dumps(holder))
    with (
        pytest.raises(LockedError, match=r"process 7 on elsewhere .* --force-unlock"),
        locked(tmp_path),
    ):
        pass
    assert json.loads((tmp_path / LOCK).read_text()) == holder
    with locked(tmp_path, force=True):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    with locked(tmp_path):  # it was let go
        pass


@pytest.mark.promise("96")
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\x00"])
def test_a_lock_cut_off_by_a_crash_is_no_obstacle(text: str, tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(text)
    with locked(tmp_path):
        pass


@pytest.mark.promise("96")
def test_a_container_that_is_gone_is_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "boot_id").write_text("this start\n")
    monkeypatch.setattr(lock, "BOOT", tmp_path / "boot_id")
    holder = {"host": "gone", "boot": "this start", "pid": 7, "start": "2026-01-01 00:00:00"}
    (tmp_path / LOCK).write_text(json.dumps(holder))
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    (tmp_path / LOCK).write_text(json.dumps({**holder, "boot": "another"}))
    with pytest.raises(LockedError, match="process 7 on gone"), locked(tmp_path):
        pytest.fail("it was held")


@pytest.mark.promise("96")
def test_what_another_run_removes_meanwhile_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder, before the lock file is opened; and the file, before it is held."""
    folder = tmp_path / "run"
    opening, locking = os.open, fcntl.lockf
    removals = [folder.rmdir, (folder / LOCK).unlink]

    def late_open(path: object, *args: int, **options: int) -> int:
        if path == folder / LOCK and len(removals) == 2:
            removals.pop(0)()
        return opening(path, *args, **options)

    def late_lock(*args: object) -> None:
        if len(removals) == 1:
            removals.pop()()
        locking(*args)

    monkeypatch.setattr(os, "open", late_open)
    monkeypatch.setattr(fcntl, "lockf", late_lock)
    with locked(folder):
        assert not removals
        assert json.loads((folder / LOCK).read_text())["pid"] == os.getpid()
    assert not folder.exists()
