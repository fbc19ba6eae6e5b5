"""Test fsync, atomic replacement and operating-system errors."""

import errno
import os
from pathlib import Path

import pytest

from hf_lm.system import files
from hf_lm.system.files import (
    fsync,
    json_safe,
    replace_directory,
    unwrap_os_errors,
    write_atomically,
)


def test_replaced_file_has_the_new_text_and_no_staging_file_remains(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_failed_write_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    write_atomically(path, "old")

    def fail(path: Path) -> bool:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_replaced_directory_has_only_the_new_files(durable: bool, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model"
    for name in ("first", "second"):
        (leftover := folder.with_name(".model.partial")).mkdir(parents=True)
        (leftover / "leftover").touch()
        with replace_directory(folder, durable=durable) as staging:
            assert list(staging.iterdir()) == []
            (staging / name).touch()
            assert not (folder / name).exists()
        assert [path.name for path in folder.iterdir()] == [name]
    assert list(folder.parent.iterdir()) == [folder]


def test_error_while_a_directory_is_filled_keeps_the_old_directory(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()
    with pytest.raises(ValueError, match="half"), replace_directory(folder) as staging:
        (staging / "new").touch()
        raise ValueError("half")
    assert [path.name for path in folder.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [folder]


def test_durable_directory_is_flushed_before_and_after_its_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, flushed = tmp_path / "model", []

    def record(path: Path) -> bool:
        flushed.append((path.name, folder.exists()))
        return True

    monkeypatch.setattr(files, "fsync", record)
    with replace_directory(folder, staging=tmp_path / ".model", durable=True) as staging:
        (staging / "weights").touch()
    assert flushed == [("weights", False), (".model", False), (tmp_path.name, True)]


def test_fsync_error_is_raised_unless_the_file_system_has_no_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for code in (errno.EINVAL, errno.EIO):

        def fail(handle: int, code: int = code) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", fail)
        if code == errno.EINVAL:
            assert not fsync(tmp_path)
        else:
            with pytest.raises(OSError, match="Input/output error"):
                fsync(tmp_path)


def test_os_error_in_the_text_of_a_library_is_raised_as_oserror() -> None:
    with pytest.raises(OSError, match="No space left") as caught, unwrap_os_errors("model"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "model")
    with pytest.raises(RuntimeError, match="shape"), unwrap_os_errors("model"):
        raise RuntimeError("wrong shape")


def test_json_safe_replaces_non_finite_numbers() -> None:
    assert json_safe({"a": [float("nan"), 1.5], "b": -float("inf")}) == {
        "a": ["NaN", 1.5],
        "b": "-Infinity",
    }
