"""No token is lost but the tail, parts share no document, and prepared data is never stale."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lm.dataset import blocks as blocks_module
from hf_lm.dataset import find_corpus, load_blocks, load_documents, text_blocks
from hf_lm.dataset.blocks import collate, cut, group, pieces_of, positions, tokenize
from hf_lm.dataset.cache import cache_root
from hf_lm.dataset.documents import HASHES, content_hash
from hf_lm.dataset.split import split_documents
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe, TokenizerRecipe, load_recipe
from hf_lm.tokenizer import EOS, build_tokenizer, token_bytes

# Every plane of Unicode that has characters, what spells special tokens, and nothing at all.
TEXTS = st.lists(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        st.text(st.characters(min_codepoint=0x10000, exclude_categories=["Cs"]), max_size=8),
        st.sampled_from(["", EOS, f"a{EOS}b", "<s></s>", "\n\n", " \t ", "\u0301"]),
    ),
    max_size=12,
)


def tokenizer_of(kind: str, texts: list[str]) -> Any:
    """A tokenizer trained on the texts."""
    recipe = TokenizerRecipe.model_validate_json(json.dumps({"train": {"kind": kind}}))
    rows = [{"text": text} for text in texts]
    return build_tokenizer(recipe, {"train": rows, "validation": rows})


def documents_of(texts: list[str]) -> Dataset:
    """Documents as the split takes them."""
    return Dataset.from_dict(
        {
            "text": texts,
            "hash": [content_hash(text) for text in texts],
            "source": [0] * len(texts),
        }
    )


@pytest.mark.parametrize("kind", ["bpe", "char", "byte"])
@settings(max_examples=60, deadline=None)
@given(texts=TEXTS, size=st.integers(1, 9))
def test_blocks_give_back_the_stream_and_the_stream_the_documents(
    kind: str, texts: list[str], size: int
) -> None:
    tokenizer = tokenizer_of(kind, texts)
    table = tokenize(
        pa.table({"text": texts or pa.array([], pa.string())}), tokenizer=tokenizer, append_eos=True
    )
    rows = table.column("input_ids").to_pylist()
    assert [tokenizer.decode(row[:-1]) for row in rows] == texts
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)
    assert all(tokenizer.eos_token_id not in row[:-1] for row in rows)
    stream = [token for row in rows for token in row]
    if not rows:
        return
    blocks = group(table, block_size=size).column("input_ids").to_pylist()
    back = [token for block in blocks for token in block[:-1]] + (blocks[-1][-1:] if blocks else [])
    assert back == stream[: len(back)]
    assert len(stream) - len(back) <= size
    sizes = token_bytes(tokenizer)[stream]
    assert sizes.sum() == sum(len(text.encode()) for text in texts)


def test_ids_are_uint16_while_the_vocabulary_allows() -> None:
    tokenizer = tokenizer_of("byte", [])
    table = tokenize(pa.table({"text": ["abc"]}), tokenizer=tokenizer, append_eos=False)
    assert table.column("input_ids").type.value_type == pa.uint16()
    tokenizer.add_tokens([f"<{i}>" for i in range(2**16)])
    table = tokenize(pa.table({"text": ["abc"]}), tokenizer=tokenizer, append_eos=False)
    assert table.column("input_ids").type.value_type == pa.int32()


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


def test_positions_restart_behind_each_separator() -> None:
    ids = torch.tensor([[4, 0, 5, 6, 0, 7], [0, 0, 8, 9, 9, 9]])
    assert positions(ids, separator=0).tolist() == [[0, 1, 0, 1, 2, 0], [0, 0, 0, 1, 2, 3]]


def test_a_long_text_is_encoded_in_pieces_that_make_it_up(monkeypatch: Any) -> None:
    monkeypatch.setattr(blocks_module, "MAX_ENCODED", 10)
    for text in ("one\ntwo three\nfour five six", "x" * 35, ""):
        pieces = pieces_of(text)
        assert "".join(pieces) == text
        assert all(len(piece) <= 10 for piece in pieces)


def test_the_split_goes_by_content() -> None:
    texts = [f"document {i}" for i in range(500)]
    parts = split_documents(documents_of(texts), holdout=0.1)
    held = set(parts["validation"]["text"])
    assert held == {text for text in texts if content_hash(text) < 0.1 * HASHES}
    assert held.isdisjoint(parts["train"]["text"])
    assert 20 < len(held) < 90
    again = split_documents(documents_of(texts[::-1] + texts[:50]), holdout=0.1)
    assert set(again["validation"]["text"]) == held
    assert held.isdisjoint(again["train"]["text"])


def test_few_documents_leave_one_on_each_side() -> None:
    for holdout in (1e-9, 1 - 1e-9):
        parts = split_documents(documents_of(["a", "b", "c"]), holdout=holdout)
        assert sorted(len(part) for part in parts.values()) == [1, 2]


def test_one_document_is_cut_at_the_line_end_nearest_to_the_share() -> None:
    text = "".join(f"line {i}\n" for i in range(100))
    parts = split_documents(documents_of([text]), holdout=0.1)
    train, held = parts["train"][0]["text"], parts["validation"][0]["text"]
    assert train + held == text
    assert train.endswith("\n")
    assert abs(len(held) - 0.1 * len(text)) < 8
    with pytest.raises(DataError, match="nothing can be held out"):
        split_documents(documents_of(["one line"]), holdout=0.1)


def test_weights_are_passes_over_a_source() -> None:
    texts = [f"document {i}" for i in range(400)]
    documents = documents_of(texts)
    parts = split_documents(documents, holdout=0.25, weights=[2.5])
    counts = np.unique(parts["train"]["text"][:], return_counts=True)[1]
    assert set(counts) == {2, 3}
    assert 2.3 < counts.mean() < 2.7
    assert len(parts["validation"]) == len(set(parts["validation"]["text"]))


def prepared(path: Path, **changes: Any) -> tuple[Any, Any]:
    """The blocks and counts of a recipe file."""
    recipe = load_recipe(path)
    documents, content = load_documents(recipe.data, find_corpus(recipe.data), seed=0)
    tokenizer = build_tokenizer(recipe.tokenizer, documents)
    return load_blocks(recipe.data, documents, tokenizer, content=content)


def test_prepared_data_is_used_again_and_never_stale(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = write_recipe()
    first, counts = prepared(path)
    assert counts["train"].unused_tokens < 16
    made = sorted(p.name for p in (cache_root() / "blocks").iterdir() if p.is_dir())
    second, _ = prepared(path)
    assert sorted(p.name for p in (cache_root() / "blocks").iterdir() if p.is_dir()) == made
    assert second["train"][:]["input_ids"].tolist() == first["train"][:]["input_ids"].tolist()
    file = tmp_path / "corpus" / "000.txt"
    file.write_text(file.read_text().swapcase())
    third, _ = prepared(path)
    assert third["train"][:]["input_ids"].tolist() != first["train"][:]["input_ids"].tolist()
    assert len([p for p in (cache_root() / "blocks").iterdir() if p.is_dir()]) == 2


def test_64_damaged_prepared_data_is_built_again(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = write_recipe()
    first, _ = prepared(path)
    rows = first["train"][:]["input_ids"].tolist()
    del first
    arrow = next((cache_root() / "blocks").rglob("train.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    again, _ = prepared(path)
    assert again["train"][:]["input_ids"].tolist() == rows


def test_num_proc_changes_nothing(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    rows = []
    for num_proc in (None, 2):
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / f"cache{num_proc}"))
        blocks, _ = prepared(write_recipe(data__num_proc=num_proc))
        rows.append(blocks["train"][:]["input_ids"].tolist())
    assert rows[0] == rows[1]


def test_too_little_held_out_text_is_refused(write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"validation text: \d+ tokens, one block needs 1,001"):
        prepared(
            write_recipe(
                data__block_size=1000,
                data__validation={"holdout": 0.01},
                training__tokens_per_step=1000,
            )
        )


def test_text_to_evaluate_on_is_taken_whole(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("abcdefgh")
    data = DataRecipe(source=str(tmp_path / "a.txt"), block_size=4)
    blocks = text_blocks(data, find_corpus(data), tokenizer_of("byte", []))
    assert len(blocks) == 2
