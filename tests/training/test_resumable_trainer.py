"""A run continued from any of its checkpoints ends in the bits of one that was never stopped."""

import errno
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from trainers import (
    RESUME_STEPS,
    Stop,
    continued,
    make_model,
    make_trainer,
    same,
    state_of,
    stopped,
    trainer_of,
)
from transformers import AutoModelForCausalLM

from hf_lm.checkpoints.manifest import RNG_STATE, WEIGHTS
from hf_lm.checkpoints.state import parameter_names, restore_optimizer
from hf_lm.checkpoints.store import CheckpointStore
from hf_lm.checkpoints.validation import state_of_rank
from hf_lm.errors import CheckpointError, MismatchError

AXES: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulated": {"micro": 2, "accumulation": 3},
    "several epochs": {"blocks": 20},
    "last batch smaller": {"blocks": 21, "micro": 4},
    "dropout": {"dropout": 0.2},
    "a save every step": {"save_steps": 1},
    "evaluated between": {"eval_steps": 2},
    "muon": {"optimizer": "muon", "matrix_learning_rate": 0.01},
    "sgd": {"optimizer": "sgd"},
    "workers": {"dataloader_num_workers": 2},
    "early stopping": {"early_stopping_patience": 5, "eval_steps": 3, "save_steps": 3},
}


@pytest.mark.promise("T1")
@pytest.mark.parametrize("name", AXES)
def test_a_resumed_run_ends_in_the_same_bits(name: str, tmp_path: Path) -> None:
    axis = AXES[name]
    continued(tmp_path / "whole", axis)
    expected = state_of(tmp_path / "whole")
    for step in (4, 7):
        folder = tmp_path / f"{step}"
        stopped(folder, axis, step)
        assert CheckpointStore(folder).latest_valid()
        continued(folder, axis)
        assert same(state_of(folder), expected), step


@pytest.mark.promise("T1")
def test_a_run_can_be_stopped_many_times(tmp_path: Path) -> None:
    axis = AXES["dropout"]
    continued(tmp_path / "whole", axis)
    for step in (4, 4, 5, 7):
        stopped(tmp_path / "run", axis, step)
    continued(tmp_path / "run", axis)
    assert same(state_of(tmp_path / "run"), state_of(tmp_path / "whole"))


@pytest.mark.promise("74")
def test_a_damaged_checkpoint_costs_only_its_steps(tmp_path: Path) -> None:
    continued(tmp_path / "whole", {})
    stopped(tmp_path / "run", {}, 7)
    weights = tmp_path / "run" / "checkpoint-6" / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1])
    continued(tmp_path / "run", {})
    assert same(state_of(tmp_path / "run"), state_of(tmp_path / "whole"))


