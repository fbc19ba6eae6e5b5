"""Errors that nobody foresaw are one line, and their traceback is in a file."""

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_lm.errors import DataError, RecipeError
from hf_lm.run import main
from hf_lm.terminal.exit_code import run_command, unexpected_as_error
from hf_lm.terminal.streams import SafeStream


def fail() -> None:
    """Fail in a way that nobody foresaw."""
    raise ZeroDivisionError("by\nzero")


def test_an_unexpected_error_is_one_line_with_the_file_of_its_traceback(capsys: Any) -> None:
    assert run_command(fail) == 1
    (line,) = capsys.readouterr().err.splitlines()
    found = re.fullmatch(
        r"hf_lm: ZeroDivisionError: by zero; nobody foresaw this, please report it: "
        r"its traceback is in (.+\.txt)",
        line,
    )
    assert found
    path = Path(found[1])
    assert "in fail\n" in path.read_text()
    path.unlink()


def test_the_traceback_is_in_the_folder_of_the_run(tmp_path: Path, capsys: Any) -> None:
    def command() -> None:
        with unexpected_as_error(tmp_path):
            fail()

    assert run_command(command, show_traceback=True) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1].endswith(f"its traceback is in {tmp_path}/traceback.txt")
    assert (tmp_path / "traceback.txt").read_text().endswith("ZeroDivisionError: by\nzero\n")


def test_an_unexpected_error_in_a_run_names_the_place_in_the_package(
    write_recipe: Any, monkeypatch: Any, capsys: Any
) -> None:
    from hf_lm.workflows import stages

    def broken(*arguments: object, **keys: object) -> None:
        raise TypeError("unhashable")

    path = write_recipe()
    monkeypatch.setattr(stages, "load_blocks", broken)
    assert main([str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("hf_lm/run.py, train: TypeError: unhashable; nobody foresaw this")
    assert main([str(path), "--traceback"]) == 1
    assert "in broken" in capsys.readouterr().err


@pytest.mark.parametrize("error", [DataError("a.txt: is empty"), RecipeError("model: is bad")])
def test_foreseen_errors_stay_as_they_are(error: Exception, capsys: Any) -> None:
    def command() -> None:
        raise error

    assert run_command(command) == 2
    assert capsys.readouterr().err == f"{error}\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_characters_that_a_console_lacks_are_replaced_and_nothing_stops(
    encoding: str, monkeypatch: Any
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    stream = SafeStream("stdout")
    stream.write("good \u2713 ")
    stream.write("and on")
    assert raw.getvalue() == b"good ? and on"
