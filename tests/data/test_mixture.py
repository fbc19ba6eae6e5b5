"""Shares of a mixture are met from the first blocks on, for every number of processes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_lm.data.load import load_blocks, load_documents
from hf_lm.data.mixture import MixtureOrder, sources_of
from hf_lm.data.text.sources import find_corpus
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
def test_every_reader_has_the_shares_of_the_weights(readers: int) -> None:
    whole = sources_of(np.arange(2_000 * readers), WEIGHTS, seed=7)
    for number in range(readers):
        own = sources_of(np.arange(2_000) * readers + number, WEIGHTS, seed=7)
        assert (own == whole[number::readers]).all()
        assert np.abs(np.bincount(own, minlength=3) / 2_000 - WEIGHTS).max() < 0.01


def test_a_source_is_read_completely_before_it_repeats() -> None:
    sizes = [40, 30, 200]
    mixture_order = MixtureOrder(sizes, WEIGHTS, seed=3)
    drawn: list[int] = []
    for epoch in range(4):
        order = mixture_order.of_epoch(epoch).tolist()
        assert len(order) == len(mixture_order) == 270
        drawn += [number % 270 for number in order]
    for source, (size, start) in enumerate(zip(sizes, (0, 40, 70), strict=True)):
        own = [block for block in drawn if start <= block < start + size]
        assert abs(len(own) / len(drawn) - WEIGHTS[source]) < 0.01
        for pass_start in range(0, len(own) - size + 1, size):
            assert sorted(own[pass_start : pass_start + size]) == list(range(start, start + size))
    assert drawn[:40] != drawn[270:310]


def test_the_order_depends_only_on_the_seed() -> None:
    first, again, other = (
        MixtureOrder([50, 60], [0.5, 0.5], seed=s).of_epoch(0).tolist() for s in (1, 1, 2)
    )
    assert first == again != other


def write_mixture(tmp_path: Path, texts: dict[str, list[str]]) -> dict[str, Any]:
    """A folder of documents for each name; the changes of a recipe that mixes them 3 to 1."""
    for name, documents in texts.items():
        (tmp_path / name).mkdir()
        for number, text in enumerate(documents):
            (tmp_path / name / f"{number}.txt").write_text(text)
    weighted = zip(texts, (3, 1), strict=True)
    sources = [{"source": name, "weight": weight} for name, weight in weighted]
    return {"data__source": sources, "tokenizer": {"train": {"kind": "byte"}}}


def mixture(path: Path) -> Any:
    """The blocks of a recipe file, and their tokenizer."""
    recipe = load_recipe(path)
    text = load_documents(recipe.data, find_corpus(recipe.data))
    tokenizer = build_tokenizer(recipe.tokenizer, text.documents)
    return load_blocks(recipe.data, text, tokenizer, seed=recipe.seed), tokenizer


def repeated(count: int) -> dict[str, list[str]]:
    """Different documents of a's, and as many of b's."""
    return {name: [f"{name * 40} {number}\n" * 5 for number in range(count)] for name in "ab"}


def test_a_mixture_resumes_with_the_same_weights_in_a_later_epoch(
    resumes_exactly: Callable[..., Path], tmp_path: Path
) -> None:
    changes = write_mixture(tmp_path, repeated(4))
    steps = {"training__max_steps": 16, "training__save_steps": 4}
    folder = resumes_exactly(lambda path: train(load_recipe(path)), 16, **changes, **steps)
    state = json.loads((folder / "checkpoint-16" / "trainer_state.json").read_text())
    assert state["epoch"] > 1


def test_a_source_shorter_than_a_block_is_named(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    texts = {"a": repeated(20)["a"], "b": ["x"]}
    path = write_recipe(**write_mixture(tmp_path, texts))
    with pytest.raises(DataError, match=r"data\.source\.1: fills no block of its own; add text"):
        mixture(path)


def test_the_order_follows_the_weights_of_the_recipe(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_recipe(**write_mixture(tmp_path, repeated(60)))
    blocks, tokenizer = mixture(path)
    order = blocks.order.of_epoch(0).tolist()[:2_000]
    rows = blocks.splits["train"].__getitems__(order)
    texts = [tokenizer.decode(row["input_ids"]) for row in rows]
    share = sum(text.count("a") > text.count("b") for text in texts) / len(texts)
    assert abs(share - 0.75) < 0.01
    assert blocks.counts["train"].blocks == len(blocks.splits["train"])
    num_validation_blocks = "".join(
        tokenizer.decode(row["input_ids"]) for row in blocks.splits["validation"]
    )
    assert "aaaa" in num_validation_blocks
    assert "bbbb" in num_validation_blocks
