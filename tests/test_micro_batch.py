"""The largest micro-batch that fits is found by trying, and leaves no trace."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lm import micro_batch, run
from hf_lm.errors import RecipeError
from hf_lm.micro_batch import find_micro_batch
from hf_lm.model import build_model
from hf_lm.model_config import Vocabulary
from hf_lm.recipe import ModelRecipe, load_recipe
from hf_lm.run_folder import RunFolder

T = 4


def tried(monkeypatch: pytest.MonkeyPatch, room: int, **options: Any) -> tuple[int, list[int], Any]:
    """What is found where `room` blocks fit, the sizes that were tried, and the network."""
    model = build_model(
        ModelRecipe(n_layer=1, n_head=1, n_embd=4), Vocabulary(9, 0, 0), block_size=T
    )
    forward, sizes = model.forward, []

    def limited(**batch: Any) -> Any:
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(**batch)

    monkeypatch.setattr(model, "forward", limited)
    given = {"block_size": T, "precision": "fp32", "optimizer_bytes": 8, "recompute": False}
    found = find_micro_batch(model, [12, 6, 4, 3, 2, 1], **{**given, **options})
    return found, sizes, model


@pytest.mark.parametrize("recompute", [True, False])
def test_the_largest_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch, recompute: bool) -> None:
    found, sizes, model = tried(monkeypatch, 4, recompute=recompute)
    assert (found, sizes) == (4, [12, 6, 4])
    assert all(weight.grad is None for weight in model.parameters())
    assert not model.is_activation_checkpointing


def test_a_gpu_too_small_for_one_block_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match=r"micro_batch_size: not even one block fits .*; use a"):
        tried(monkeypatch, 0)


def test_all_processes_take_what_the_smallest_gpu_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro_batch, "gather_object", lambda mine: [*mine, 2])
    assert tried(monkeypatch, 12)[0] == 2


def test_what_is_not_memory_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        micro_batch.largest_that_fits([2, 1], lambda size: torch.ones(3).add_(torch.ones(size)))


def test_a_continued_run_keeps_its_micro_batch(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free memory differs from day to day; what rounding depends on must not."""
    auto = {"training.micro_batch_size": "auto", "training.tokens_per_step": 64}
    path = write_recipe(**{**auto, "training.max_steps": 2})
    run.train(load_recipe(path))
    folder = RunFolder(load_recipe(path).folder)
    before = folder.micro_batch_size
    assert before == 64 // load_recipe(path).data.block_size

    monkeypatch.setattr("hf_lm.plan.MEMORY_SHARE", 0.0)  # room for one block at a time
    run.train(load_recipe(write_recipe(**{**auto, "training.max_steps": 4})))
    assert folder.micro_batch_size == before
    assert folder.read("status.json")["step"] == 4


@pytest.mark.gpu
def test_a_gpu_is_filled_and_not_overrun() -> None:
    model = build_model(
        ModelRecipe(n_layer=2, n_head=2, n_embd=128), Vocabulary(50_257, 0, 0), block_size=1024
    )
    sizes = [2**n for n in range(14, -1, -1)]
    given = {"block_size": 1024, "precision": "bf16", "optimizer_bytes": 10**9, "recompute": False}
    found = find_micro_batch(model, sizes, **given)
    assert 1 < found < sizes[0]
    assert torch.cuda.memory_allocated() < 10**9  # nothing of the trial is left
