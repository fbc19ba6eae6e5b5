"""Bits per byte divide by the bytes of the text, whatever the tokenizer does to it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from texts import write_jsonl
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from hf_lm.data.blocks.build import blocks_in_memory
from hf_lm.data.blocks.byte_counts import bytes_note
from hf_lm.data.collator import make_collate
from hf_lm.data.text.documents import Documents
from hf_lm.data.text.holdout import Holdout
from hf_lm.data.text.sources import find_corpus
from hf_lm.evaluation.evaluate import evaluate
from hf_lm.model.build import build_model
from hf_lm.model.config import Vocabulary
from hf_lm.recipe import DataRecipe, EvaluationRecipe, ModelRecipe
from hf_lm.tokenizer import (
    EOS,
    PreTrainedTokenizerFast,
    byte_tokenizer,
    char_tokenizer,
    spells_text,
    token_bytes,
    train_bpe,
)

TEXT = (
    "def f(x):\n\treturn  x  # Cafe\u0301, \u00c9t\u00e9, \uff21\uff22 \ufb01n\n\n"
    "    \u4f60\u597d \ud55c\uad6d \U0001f600 Stra\u00dfe\u00a0\u2603  end \n"
) * 3


def with_eos(backend: Tokenizer) -> Any:
    """A tokenizer of transformers with GPT-2's end-of-text token."""
    backend.add_special_tokens([EOS])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=EOS, eos_token=EOS)


def bpe_with_added_word() -> Any:
    """Byte-level BPE with an added word, which is stored as text and not as bytes."""
    tokenizer = with_eos(train_bpe([TEXT], vocab_size=300))
    tokenizer.add_tokens(["Cafe\u0301", "Stra\u00dfe"])
    return tokenizer


def unigram() -> Any:
    """As T5's and XLNet's: NFKC, and white space as part of words, with one in front."""
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace("  ", " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    return with_eos(backend)


def wordpiece() -> Any:
    """As BERT's: lower case, no accents, no white space."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=90, special_tokens=["[UNK]"], show_progress=False
    )
    backend.train_from_iterator([TEXT], trainer)
    return with_eos(backend)


def byte_fallback() -> Any:
    """As Llama 2's: a space in front, and single bytes for characters without a token."""
    bytes_ = [f"<0x{n:02X}>" for n in range(256)]
    vocabulary = {token: n for n, token in enumerate([*bytes_, *"abcdefxtrn\u2581"])}
    backend = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    return with_eos(backend)


def nfc_bpe() -> Any:
    """Byte-level BPE behind a normalizer that joins accents with their letters."""
    backend = train_bpe([TEXT], vocab_size=300)
    backend.normalizer = normalizers.NFC()
    return with_eos(backend)


KINDS: dict[str, tuple[Any, bool]] = {  # how it is made, and whether ids tell the bytes
    "bpe": (lambda: with_eos(train_bpe([TEXT], vocab_size=300)), True),
    "bpe with an added word": (bpe_with_added_word, True),
    "bytes": (lambda: with_eos(byte_tokenizer()), True),
    "characters": (lambda: with_eos(char_tokenizer(["a" + TEXT])), True),
    "unigram": (unigram, False),
    "wordpiece": (wordpiece, False),
    "byte fallback": (byte_fallback, False),
    "bpe with NFC": (nfc_bpe, False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_bits_per_byte_are_those_of_the_source_text(kind: str, tmp_path: Path) -> None:
    """The first document begins with a token that is not predicted; all else is counted."""
    make, spells = KINDS[kind]
    tokenizer = make()
    assert spells_text(tokenizer) == spells
    write_jsonl(tmp_path / "text.jsonl", ["a", TEXT])
    encoded = tokenizer("a", add_special_tokens=False, return_offsets_mapping=True)
    first = len(encoded["input_ids"])
    tokens = len(tokenizer(TEXT, add_special_tokens=False, split_special_tokens=True)["input_ids"])
    data = DataRecipe.model_validate_json(
        json.dumps({"source": str(tmp_path / "text.jsonl"), "block_size": first + tokens + 1})
    )
    assert bool(bytes_note(tokenizer, data)) != spells
    documents = Documents(data, find_corpus(data), {}, Holdout(0))
    blocks = blocks_in_memory(documents, tokenizer, data)[0]["train"]
    assert len(blocks) == 1
    network = ModelRecipe(n_layer=1, n_head=1, n_embd=8)
    model = build_model(network, Vocabulary.of(tokenizer), block_size=data.block_size)
    found = evaluate(
        model,
        blocks,
        EvaluationRecipe(),
        collate=make_collate(data, tokenizer, split="validation"),
        token_bytes=token_bytes(tokenizer),
    )
    predicted = len(TEXT.encode()) + 1 - encoded["offset_mapping"][0][1]
    assert found["tokens"] == first + tokens + 1
    assert found["bytes"] == predicted
    bits = found["loss"] * found["tokens"] / math.log(2) / predicted
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-6)
