"""`hf-lm status` shows the state, progress and process of a run on one screen."""

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_lm.cli import main
from hf_lm.run_dir.lock import lock_directory
from hf_lm.workflows.status import status_json, status_rows


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """Copy a finished run."""
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def set_state(run: Path, state: str, reason: str = "") -> None:
    """Change the state in status.json."""
    text = json.dumps({"state": state, "reason": reason, "step": 8})
    (run / "status.json").write_text(text)


def test_a_finished_run_fits_on_one_screen(run: Path, capsys: Any) -> None:
    assert main(["status", str(run)]) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == str(run)
    values = {line.split("  ")[0].strip(): line.split("  ")[-1].strip() for line in lines}
    assert values["state"] == "done"
    assert values["step"].startswith("8 of 8 in 0:")
    assert values["checkpoints"].startswith("steps 4, 8; ")
    assert float(values["loss"]) > 0
    assert values["speed"].endswith("tokens per second")
    assert len(lines) < 20


def test_a_run_is_one_object_for_a_script(run: Path, capsys: Any) -> None:
    assert main(["status", str(run), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["state"], values["max_steps"], values["checkpoints"]) == ("done", 8, [4, 8])
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert values["last"]["step"] == 8
    assert values["last"]["loss"] == [row["loss"] for row in rows if "loss" in row][-1]
    set_state(run, "training")
    assert status_json(run)["state"] == "killed"
    with lock_directory(run):
        assert status_json(run)["state"] == "training"


@pytest.mark.promise("89")
def test_a_killed_run_is_not_shown_as_training(run: Path) -> None:
    set_state(run, "training")
    assert dict(status_rows(run))["state"] == "killed while training; the same command continues"
    with lock_directory(run):
        text = dict(status_rows(run))["state"]
    assert text.startswith(f"training, process {os.getpid()} on ")
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    holder = {"host": os.uname().nodename, "pid": child, "start": "then"}
    (run / ".lock").write_text(json.dumps(holder))
    assert dict(status_rows(run))["state"].startswith("killed while training")


def test_a_stopped_run_shows_the_reason_and_a_run_without_a_log_only_its_step(run: Path) -> None:
    set_state(run, "stopped", "stopped by SIGTERM")
    assert dict(status_rows(run))["state"] == "stopped: stopped by SIGTERM"
    (run / "log.jsonl").unlink()
    (run / "provenance.json").unlink()
    shutil.rmtree(run / "checkpoint-4")
    shutil.rmtree(run / "checkpoint-8")
    rows = dict(status_rows(run))
    assert rows["step"] == "0"
    assert rows["checkpoints"] == "none yet"
    assert "loss" not in rows


@pytest.fixture
def goes_on(run: Path) -> Iterator[Path]:
    """A run that is training, has another row after a second, and ends after two."""
    set_state(run, "training")

    def go_on() -> None:
        """Write what a run would write."""
        time.sleep(1)
        with (run / "log.jsonl").open("a") as log:
            log.write(json.dumps({"step": 9, "loss": 1.25, "tokens": 9 * 128, "seconds": 9.0}))
            log.write("\n")
        time.sleep(1)
        set_state(run, "done")

    thread = threading.Thread(target=go_on)
    with lock_directory(run):
        thread.start()
        yield run
        thread.join()


def test_a_run_is_watched_until_it_ends(goes_on: Path, capsys: Any) -> None:
    assert main(["status", str(goes_on), "--json", "--watch"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    states = [(values["state"], values["last"]["step"]) for values in shown]
    assert states == [("training", 8), ("training", 9), ("done", 9)]


def test_the_page_of_a_run_is_written_until_it_ends(goes_on: Path) -> None:
    pages = list[str]()
    writer = threading.Thread(target=main, args=(["report", str(goes_on), "--watch"],))
    writer.start()
    while writer.is_alive():
        if (goes_on / "report.html").exists():
            pages.append((goes_on / "report.html").read_text())
        time.sleep(0.05)
    assert 'http-equiv="refresh"' in pages[0]
    final = (goes_on / "report.html").read_text()
    assert 'http-equiv="refresh"' not in final
    assert "<p>done</p>" in final
    assert "9 of 8" in final


def test_a_folder_without_a_run_is_rejected(tmp_path: Path, capsys: Any) -> None:
    assert main(["status", str(tmp_path / "no")]) == 2
    assert "holds no run of hf_lm" in capsys.readouterr().err


def test_verify_names_the_damaged_file(run: Path, capsys: Any) -> None:
    assert main(["verify", str(run)]) == 0
    out = capsys.readouterr().out
    assert "checkpoint-4  valid" in out
    assert "checkpoint-8  valid" in out
    path = run / "checkpoint-8" / "optimizer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["verify", str(run)]) == 3
    shown = capsys.readouterr()
    assert "checkpoint-8  optimizer.safetensors is damaged" in shown.out
    assert "checkpoint-8: optimizer.safetensors is damaged" in shown.err
    assert main(["verify", str(run / "model")]) == 2
    assert "holds no checkpoint" in capsys.readouterr().err
