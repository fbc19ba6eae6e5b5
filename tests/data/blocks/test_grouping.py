"""Every token is predicted once; best_fit cuts no document that fits, and masks hide documents."""

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lm.data.blocks import grouping
from hf_lm.data.blocks.grouping import BestFit, Concat, Grouper, fill_bins
from hf_lm.data.collator import collate
from hf_lm.data.load import load_blocks, load_documents
from hf_lm.data.text.sources import find_corpus
from hf_lm.model.build import build_model
from hf_lm.model.config import Vocabulary
from hf_lm.model.loss import IGNORE_INDEX
from hf_lm.recipe import DataRecipe, ModelRecipe
from hf_lm.tokenizer import PreTrainedTokenizerFast, byte_tokenizer

EOS, WORDS = 0, 40
DOCUMENTS = st.lists(
    st.lists(st.integers(1, WORDS - 1), min_size=1, max_size=25), min_size=1, max_size=20
)


def rows_of(grouper: Grouper, documents: list[list[int]], *, batch: int) -> np.ndarray:
    """Add documents in batches, then end the text, and return all blocks."""
    blocks = []
    for start in range(0, len(documents), batch):
        rows = [[*ids, EOS] for ids in documents[start : start + batch]]
        ids = np.array([token for row in rows for token in row], np.uint16)
        blocks.append(grouper.add(ids, np.cumsum([len(row) for row in rows])))
    blocks.append(grouper.add(np.empty(0, np.uint16), np.empty(0, np.int64)))
    return np.concatenate(blocks)


def batch_of(rows: np.ndarray, **options: Any) -> dict[str, torch.Tensor]:
    """Collate rows as the trainer does."""
    return collate([{"input_ids": row} for row in rows], **options)


@settings(max_examples=200, deadline=None)
@given(documents=DOCUMENTS, size=st.integers(1, 30), batch=st.integers(1, 6))
def test_concat_predicts_every_token_of_the_stream_once(
    documents: list[list[int]], size: int, batch: int
) -> None:
    grouper = Concat(size, np.empty(0, np.uint16))
    rows = rows_of(grouper, documents, batch=batch)
    stream = [token for ids in documents for token in [*ids, EOS]]
    predicted = rows[:, 1:].reshape(-1).tolist()
    assert predicted == stream[1 : 1 + len(predicted)]
    assert rows[:, 0].tolist() == stream[: len(rows) * size : size]
    assert grouper.unused == len(stream) - 1 - len(predicted) < size + 1
    assert grouper.padded == 0


@settings(max_examples=300, deadline=None)
@given(
    documents=DOCUMENTS,
    size=st.integers(2, 30),
    batch=st.integers(1, 6),
    packed=st.integers(1, 300),
)
def test_best_fit_predicts_every_token_once_and_cuts_no_document_that_fits(
    documents: list[list[int]], size: int, batch: int, packed: int
) -> None:
    grouper = BestFit(size, EOS, np.uint16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "PACKED", packed)
        rows = rows_of(grouper, documents, batch=batch)
    batch = batch_of(rows, padding=EOS)
    targets = batch["shift_labels"]
    real = targets[targets != IGNORE_INDEX]
    assert Counter(real.tolist()) == Counter(t for ids in documents for t in [*ids, EOS])
    assert grouper.padded == int((targets == IGNORE_INDEX).sum())
    assert grouper.unused == 0
    # End-of-text ids separate the pieces of a row; each document that fits must be one piece.
    fitting_documents = Counter(tuple(ids) for ids in documents if len(ids) < size)
    pieces: Counter[tuple[int, ...]] = Counter()
    for row in rows.tolist():
        start = 1 if row[0] == EOS else 0
        text = "".join(chr(token) for token in row[start:])
        pieces += Counter(tuple(map(ord, piece)) for piece in text.split(chr(EOS)) if piece)
    assert all(pieces[ids] >= count for ids, count in fitting_documents.items())


@settings(max_examples=200, deadline=None)
@given(documents=DOCUMENTS, size=st.integers(2, 30))
def test_best_fit_puts_the_preceding_token_of_its_document_before_every_token(
    documents: list[list[int]], size: int
) -> None:
    rows = rows_of(BestFit(size, EOS, np.uint16), documents, batch=3)
    pairs = Counter(
        (before, after)
        for row in rows.tolist()
        for before, after in itertools.pairwise(row)
        if (before, after) != (EOS, EOS)
    )
    expected = Counter(
        pair for ids in documents for pair in zip([EOS, *ids], [*ids, EOS], strict=True)
    )
    assert pairs == expected


def test_bins_are_filled_by_best_fit_in_descending_order() -> None:
    ends = np.cumsum([6, 3, 4, 2, 5]).tolist()
    bins = fill_bins(ends, 10)
    assert [[piece.size for piece in pieces] for pieces in bins] == [[6, 4], [5, 3, 2]]


def test_best_fit_pads_less_than_half_a_percent_of_short_documents() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 400, 3_000)
    grouper = BestFit(1024, EOS, np.uint16)
    ids = np.ones(sizes.sum(), np.uint16)
    ids[np.cumsum(sizes) - 1] = EOS
    grouper.add(ids, np.cumsum(sizes))
    rows = grouper.add(ids[:0], np.empty(0, np.int64))
    assert grouper.padded < 0.005 * rows.size


@pytest.fixture(scope="module", params=["gpt2", "qwen3"])
def model(request: pytest.FixtureRequest) -> Any:
    """A small model that supports document masks."""
    recipe = ModelRecipe(family=request.param, n_layer=2, n_head=2, n_embd=16)
    vocabulary = Vocabulary(size=WORDS, bos_token_id=EOS, eos_token_id=EOS)
    return build_model(recipe, vocabulary, block_size=24).eval()


@settings(max_examples=30, deadline=None)
@given(documents=DOCUMENTS, kind=st.sampled_from(["concat", "best_fit"]))
def test_logits_with_a_document_mask_equal_those_of_separate_documents(
    documents: list[list[int]], kind: str, model: Any
) -> None:
    grouper = BestFit(24, EOS, np.uint16) if kind == "best_fit" else Concat(24, np.empty(0, "u2"))
    rows = rows_of(grouper, documents, batch=4)[:4]
    if not len(rows):
        return
    batch = batch_of(rows, separator=EOS)
    with torch.no_grad():
        logits = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits
        for row, ids in enumerate(batch["input_ids"].tolist()):
            starts = [0, *(index + 1 for index, token in enumerate(ids) if token == EOS), len(ids)]
            for start, end in itertools.pairwise(starts):
                if start == end:
                    continue
                alone = model(input_ids=torch.tensor([ids[start:end]]), use_cache=False).logits[0]
                torch.testing.assert_close(logits[row, start:end], alone, atol=1e-5, rtol=1e-5)


def test_validation_blocks_do_not_depend_on_the_grouping(tmp_path: Path) -> None:
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(), bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )
    rows = [json.dumps({"text": f"document {number} " * 3}) for number in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    validation_blocks = []
    for kind in ("concat", "best_fit"):
        data = DataRecipe(source=str(tmp_path / "a.jsonl"), block_size=64, grouping=kind)
        text = load_documents(data, find_corpus(data))
        blocks = load_blocks(data, text, tokenizer, seed=0)
        validation_blocks.append([row["input_ids"].tolist() for row in blocks.splits["validation"]])
        padded = blocks.counts["train"].padded_tokens
        assert (padded > 0) == (kind == "best_fit")
        assert blocks.counts["validation"].padded_tokens == 0
    assert validation_blocks[0] == validation_blocks[1]
