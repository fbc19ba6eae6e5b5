"""Tokenizers give text back, are read by everyone, and are the same for the same text."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from hf_lm.errors import RecipeError
from hf_lm.evaluation.generate import prompt_ids
from hf_lm.recipe import TokenizerRecipe
from hf_lm.tokenizer import EOS, build_tokenizer, load_tokenizer, token_bytes, tokenizer_hash
from hf_lm.vocabulary import LONGEST_WORD, train_bpe, with_short_words

TEXTS = ["The cat sat on the mat.\n", "Ünïcödé \U0001f600 and\ttabs", f"spelled {EOS} out"]


def trained(kind: str, texts: list[str] = TEXTS, **train: Any) -> Any:
    """A tokenizer of a kind, trained on texts."""
    tree = {"train": {"kind": kind, **train}}
    recipe = TokenizerRecipe.model_validate_json(json.dumps(tree))
    return build_tokenizer(recipe, {"train": [{"text": text} for text in texts]})


@pytest.mark.parametrize("kind", ["bpe", "char", "byte"])
def test_a_saved_tokenizer_is_read_by_auto_tokenizer(kind: str, tmp_path: Path) -> None:
    tokenizer = trained(kind)
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"  # as transformers 4 knows it
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert (again.eos_token, again.eos_token_id, again.bos_token_id) == (EOS, 0, 0)
    for text in TEXTS:
        ids = again(text, split_special_tokens=True)["input_ids"]
        assert ids == tokenizer(text, split_special_tokens=True)["input_ids"]
        assert again.decode(ids) == text
    assert tokenizer_hash(again) == tokenizer_hash(tokenizer)


def test_vocabularies_have_the_requested_size() -> None:
    assert len(trained("byte")) == 257
    assert len(trained("char", ["abca"])) == 4
    assert len(trained("bpe", TEXTS * 20, vocab_size=270)) == 270


def test_the_same_text_gives_the_same_vocabulary() -> None:
    assert tokenizer_hash(trained("bpe")) == tokenizer_hash(trained("bpe"))
    assert tokenizer_hash(trained("bpe")) != tokenizer_hash(trained("bpe", TEXTS[:1]))
    chatty = trained("bpe")
    chatty.chat_template = "{{ messages }}"
    assert tokenizer_hash(chatty) == tokenizer_hash(trained("bpe"))
    assert tokenizer_hash(chatty, chat=True) != tokenizer_hash(trained("bpe"), chat=True)


@pytest.mark.parametrize("mark", ["x", "7", "=", " ", "_", "é", "\n"])
def test_words_without_end_are_cut_for_training_and_no_others(mark: str) -> None:
    """Without the cuts, training on a word of three million letters takes hours."""
    text = "some words and 12 numbers. " * 50
    assert list(with_short_words(text)) == [text]
    blob = "QUJD+/0123abcXYZ" * 300  # base64: a long line of short words
    assert list(with_short_words(f"{text}{blob}")) == [f"{text}{blob}"]
    pieces = list(with_short_words(f"{text}{mark * 3_000_000}{text}"))
    assert "".join(pieces) == f"{text}{mark * 3_000_000}{text}"
    assert max(piece.count(mark) for piece in pieces[1:-1]) == LONGEST_WORD
    backend = train_bpe([mark * 3_000_000, text], vocab_size=290)
    assert backend.get_vocab_size() == 290
    assert backend.decode(backend.encode(f"{text}{mark * 3}").ids) == f"{text}{mark * 3}"


def test_text_that_spells_a_special_token_stays_text() -> None:
    for kind in ("bpe", "char", "byte"):
        ids = trained(kind)(TEXTS[2], split_special_tokens=True)["input_ids"]
        assert 0 not in ids


def test_a_character_outside_the_alphabet_is_refused_not_lost() -> None:
    tokenizer = trained("char", ["abc"])
    with pytest.raises(RecipeError, match="cannot encode"):
        prompt_ids(tokenizer, "xyz", limit=9)


def test_token_bytes_add_up_also_where_a_token_is_part_of_a_character() -> None:
    for kind in ("bpe", "char", "byte"):
        tokenizer = trained(kind)
        for text in TEXTS:
            ids = tokenizer(text, split_special_tokens=True)["input_ids"]
            assert token_bytes(tokenizer)[ids].sum() == len(text.encode())
        assert token_bytes(tokenizer)[0] == 0


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path: Path) -> None:
    tokenizer = trained("byte")
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(RecipeError, match="has no end-of-text token"):
        load_tokenizer(str(tmp_path))


def test_a_missing_tokenizer_is_one_line() -> None:
    with pytest.raises(RecipeError, match=r'tokenizer.pretrained = "no/where"') as caught:
        load_tokenizer("no/where")
    assert "\n" not in str(caught.value)