def test_a_checkpoint_is_read_by_transformers(tmp_path: Path) -> None:
    trainer = continued(tmp_path, {})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / f"checkpoint-{RESUME_STEPS}")
    assert model.config.use_cache
    for (name, value), other in zip(
        model.state_dict().items(), trainer.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


@pytest.mark.promise("S3")
def test_a_checkpoint_holds_nothing_pickled(tmp_path: Path) -> None:
    stopped(tmp_path, {}, 4)
    names = {path.name for path in (tmp_path / "checkpoint-3").iterdir()}
    assert {Path(name).suffix for name in names} == {".json", ".safetensors"}
    assert RNG_STATE in names


@pytest.mark.promise("71")
@pytest.mark.parametrize(
    ("full", "left", "end"),
    [
        ({3}, [6, 9], RESUME_STEPS),
        ({6, 9}, [3], RESUME_STEPS),
        ({3, 6}, [], 6),
        ({9}, [3, 6], RESUME_STEPS),
    ],
)
def test_a_failed_save_is_retried_at_the_next_one(
    full: set[int], left: list[int], end: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written behind training, it is known to have failed at the next one, or at the end."""
    trainer, said, write = trainer_of(tmp_path, {}), list[str](), CheckpointStore.write
    trainer.writer.notify = said.append

    def fail(self: CheckpointStore, step: int, *args: Any, **options: Any) -> Path:
        if step in full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, step, *args, **options)

    monkeypatch.setattr(CheckpointStore, "write", fail)
    if full == {3}:
        trainer.train_from(None)
    else:
        with pytest.raises(OSError, match="No space left on device"):
            trainer.train_from(None)
    assert trainer.state.global_step == end
    assert CheckpointStore(tmp_path).steps() == left
    note = "checkpoint-3 was not written, checkpoint-6 was: [Errno 28] No space left on device"
    assert said == ([note] if full == {3} else [])


@pytest.mark.promise("89")
def test_a_run_killed_before_a_deletion_deletes_later(tmp_path: Path) -> None:
    continued(tmp_path, {})
    assert CheckpointStore(tmp_path).steps() == [3, 6, 9]
    continued(tmp_path, {"save_total_limit": 1})
    assert CheckpointStore(tmp_path).steps() == [9]


@pytest.mark.promise("83")
def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    stopped(tmp_path, {}, 4)
    trainer = make_trainer(tmp_path, [], model=make_model("qwen3"))
    with pytest.raises(MismatchError, match=r"checkpoint-3: holds another model"):
        trainer.train_from(tmp_path / "checkpoint-3")


@pytest.mark.promise("88")
def test_a_missing_best_checkpoint_is_an_error(tmp_path: Path) -> None:
    axis = {"eval_steps": 3, "save_steps": 3, "load_best_model_at_end": True}
    continued(tmp_path, axis)
    (tmp_path / "checkpoint-3" / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-3: holds the best model, and model"):
        continued(tmp_path, axis)


def test_a_changed_learning_rate_is_used_when_resuming(tmp_path: Path) -> None:
    """The stock Trainer takes the checkpoint's, without a word."""
    stopped(tmp_path, {}, 7)
    rows: list[dict[str, Any]] = []
    trainer = trainer_of(tmp_path, {"learning_rate": 0.5, "weight_decay": 0.3}, rows=rows)
    trainer.train_from(CheckpointStore(tmp_path).latest_valid())
    before: list[dict[str, Any]] = []
    trainer_of(tmp_path / "whole", {}, rows=before).train_from(None)
    rates = {row["step"]: row["learning_rate"] for row in before if "loss" in row}
    for row in rows:
        if "loss" in row:
            assert row["learning_rate"] == pytest.approx(rates[row["step"]] * 50)
    decays = {group["weight_decay"] for group in trainer.optimizer.param_groups}
    assert decays == {0.3, 0.0}


def test_a_run_on_files_continues_with_fewer_processes(tmp_path: Path) -> None:
    """Random generators start anew; the blocks of each step are the same."""
    stopped(tmp_path, {}, 4)
    path = tmp_path / "checkpoint-3" / "state.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "ranks": state["ranks"] * 2}))
    trainer = trainer_of(tmp_path, {})
    notes: list[str] = []
    trainer.notify = notes.append
    trainer.train_from(tmp_path / "checkpoint-3")
    assert (
        "another number of processes wrote checkpoint-3: random generators start anew" in notes[0]
    )
    whole = continued(tmp_path / "whole", {})
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name])


@pytest.mark.promise("97")
def test_a_stream_is_not_continued_with_fewer_processes() -> None:
    ranks = [{"loss": 1.0, "python": [], "numpy": {}}] * 2
    with pytest.raises(MismatchError, match="world_size was 2, is now 1: a position in a stream"):
        state_of_rank(ranks, Path("checkpoint-3"), rank=0, world_size=1, streaming=True)


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [("adamw", "adam", 28), ("adamw", "muon", 20), ("muon", "adamw", 20), ("sgd", "adamw", 0)],
)
def test_another_optimizer_keeps_the_moments_that_it_has_in_common(
    before: str, after: str, kept: int, tmp_path: Path
) -> None:
    stopped(tmp_path, {"optimizer": before, "matrix_learning_rate": 0.01}, 4)
    trainer = trainer_of(tmp_path, {"optimizer": after, "matrix_learning_rate": 0.01})
    notes: list[str] = []
    trainer.notify = notes.append
    trainer.train_from(tmp_path / "checkpoint-3")
    moments = load_file(tmp_path / "checkpoint-3" / "optimizer.safetensors")
    total = len({name.split(".")[0] for name in moments})
    expected = [f"{total - kept} of {total} parameters have no state"] if kept < total else []
    assert [note.split(" for this")[0] for note in notes] == expected
    assert trainer.state.global_step == RESUME_STEPS
    assert math.isfinite(trainer.state.log_history[-1].get("loss", 0.0))


