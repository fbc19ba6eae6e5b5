"""Without what only POSIX systems have, runs train, continue and lock their folder all the same."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from processes import child, exit_code, hold, wait_for

from hf_lm.errors import LockedError
from hf_lm.recipe import load_recipe
from hf_lm.recipe.paths import is_path
from hf_lm.run import train
from hf_lm.run_dir.lock import LOCK, lock_directory, read_owner
from hf_lm.system import file_lock
from tests.support import other_system

SCRIPT = Path(other_system.__file__)


def elsewhere(*arguments: str) -> CompletedProcess[str]:
    """Run the `hf-lm` command without what only POSIX systems have."""
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_run_is_the_same_and_is_resumed_without_posix(
    write_recipe: Callable[..., Path], undo_end: Callable[[Path, int], None], tmp_path: Path
) -> None:
    workers = {"training__dataloader_num_workers": 1}
    train(load_recipe(write_recipe(output_dir="here")))
    recipe = write_recipe(output_dir="elsewhere", **workers)
    run = tmp_path / "elsewhere"

    done = elsewhere("run", str(recipe))
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "metrics.json").read_text())["peak_memory_bytes"] == 2**29
    weights = [path / "model" / "model.safetensors" for path in (tmp_path / "here", run)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert not (run / LOCK).exists()

    undo_end(run, 4)
    done = elsewhere("run", str(recipe))
    assert done.returncode == 0, done.stderr
    assert weights[0].read_bytes() == weights[1].read_bytes()
    for command in ("status", "verify"):
        done = elsewhere(command, str(run))
        assert done.returncode == 0, done.stderr
        assert "checkpoint" in done.stdout


@pytest.fixture
def windows_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock files as on Windows."""
    monkeypatch.setattr(file_lock, "fcntl", None)
    monkeypatch.setitem(sys.modules, "msvcrt", other_system.msvcrt())
    monkeypatch.setattr(Path, "unlink", other_system.delete_closed)


@pytest.mark.usefixtures("windows_locks")
def test_the_lock_of_windows_keeps_others_out_and_is_deleted(tmp_path: Path) -> None:
    pid = child(lambda: hold(tmp_path / "run", tmp_path / "held", seconds=2))
    wait_for(tmp_path / "held")
    assert read_owner(tmp_path / "run")["pid"] == pid  # the text can be read beside the lock
    with pytest.raises(LockedError, match=f"process {pid} on"), lock_directory(tmp_path / "run"):
        pytest.fail("the lock was taken")
    assert exit_code(pid) == 0
    assert not (tmp_path / "run").exists()
    with lock_directory(tmp_path / "run") as is_exclusive:
        assert is_exclusive


def test_paths_of_windows_are_no_hub_ids(tmp_path: Path) -> None:
    assert is_path(r"texts\mine", tmp_path)
    assert is_path(r"C:\texts", tmp_path)
    assert not is_path("USER/texts", tmp_path)
