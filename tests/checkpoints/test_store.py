"""A checkpoint is whole or not there, whatever call a crash, a full disk or a damage comes at."""

import errno
import io
import itertools
import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from processes import in_child

from hf_lm.checkpoints.manifest import MANIFEST, REQUIRED, manifest_text, verify
from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.errors import CheckpointError, MismatchError

FILES = sorted(REQUIRED)
CHANGES = ("rename", "fsync", "unlink", "rmdir", "mkdir")  # calls that change what is on a disk


def write(folder: Path, step: int, *, limit: int | None = 2, best: int | None = None) -> Path:
    """A checkpoint whose files hold their step."""
    files = {name: lambda path: path.write_text(f"{path.name} {step} " * 99) for name in FILES}
    found = CheckpointStore(folder, limit=limit)
    return found.write(step, files, best=best)


def whole(folder: Path) -> list[int]:
    """Steps whose checkpoints verify; no other may have the name of one."""
    found = CheckpointStore(folder)
    assert all(not list(verify(found.path(step))) for step in found.steps())
    return found.steps()


class Disk:
    """Counts calls that change files, and does something at one of them.

    `lose_power` undoes what no fsync has secured: contents of files, and names in folders.
    """

    def __init__(self, number: int, fault: Callable[["Disk"], None]) -> None:
        self.number, self.fault, self.calls = number, fault, 0
        self.unsynced: set[str] = set()  # files
        self.undo: list[tuple[str, str]] = []  # renames, as (is, was)

    def count(self) -> None:
        """One more call."""
        self.calls += 1
        if self.calls == self.number:
            self.fault(self)

    @contextmanager
    def watched(self) -> Iterator["Disk"]:
        """All calls of this process, meanwhile."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGES:
                patch.setattr(os, name, self.counted(name, getattr(os, name)))
            opened = io.open

            def open_counted(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
                if set(mode) & set("wax+"):
                    self.count()
                    self.unsynced.add(str(file))
                return opened(file, mode, *args, **options)

            patch.setattr(io, "open", open_counted)
            yield self

    def counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """A call that is counted before it is made, and what it secures or puts at risk after."""

        def counting(*args: Any, **options: Any) -> Any:
            self.count()
            done = call(*args, **options)
            if name == "fsync":
                path = Path(f"/proc/self/fd/{args[0]}").readlink()
                self.unsynced.discard(str(path))
                self.undo = [pair for pair in self.undo if Path(pair[0]).parent != path]
            if name == "rename":
                self.undo.append((str(args[1]), str(args[0])))
                moved = {p for p in self.unsynced if p.startswith(f"{args[0]}/")}
                self.unsynced -= moved
                self.unsynced |= {p.replace(str(args[0]), str(args[1]), 1) for p in moved}
            return done

        return counting

    def lose_power(self) -> None:
        """Leave on the disk what had to be there."""
        for path in self.unsynced:
            if Path(path).exists():
                os.truncate(path, 0)
        for now, before in reversed(self.undo):
            if Path(now).exists():
                Path(now).rename(before)


def end(disk: Disk) -> None:
    """As kill -9: nothing is cleaned up."""
    os._exit(137)


def end_without_power(disk: Disk) -> None:
    """As a cut of power."""
    disk.number = -1  # the calls below are the disk's own
    disk.lose_power()
    os._exit(137)


@pytest.mark.promise("T2")
@pytest.mark.parametrize("fault", [end, end_without_power])
def test_a_crash_at_any_call_leaves_the_older_checkpoint(
    fault: Callable[[Disk], None], tmp_path: Path
) -> None:
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        for step in (1, 2):
            write(folder, step)

        def crash(number: int = number, folder: Path = folder) -> None:
            with Disk(number, fault).watched():
                write(folder, 3)

        code = in_child(crash)
        assert code in (0, 137)
        assert whole(folder)[-1] in (2, 3)
        CheckpointStore(folder).remove_leftovers()
        assert {path.name for path in folder.iterdir()} == {
            f"checkpoint-{step}" for step in whole(folder)
        }
        write(folder, 3)  # the same command again
        assert whole(folder) == [2, 3]
        if code == 0:
            break
    assert number > 15  # as many calls were tried


@pytest.mark.promise("71", "73")
@pytest.mark.parametrize("kind", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
def test_a_failing_disk_leaves_earlier_checkpoints_valid(kind: int, tmp_path: Path) -> None:
    def fail(disk: Disk) -> None:
        raise OSError(kind, os.strerror(kind))

    for number in itertools.count(1):
        folder = tmp_path / str(number)
        for step in (1, 2):
            write(folder, step)
        with Disk(number, fail).watched() as disk:
            raised = error_of(lambda folder=folder: write(folder, 3))
        assert raised in (None, kind)  # some calls are of a clean-up that may fail
        assert whole(folder)[-1] in (2, 3)
        assert len(whole(folder)) >= 2
        CheckpointStore(folder).remove_leftovers()
        write(folder, 4)
        assert whole(folder)[-1] == 4
        if disk.calls < number:
            break
    assert number > 15


def error_of(work: Callable[[], object]) -> int | None:
    """The number of the error that some work ends with."""
    try:
        work()
    except OSError as error:
        return error.errno
    return None


def flip(path: Path, place: float) -> None:
    """Change one bit."""
    raw = bytearray(path.read_bytes())
    raw[int(place * (len(raw) - 1))] ^= 4
    path.write_bytes(raw)


def swap(path: Path) -> None:
    """Take the file of another step."""
    shutil.copyfile(path.parent.with_name("checkpoint-1") / path.name, path)


def replace(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """Put something else in the place of a file."""

    def replaced(path: Path) -> None:
        path.unlink()
        make(path)

    return replaced


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "empty": lambda path: os.truncate(path, 0),
    "one byte": lambda path: os.truncate(path, 1),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "all but a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "a byte more": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "bit at the start": lambda path: flip(path, 0),
    "bit in the middle": lambda path: flip(path, 0.5),
    "bit at the end": lambda path: flip(path, 1),
    "a folder": replace(Path.mkdir),
    "a link": replace(
        lambda path: path.symlink_to(path.parent.parent / "checkpoint-1" / path.name)
    ),
    "a link to itself": replace(lambda path: path.symlink_to(path)),
    "a pipe": replace(os.mkfifo),
    "another step's": swap,
}


@pytest.mark.promise("74", "78")
@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_quarantined(
    name: str, damage: str, tmp_path: Path
) -> None:
    for step in (1, 2):
        write(tmp_path, step)
    DAMAGE[damage](tmp_path / "checkpoint-2" / name)
    said: list[str] = []
    signal.alarm(5)  # a pipe would wait for ever
    try:
        assert (
            CheckpointStore(tmp_path).latest_valid(notify=said.append) == tmp_path / "checkpoint-1"
        )
    finally:
        signal.alarm(0)
    if (name, damage) == (MANIFEST, "deleted"):  # never was one of ours
        assert (tmp_path / "checkpoint-2").is_dir()
        return
    (line,) = said
    assert f"checkpoint-2 is damaged ({name}" in line
    assert "continuing from step 1" in line
    assert (tmp_path / "checkpoint-2.bad").is_dir()
    assert not (tmp_path / "checkpoint-2").exists()


@pytest.mark.promise("75")
def test_any_flipped_bit_is_noticed(tmp_path: Path) -> None:
    write(tmp_path, 1)
    chance = random.Random(0)
    for _ in range(300):
        folder = tmp_path / "copy" / "checkpoint-1"
        shutil.copytree(tmp_path / "checkpoint-1", folder)
        path = folder / chance.choice([*FILES, MANIFEST])
        before = path.read_bytes()
        flip(path, chance.random())
        assert list(verify(folder))
        path.write_bytes(before)
        assert not list(verify(folder))
        shutil.rmtree(folder)


@pytest.mark.promise("79")
def test_a_run_never_starts_over_by_itself(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path, step)
        flip(tmp_path / f"checkpoint-{step}" / "state.json", 0.5)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="--fresh") as error:
            CheckpointStore(tmp_path).latest_valid()
        assert error.value.exit_code == 3
        assert len(error.value.problems) == 3
        assert "checkpoint-1: state.json is damaged" in error.value.problems[1]


@pytest.mark.promise("81")
def test_files_of_others_are_neither_read_nor_deleted(tmp_path: Path) -> None:
    others = ("checkpoint-abc", "checkpoint-400-copy", "checkpoint-0400", "checkpoint-7.old")
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    (tmp_path / "checkpoint-5").write_text("a file")
    (tmp_path / "checkpoint-6").mkdir()  # named as one of ours
    (tmp_path / "checkpoint-6" / "mine").write_text("mine")
    (tmp_path / "checkpoint-8").symlink_to(tmp_path / "checkpoint-6")
    for step in range(10, 15):
        write(tmp_path, step)
    found = CheckpointStore(tmp_path)
    found.remove_leftovers()
    assert found.latest_valid() == tmp_path / "checkpoint-14"
    left = {path.name for path in tmp_path.iterdir()} - {"checkpoint-13", "checkpoint-14"}
    assert left == {*others, "checkpoint-5", "checkpoint-6", "checkpoint-8"}
    assert (tmp_path / "checkpoint-6" / "mine").read_text() == "mine"


@pytest.mark.promise("T5")
def test_rotation_keeps_the_last_and_the_best_whatever_happens(tmp_path: Path) -> None:
    for seed in range(20):
        chance, folder = random.Random(seed), tmp_path / str(seed)
        step, best, limit = 0, None, chance.choice([1, 2, 3])
        for _ in range(30):
            event = chance.choice(["save", "save", "save", "best", "clock", "back", "stuck"])
            if event == "clock" and folder.is_dir():
                for path in folder.iterdir():
                    os.utime(path, (chance.randrange(10**9), chance.randrange(10**9)))
            if event == "back" and whole(folder):
                step = chance.choice(whole(folder))
            step += 1
            best = step if event == "best" else best
            with pytest.MonkeyPatch.context() as patch:
                if event == "stuck":
                    patch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
                write(folder, step, limit=limit, best=best)
            found = whole(folder)
            assert step in found
            assert best is None or best in found
            older = [n for n in found if n < step and n != best]
            assert len(older) <= limit
        CheckpointStore(folder).remove_leftovers()
        assert all(path.name.startswith("checkpoint-") for path in folder.iterdir())


def test_a_manifest_names_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret.json").write_text("{}")
    for name in (
        "../secret.json",
        "/etc/hostname",
        "a/b.json",
        "model.bin",
        "x.pkl",
        ".hidden.json",
    ):
        with pytest.raises(ValueError, match="name"):
            CheckpointStore(tmp_path).write(1, {name: lambda path: None})


@pytest.mark.promise("80")
def test_leftovers_of_a_killed_run_are_deleted(tmp_path: Path) -> None:
    write(tmp_path, 1)
    ours = {".partial-checkpoint-5", ".trash-checkpoint-3"}
    others = {".partial-mine", ".trash-checkpoint-x", ".partial-checkpoint-05", "checkpoint-1.bad"}
    for name in ours | others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("x")
    CheckpointStore(tmp_path).remove_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1"} | others


@pytest.mark.promise("84")
def test_a_run_with_only_links_as_checkpoints_does_not_start_over(tmp_path: Path) -> None:
    write(tmp_path, 1)
    (tmp_path / "checkpoint-1").rename(tmp_path / "big-disk")
    (tmp_path / "checkpoint-1").symlink_to(tmp_path / "big-disk")
    with pytest.raises(CheckpointError, match=r"checkpoint-1: is a link; move"):
        CheckpointStore(tmp_path).latest_valid()
    write(tmp_path, 2)
    assert CheckpointStore(tmp_path).latest_valid() == tmp_path / "checkpoint-2"


@pytest.mark.promise("81")
@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_anything_with_the_name_of_a_new_checkpoint_is_moved_away(
    kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint-2"
    if kind == "folder":
        path.mkdir()
        (path / "mine").write_text("mine")
    elif kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(tmp_path / "nowhere")
    write(tmp_path, 2)
    assert whole(tmp_path) == [2]
    assert os.path.lexists(tmp_path / "checkpoint-2.bad")


@pytest.mark.promise("T5")
def test_a_failed_deletion_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stuck(self: CheckpointStore, path: Path) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(CheckpointStore, "delete", stuck)
    for step in (1, 2, 3):
        write(tmp_path, step, limit=1)
    assert whole(tmp_path) == [1, 2, 3]


@pytest.mark.promise("T5")
def test_rotation_does_not_delete_later_steps(tmp_path: Path) -> None:
    for step in (1, 5, 6, 7):
        write(tmp_path, step, limit=None)
    write(tmp_path, 3, limit=1)
    assert whole(tmp_path) == [3, 5, 6, 7]


@pytest.mark.promise("T2")
def test_a_written_checkpoint_survives_a_power_cut(tmp_path: Path) -> None:
    with Disk(0, end).watched() as disk:
        write(tmp_path, 1, limit=None)
    disk.lose_power()
    assert whole(tmp_path) == [1]


@pytest.mark.promise("82")
def test_a_checkpoint_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    for step in (1, 2):
        write(tmp_path, step)
    path = tmp_path / "checkpoint-2" / MANIFEST
    manifest = {**json.loads(path.read_text()), "format": 2}
    del manifest["sha256"]
    path.write_text(manifest_text(manifest))
    with pytest.raises(MismatchError, match=r"checkpoint-2: has format 2, .* reads format 1"):
        CheckpointStore(tmp_path).latest_valid()
    assert path.exists()


@pytest.mark.promise("86")
def test_a_checkpoint_with_the_name_of_another_step_is_invalid(tmp_path: Path) -> None:
    write(tmp_path, 1)
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "checkpoint-9")
    said: list[str] = []
    assert CheckpointStore(tmp_path).latest_valid(notify=said.append) == tmp_path / "checkpoint-1"
    assert said == ["checkpoint-9 is damaged (manifest.json is of step 1); continuing from step 1"]


@pytest.mark.promise("S4")
def test_a_file_that_is_not_in_the_manifest_is_reported(tmp_path: Path) -> None:
    write(tmp_path, 1)
    for name in ("pytorch_model.bin", "optimizer.pt", ".hidden", "a\nb"):
        extra = tmp_path / "checkpoint-1" / name
        extra.write_bytes(b"x")
        (line,) = verify(tmp_path / "checkpoint-1")
        assert line == f"{name!r} is not one of its files"
        extra.unlink()


@pytest.mark.promise("76")
@pytest.mark.parametrize(
    "names", [[], ["state.json"], sorted(REQUIRED - {"optimizer.safetensors"})]
)
def test_a_manifest_without_a_required_file_is_invalid(names: list[str], tmp_path: Path) -> None:
    files = {name: lambda path: path.write_text("{}") for name in names}
    CheckpointStore(tmp_path).write(1, files)
    assert list(verify(tmp_path / "checkpoint-1"))


@pytest.mark.promise("71")
def test_a_full_disk_is_reported_with_numbers(tmp_path: Path) -> None:
    write(tmp_path, 1)

    def full(path: Path) -> None:
        path.write_bytes(b"x" * 999)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with pytest.raises(
        OSError, match=r"No space.*: a checkpoint needs about .* GB, .* GB are free"
    ):
        CheckpointStore(tmp_path).write(2, {"state.json": full})
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-1"}
