"""Every parameter is in one group, only matrices decay, and no schedule wastes a step."""

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from hf_lm.model.build import build_model
from hf_lm.model.config import FAMILIES, Vocabulary
from hf_lm.recipe import ModelRecipe, TrainingRecipe
from hf_lm.training.optimizer import build_optimizer, parameter_groups
from hf_lm.training.schedule import build_lr_schedule, lr_multiplier, rate_note


def recipe(**keys: Any) -> TrainingRecipe:
    """A training section."""
    return TrainingRecipe.model_validate_json(
        json.dumps({"max_steps": 100, "optimizer": "adamw", **keys})
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_only_matrices_decay(family: str) -> None:
    network = ModelRecipe(family=family, n_layer=2, n_head=2, n_embd=16)
    model = build_model(network, Vocabulary(50, 0, 0), block_size=8)
    decay, rest = parameter_groups(model, weight_decay=0.1)
    assert (decay["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    decaying = {id(p) for p in decay["params"]}
    both = [*decay["params"], *rest["params"]]
    assert len({id(p) for p in both}) == len(both) == len(list(model.parameters()))
    for name, weight in model.named_parameters():
        norm_or_bias = name.endswith("bias") or "norm" in name or "ln_" in name
        assert (id(weight) in decaying) != norm_or_bias, name


def test_frozen_parameters_are_in_no_group() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert [len(group["params"]) for group in parameter_groups(layer, weight_decay=0.1)] == [1, 0]


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("adamw", torch.optim.AdamW, {"betas": (0.8, 0.9), "eps": 1e-6}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.9), "eps": 1e-6}),
        ("sgd", torch.optim.SGD, {"momentum": 0.7}),
    ],
)
def test_optimizers_get_the_numbers_of_the_recipe(
    name: str, kind: type, options: dict[str, Any]
) -> None:
    model = nn.Linear(3, 3)
    optimizer = build_optimizer(
        model,
        recipe=recipe(optimizer=name, learning_rate=0.5, betas=[0.8, 0.9], eps=1e-6, momentum=0.7),
    )
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert group["lr"] == 0.5
        assert group["fused"] is True
        assert {key: group[key] for key in options} == options


def rates(total: int, **keys: Any) -> list[float]:
    """The learning rate of each step, as the scheduler sets it."""
    made = recipe(max_steps=total, learning_rate=1.0, **keys)
    optimizer = build_optimizer(nn.Linear(1, 1), recipe=made)
    schedule = build_lr_schedule(optimizer, total, recipe=made)
    found = []
    for _ in range(total):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def test_the_first_step_has_a_learning_rate_above_zero() -> None:
    assert rates(10, warmup_steps=4, schedule="constant")[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(10, warmup_steps=0, schedule="constant") == [1.0] * 10
    assert rates(100, warmup_steps=0.05, schedule="constant")[:5] == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_every_decay_ends_just_above_its_floor() -> None:
    linear = rates(10, warmup_steps=0, schedule="linear", min_lr_ratio=0.5)
    assert linear == pytest.approx([1 - 0.05 * step for step in range(10)])
    cosine = rates(100, warmup_steps=0, schedule="cosine", min_lr_ratio=0.1)
    assert cosine[0] == 1.0
    assert cosine[50] == pytest.approx(0.55)
    assert 0.1 < cosine[-1] < 0.101
    assert all(a > b for a, b in pairwise(cosine))
    wsd = rates(100, warmup_steps=10, schedule="wsd", decay_steps=0.2, min_lr_ratio=0)
    assert set(wsd[10:81]) == {1.0}
    assert wsd[90] == pytest.approx(0.5)
    assert wsd[-1] == pytest.approx(0.05)


def test_a_step_after_the_end_keeps_the_minimum_rate() -> None:
    for schedule in ("linear", "cosine", "wsd"):
        made = recipe(schedule=schedule, min_lr_ratio=0.2)
        assert lr_multiplier(150, made, 100) == pytest.approx(0.2)


def test_a_run_that_is_extended_says_how_its_learning_rate_jumps() -> None:
    made = recipe(schedule="cosine", min_lr_ratio=0.1, learning_rate=1e-2, warmup_steps=0)
    note = rate_note(made, step=100, before=100, total=200)
    assert note is not None
    assert note.startswith("more steps: the learning rate goes from 0.001 to 0.0055 at step 100; ")
    assert '"wsd" keeps the rate' in note
    assert rate_note(made, step=50, before=100, total=101) is None
    constant = recipe(schedule="constant", learning_rate=1e-2)
    assert rate_note(constant, step=100, before=100, total=200) is None
    stable = recipe(schedule="wsd", decay_steps=20, warmup_steps=0, learning_rate=1e-2)
    assert rate_note(stable, step=60, before=100, total=200) is None  # its decay has not begun
    warming = recipe(schedule="linear", warmup_steps=10, learning_rate=1e-2)
    assert rate_note(warming, step=4, before=100, total=100) is None
