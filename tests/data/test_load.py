"""No token is lost but the tail, none is predicted twice, and prepared data is never stale."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import data_recipe, tokenizer_of, write

from hf_lm.data.blocks import tokenization as tokens
from hf_lm.data.blocks.dataset import Blocks
from hf_lm.data.blocks.grouping import Concat, cut
from hf_lm.data.blocks.tokenization import Tokenize
from hf_lm.data.collator import collate, make_collate
from hf_lm.data.load import load_blocks, load_documents, text_blocks
from hf_lm.data.text.sources import find_corpus
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe, load_recipe
from hf_lm.tokenizer import EOS, build_tokenizer, token_bytes

KINDS = ["bpe", "char", "byte"]
LINES = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
# Every plane of Unicode that has characters, what spells special tokens, and nothing at all.
TEXTS = st.lists(
    st.one_of(
        LINES,
        st.text(st.characters(min_codepoint=0x10000, exclude_categories=["Cs"]), max_size=8),
        st.sampled_from(["", EOS, f"a{EOS}b", "<s></s>", "\n\n", " \t ", "\u0301"]),
    ),
    max_size=12,
)


def ids_of(tokenizer: Any, texts: list[str], **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """The ids of some documents, end to end, and the place behind each one's last."""
    tokenize = Tokenize(tokenizer, **{"append_eos": True, **options})
    batch = tokenize({"text": texts})
    return batch["input_ids"], batch["ends"]


def added(grouper: Any, ids: np.ndarray, ends: np.ndarray, *, portions: int) -> np.ndarray:
    """The blocks of documents that come in portions, the end of the text included."""
    found, start = [], 0
    for some in np.array_split(ends, portions):
        end = some[-1] if len(some) else start
        found.append(grouper.add(ids[start:end], some - start))
        start = end
    found.append(grouper.add(ids[:0], ends[:0]))
    return np.concatenate(found)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, size=st.integers(1, 9), portions=st.integers(1, 4))
def test_blocks_decode_to_the_documents(
    kind: str, texts: list[str], size: int, portions: int
) -> None:
    tokenizer = tokenizer_of(kind, texts)
    ids, ends = ids_of(tokenizer, texts)
    rows = np.split(ids, ends)[:-1]
    assert [tokenizer.decode(row[:-1]) for row in rows] == texts
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)
    assert all(tokenizer.eos_token_id not in row[:-1] for row in rows)
    grouper = Concat(size, ids[:0])
    blocks = added(grouper, ids, ends, portions=portions)
    back = [*blocks[:, :-1].reshape(-1), *blocks[-1:, -1]]
    assert back == ids[: len(back)].tolist()
    assert max(0, len(ids) - max(1, len(back))) == grouper.unused <= size
    sizes = token_bytes(tokenizer)[ids]
    assert sizes.sum() == sum(len(text.encode()) for text in texts)


def test_ids_are_uint16_if_the_vocabulary_allows() -> None:
    tokenizer = tokenizer_of("byte", [])
    assert ids_of(tokenizer, ["abc"])[0].dtype == np.uint16
    tokenizer.add_tokens([f"<{i}>" for i in range(2**16)])
    assert ids_of(tokenizer, ["abc"])[0].dtype == np.int32


def test_rows_overlap_by_one_and_predict_every_token_once() -> None:
    rows = cut(np.arange(10), block_size=3)
    assert rows.tolist() == [[0, 1, 2, 3], [3, 4, 5, 6], [6, 7, 8, 9]]
    assert sorted(rows[:, 1:].reshape(-1)) == list(range(1, 10))
    assert cut(np.arange(3), block_size=3).shape == (0, 4)


def test_the_collator_shifts_once() -> None:
    batch = collate([{"input_ids": np.array([5, 6, 7], np.uint16)}])
    assert batch["input_ids"].tolist() == [[5, 6]]
    assert batch["shift_labels"].tolist() == [[6, 7]]
    assert batch["shift_labels"].is_contiguous()
    assert set(batch) == {"input_ids", "labels", "shift_labels"}


def test_padding_is_not_predicted_but_the_end_of_text_is() -> None:
    tokenizer = tokenizer_of("byte", [])
    data = DataRecipe(grouping="best_fit")
    row = {"input_ids": np.array([0, 5, 0, 6, 0, 0, 0], np.uint16), "number": 3}
    targets = {
        split: make_collate(data, tokenizer, split=split)([row])["shift_labels"].tolist()
        for split in ("train", "validation")
    }
    assert targets["train"] == [[5, 0, 6, 0, -100, -100]]
    assert targets["validation"] == [[5, 0, 6, 0, 0, 0]]
    plain = make_collate(DataRecipe(), tokenizer, split="train")([row])
    assert plain["shift_labels"].tolist() == targets["validation"]


