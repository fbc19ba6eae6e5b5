"""Compiled, fused and logit-free training gives the same losses and gradients as the stock model.

The loss curves are printed.
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
    # torch's compiler reads the gradient of tensors that are not leaves, which causes a warning.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
]

T, V, STEPS = 32, 64, 200


class Variant(NamedTuple):
    """A way to compute the loss of the same model."""

    attention: str
    compiled: bool = False
    logits: bool = False  # whether the stock forward computes all logits


STOCK = Variant("eager", logits=True)
FAST = [
    Variant(FUSED),
    Variant(PLAIN),
    Variant(FUSED, compiled=True),
    Variant(PLAIN, compiled=True),
]
# Our attention functions take no document mask, so masked batches use those of transformers.
MASKED = [Variant("sdpa"), Variant("eager", compiled=True)]


def make_model(family: str, variant: Variant) -> Any:
    """Make a model with the same weights each time."""
    torch._dynamo.reset()
    recipe = ModelRecipe(family=family, n_layer=2, n_head=2, n_embd=32)
    model = build_model(
        recipe, Vocabulary(V, 0, 0), block_size=T, attention=variant.attention, seed=2
    )
    model.set_attn_implementation(variant.attention)
    model.config.use_cache = False
    if variant.logits:
        del model.forward
    if variant.compiled:
        compile_blocks(model)
    return model.train()


def batch_at(step: int, *, masked: bool) -> dict[str, torch.Tensor]:
    """Make a batch of text that can be learned: most tokens depend on the token before."""
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, V, (4, T + 1), generator=generator)
    for position in range(1, T + 1):
        next_ids = (5 * ids[:, position - 1] + 3) % V
        is_predictable = torch.rand(4, generator=generator) < 0.8
        ids[:, position] = torch.where(is_predictable, next_ids, ids[:, position])
    batch = {"input_ids": ids[:, :-1], "labels": ids[:, :-1], "shift_labels": ids[:, 1:].clone()}
    if masked:
        batch["position_ids"] = torch.tensor([[*range(T // 2), *range(T // 2)]] * 4)
    return batch


def loss_of(model: Any, step: int, *, masked: bool) -> torch.Tensor:
    """Compute the loss of a step, divided by a given count as in the Trainer."""
    return model(**batch_at(step, masked=masked), num_items_in_batch=4 * T).loss


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_loss_and_gradients_equal_those_of_the_stock_model_in_fp32(
    family: str, masked: bool
) -> None:
    results = {}
    for variant in (STOCK, *(MASKED if masked else FAST)):
        model = make_model(family, variant)
        for step in range(2):  # the gradients of two micro-batches are added
            loss = loss_of(model, step, masked=masked)
            loss.backward()
        results[variant] = [loss.detach(), *(p.grad for p in model.parameters())]
    for variant, values in results.items():
        for ours, stock in zip(values, results[STOCK], strict=True):
            torch.testing.assert_close(ours, stock, rtol=1e-5, atol=1e-5, msg=str(variant))


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_loss_curves_in_bf16_equal_those_of_fp32_within_noise(
    family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = {}
    for variant, dtype in (
        (STOCK, torch.float32),
        (STOCK, torch.bfloat16),
        (Variant(PLAIN, compiled=True), torch.float32),
        (Variant(PLAIN, compiled=True), torch.bfloat16),
    ):
        model, losses = make_model(family, variant), []
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
            sys.stdout.write(f"\n{family} {variant} {dtype}: {shown} {losses[-1]:.4f}")
        ends[variant, dtype] = sum(losses[-40:]) / 40
    assert max(ends.values()) < 2.5  # it is 4.16 at the start
    assert max(ends.values()) - min(ends.values()) < 0.02
