"""Minutes become a number of steps, which a run keeps."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from hf_lm.errors import MismatchError, RecipeError
from hf_lm.planning.budget import Timing, steps_in
from hf_lm.recipe import TrainingRecipe, load_recipe
from hf_lm.run import train
from hf_lm.run_dir import directory
from hf_lm.workflows import reproduce
from hf_lm.workflows import train as train_workflow
from hf_lm.workflows.check import check

MINUTES = {"training__max_steps": None, "training__max_minutes": 2.0}


def training(**keys: Any) -> TrainingRecipe:
    """The section of a run of some minutes."""
    return TrainingRecipe.model_validate_json(json.dumps({"max_minutes": 1, **keys}))


@given(
    minutes=st.floats(0.5, 1_000),
    step=st.floats(0.01, 5),
    evaluation=st.floats(0, 1),
    eval_steps=st.sampled_from([0.1, 0.5, 7, 100]),
)
def test_the_steps_fill_the_minutes_with_their_evaluations(
    minutes: float, step: float, evaluation: float, eval_steps: float
) -> None:
    recipe = training(max_minutes=minutes, eval_steps=eval_steps)
    steps = steps_in(recipe, Timing(step, evaluation))
    evaluations = 1 / eval_steps if eval_steps < 1 else steps / eval_steps
    seconds = steps * step + evaluations * evaluation
    assert 60 * minutes - step - evaluation <= seconds <= 60 * minutes + 1e-6


def test_checkpoints_count() -> None:
    assert steps_in(training(save_steps=10), Timing(1.0, save=10.0)) == 30
    assert steps_in(training(save_steps=0.5), Timing(1.0, save=10.0)) == 40


def test_minutes_that_are_too_short_name_the_times_and_the_keys() -> None:
    with pytest.raises(RecipeError, match=r"max_minutes = 1: is too short: a step takes 2 s"):
        steps_in(training(), Timing(2.0, evaluation=6.0))


@pytest.fixture
def timing(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Return a function that sets the seconds of a step, in place of a trial."""

    def set_timing(seconds: float) -> None:
        """Let every trial from now on find this speed."""
        monkeypatch.setattr(train_workflow, "time_parts", lambda context: Timing(seconds))

    return set_timing


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of the saved model."""
    return load_file(folder / "model" / "model.safetensors")


def assert_same_weights(first: Path, second: Path) -> None:
    """Check that two runs ended in the same bits."""
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_of_minutes_ends_in_the_bits_of_a_run_of_its_steps(
    streaming: bool,
    write_recipe: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The trial is a real one; only its result is replaced, by six steps."""
    trials = list[Timing]()
    measure = train_workflow.time_parts

    def measured(context: Any) -> Timing:
        """Measure, and claim that a step takes 20 seconds."""
        trials.append(measure(context))
        return Timing(20.0)

    monkeypatch.setattr(train_workflow, "time_parts", measured)
    monkeypatch.setattr("hf_lm.training.callbacks.TRIAL_SECONDS", 0.1)
    changes = {"model__dropout": 0.1, "data__streaming": streaming}
    train(load_recipe(write_recipe(output_dir="minutes", **MINUTES, **changes)))
    train(load_recipe(write_recipe(output_dir="steps", training__max_steps=6, **changes)))
    assert_same_weights(tmp_path / "minutes", tmp_path / "steps")
    (found,) = trials
    assert 0 < found.step < 5
    assert 0 < found.evaluation < 60
    provenance = json.loads((tmp_path / "minutes" / "provenance.json").read_text())
    assert provenance["max_steps"] == 6
    recipe = json.loads((tmp_path / "minutes" / "recipe.json").read_text())
    assert recipe["training"]["max_minutes"] == 2.0


def test_a_run_that_continues_on_a_slower_machine_keeps_its_steps(
    write_recipe: Callable[..., Path],
    undo_end: Callable[[Path, int], None],
    timing: Callable[[float], None],
    tmp_path: Path,
) -> None:
    changes = {**MINUTES, "training__save_steps": 4, "training__save_total_limit": None}
    timing(10.0)
    for name in ("whole", "broken"):
        path = write_recipe(output_dir=name, **changes)
        train(load_recipe(path))
    undo_end(tmp_path / "broken", 12)
    timing(40.0)
    train(load_recipe(path))
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    with pytest.raises(MismatchError, match=r"training\.max_minutes was 2\.0, is now 1\.0"):
        train(load_recipe(path, overrides=["training.max_minutes=1.0"]))
    train(load_recipe(path, overrides=["training.max_minutes=16.0"]))  # more of them are allowed
    provenance = json.loads((tmp_path / "broken" / "provenance.json").read_text())
    assert provenance["max_steps"] == 24


def test_a_published_run_of_minutes_is_reproduced_with_its_steps(
    write_recipe: Callable[..., Path],
    timing: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    timing(20.0)
    train(load_recipe(write_recipe(**MINUTES)))
    run = tmp_path / "run"
    raw = json.loads((run / "recipe.json").read_text())
    monkeypatch.setattr(reproduce, "fetch_recipe", lambda name: raw)
    monkeypatch.setattr(reproduce, "fetch_file", lambda name, file: run / file)
    recipe = reproduce.reproduction_recipe("hub:USER/MODEL", [])
    assert (recipe.training.max_steps, recipe.training.max_minutes) == (6, None)


def test_a_check_says_that_a_trial_comes(write_recipe: Callable[..., Path]) -> None:
    result = check(load_recipe(write_recipe(**MINUTES)))
    row = dict(result.rows)["training"]
    assert row == "as many steps as 2 minutes have, which is not known yet"


def test_a_disk_too_small_for_the_checkpoints_of_its_minutes_is_refused(
    write_recipe: Callable[..., Path],
    timing: Callable[[float], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """One checkpoint and the model would fit; six checkpoints come in twelve steps."""
    timing(10.0)
    disk = SimpleNamespace(total=10**9, used=0, free=10**6)
    monkeypatch.setattr(directory.shutil, "disk_usage", lambda path: disk)
    keys = {"training__save_steps": 2, "training__save_total_limit": None, **MINUTES}
    with pytest.raises(RecipeError, match=r"checkpoints and model need about 0\.0011 GB"):
        train(load_recipe(write_recipe(**keys)))
    assert not (tmp_path / "run" / "provenance.json").exists()


def test_a_run_has_one_end(write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"training\.max_minutes.*cannot be combined with max_st"):
        load_recipe(write_recipe(training__max_minutes=2.0))