def test_positions_restart_after_each_separator() -> None:
    ids = np.array([[4, 0, 5, 6, 0, 7, 1], [0, 0, 8, 9, 9, 9, 1]], np.uint16)
    batch = collate([{"input_ids": row} for row in ids], separator=0)
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 1, 2, 3]]


def test_a_long_text_is_encoded_in_pieces_without_loss(monkeypatch: Any) -> None:
    monkeypatch.setattr(tokens, "PIECE", 10)
    tokenize = Tokenize(tokenizer_of("byte", []), append_eos=False)
    for text in ("one\ntwo three\nfour five six", "x" * 35, "\n" * 25, "a\n\n\n b\n" * 5, ""):
        pieces = tokenize.split_text(text)
        assert "".join(pieces) == text
        assert all(len(piece) <= 10 for piece in pieces)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(lines=st.lists(LINES.map(lambda line: "".join(line[:12].split()) or "x"), max_size=30))
def test_pieces_and_cores_do_not_change_ids(kind: str, lines: list[str]) -> None:
    texts = ["\n".join(lines), "short", "\n".join(lines[::-1])]
    tokenizer = tokenizer_of(kind, texts)
    whole, ends = ids_of(tokenizer, texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "PIECE", 40)
        for cores in (1, 3):
            again, places = ids_of(tokenizer, texts, cores=cores)
            assert again.tolist() == whole.tolist()
            assert places.tolist() == ends.tolist()


def prepared(path: Path) -> Blocks:
    """The blocks and counts of a recipe file."""
    recipe = load_recipe(path)
    text = load_documents(recipe.data, find_corpus(recipe.data))
    tokenizer = build_tokenizer(recipe.tokenizer, text.documents)
    return load_blocks(recipe.data, text, tokenizer, seed=recipe.seed)


def ids(blocks: Blocks, split: str = "train") -> list[list[int]]:
    """All blocks of a part."""
    return [row["input_ids"].tolist() for row in blocks.splits[split]]


@pytest.mark.parametrize("kind", ["concat", "best_fit"])
def test_counts_match_the_text(
    kind: str, write_recipe: Callable[..., Path], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = write_recipe(data__grouping=kind)
    recipe = load_recipe(path)
    documents = load_documents(recipe.data, find_corpus(recipe.data)).documents
    tokenizer = build_tokenizer(recipe.tokenizer, documents)
    blocks = prepared(path)
    for split, counts in blocks.counts.items():
        texts = [row["text"] for row in documents[split]]
        assert counts.documents == len(texts)
        assert counts.bytes == sum(len(text.encode()) for text in texts)
        assert counts.tokens == len(ids_of(tokenizer, texts)[0])
        assert counts.blocks == len(blocks.splits[split])
        if kind == "best_fit" and split == "train":
            assert 0 < counts.padded_tokens < 0.1 * counts.tokens
            assert counts.tokens + counts.padded_tokens == counts.blocks * 16
        else:
            assert counts.padded_tokens == 0
            assert counts.tokens - 1 - counts.unused_tokens == counts.blocks * 16


def test_a_validation_set_shorter_than_a_block_is_refused(
    write_recipe: Callable[..., Path],
) -> None:
    with pytest.raises(DataError, match=r"validation text: \d+ tokens, one block needs 1,001"):
        prepared(
            write_recipe(
                data__block_size=1000,
                data__validation={"holdout": 0.01},
                training__tokens_per_step=1000,
            )
        )


@pytest.mark.parametrize("text", ["abcdefgh", "ab\nde\ngh"])
def test_evaluation_text_is_used_completely(text: str, tmp_path: Path) -> None:
    data = data_recipe(write(tmp_path / "a.txt", text), block_size=4, grouping="best_fit")
    blocks = text_blocks(data, find_corpus(data), tokenizer_of("byte", []))
    assert len(blocks) == 2
    twice = [write(tmp_path / f"{name}.txt", text) for name in "bc"]
    data = data_recipe(twice, block_size=4)
    assert len(text_blocks(data, find_corpus(data), tokenizer_of("byte", []))) == 4
