"""Losses and gradients equal a hand-written loop; a NaN stops the run; rows are numbers."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from trainers import STEPS, TRAINING, T, V, make_model, make_trainer

from hf_lm.data.blocks.dataset import BlockDataset, table_of
from hf_lm.data.collator import collate
from hf_lm.data.mixture import MixtureOrder
from hf_lm.errors import NonFiniteError
from hf_lm.recipe import TrainingRecipe, count_steps
from hf_lm.training.arguments import training_arguments
from hf_lm.training.schedule import lr_multiplier
from hf_lm.training.skip_step import StepGuard
from hf_lm.training.throughput import ThroughputMeter


def by_hand(
    model: torch.nn.Module, micro_batches: list[torch.Tensor], accumulation: int
) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of a plain loop over micro-batches [micro, T+1]."""
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), eps=1e-8, fused=True)
    losses, norms = [], []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * lr_multiplier(step, TRAINING, STEPS)
        total = 0.0
        for ids in micro_batches[step * accumulation : (step + 1) * accumulation]:
            logits = model(ids[:, :-1], use_cache=False).logits
            targets = ids[:, 1:].reshape(-1)
            loss = functional.cross_entropy(logits.reshape(-1, V), targets, reduction="sum")
            (loss / (8 * T)).backward()
            total += loss.item() / (8 * T)
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses, norms


