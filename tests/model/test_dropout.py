"""Dropout drops the share it is asked for, each element on its own, and resumes from the seed."""

from typing import Any

import pytest
import torch
from torch import nn

from hf_lm.model.build import build_model
from hf_lm.model.config import FAMILIES, Vocabulary
from hf_lm.model.dropout import Dropout, dropout, replace_dropout
from hf_lm.recipe import ModelRecipe


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_right_share_is_dropped_and_the_mean_is_kept(share: float) -> None:
    torch.manual_seed(0)
    kept = dropout(torch.ones(100_001), share)
    assert kept.unique().tolist() == [0.0, pytest.approx(1 / (1 - share), rel=1e-4)]
    for lane in range(4):
        assert (kept[lane::4] == 0).float().mean().item() == pytest.approx(share, abs=0.01)
    both = (kept[:-1] == 0) & (kept[1:] == 0)
    assert both.float().mean().item() == pytest.approx(share**2, abs=0.01)


def test_dropped_elements_have_no_gradient() -> None:
    values = torch.randn(3, 7, requires_grad=True)
    kept = dropout(values, 0.5)
    kept.sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, (kept != 0) * 2.0)


def test_no_random_numbers_are_drawn_without_dropout_or_in_evaluation() -> None:
    values, layer = torch.ones(9), Dropout(0.5)
    state = torch.random.get_rng_state()
    assert dropout(values, 0.0) is values
    assert layer.eval()(values) is values
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(layer.train()(values), values)
    assert not dropout(values, 1.0).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_dropout_module_is_replaced(family: str) -> None:
    network = ModelRecipe(family=family, n_layer=2, n_head=2, n_embd=16, dropout=0.25)
    model = build_model(network, Vocabulary(50, 0, 0), block_size=8)
    names = list(model.state_dict())
    replace_dropout(model)
    found: list[Any] = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert {(type(m), m.p) for m in found} <= {(Dropout, 0.25)}
    assert len(found) == (7 if family == "gpt2" else 0)
    assert list(model.state_dict()) == names
