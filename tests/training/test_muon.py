"""Steps are the written-out ones; Muon resumes, is shared out, and knows its matrices."""

import io
import json
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from hf_lm.model.build import build_model
from hf_lm.model.config import FAMILIES, Vocabulary
from hf_lm.recipe import ModelRecipe, TrainingRecipe
from hf_lm.training import muon
from hf_lm.training.muon import POLYNOMIALS, Muon, orthogonalize, over_ranks
from hf_lm.training.optimizer import build_optimizer, muon_groups

STEPS = 4


def recipe(**keys: Any) -> TrainingRecipe:
    """A training section with numbers for every rate."""
    numbers = {"momentum": 0.8, "betas": [0.7, 0.9], "eps": 1e-6, "weight_decay": 0.2}
    given = {"max_steps": 10, "optimizer": "muon", "learning_rate": 0.01, **numbers, **keys}
    if given["optimizer"] == "muon":
        given["matrix_learning_rate"] = 0.03
    return TrainingRecipe.model_validate_json(json.dumps(given))


def network(family: str = "gpt2") -> torch.nn.Module:
    """A small network whose MLP is wider than it is."""
    shape = ModelRecipe(family=family, n_layer=2, n_head=2, n_embd=8)
    return build_model(shape, Vocabulary(20, 0, 0), block_size=4, seed=1)


def give_gradients(model: torch.nn.Module, step: int) -> None:
    """The same random gradients for the same step."""
    chance = torch.Generator().manual_seed(step)
    for weight in model.parameters():
        weight.grad = torch.randn(weight.shape, generator=chance)


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8)])
def test_singular_values_come_out_around_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalize(matrices)
    values = torch.linalg.svdvals(found)
    assert 0.18 < values.min() < values.max() < 1.87
    for matrix, made in zip(matrices, found, strict=True):
        np.testing.assert_allclose(made.numpy(), polar(matrix.double().numpy()), atol=1e-5)
    for alone, together in zip(matrices, found, strict=True):
        torch.testing.assert_close(orthogonalize(alone[None])[0], together)


def by_hand(kind: str, weights: dict[str, np.ndarray], model: Any) -> dict[str, np.ndarray]:
    """Some steps in numpy and double precision, one parameter at a time."""
    rate, decay, (beta1, beta2), eps, momentum = 0.01, 0.2, (0.7, 0.9), 1e-6, 0.8
    found = {}
    for name, weight in weights.items():
        w = weight.astype(np.float64)
        first, second = np.zeros_like(w), np.zeros_like(w)
        wd = decay if w.ndim >= 2 else 0.0
        matrix = kind == "muon" and ".h." in name and w.ndim == 2
        for step in range(STEPS):
            give_gradients(model, step)
            g = dict(model.named_parameters())[name].grad.numpy().astype(np.float64)
            if matrix:
                first = momentum * first + (1 - momentum) * g
                ahead = momentum * first + (1 - momentum) * g
                heads = np.split(ahead, 3, axis=1) if "c_attn" in name else [ahead]
                moved = np.concatenate([polar(head) for head in heads], axis=1)
                inputs, outputs = heads[0].shape  # GPT-2 keeps [inputs, outputs]
                w = w * (1 - 0.03 * wd) - 0.03 * math.sqrt(max(1, outputs / inputs)) * moved
                continue
            if kind in ("adam", "sgd"):
                g = g + wd * w
            if kind == "sgd":
                first = momentum * first + g if step else g
                w = w - rate * first
                continue
            first = beta1 * first + (1 - beta1) * g
            second = beta2 * second + (1 - beta2) * g * g
            if kind in ("adamw", "muon"):
                w = w * (1 - rate * wd)
            unbiased = second / (1 - beta2 ** (step + 1))
            w = w - rate * (first / (1 - beta1 ** (step + 1))) / (np.sqrt(unbiased) + eps)
        found[name] = w
    return found


