"""Later epochs have new blocks: every token once, documents whole, the same for a seed."""

import json
import pickle
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lm.data.blocks.dataset import NO_BLOCK, BlockDataset, table_of
from hf_lm.data.blocks.fresh import FreshBlocks
from hf_lm.data.loader import RandomOrder
from hf_lm.errors import MismatchError
from hf_lm.recipe import load_recipe, make_recipe
from hf_lm.run import train
from hf_lm.run_dir.directory import RunDirectory
from hf_lm.workflows.check import check

EOS = 0


def stored_rows(text: np.ndarray, block_size: int) -> np.ndarray:
    """Cut a text into rows [B, T+1] that overlap by one id."""
    count = (len(text) - 1) // block_size
    return np.stack([text[n * block_size : (n + 1) * block_size + 1] for n in range(count)])


def fresh_blocks(
    sources: list[np.ndarray], *, eos: int | None = EOS, seed: int = 3, rows_per_chunk: int = 3
) -> FreshBlocks:
    """Store the rows of each source in chunks, as the Arrow files of a run are."""
    rows = np.concatenate(sources)
    starts = range(0, len(rows), rows_per_chunk)
    table = table_of(rows[:0])
    chunks = [table_of(rows[start : start + rows_per_chunk]) for start in starts]
    joined = type(table).from_batches([b for chunk in chunks for b in chunk.to_batches()])
    sizes = [len(source) for source in sources]
    return FreshBlocks(BlockDataset(Dataset(joined)), sizes, eos=eos, seed=seed)


def documents(sizes: list[int]) -> np.ndarray:
    """Join documents of those sizes; every id is another number, but the last of each is EOS."""
    ids = np.arange(1, sum(sizes) + 1, dtype=np.uint16)
    ids[np.cumsum(sizes) - 1] = EOS
    return ids


def pass_ids(blocks: FreshBlocks, number: int) -> np.ndarray:
    """The rows [B, T+1] of one pass."""
    numbers = [number * len(blocks) + index for index in range(len(blocks))]
    return np.stack([np.asarray(row["input_ids"]) for row in blocks.__getitems__(numbers)])


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=40),
    block_size=st.integers(1, 9),
    number=st.integers(1, 5),
    ends=st.booleans(),
)
def test_a_pass_has_every_token_once_and_keeps_documents_whole(
    sizes: list[int], block_size: int, number: int, ends: bool
) -> None:
    text = documents([*sizes, block_size + 1])
    rows = stored_rows(text, block_size)
    length = len(rows) * block_size + 1
    blocks = fresh_blocks([rows], eos=EOS if ends else None)
    found = pass_ids(blocks, number)
    assert found.shape == rows.shape
    assert (found[1:, 0] == found[:-1, -1]).all()  # rows overlap by one id
    read = np.append(found[:, :-1].ravel(), found[-1, -1])
    assert sorted(read) == sorted(text[:length])
    followers = dict(pairwise(text[:length]))
    del followers[EOS]
    joins = [
        (first, second)
        for first, second in pairwise(read)
        if first != EOS and followers.get(first) != second
    ]
    # Only the last stored id, which may not end its document, is followed by another document.
    assert [first for first, _ in joins] in ([], [text[length - 1]])


def test_the_first_pass_has_the_stored_blocks_and_later_ones_differ() -> None:
    rows = stored_rows(documents([5, 9, 2, 30, 7, 40]), 8)
    blocks = fresh_blocks([rows])
    assert (pass_ids(blocks, 0) == rows).all()
    passes = {pass_ids(blocks, number).tobytes() for number in range(4)}
    assert len(passes) == 4
    again, other = fresh_blocks([rows]), fresh_blocks([rows], seed=4)
    assert (pass_ids(again, 2) == pass_ids(blocks, 2)).all()
    assert (pass_ids(other, 2) != pass_ids(blocks, 2)).any()


def test_a_pass_can_be_read_in_any_order_and_in_another_process() -> None:
    blocks = fresh_blocks([stored_rows(documents([5, 9, 2, 30, 7, 40]), 8)])
    expected = pass_ids(blocks, 2)
    copy = pickle.loads(pickle.dumps(blocks))
    for number in RandomOrder(len(blocks), seed=1).of_epoch(2).tolist():
        (row,) = copy.__getitems__([number])
        assert row["number"] == number % len(blocks)
        assert (row["input_ids"] == expected[row["number"]]).all()
    assert copy.__getitems__([NO_BLOCK])[0]["number"] == NO_BLOCK


def test_sources_of_a_mixture_stay_apart() -> None:
    first = documents([20, 30, 10, 15])
    second = np.where(documents([9] * 12) == EOS, EOS, 1_000 + documents([9] * 12))
    rows = [stored_rows(text.astype(np.uint16), 8) for text in (first, second)]
    blocks = fresh_blocks(rows)
    for number in (0, 1, 2):
        found = pass_ids(blocks, number)
        assert (found[: len(rows[0])] < 1_000).all()
        assert ((found[len(rows[0]) :] > 1_000) | (found[len(rows[0]) :] == EOS)).all()


def recorded(folder: Path) -> list[list[float]]:
    """The losses of a run, in the rows of its log."""
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [[row["step"], row["loss"]] for row in map(json.loads, lines) if "loss" in row]


def test_fresh_blocks_change_later_epochs_only(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    changes = {
        "data__source": "corpus/00*.txt",
        "training__max_steps": None,
        "training__max_epochs": 2,
        "training__logging_steps": 1,
    }
    for name, fresh in (("fixed", False), ("fresh", True)):
        train(load_recipe(write_recipe(output_dir=name, data__fresh_blocks=fresh, **changes)))
    fixed, fresh_rows = recorded(tmp_path / "fixed"), recorded(tmp_path / "fresh")
    half = len(fixed) // 2
    assert [step for step, _ in fixed] == [step for step, _ in fresh_rows]
    assert fixed[:half] == fresh_rows[:half]
    assert all(a != b for a, b in zip(fixed[half:], fresh_rows[half:], strict=True))


def test_a_run_of_a_version_without_the_key_keeps_its_blocks(
    tiny_run: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(tiny_run, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "recipe.json").read_text())
    del written["data"]["fresh_blocks"]
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(written))
    run_dir = RunDirectory(tmp_path / "run")
    continued = run_dir.with_earlier_values(load_recipe(write_recipe()))
    assert continued.data.fresh_blocks is False
    assert run_dir.check_compatible(continued, ()) == {}
    chosen = run_dir.with_earlier_values(load_recipe(write_recipe(data__fresh_blocks=True)))
    assert chosen.data.fresh_blocks is True
    assert make_recipe(written, tmp_path, name="published").data.fresh_blocks is False
    assert check(load_recipe(write_recipe())).plan.max_steps == 8  # it is not refused
    written["data"]["fresh_blocks"] = False  # as a recipe of this version may say
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(written))
    with pytest.raises(MismatchError, match=r"data\.fresh_blocks was false, is now true"):
        check(load_recipe(write_recipe()))


@pytest.mark.parametrize("append_eos", [True, False])
def test_a_run_over_three_epochs_resumes_exactly(
    append_eos: bool, resumes_exactly: Callable[..., Path]
) -> None:
    changes = {
        "data__source": "corpus/00*.txt",
        "data__append_eos": append_eos,
        "training__max_steps": 36,
        "training__save_steps": 8,
        "training__save_total_limit": None,
    }
    folder = resumes_exactly(lambda path: train(load_recipe(path)), 36, **changes)
    state = json.loads((folder / "checkpoint-32" / "trainer_state.json").read_text())
    assert state["epoch"] > 2
