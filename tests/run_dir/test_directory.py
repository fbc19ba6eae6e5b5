"""Test the files of an output directory: status, recipe, provenance and log."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_lm.errors import MismatchError, RecipeError
from hf_lm.recipe import Recipe, load_recipe
from hf_lm.run_dir.compatibility import flatten
from hf_lm.run_dir.directory import RunDirectory, next_free_path
from hf_lm.run_dir.log import TrainingLog, json_line
from hf_lm.run_dir.provenance import describe_run

MACHINE = {"world_size": 1, "device": "cpu", "threads": 1, "precision": "fp32"}


def start_run(path: Path) -> tuple[RunDirectory, Recipe]:
    """Start a run, log one row and interrupt it."""
    recipe = load_recipe(path)
    folder = RunDirectory(recipe.folder)
    with (
        pytest.raises(KeyboardInterrupt),
        folder.track_status(recipe, describe_run("d1", "t1", MACHINE), ()),
    ):
        folder.log.append({"step": 3, "tokens": 10, "seconds": 1.5, "loss": float("nan")})
        raise KeyboardInterrupt
    return folder, recipe


def test_status_records_how_a_run_ended(write_recipe: Callable[..., Path]) -> None:
    folder, recipe = start_run(write_recipe())
    assert folder.read("status.json") == {
        "state": "stopped",
        "reason": "stopped by a signal",
        "step": 3,
    }
    provenance = describe_run("d1", "t1", MACHINE)
    with pytest.raises(ValueError, match="boom"), folder.track_status(recipe, provenance, ()):
        assert folder.read("status.json")["state"] == "preparing"
        raise ValueError("boom")
    assert folder.read("status.json")["reason"] == "ValueError: boom"
    with folder.track_status(recipe, provenance, ()):
        pass
    assert folder.is_complete
    assert folder.read("provenance.json")["packages"]["torch"]


@pytest.mark.promise("67")
def test_changed_recipe_is_refused_key_by_key(write_recipe: Callable[..., Path]) -> None:
    start_run(write_recipe())
    changed = load_recipe(
        write_recipe(training__learning_rate=0.5, model__n_layer=3, training__logging_steps=7)
    )
    with pytest.raises(MismatchError) as caught:
        RunDirectory(changed.folder).check_compatible(changed, ())
    lines = caught.value.problems
    assert any(line.endswith("model.n_layer was 2, is now 3") for line in lines)
    assert any(line.endswith("training.learning_rate was 0.01, is now 0.5") for line in lines)
    assert "--accept-change model.n_layer --accept-change training.learning_rate" in lines[-1]
    assert len(lines) == 3  # logging_steps cannot affect the weights
    accepted = ("model.n_layer", "training.learning_rate")
    assert RunDirectory(changed.folder).check_compatible(changed, accepted) == {
        "model.n_layer": "model.n_layer was 2, is now 3",
        "training.learning_rate": "training.learning_rate was 0.01, is now 0.5",
    }


def test_run_may_be_extended_but_not_shortened(write_recipe: Callable[..., Path]) -> None:
    start_run(write_recipe())
    longer = load_recipe(write_recipe(training__max_steps=20))
    allowed = RunDirectory(longer.folder).check_compatible(longer, ())
    assert allowed == {"training.max_steps": "training.max_steps was 8, is now 20"}
    shorter = load_recipe(write_recipe(training__max_steps=5))
    with pytest.raises(MismatchError):
        RunDirectory(shorter.folder).check_compatible(shorter, ())


@pytest.mark.promise("62", "97")
@pytest.mark.parametrize(
    ("provenance", "rule"),
    [
        (describe_run("d2", "t1", MACHINE), "data was d1, is now d2"),
        (describe_run("d1", "t2", MACHINE), "tokenizer was t1, is now t2"),
        (describe_run("d1", "t1", {**MACHINE, "world_size": 2}), "world_size was 1, is now 2"),
    ],
)
def test_changed_data_tokenizer_or_processes_are_refused(
    provenance: dict[str, Any], rule: str, write_recipe: Callable[..., Path]
) -> None:
    folder, recipe = start_run(write_recipe())
    with pytest.raises(MismatchError, match=rule), folder.track_status(recipe, provenance, ()):
        pytest.fail("the run must not begin")
    name = "data.source" if "data" in rule else rule.split()[0]
    with folder.track_status(recipe, provenance, (name,)):
        pass
    assert name in folder.read("provenance.json")["accepted_changes"]


@pytest.mark.promise("68", "69")
def test_directory_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.doc").write_text("years")
    with pytest.raises(RecipeError, match="is not empty and holds no run"):
        RunDirectory(tmp_path / "other").check_owner()
    with pytest.raises(RecipeError, match="is a file; name a folder"):
        RunDirectory(tmp_path / "other" / "thesis.doc").check_owner()
    RunDirectory(tmp_path / "new").check_owner()


@pytest.mark.promise("71")
def test_directory_with_a_status_file_only_is_ours(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path)
    folder.write_status("failed", reason="No space left on device")
    folder.check_owner()
    assert not folder.is_started
    (tmp_path / "status.json").write_text('{"mine": 1}')
    with pytest.raises(RecipeError, match="is not empty and holds no run"):
        folder.check_owner()


def test_rows_are_valid_json_without_nan() -> None:
    row = {"loss": float("nan"), "a": [float("inf"), {"b": -float("inf")}], "c": 1.5}
    parsed = json.loads(json_line(row), parse_constant=pytest.fail)
    assert parsed == {"loss": "NaN", "a": ["Infinity", {"b": "-Infinity"}], "c": 1.5}


def test_truncated_log_has_no_rows_after_the_step(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "log.jsonl")
    rows = [{"step": n, "seconds": n / 2} for n in (2, 4, 6)]
    text = "".join(map(json_line, rows))
    (tmp_path / "log.jsonl").write_text(text + '{"step": 8, "sec')
    log.truncate(4)
    assert log.step == 4
    assert list(log.rows()) == rows[:2]
    log.append({"step": 0})
    log.truncate(None)  # the run starts over, and writes a row of step 0 again
    assert log.step == 0
    assert list(log.rows()) == []


def test_fresh_run_gets_the_next_free_name(tmp_path: Path) -> None:
    assert next_free_path(tmp_path / "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").mkdir()
    assert next_free_path(tmp_path / "a") == tmp_path / "a-3"


def test_only_the_main_process_writes(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("RANK", "1")
    folder = RunDirectory(tmp_path)
    folder.write("status.json", {})
    folder.log.truncate(0)
    folder.save_model(lambda path: path.mkdir())
    assert list(tmp_path.iterdir()) == []


def test_nested_keys_become_dotted_ones() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
