"""What is not finite, leaps or counts nothing stays out of weights and means, or ends a run."""

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainers import TRAINING, T, make_blocks, make_model, make_trainer, same

from hf_lm.checkpoints.state import model_state, optimizer_state
from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.data.collator import collate
from hf_lm.errors import NonFiniteError
from hf_lm.model.loss import IGNORE_INDEX
from hf_lm.training.optimizer import build_optimizer
from hf_lm.training.skip_step import APPLIED, EMPTY, NONFINITE, SPIKE, WINDOW, StepGuard

KINDS = ("muon", "adamw", "adam", "sgd")


def spoiled(trainer: Any, steps: Sequence[int], factor: float) -> None:
    """Multiply the gradient in some steps, counted from 1."""
    trainer.model.transformer.h[0].mlp.c_fc.weight.register_hook(
        lambda grad: grad * factor if trainer.state.global_step + 1 in steps else grad
    )


def numbered(rows: Any) -> Any:
    """Batches that say which blocks they are of."""
    return collate([{**row, "number": int(row["input_ids"].sum())} for row in rows], numbered=True)


@pytest.mark.promise("99")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lag", [0, 1])
def test_a_nonfinite_step_within_the_limit_changes_nothing(
    kind: str, lag: int, tmp_path: Path
) -> None:
    update = {"optimizer": kind, "matrix_learning_rate": 0.01, "logging_steps": 4, "save_steps": 8}
    recipe = TRAINING.model_copy(update=update)
    rows: list[dict[str, Any]] = []
    trainer = make_trainer(tmp_path, rows, recipe=recipe, max_nonfinite_steps=2, collator=numbered)
    trainer.guard = StepGuard(lag=lag)
    before: dict[str, Any] = {}
    spoiled(trainer, (6, 7), float("nan"))

    class Look(type(trainer.stopping)):
        """Takes down the state behind steps 5 and 7."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            weights, moments = model_state(trainer.model), optimizer_state(trainer.optimizer)
            before[state.global_step] = {**weights, **moments}

    trainer.add_callback(Look(trainer.all_reduce_max))
    trainer.train_from(None)
    assert same(before[5], before[7])
    assert not same(before[7], before[8])
    assert trainer.guard.counts == {"nonfinite": 2, "spike": 0, "empty": 0}
    skipped = [row for row in rows if "skipped" in row]
    assert [(row["step"], row["skipped"], len(row["blocks"])) for row in skipped] == [
        (6, "nonfinite", 8),
        (7, "nonfinite", 8),
    ]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    assert [*losses] == [4, 8, 12, 16, 20]
    assert all(math.isfinite(loss) for loss in losses.values())
    assert losses[8] == pytest.approx(losses[4], rel=0.2)  # a mean of two, not of four


@pytest.mark.promise("99")
def test_one_nonfinite_step_too_many_ends_the_run_with_details(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    trainer = make_trainer(tmp_path, rows, max_nonfinite_steps=1, collator=numbered)
    spoiled(trainer, (6, 9), float("inf"))
    with pytest.raises(NonFiniteError) as caught:
        trainer.train_from(None)
    assert caught.value.exit_code == 5
    text = str(caught.value)
    assert "step 9: the loss or its gradient is NaN or infinite at learning rate 0.0" in text
    last = next(row for row in reversed(rows) if "loss" in row and row["step"] == 8)
    assert f"the last finite loss was {last['loss']:.4f}, at step 8" in text
    (blocks,) = [row["blocks"] for row in rows if row["step"] == 9 and "loss" in row]
    assert f"the batch has the blocks {', '.join(map(str, blocks))}" in text
    assert "training.skip_nonfinite_steps" in text
    assert math.isnan(rows[-1]["loss"])
    steps = CheckpointStore(tmp_path).steps()
    assert max(steps) == 8
    for step in steps:  # promise 7
        from safetensors.torch import load_file

        for name in ("model", "optimizer"):
            tensors = load_file(tmp_path / f"checkpoint-{step}" / f"{name}.safetensors")
            assert all(torch.isfinite(value).all() for value in tensors.values())


@pytest.mark.promise("99")
def test_a_diverging_run_ends_with_finite_weights(tmp_path: Path) -> None:
    """The real thing, in place of a NaN that was put there."""
    recipe = TRAINING.model_copy(update={"learning_rate": 1e20, "optimizer": "sgd"})
    trainer = make_trainer(tmp_path, [], recipe=recipe)
    with pytest.raises(NonFiniteError):
        trainer.train_from(None)
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


@pytest.mark.promise("99")
def test_the_limit_of_nonfinite_steps_is_kept_across_resumes(tmp_path: Path) -> None:
    recipe = TRAINING.model_copy(update={"save_steps": 4})
    trainer = make_trainer(tmp_path, [], recipe=recipe, max_nonfinite_steps=1)
    spoiled(trainer, (3, 7), float("nan"))
    for _ in range(2):
        with pytest.raises(NonFiniteError, match="step 7"):
            trainer.train_from(CheckpointStore(tmp_path).latest_valid())
        trainer = make_trainer(tmp_path, [], recipe=recipe, max_nonfinite_steps=1)
        spoiled(trainer, (7,), float("nan"))


@pytest.mark.promise("100")
def test_a_batch_without_targets_is_skipped_and_counted(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []

    def emptied(block_rows: Any) -> Any:
        """No target in the fifth batch."""
        batch, number = collate(block_rows), len(made) + 1
        made.append(number)
        if number == 5:
            batch["shift_labels"] = torch.full_like(batch["shift_labels"], IGNORE_INDEX)
        return batch

    made: list[int] = []
    trainer = make_trainer(tmp_path, rows, collator=emptied)
    trainer.train_from(None)
    assert trainer.guard.counts == {"nonfinite": 0, "spike": 0, "empty": 1}
    assert [row["step"] for row in rows if row.get("skipped") == "empty"] == [5]
    assert trainer.state.num_input_tokens_seen == 19 * 8 * T
    assert all(torch.isfinite(weight).all() for weight in trainer.model.parameters())


def watched(guard: StepGuard, loss: float, norm: float, items: int = 8) -> int:
    """What becomes of a step."""
    kind = guard.check_step(
        torch.tensor(loss),
        torch.tensor(norm),
        items=items,
        number=1,
        rate=0.1,
        blocks=(),
        optimizer=type("Optimizer", (), {})(),
    )
    return int(kind)


@pytest.mark.promise("99")
def test_an_outlier_among_the_last_128_losses_or_norms_is_a_spike() -> None:
    guard, chance = StepGuard(lag=0, spike_threshold=6.0), np.random.default_rng(0)
    assert watched(guard, 1e3, 1e3) == APPLIED  # there is nothing to judge by yet
    for _ in range(WINDOW):
        assert watched(guard, chance.normal(3, 0.1), chance.normal(1, 0.1)) == APPLIED
    history = guard.history.clone()
    assert watched(guard, 3.4, 1.0) == APPLIED
    guard.history = history
    assert watched(guard, 4.0, 1.0) == SPIKE
    assert watched(guard, 3.0, 2.0) == SPIKE
    assert watched(guard, float("nan"), 1.0) == NONFINITE
    assert watched(guard, float("nan"), float("nan"), items=0) == EMPTY  # 0/0
    assert torch.equal(guard.history, history)  # what is left out judges nothing
    guard.skipped_steps()
    assert guard.counts == {"nonfinite": 1, "spike": 2, "empty": 1}
    again = StepGuard(lag=0, spike_threshold=6.0)
    again.load_state_dict(guard.state_dict())
    assert torch.equal(again.history, guard.history)
    assert watched(again, 4.0, 1.0) == SPIKE
    off = StepGuard(lag=0)
    off.history = history
    assert watched(off, 1e9, 1e9) == APPLIED


@pytest.mark.promise("99")
def test_a_spike_in_training_is_skipped(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    recipe = TRAINING.model_copy(update={"max_steps": 140, "learning_rate": 1e-4})
    blocks = make_blocks(8 * 140)
    trainer = make_trainer(tmp_path, rows, recipe=recipe, spike_threshold=6.0, blocks=blocks)
    spoiled(trainer, (20, 135), 1e4)
    trainer.train_from(None)
    assert [row["step"] for row in rows if row.get("skipped") == "spike"] == [135]


def test_a_step_is_reported_with_its_own_blocks(tmp_path: Path) -> None:
    """Whatever reads ahead."""
    recipe = TRAINING.model_copy(update={"max_steps": 4})
    blocks = make_blocks()
    seen: list[tuple[list[int], torch.Tensor]] = []
    model = make_model()

    def look(module: Any, args: Any, given: dict[str, Any]) -> None:
        seen.append((trainer.blocks, given["input_ids"]))

    model.register_forward_pre_hook(look, with_kwargs=True)
    collator = partial(collate, numbered=True)
    trainer = make_trainer(
        tmp_path, [], recipe=recipe, model=model, blocks=blocks, collator=collator
    )
    trainer.train_from(None)
    assert len(seen) == 4
    for numbers, ids in seen:
        rows = blocks.__getitems__(numbers)
        assert [row["number"] for row in rows] == numbers
        assert np.array_equal(np.stack([row["input_ids"][:-1] for row in rows]), ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("loss", [3.0, 300.0])
def test_a_spike_is_skipped_where_a_grad_scaler_decides_about_infinities(
    kind: str, lag: int, loss: float
) -> None:
    model = make_model()
    recipe = TRAINING.model_copy(update={"optimizer": kind, "matrix_learning_rate": 0.01})
    optimizer = build_optimizer(model, recipe=recipe)
    guard = StepGuard(lag=lag, spike_threshold=4.0)
    guard.history = torch.stack([torch.linspace(2.9, 3.1, WINDOW)] * 2, dim=1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = model_state(model)
    before = {name: weight.clone() for name, weight in before.items()}
    ids = torch.arange(T)[None]
    scaler.scale(model(input_ids=ids, labels=ids).loss).backward()
    scaler.unscale_(optimizer)
    kind_of_step = guard.check_step(
        torch.tensor(loss), None, items=8, number=1, rate=0.1, blocks=[], optimizer=optimizer
    )
    scaler.step(optimizer)
    scaler.update()
    assert kind_of_step == (SPIKE if loss > 100 else APPLIED)
    assert same(before, model_state(model)) == (loss > 100)
