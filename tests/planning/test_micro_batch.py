"""The largest micro-batch that fits is found by trying, and leaves no trace."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from hf_lm import run
from hf_lm.data.blocks.dataset import SplitCounts
from hf_lm.errors import RecipeError
from hf_lm.model.build import build_model
from hf_lm.model.config import Vocabulary
from hf_lm.planning import micro_batch
from hf_lm.planning.hardware import detect_hardware
from hf_lm.planning.micro_batch import find_micro_batch
from hf_lm.recipe import ModelRecipe, load_recipe
from hf_lm.run_dir.directory import RunDirectory
from hf_lm.upstream import checkpointing_name
from hf_lm.workflows.stages import plan_and_build

T = 4
SIZES = [12, 6, 4, 3, 2, 1]


class Tried(NamedTuple):
    """What was found, and how the network stood at each try."""

    found: int
    sizes: list[int]
    states: set[tuple[bool, bool, bool]]
    model: Any


def is_checkpointing(model: Any) -> bool:
    """Return whether activation checkpointing is on."""
    return getattr(model, f"is_{checkpointing_name()}")


def tried(monkeypatch: pytest.MonkeyPatch, room: int, **options: Any) -> Tried:
    """A search on a device where `room` blocks fit."""
    shape = ModelRecipe(n_layer=1, n_head=1, n_embd=4)
    model: Any = build_model(shape, Vocabulary(9, 0, 0), block_size=T).eval()
    forward, sizes, states = model.forward, [], set()

    def limited(**batch: Any) -> Any:
        sizes.append(len(batch["input_ids"]))
        autocast = torch.is_autocast_enabled("cpu")
        states.add((model.training, is_checkpointing(model), autocast))
        if sizes[-1] > room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(**batch)

    monkeypatch.setattr(model, "forward", limited)
    given = {
        "block_size": T,
        "dtype": torch.float32,
        "other_memory": 8,
        "activation_checkpointing": False,
    }
    return Tried(find_micro_batch(model, SIZES, **{**given, **options}), sizes, states, model)


@pytest.mark.parametrize("activation_checkpointing", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_largest_size_that_fits_is_found(
    monkeypatch: pytest.MonkeyPatch, activation_checkpointing: bool, dtype: torch.dtype
) -> None:
    found, sizes, states, model = tried(
        monkeypatch, 4, activation_checkpointing=activation_checkpointing, dtype=dtype
    )
    assert (found, sizes) == (4, [12, 6, 4])
    assert states == {
        (True, activation_checkpointing, dtype == torch.bfloat16)
    }  # as it will be trained
    assert all(weight.grad is None for weight in model.parameters())
    assert not is_checkpointing(model)


@pytest.mark.parametrize("options", [{"room": 0}, {"room": 12, "other_memory": 2**60}])
def test_a_gpu_too_small_for_one_block_is_named(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    with pytest.raises(RecipeError, match=r"micro_batch_size: not even one block fits .*; use a"):
        tried(monkeypatch, **options)


def test_all_processes_use_the_size_that_fits_the_smallest_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(micro_batch, "gather_object", lambda mine: [*mine, 2])
    assert tried(monkeypatch, 12).found == 2


def test_other_errors_are_raised_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(IndexError):
        tried(monkeypatch, 12, block_size=T + 1)  # more positions than the network has


@pytest.mark.parametrize(("earlier", "found"), [(None, 2), (1, 1), (3, 2)])
def test_sizes_are_tried_on_a_gpu_unless_the_run_has_one_already(
    earlier: int | None, found: int, write_recipe: Callable[..., Path], monkeypatch: Any
) -> None:
    keys = {"training.micro_batch_size": "auto", "training.tokens_per_step": 64}
    recipe = load_recipe(write_recipe(**keys, **{"training.activation_checkpointing": True}))
    given: dict[str, Any] = {}

    def find(model: Any, sizes: list[int], **options: Any) -> int:
        given.update(options, sizes=sizes)
        return 2

    monkeypatch.setattr(micro_batch, "find_micro_batch", find)
    gpu = replace(detect_hardware(recipe.training), device="cuda", precision="bf16", memory=10**9)
    folder = RunDirectory(recipe.folder)
    if earlier:
        folder.path.mkdir()
        folder.write("provenance.json", {"micro_batch_size": earlier})
    monkeypatch.setattr(Vocabulary, "of", lambda tokenizer: Vocabulary(320, 0, 0))
    tokenizer: Any = None
    model, plan, _ = plan_and_build(
        recipe, tokenizer, {"train": SplitCounts(blocks=100)}, gpu, folder
    )
    assert (plan.micro_batch_size, plan.accumulation) == (found, 4 // found)
    state = 8 * sum(weight.numel() for weight in model.parameters() if weight.ndim != 2)
    assert given == {} if earlier == 1 else given["sizes"] == [4, 2, 1]
    if given:
        assert given["dtype"] == torch.bfloat16
        assert given["activation_checkpointing"]
        assert given["block_size"] == 16
        assert given["other_memory"] >= state + 0.05 * 10**9


def test_a_resumed_run_keeps_its_micro_batch_size(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free memory differs from day to day; what rounding depends on must not."""
    auto = {"training.micro_batch_size": "auto", "training.tokens_per_step": 64}
    path = write_recipe(**{**auto, "training.max_steps": 2})
    run.train(load_recipe(path))
    folder = RunDirectory(load_recipe(path).folder)
    before = folder.micro_batch_size
    assert before == 64 // load_recipe(path).data.block_size

    monkeypatch.setattr("hf_lm.planning.plan.MEMORY_SHARE", 0.0)  # room for one block at a time
    run.train(load_recipe(write_recipe(**{**auto, "training.max_steps": 4})))
    assert folder.micro_batch_size == before
    assert folder.read("status.json")["step"] == 4


@pytest.mark.gpu
def test_the_memory_of_a_gpu_is_used_but_not_exceeded() -> None:
    model = build_model(
        ModelRecipe(n_layer=2, n_head=2, n_embd=128), Vocabulary(50_257, 0, 0), block_size=1024
    )
    sizes = [2**n for n in range(14, -1, -1)]
    given = {
        "block_size": 1024,
        "dtype": torch.bfloat16,
        "other_memory": 10**9,
        "activation_checkpointing": False,
    }
    found = find_micro_batch(model, sizes, **given)
    assert 1 < found < sizes[0]
    assert torch.cuda.memory_allocated() < 10**9  # nothing of the trial is left