def test_moments_follow_the_names_of_parameters_when_their_order_changes(tmp_path: Path) -> None:
    """With muon, embeddings come first; with adamw, all matrices are in the order of the model."""
    stopped(tmp_path, {"optimizer": "adamw"}, 4)
    saved = load_file(tmp_path / "checkpoint-3" / "optimizer.safetensors")
    names = json.loads((tmp_path / "checkpoint-3" / "state.json").read_text())["parameters"]
    trainer = trainer_of(tmp_path, {"optimizer": "muon", "matrix_learning_rate": 0.01})
    optimizer = trainer.create_optimizer()
    now = parameter_names(trainer.model, optimizer)
    assert now != names
    restore_optimizer(optimizer, saved, names=now, saved_names=names)
    parameters = dict(trainer.model.named_parameters())
    for number, name in enumerate(names):
        state = optimizer.state.get(parameters[name])
        assert not state or torch.equal(state["exp_avg"], saved[f"{number}.exp_avg"])


def test_the_best_evaluation_between_two_saves_is_saved(tmp_path: Path) -> None:
    axis = {"eval_steps": 1, "save_steps": 4, "save_total_limit": 1, "load_best_model_at_end": True}
    trainer = trainer_of(tmp_path, axis)
    losses = iter([5.0, 4.0, 1.0, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5])
    weights: dict[int, dict[str, torch.Tensor]] = {}

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        state = {name: value.clone() for name, value in model.state_dict().items()}
        weights[trainer.state.global_step] = state
        return {"loss": next(losses), "perplexity": 1.0, "accuracy": 0.0, "bits_per_byte": 1.0}

    trainer.hooks = replace(trainer.hooks, evaluate=evaluate)
    trainer.train_from(None)
    assert trainer.state.best_global_step == 3
    assert (tmp_path / "checkpoint-3").is_dir()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, weights[3][name])


@pytest.mark.promise("86", "88")
def test_the_best_model_is_found_in_a_folder_that_was_moved(tmp_path: Path) -> None:
    axis = {"eval_steps": 3, "save_steps": 3, "load_best_model_at_end": True}
    expected = continued(tmp_path / "whole", axis).model.state_dict()
    stopped(tmp_path / "run", axis, 7)
    (tmp_path / "run").rename(tmp_path / "moved")
    trainer = trainer_of(tmp_path / "moved", axis)
    trainer.train_from(CheckpointStore(tmp_path / "moved").latest_valid())
    best = trainer.state.best_global_step  # the first: the evaluation stands still
    assert best == 3
    weights = load_file(tmp_path / "moved" / "checkpoint-3" / WEIGHTS)
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, expected[name])
        assert name not in weights or torch.equal(value, weights[name])


def test_early_stopping_ends_a_resumed_run_at_the_same_step(tmp_path: Path) -> None:
    axis = {"early_stopping_patience": 2, "eval_steps": 2, "save_steps": 2}
    whole = continued(tmp_path / "whole", axis)
    assert whole.state.global_step == 6
    stopped(tmp_path / "run", axis, 5)
    for _ in range(2):  # also when nothing but the end is left
        assert continued(tmp_path / "run", axis).state.global_step == 6
    assert json.loads((tmp_path / "run" / "checkpoint-6" / "state.json").read_text())["ended"]


@pytest.mark.promise("T1")
def test_a_resumed_run_has_the_same_log_rows(tmp_path: Path) -> None:
    axis = {"logging_steps": 4, "save_steps": 3}

    def run(folder: Path, *stops: int) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for stop in (*stops, None):
            trainer = trainer_of(folder, axis, rows=rows)
            if stop:
                trainer.add_callback(Stop(stop))
            newest = CheckpointStore(folder).latest_valid()
            step = int(newest.name.split("-")[1]) if newest else 0
            rows[:] = [row for row in rows if row["step"] <= step]
            try:
                trainer.train_from(newest)
            except KeyboardInterrupt:
                assert stop
        timed = ("seconds", "tokens_per_second", "mfu")
        return [{k: v for k, v in row.items() if k not in timed} for row in rows]

    assert run(tmp_path / "run", 4, 7) == run(tmp_path / "whole")
