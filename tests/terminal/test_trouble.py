"""A run that does not go as it should says so, once, and one that does says nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_lm.run import main
from hf_lm.terminal import trouble
from hf_lm.terminal.trouble import TroubleNotes, find_trouble

Row = dict[str, Any]


def history(
    loss: Callable[[int], float],
    *,
    steps: int = 1_000,
    grad_norm: Callable[[int], float] = lambda step: 1.0,
    evaluation: Callable[[int], float] | None = None,
) -> list[Row]:
    """A row of training every 5 steps and one of an evaluation every 100."""
    rows = list[Row]()
    for step in range(5, steps + 1, 5):
        rows.append({"step": step, "loss": loss(step), "grad_norm": grad_norm(step)})
        if evaluation and step % 100 == 0:
            rows.append({"step": step, "eval_loss": evaluation(step)})
    return rows


def kinds(rows: list[Row], max_steps: int = 1_000) -> list[tuple[str, int]]:
    """The first step of each kind of trouble."""
    found = dict[str, int]()
    for end in range(1, len(rows) + 1):
        for kind, _ in find_trouble(rows[:end], max_steps):
            found.setdefault(kind, rows[end - 1]["step"])
    return [*found.items()]


def falling(step: int) -> float:
    """A loss that falls as usual."""
    return 8 * step**-0.1


def test_a_run_that_goes_well_says_nothing() -> None:
    assert kinds(history(falling, evaluation=falling)) == []


@pytest.mark.parametrize("lowest", [200, 500])
def test_a_validation_loss_that_rises_is_told_at_the_second_evaluation(lowest: int) -> None:
    rows = history(falling, evaluation=lambda step: 4 + abs(step - lowest) / 1_000)
    assert kinds(rows) == [("rise", lowest + 200)]
    text = next(find_trouble(rows, 1_000))[1]
    assert f"from 4.000 at step {lowest} to {4 + (1000 - lowest) / 1000:.3f}" in text


def test_a_validation_loss_that_rises_with_the_training_loss_is_not_overfitting() -> None:
    rows = history(lambda step: 4 + step / 1_000, evaluation=lambda step: 4 + step / 1_000)
    assert kinds(rows) == [("flat", 150)]


def test_a_loss_that_does_not_fall_is_told_in_the_first_half_only() -> None:
    assert kinds(history(lambda step: 5.0)) == [("flat", 150)]
    assert kinds(history(lambda step: falling(min(step, 600)))) == []


def test_a_gradient_norm_that_grows_is_told() -> None:
    rows = history(falling, grad_norm=lambda step: 1.0 if step < 400 else (step - 350) / 10)
    assert [kind for kind, _ in kinds(rows)] == ["growth"]


def test_few_rows_say_nothing() -> None:
    assert kinds(history(lambda step: 5.0, steps=40), max_steps=40) == []


def test_each_kind_is_told_once_and_flat_not_of_pretrained_weights(tmp_path: Path) -> None:
    notes = dict[bool, list[str]]()
    for pretrained in (False, True):
        notes[pretrained] = []
        callback = TroubleNotes(notes[pretrained].append, pretrained=pretrained)
        state = TrainerState(max_steps=1_000)
        args = TrainingArguments(output_dir=str(tmp_path), report_to="none")
        for row in history(lambda step: 5.0):
            state.log_history.append(row)
            state.global_step = row["step"]
            callback.on_log(args, state, TrainerControl())
    assert len(notes[False]) == 1
    assert "the loss is as before since step" in notes[False][0]
    assert notes[True] == []


def test_the_log_is_looked_at_a_hundred_times_and_after_evaluations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = list[int]()

    def look(rows: list[Row], max_steps: int) -> list[tuple[str, str]]:
        """Note the step of a look, and find nothing."""
        steps.append(rows[-1]["step"])
        return []

    monkeypatch.setattr(trouble, "find_trouble", look)
    callback = TroubleNotes(lambda note: None, pretrained=False)
    state = TrainerState(max_steps=2_000)
    args = TrainingArguments(output_dir=str(tmp_path), report_to="none")
    for row in history(falling, steps=2_000, evaluation=falling):
        state.log_history.append(row)
        state.global_step = row["step"]
        callback.on_log(args, state, TrainerControl())
    assert steps == sorted([*range(20, 2_001, 20), *range(100, 2_001, 100)])


def test_a_run_that_learns_its_text_by_heart_says_so(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {
        "data__source": "corpus/00*.txt",
        "data__fresh_blocks": False,
        "model__n_embd": 64,
        "training__max_steps": 200,
        "training__logging_steps": 5,
        "training__eval_steps": 40,
        "training__save_steps": 200,
    }
    assert main([str(write_recipe(**changes))]) == 0
    assert "note: the validation loss has risen from" in capsys.readouterr().out
