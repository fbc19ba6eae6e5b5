"""Shares of a mixture are met from the first blocks on, for every number of processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_lm.dataset import find_corpus, load_blocks, load_documents
from hf_lm.dataset.mixture import MixtureSampler, sources_of
from hf_lm.errors import DataError
from hf_lm.recipe import load_recipe
from hf_lm.run import train
from hf_lm.tokenizer import build_tokenizer

WEIGHTS = [0.7, 0.2, 0.1]


@pytest.mark.parametrize("weights", [WEIGHTS, [0.5, 0.5], [0.999, 0.001], [1.0]])
@pytest.mark.parametrize("seed", [0, 1, 42])
def test_shares_are_within_one_percent_over_2000_blocks(weights: list[float], seed: int) -> None:
    for start in (0, 1_999, 10**12):
        chosen = sources_of(np.arange(start, start + 2_000), weights, seed=seed)
        shares = np.bincount(chosen, minlength=len(weights)) / 2_000
        assert np.abs(shares - weights).max() < 0.01


@pytest.mark.parametrize("readers", [2, 3, 8])
def test_every_reader_meets_the_shares_and_all_together_meet_the_same(readers: int) -> None:
    whole = sources_of(np.arange(2_000 * readers), WEIGHTS, seed=7)
    for number in range(readers):
        own = sources_of(np.arange(2_000) * readers + number, WEIGHTS, seed=7)
        assert (own == whole[number::readers]).all()
        assert np.abs(np.bincount(own, minlength=3) / 2_000 - WEIGHTS).max() < 0.01


def test_a_source_is_read_to_its_end_before_any_of_it_is_read_again() -> None:
    sizes = [40, 30, 200]
    sampler = MixtureSampler(sizes, WEIGHTS, seed=3)
    drawn: list[int] = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert len(order) == len(sampler) == 270
        drawn += order
    for source, (size, start) in enumerate(zip(sizes, (0, 40, 70), strict=True)):
        own = [block for block in drawn if start <= block < start + size]
        assert abs(len(own) / len(drawn) - WEIGHTS[source]) < 0.01
        for pass_start in range(0, len(own) - size + 1, size):
            assert sorted(own[pass_start : pass_start + size]) == list(range(start, start + size))
    assert drawn[:40] != drawn[270:310]


def test_the_order_goes_by_the_seed_alone() -> None:
    first, again, other = (list(MixtureSampler([50, 60], [0.5, 0.5], seed=s)) for s in (1, 1, 2))
    assert first == again != other


def mixture(write_recipe: Callable[..., Path], tmp_path: Path, **changes: Any) -> Any:
    """The blocks of two folders mixed 3 to 1: one of a's, one of b's."""
    for name in "ab":
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number in range(60):
            (folder / f"{number}.txt").write_text(f"{name * 40} {number}\n" * 5)
    entries = [{"source": "a", "weight": 3}, {"source": "b", "weight": 1}]
    path = write_recipe(data__source=entries, tokenizer={"train": {"kind": "byte"}}, **changes)
    recipe = load_recipe(path)
    text = load_documents(recipe.data, find_corpus(recipe.data))
    tokenizer = build_tokenizer(recipe.tokenizer, text.documents)
    return load_blocks(recipe.data, text, tokenizer, seed=recipe.seed), tokenizer


def test_a_mixture_resumes_with_the_same_weights_in_a_later_epoch(
    write_recipe: Callable[..., Path], tmp_path: Path, undo_end: Callable[[Path, int], None]
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(5):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number} " * 12)
    entries = [{"source": "a", "weight": 3}, {"source": "b", "weight": 1}]
    changes = {"data__source": entries, "training__max_steps": 16, "training__save_steps": 4}
    for folder in ("whole", "broken"):
        path = write_recipe(**changes, output_dir=folder, tokenizer={"train": {"kind": "byte"}})
        train(load_recipe(path))
    state = json.loads((tmp_path / "whole" / "checkpoint-16" / "trainer_state.json").read_text())
    assert state["epoch"] > 2
    undo_end(tmp_path / "broken", 16)
    train(load_recipe(path))
    first, second = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "broken")
    )
    assert first == second


def test_a_source_that_fills_no_block_is_named(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    for name, text in (("a", "some text\n" * 90), ("b", "x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.txt").write_text(text)
        (tmp_path / name / "2.txt").write_text(text + "y")
    entries = [{"source": "a", "weight": 3}, {"source": "b", "weight": 1}]
    path = write_recipe(data__source=entries, tokenizer={"train": {"kind": "byte"}})
    recipe = load_recipe(path)
    text = load_documents(recipe.data, find_corpus(recipe.data))
    tokenizer = build_tokenizer(recipe.tokenizer, text.documents)
    with pytest.raises(DataError, match=r"data\.source\.1: fills no block of its own; add text"):
        load_blocks(recipe.data, text, tokenizer, seed=0)


def test_the_sampler_of_a_recipe_gives_the_shares_of_its_weights(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    blocks, tokenizer = mixture(write_recipe, tmp_path)
    order = list(blocks.sampler)[:2_000]
    texts = [tokenizer.decode(blocks.parts["train"][place]["input_ids"]) for place in order]
    share = sum(text.count("a") > text.count("b") for text in texts) / len(texts)
    assert abs(share - 0.75) < 0.01
    assert blocks.counts["train"].blocks == len(blocks.parts["train"])
    held_out = "".join(tokenizer.decode(row["input_ids"]) for row in blocks.parts["validation"])
    assert "aaaa" in held_out
    assert "bbbb" in held_out