def polar(matrix: np.ndarray) -> np.ndarray:
    """The polynomials of the singular values, by a singular value decomposition."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / (np.sqrt((values**2).sum()) * 1.01 + 1e-7)
    for a, b, c in POLYNOMIALS:
        values = a * values + b * values**3 + c * values**5
    return left @ np.diag(values) @ right


@pytest.mark.parametrize("kind", ["muon", "adamw", "adam", "sgd"])
def test_steps_equal_a_numpy_implementation(kind: str) -> None:
    model = network()
    before = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, recipe=recipe(optimizer=kind))
    for step in range(STEPS):
        give_gradients(model, step)
        optimizer.step()
    expected = by_hand(kind, before, model)
    for name, weight in model.named_parameters():
        np.testing.assert_allclose(weight.detach().numpy(), expected[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_muon_trains_hidden_matrices_and_adamw_the_rest(family: str) -> None:
    model = network(family)
    groups = muon_groups(model, recipe())
    everything = [p for group in groups for p in group["params"]]
    assert len({id(p) for p in everything}) == len(everything) == len(list(model.parameters()))
    orthogonal = {id(p) for group in groups if "matrices" in group for p in group["params"]}
    for name, weight in model.named_parameters():
        inside = (".h." in name or ".layers." in name) and weight.ndim == 2
        assert (id(weight) in orthogonal) == inside, name
    for group in groups:
        if "matrices" not in group:
            assert group["lr"] == 0.01
            continue
        assert group["lr"] == 0.03
        assert len({p.shape for p in group["params"]}) == 1
        assert group["transposed"] == (family == "gpt2")
        assert group["matrices"] == (3 if group["params"][0].shape == (8, 24) else 1)


def test_frozen_and_unused_weights_do_not_change() -> None:
    model = network()
    model.transformer.h[0].mlp.c_fc.weight.requires_grad_(False)
    optimizer = build_optimizer(model, recipe=recipe())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    give_gradients(model, 0)
    unused = model.transformer.h[1].mlp.c_proj.weight
    unused.grad = None
    optimizer.step()
    for name, weight in model.named_parameters():
        same = not weight.requires_grad or weight is unused
        assert torch.equal(weight, before[name]) == same, name


def test_a_restored_optimizer_continues_with_the_same_bits() -> None:
    weights = []
    for stop in (False, True):
        model = network()
        optimizer = build_optimizer(model, recipe=recipe())
        for step in range(STEPS):
            if stop and step == 2:
                saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                saved = reloaded(saved)
                model = network()
                model.load_state_dict(saved["model"])
                optimizer = build_optimizer(model, recipe=recipe())
                optimizer.load_state_dict(saved["optimizer"])
            give_gradients(model, step)
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*weights)


def test_a_loaded_step_count_has_the_type_that_fused_adamw_needs() -> None:
    model = network()
    optimizer = build_optimizer(model, recipe=recipe())
    give_gradients(model, 0)
    optimizer.step()
    saved = optimizer.state_dict()
    for state in saved["state"].values():
        if "step" in state:
            state["step"] = state["step"].double()
    optimizer.load_state_dict(saved)
    kinds = {state["step"].dtype for state in optimizer.state.values() if "step" in state}
    assert kinds == {torch.float32}


def reloaded(state: Any) -> Any:
    """A copy through the weights-only loader, as a checkpoint takes it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_processes_compute_a_share_each_and_gather_all(count: int, monkeypatch: Any) -> None:
    matrices = torch.randn(count, 4, 6, generator=torch.Generator().manual_seed(0))
    shares: dict[int, torch.Tensor] = {}
    done: list[int] = []

    def work(share: torch.Tensor) -> torch.Tensor:
        done.append(len(share))
        return 2 * share

    def all_gather(found: list[torch.Tensor], mine: torch.Tensor) -> None:
        shares[muon.distributed.get_rank()] = mine
        for number, place in enumerate(found):
            place.copy_(shares.get(number, mine))

    monkeypatch.setattr(muon.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(muon.distributed, "get_world_size", lambda: 3)
    monkeypatch.setattr(muon.distributed, "all_gather", all_gather)
    for rank in (0, 1, 2, 0):  # the first knows the shares of the others at its second turn
        monkeypatch.setattr(muon.distributed, "get_rank", partial(int, rank))
        found = over_ranks(work, matrices)
    assert torch.equal(found, 2 * matrices)
    assert set(done) == {math.ceil(count / 3)}


def test_a_closure_is_called_with_gradients_on() -> None:
    model = network()
    optimizer = Muon(muon_groups(model, recipe()))
    ids = torch.zeros(1, 4, dtype=torch.long)

    def closure() -> float:
        loss = model(ids).logits.sum()
        loss.backward()
        return loss.item()

    assert isinstance(optimizer.step(closure), float)


def test_products_are_in_bf16_in_a_bf16_run() -> None:
    kinds = [
        build_optimizer(network(), recipe=recipe(), precision=p).dtype for p in ("bf16", "fp16")
    ]
    assert kinds == [torch.bfloat16, torch.float32]
