"""Every fast way of computing gives what the plain one gives: compiled, fused, without logits.

The curves are printed.
"""

import sys
from typing import Any, NamedTuple

import pytest
import torch

from hf_lm.model.attention import FUSED, PLAIN
from hf_lm.model.build import build_model, compile_blocks
from hf_lm.model.config import Vocabulary
from hf_lm.recipe import ModelRecipe

pytestmark = [
    pytest.mark.slow,
    # torch's compiler looks at the gradient of what is no leaf, and warns of itself.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

T, V, STEPS = 32, 64, 200


class Way(NamedTuple):
    """One way of computing the same."""

    attention: str
    compiled: bool = False
    logits: bool = False  # the stock forward, which holds them all


STOCK = Way("eager", logits=True)
FAST = [Way(FUSED), Way(PLAIN), Way(FUSED, compiled=True), Way(PLAIN, compiled=True)]
MASKED = [Way("sdpa"), Way("eager", compiled=True)]  # ours have no mask to part documents with


def network(family: str, way: Way) -> Any:
    """The same weights each time."""
    torch._dynamo.reset()
    recipe = ModelRecipe(family=family, n_layer=2, n_head=2, n_embd=32)
    model = build_model(recipe, Vocabulary(V, 0, 0), block_size=T, attention=way.attention, seed=2)
    model.set_attn_implementation(way.attention)
    model.config.use_cache = False
    if way.logits:
        del model.forward
    if way.compiled:
        compile_blocks(model)
    return model.train()


def batch_at(step: int, *, masked: bool) -> dict[str, torch.Tensor]:
    """Blocks of a language that can be learnt: each token follows from the one before."""
    chance = torch.Generator().manual_seed(step)
    ids = torch.randint(0, V, (4, T + 1), generator=chance)
    for place in range(1, T + 1):
        follows = (5 * ids[:, place - 1] + 3) % V
        known = torch.rand(4, generator=chance) < 0.8
        ids[:, place] = torch.where(known, follows, ids[:, place])
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, :-1], "shift_labels": ids[:, 1:].clone()}
    if masked:
        batch["position_ids"] = torch.tensor([[*range(T // 2), *range(T // 2)]] * 4)
    return batch


def loss_of(model: Any, step: int, *, masked: bool) -> torch.Tensor:
    """The loss of a step, over a count of its own as the Trainer gives it."""
    return model(**batch_at(step, masked=masked), num_items_in_batch=4 * T).loss


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_loss_and_gradients_are_the_stock_ones_in_fp32(family: str, masked: bool) -> None:
    found = {}
    for way in (STOCK, *(MASKED if masked else FAST)):
        model = network(family, way)
        for step in range(2):  # two micro-batches that add up
            loss = loss_of(model, step, masked=masked)
            loss.backward()
        found[way] = [loss.detach(), *(p.grad for p in model.parameters())]
    for way, values in found.items():
        for ours, stock in zip(values, found[STOCK], strict=True):
            torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5, msg=str(way))


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_curves_in_bf16_are_those_of_fp32_within_their_noise(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {}
    for way, dtype in (
        (STOCK, torch.float32),
        (STOCK, torch.bfloat16),
        (Way(PLAIN, compiled=True), torch.float32),
        (Way(PLAIN, compiled=True), torch.bfloat16),
    ):
        model, losses = network(family, way), []
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        for step in range(STEPS):
            with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
                loss = loss_of(model, step, masked=False)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        shown = " ".join(f"{loss:.4f}" for loss in losses[:: STEPS // 10])
        with capsys.disabled():
            sys.stdout.write(f"\n{family} {way} {dtype}: {shown} {losses[-1]:.4f}")
        ends[way, dtype] = sum(losses[-40:]) / 40
    assert max(ends.values()) < 2.5  # of 4.16 in the beginning: it has learnt
    assert max(ends.values()) - min(ends.values()) < 0.02
