"""The loss without logits is the loss with them: value, gradients, accumulation, every family."""

from functools import partial
from typing import Any

import pytest
import torch
from torch.nn import functional

from hf_lm.model import loss
from hf_lm.model.attention import PLAIN
from hf_lm.model.build import build_model
from hf_lm.model.config import FAMILIES, Vocabulary
from hf_lm.model.loss import IGNORE_INDEX, mean_loss
from hf_lm.recipe import ModelRecipe

N, E, V = 23, 12, 37


@pytest.fixture(autouse=True)
def _few_rows(monkeypatch: Any) -> None:
    """Five rows of logits at a time, so that the last part is a smaller one."""
    monkeypatch.setitem(loss.LOGIT_BYTES, "cpu", 4 * V * 5)


def parts() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, an output matrix and targets, two of them ignored."""
    chance = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, E, generator=chance, requires_grad=True)
    weight = torch.randn(V, E, generator=chance, requires_grad=True)
    targets = torch.randint(0, V, (N,), generator=chance)
    targets[[3, 11]] = IGNORE_INDEX
    return hidden, weight, targets


@pytest.mark.parametrize("count", [None, 40, torch.tensor(40)])
def test_loss_and_gradients_equal_those_from_full_logits(count: Any) -> None:
    hidden, weight, targets = parts()
    found = mean_loss(hidden, weight, targets, count)
    (3 * found).backward()
    ours, hidden.grad, weight.grad = (hidden.grad, weight.grad), None, None
    plain = functional.cross_entropy(hidden @ weight.T, targets, reduction="sum") / (
        N - 2 if count is None else 40
    )
    (3 * plain).backward()
    torch.testing.assert_close(found, plain, rtol=1e-6, atol=0)
    for mine, theirs in zip(ours, (hidden.grad, weight.grad), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_bf16_products_keep_an_fp32_loss() -> None:
    hidden, weight, targets = parts()
    exact = mean_loss(hidden, weight, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mean_loss(hidden, weight, targets)
    assert found.dtype == torch.float32
    rounded = functional.cross_entropy(
        (hidden.bfloat16() @ weight.bfloat16().T).float(), targets, ignore_index=IGNORE_INDEX
    )
    torch.testing.assert_close(found, rounded, rtol=1e-6, atol=0)
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=0)
    made = torch.autograd.grad(found, (hidden, weight))
    for ours, plain in zip(made, torch.autograd.grad(exact, (hidden, weight)), strict=True):
        assert ours.dtype == torch.float32
        assert (ours - plain).norm() < 0.02 * plain.norm()


def test_no_gradient_is_computed_without_grad(monkeypatch: Any) -> None:
    hidden, weight, targets = parts()
    expected = mean_loss(hidden, weight, targets)
    monkeypatch.setattr(torch.Tensor, "scatter_add_", None)
    with torch.no_grad():
        found = mean_loss(hidden, weight, targets)
    assert torch.equal(found, expected)
    assert not found.requires_grad


@pytest.mark.parametrize("frozen", [0, 1])
def test_frozen_weights_get_no_gradient_and_others_the_same(frozen: int) -> None:
    hidden, weight, targets = parts()
    both = torch.autograd.grad(mean_loss(hidden, weight, targets), (hidden, weight))
    given = [hidden, weight]
    given[frozen].requires_grad_(False)
    mean_loss(*given, targets).backward()
    assert given[frozen].grad is None
    assert torch.equal(given[1 - frozen].grad, both[1 - frozen])


def batch(*, positions: bool) -> dict[str, torch.Tensor]:
    """Three blocks of 16 targets."""
    ids = torch.randint(0, V, (3, 17), generator=torch.Generator().manual_seed(1))
    found = {"input_ids": ids[:, :-1], "labels": ids[:, :-1], "shift_labels": ids[:, 1:].clone()}
    if positions:
        found["position_ids"] = torch.tensor([[*range(5), *range(11)]] * 3)
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_models_train_as_with_the_stock_forward(family: str, mask: bool, tied: bool) -> None:
    network = ModelRecipe(family=family, n_layer=2, n_head=2, n_embd=16, tie_word_embeddings=tied)
    model: Any = build_model(network, Vocabulary(V, 0, 0), block_size=16)
    rows, gradients = batch(positions=mask), []
    for attention, forward in (
        ("eager" if mask else PLAIN, model),
        ("sdpa", partial(type(model).forward, model)),
    ):
        model.set_attn_implementation(attention)
        output = forward(**rows, num_items_in_batch=60, use_cache=False)
        assert ("logits" in output) == (forward is not model)
        output.loss.backward()
        gradients.append([output.loss.detach(), *(p.grad for p in model.parameters())])
        model.zero_grad()
    for ours, stock in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-6)


def test_calls_without_targets_use_the_stock_forward() -> None:
    network = ModelRecipe(n_layer=2, n_head=2, n_embd=16)
    model = build_model(network, Vocabulary(V, 0, 0), block_size=16)
    ids = torch.arange(6)[None]
    torch.testing.assert_close(model(ids).logits, type(model).forward(model, ids).logits)
    found = model.generate(ids, max_new_tokens=5, do_sample=False)
    assert found.shape == (1, 11)
    stock = model(ids, labels=ids).loss
    expected = functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:])
    torch.testing.assert_close(stock, expected)
    counted = model(ids, labels=ids, num_items_in_batch=20).loss
    torch.testing.assert_close(counted, expected * 5 / 20)