def test_the_order_of_a_mixture_reaches_the_batches_of_every_epoch(tmp_path: Path) -> None:
    ids = np.arange(12 * (T + 1), dtype=np.uint16).reshape(12, T + 1)
    order = MixtureOrder([9, 3], [0.5, 0.5], seed=3)
    trainer = make_trainer(
        tmp_path,
        [],
        recipe=TRAINING,
        micro=2,
        accumulation=1,
        blocks=BlockDataset(Dataset(table_of(ids))),
        collator=collate,
        order=order,
    )
    loader: Any = trainer.get_train_dataloader()
    for epoch in range(3):
        loader.set_epoch(epoch)
        first_ids = [row[0] for batch in loader for row in batch["input_ids"].tolist()]
        expected = order.of_epoch(epoch) % 12
        assert [value // (T + 1) for value in first_ids] == expected.tolist()


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_losses_and_gradients_equal_a_plain_loop_for_every_accumulation(
    family: str, tmp_path: Path
) -> None:
    runs = {}
    for micro, accumulation in ((8, 1), (4, 2), (2, 4)):
        rows: list[dict[str, Any]] = []
        seen: list[torch.Tensor] = []

        def watched(blocks: Any, seen: list[torch.Tensor] = seen) -> dict[str, torch.Tensor]:
            batch = collate(blocks)
            seen.append(torch.cat([batch["input_ids"], batch["shift_labels"][:, -1:]], dim=1))
            return batch

        trainer = make_trainer(
            tmp_path / f"{micro}",
            rows,
            micro=micro,
            accumulation=accumulation,
            model=make_model(family),
            collator=watched,
        )
        trainer.train_from(None)
        trained = [row for row in rows if "loss" in row]
        assert len(trained) == STEPS
        ours = [row["loss"] for row in trained], [row["grad_norm"] for row in trained]
        hand = by_hand(make_model(family), seen, accumulation)
        np.testing.assert_allclose(ours[0], hand[0], rtol=1e-6)
        # The loop has whole logits: gradients round differently, and their differences add up.
        np.testing.assert_allclose(ours[1], hand[1], rtol=1e-5)
        runs[micro] = ours
    for micro in (4, 2):  # the same blocks in other portions: rounding alone differs, and adds up
        np.testing.assert_allclose(runs[micro][0], runs[8][0], rtol=1e-5)


def test_padding_counts_neither_in_the_loss_nor_among_the_tokens(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    seen: list[dict[str, torch.Tensor]] = []
    ids = np.random.default_rng(0).integers(1, V, (8, T + 1)).astype(np.uint16)
    for row, end in zip(ids, (2, 9, 5, 9, 3, 9, 9, 4), strict=True):
        row[end:] = 0  # the first ends the document, the rest fills the block

    def watched(blocks: Any) -> dict[str, torch.Tensor]:
        seen.append(collate(blocks, padding=0))
        return seen[-1]

    make_trainer(
        tmp_path,
        rows,
        recipe=TRAINING.model_copy(update={"max_steps": 1}),
        micro=2,
        accumulation=4,
        blocks=Dataset.from_dict({"input_ids": list(ids)}).with_format("numpy"),
        collator=watched,
    ).train_from(None)
    inputs = torch.cat([batch["input_ids"] for batch in seen])
    targets = torch.cat([batch["shift_labels"] for batch in seen])
    predicted = int((targets != -100).sum())
    assert predicted == 2 + 8 + 5 + 8 + 3 + 8 + 8 + 4
    logits = make_model()(inputs, use_cache=False).logits
    loss = functional.cross_entropy(logits.reshape(-1, V), targets.reshape(-1))
    assert rows[0]["loss"] == pytest.approx(loss.item(), rel=1e-6)
    assert rows[0]["tokens"] == predicted


def test_tokens_seconds_and_throughput_are_logged(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    recipe = TRAINING.model_copy(update={"logging_steps": 5, "eval_steps": 10, "save_steps": 7})
    trainer = make_trainer(tmp_path, rows, recipe=recipe)
    trainer.throughput = ThroughputMeter(100.0)
    trainer.train_from(None)
    training = [row for row in rows if "loss" in row]
    assert [row["step"] for row in training] == [5, 10, 15, 20]  # 7 and 14: checkpoints
    assert [row["tokens"] for row in training] == [64 * row["step"] for row in training]
    assert all(row["tokens_per_second"] > 0 for row in training)
    for row in training:
        assert row["mfu"] == pytest.approx(row["tokens_per_second"] * 100 / 1e9)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert seconds[0] >= 100
    evaluated = [row for row in rows if "eval_loss" in row]
    assert [row["step"] for row in evaluated] == [10, 20]
    assert evaluated[0]["samples"] == [{"prompt": "a", "text": "b"}]
    assert evaluated[0]["eval_bits_per_byte"] == 2.0


def test_a_logged_loss_is_the_mean_since_the_last_row(tmp_path: Path) -> None:
    single: list[dict[str, Any]] = []
    grouped: list[dict[str, Any]] = []
    make_trainer(tmp_path / "1", single).train_from(None)
    recipe = TRAINING.model_copy(update={"logging_steps": 5})
    make_trainer(tmp_path / "5", grouped, recipe=recipe).train_from(None)
    losses = [row["loss"] for row in single if "loss" in row]
    grouped = [row for row in grouped if "loss" in row]
    before = 0
    for row in grouped:
        assert row["loss"] == pytest.approx(np.mean(losses[before : row["step"]]), rel=1e-6)
        before = row["step"]


@pytest.mark.promise("99")
@pytest.mark.parametrize("place", ["weight", "gradient"])
def test_nonfinite_gradients_do_not_reach_the_optimizer(place: str, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    model = make_model()
    weight = model.transformer.h[0].mlp.c_fc.weight
    if place == "weight":
        with torch.no_grad():
            weight[0, 0] = float("nan")
    else:
        weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"step 1: .*NaN or infinite at learning rate"):
        make_trainer(tmp_path, rows, model=model).train_from(None)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) or name.endswith("c_fc.weight")
    assert rows[-1]["step"] == 1
    assert math.isnan(rows[-1]["loss"])


@pytest.mark.promise("99")
@pytest.mark.parametrize("kind", ["muon", "adamw", "adam", "sgd"])
def test_a_step_checked_one_step_later_was_not_applied(kind: str, tmp_path: Path) -> None:
    """As on a GPU: the optimizer leaves the broken step out by itself, and nothing is saved."""
    recipe = TRAINING.model_copy(
        update={"optimizer": kind, "matrix_learning_rate": 0.01, "logging_steps": 2}
    )
    rows: list[dict[str, Any]] = []
    model, before = make_model(), {}
    trainer = make_trainer(tmp_path, rows, recipe=recipe, model=model)
    trainer.guard = StepGuard(lag=1)

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        if trainer.state.global_step == 2:
            before.update({name: value.clone() for name, value in model.state_dict().items()})
            return grad * float("nan")
        return grad

    model.transformer.h[0].mlp.c_fc.weight.register_hook(spoil)
    with pytest.raises(NonFiniteError, match=r"step 3: .*this step was not applied"):
        trainer.train_from(None)
    assert trainer.state.global_step == 3  # known with the next step's gradient, before its step
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    state = trainer.optimizer.state_dict()["state"]
    assert all(torch.isfinite(v).all() for row in state.values() for v in row.values())
    assert [row["step"] for row in rows if "loss" in row] == [2, 3]
    assert math.isnan(rows[-1]["loss"])


@pytest.mark.promise("99")
def test_nothing_is_saved_before_the_last_step_is_known_to_be_finite(tmp_path: Path) -> None:
    """The last step has no next one to be asked in; its row and its checkpoint would come first."""
    recipe = TRAINING.model_copy(
        update={"max_steps": 3, "save_steps": 3, "logging_steps": 5, "eval_steps": 5}
    )
    rows: list[dict[str, Any]] = []
    model = make_model()
    trainer = make_trainer(tmp_path, rows, recipe=recipe, model=model)
    trainer.guard = StepGuard(lag=1)
    model.transformer.wte.weight.register_hook(
        lambda grad: grad * float("inf") if trainer.state.global_step == 2 else grad
    )
    with pytest.raises(NonFiniteError, match="step 3"):
        trainer.train_from(None)
    assert not list(tmp_path.glob("checkpoint-*"))
    assert [row["step"] for row in rows] == [3]
    assert math.isnan(rows[0]["loss"])


@pytest.mark.promise("99")
def test_a_nonfinite_model_is_not_evaluated(tmp_path: Path) -> None:
    recipe = TRAINING.model_copy(update={"eval_steps": 2, "logging_steps": 5})
    model, measured = make_model(), []
    trainer = make_trainer(tmp_path, [], recipe=recipe, model=model, evaluate=measured.append)
    trainer.guard = StepGuard(lag=1)
    model.transformer.wte.weight.register_hook(
        lambda grad: grad * float("inf") if trainer.state.global_step == 1 else grad
    )
    with pytest.raises(NonFiniteError, match="step 2"):
        trainer.train_from(None)
    assert not measured


def test_evaluation_does_not_change_training(tmp_path: Path) -> None:
    weights = []
    for every in (3, 20):
        rows: list[dict[str, Any]] = []
        model = make_model()
        recipe = TRAINING.model_copy(update={"eval_steps": every})
        make_trainer(tmp_path / f"{every}", rows, recipe=recipe, model=model).train_from(None)
        weights.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_use_cache_is_true_in_checkpoints_and_false_in_training(tmp_path: Path) -> None:
    model = make_model()
    recipe = TRAINING.model_copy(update={"max_steps": 2, "save_steps": 2})
    make_trainer(tmp_path, [], recipe=recipe, model=model).train_from(None)
    assert json.loads((tmp_path / "checkpoint-2" / "config.json").read_text())["use_cache"] is True
    assert model.config.use_cache is False


@pytest.mark.parametrize("metric", ["loss", "perplexity", "accuracy", "bits_per_byte"])
def test_early_stopping_stops_and_the_best_model_is_loaded(metric: str, tmp_path: Path) -> None:
    values = [3.0, 2.0, 4.0, 5.0, 6.0, 7.0]
    if metric == "accuracy":  # the only one of which the highest is the best
        values = [0.3, 0.4, 0.2, 0.1, 0.0, 0.0]
    results = iter(values)
    rows: list[dict[str, Any]] = []

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        others = {"loss": 9 - len(rows) / 9, "perplexity": 1.0, "accuracy": 0.5}
        return {**others, "bits_per_byte": 1.0, metric: next(results)}

    recipe = TRAINING.model_copy(
        update={
            "eval_steps": 2,
            "save_steps": 2,
            "early_stopping_patience": 2,
            "load_best_model_at_end": True,
            "save_total_limit": None,
            "best_metric": metric,
        }
    )
    trainer = make_trainer(tmp_path, rows, recipe=recipe, evaluate=evaluate)
    trainer.train_from(None)
    assert trainer.state.global_step == 8
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    from safetensors.torch import load_file

    best = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    for name, value in best.items():
        assert torch.equal(trainer.model.state_dict()[name], value)


def test_fractions_of_all_steps_become_steps() -> None:
    assert [count_steps(x, 50) for x in (7, 0.1, 0.001, 0.5)] == [7, 5, 1, 25]
    recipe = TRAINING.model_copy(
        update={"eval_steps": 0.1, "save_steps": 0.3, "load_best_model_at_end": True}
    )
    args = training_arguments(recipe, max_steps=33, use_cpu=True)
    assert (args.eval_steps, args.save_steps) == (3, 9)


def test_throughput_excludes_pauses(monkeypatch: Any) -> None:
    now = [0.0]
    monkeypatch.setattr("hf_lm.training.throughput.time.monotonic", lambda: now[0])
    clock = ThroughputMeter(5.0)
    assert clock.tokens_per_second(0) is None
    with clock.pause():  # the evaluation of a fine-tuned model before its first step
        now[0] = 30.0
    assert clock.seconds == 5.0
    clock.begin(0)
    now[0] = 34.0
    with clock.pause():
        now[0] = 40.0
        assert clock.seconds == 9.0
    assert clock.seconds == 9.0
    assert clock.tokens_per_second(400) == 100.0
    assert clock.tokens_per_second(400) is None


def test_rows_and_the_whole_run_have_the_same_meaning_of_speed(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    recipe = TRAINING.model_copy(update={"logging_steps": 1, "eval_steps": 5, "save_steps": 7})
    trainer = make_trainer(tmp_path, rows, recipe=recipe)
    evaluate = trainer.hooks.evaluate

    def slow_evaluation(model: Any) -> dict[str, float]:
        time.sleep(0.5)
        return evaluate(model)

    trainer.hooks = replace(trainer.hooks, evaluate=slow_evaluation)
    trainer.evaluate()  # before the first step, as in fine-tuning
    trainer.train_from(None)
    training = [row for row in rows if "loss" in row]
    seconds = sum(64 / row["tokens_per_second"] for row in training)
    assert seconds == pytest.approx(trainer.throughput.seconds, rel=0.1)
    assert training[-1]["seconds"] == pytest.approx(seconds, rel=0.1)
    assert training[0]["tokens_per_second"] > 64 / 0.5


def test_throughput_excludes_the_copy_of_a_checkpoint(tmp_path: Path) -> None:
    recipe = TRAINING.model_copy(update={"max_steps": 4, "save_steps": 2})
    trainer = make_trainer(tmp_path, [], recipe=recipe)
    trainer.set_best_checkpoint = lambda: time.sleep(0.2)
    trainer.train_from(None)
    assert trainer.throughput.paused > 0.4


def test_the_recipe_reaches_training_arguments(write_recipe: Callable[..., Path]) -> None:
    recipe = TrainingRecipe.model_validate_json(
        json.dumps(
            {
                "max_steps": 10,
                "learning_rate": 1e-3,
                "dataloader_num_workers": 2,
                "report_to": ["none"],
                "extra_args": {"torch_empty_cache_steps": 4},
            }
        )
    )
    args = training_arguments(recipe, max_steps=10, use_cpu=True)
    assert args.dataloader_num_workers == 2
    assert args.torch_empty_cache_steps == 4
    assert args.save_total_limit is None  # the stock rotation goes by clock
    assert args.logging_nan_inf_filter is False
    assert args.dataloader_pin_memory is False
    assert args.report_to == []
