"""Load a tokenizer or train one on the recipe's text.

A trained tokenizer is byte-level BPE like GPT-2's, or has one token per character or per byte. All
three decode to exactly the text they encoded; a character that is not in the alphabet is an error.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from hf_lm.errors import RecipeError, one_line
from hf_lm.recipe import TokenizerRecipe, TrainTokenizer
from hf_lm.system.files import unwrap_os_errors
from hf_lm.vocabulary import EOS, byte_tokenizer, char_tokenizer, train_bpe

Documents = Mapping[str, Iterable[Mapping[str, str]]]  # rows with a "text", by split

VOCAB_SIZE = 8192

BACKEND = "tokenizer.json"  # the file of the tokenizers library

TRANSFORMERS_FILES = ("tokenizer_config.json", "config.json")  # they name a tokenizer's class


class PreTrainedTokenizerFast(TokenizersBackend):
    """`TokenizersBackend` under a name that transformers 4 and 5 both know.

    A tokenizer is saved with the name of its class; version 4 cannot read "TokenizersBackend".
    """


def build_tokenizer(
    recipe: TokenizerRecipe,
    documents: Documents,
    *,
    default: str | None = None,
    keep: Callable[[Callable[[Path], None]], Path] | None = None,
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that the recipe names, or train one.

    Args:
        recipe: the `tokenizer` section.
        documents: "train" and "validation", read only if a tokenizer is trained. BPE is trained on
            the first; an alphabet is taken from both, so that the validation set can be encoded.
        default: the pretrained model whose tokenizer is used if the recipe names none.
        keep: returns a directory that the given function has filled, now or in an earlier run; None
            keeps nothing.

    Raises:
        RecipeError: the tokenizer cannot be loaded, or has no end-of-text token.

    Example:
        >>> build_tokenizer(recipe.tokenizer, text.documents).encode("def main():")
    """
    pretrained = recipe.pretrained or (None if recipe.train else default)
    if pretrained:
        tokenizer = load_tokenizer(pretrained, special=recipe.special_tokens)
        return extend_tokenizer(tokenizer, recipe)
    if not documents:
        raise RecipeError("tokenizer.train: prepared blocks come with their tokenizer; remove it")
    if keep is None:
        backend = train_backend(recipe, documents)
    else:
        folder = keep(lambda folder: train_backend(recipe, documents).save(str(folder / BACKEND)))
        backend = Tokenizer.from_file(str(folder / BACKEND))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=EOS,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
    )


def train_backend(recipe: TokenizerRecipe, documents: Documents) -> Tokenizer:
    """Train the vocabulary of a recipe."""
    train = recipe.train or TrainTokenizer()
    if train.kind == "bpe":
        return train_bpe(texts_of(documents["train"]), vocab_size=bpe_size(recipe))
    if train.kind == "char":
        return char_tokenizer(chain(*(texts_of(split) for split in documents.values())))
    return byte_tokenizer()


def extend_tokenizer(
    tokenizer: PreTrainedTokenizerBase, recipe: TokenizerRecipe
) -> PreTrainedTokenizerBase:
    """Add the tokens and the chat template of the recipe to a pretrained tokenizer."""
    tokenizer.add_tokens([*recipe.add_tokens], special_tokens=True)  # existing ones do not change
    if recipe.chat_template:
        tokenizer.chat_template = recipe.chat_template
    return tokenizer


def bpe_size(recipe: TokenizerRecipe) -> int:
    """Return the size of the BPE vocabulary."""
    return (recipe.train.vocab_size if recipe.train else None) or VOCAB_SIZE


def trains_bpe(recipe: TokenizerRecipe, *, default: str | None) -> bool:
    """Return whether a BPE vocabulary is trained, so that its size depends on all text."""
    pretrained = recipe.pretrained or (None if recipe.train else default)
    return not pretrained and (recipe.train is None or recipe.train.kind == "bpe")


def texts_of(documents: Iterable[Mapping[str, str]]) -> Iterator[str]:
    """Iterate over the texts of documents, with one in memory at a time."""
    return (row["text"] for row in documents)


def load_tokenizer(name: str, *, special: Mapping[str, str] | None = None) -> Any:
    """Load a tokenizer from a directory or the Hub; its own code is never run.

    Args:
        name: a directory or a Hub id.
        special: special tokens that it has not declared, such as "eos_token"; a new one is added.

    Raises:
        RecipeError: it cannot be loaded, or has no end-of-text token.
    """
    key = f"tokenizer.pretrained = {json.dumps(name)}"
    try:
        tokenizer: Any = load_bare_tokenizer(Path(name)) or AutoTokenizer.from_pretrained(
            name, trust_remote_code=False
        )
    except Exception as error:  # the loaders raise OSError, ValueError, KeyError and more
        raise RecipeError(f"{key}: {one_line(error, limit=200)}") from None
    tokenizer.add_special_tokens(dict(special or {}))
    if tokenizer.eos_token_id is None:
        raise RecipeError(
            f"{key}: has no end-of-text token, so a model cannot learn to stop; name one in "
            "tokenizer.eos_token"
        )
    return tokenizer


def load_bare_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """Load the files of the tokenizers library from a folder without transformers' own file.

    GPT-2's vocab.json and merges.txt are byte-level BPE. GPT-2's end-of-text token is recognized.
    """
    if not folder.is_dir() or any((folder / n).is_file() for n in TRANSFORMERS_FILES):
        return None
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if (folder / BACKEND).is_file():
        backend = Tokenizer.from_file(str(folder / BACKEND))
    elif vocabulary.is_file() and merges.is_file():
        backend = Tokenizer(models.BPE.from_file(str(vocabulary), str(merges)))
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    else:
        return None
    special = {"bos_token": EOS, "eos_token": EOS} if backend.token_to_id(EOS) is not None else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def document_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that a tokenizer itself puts before a text, such as Llama's and Gemma's BOS.

    A model that was trained with them expects them at the start of each document.
    """
    try:
        whole = tokenizer("a")["input_ids"]
        text = tokenizer("a", add_special_tokens=False)["input_ids"]
    except Exception:  # a character vocabulary without this letter, which begins with nothing
        return []
    starts = range(len(whole) - len(text) + 1)
    return whole[: next((n for n in starts if whole[n : n + len(text)] == text), 0)]


def unknown_character(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """Return the first character of a text that a tokenizer cannot encode, or None."""
    for character in dict.fromkeys(text):
        try:
            tokenizer(character, add_special_tokens=False)
        except Exception:  # tokenizers raises a bare Exception
            return character
    return None


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the largest id plus 1: a vocabulary may have gaps, which `len()` does not count."""
    return max(tokenizer.get_vocab().values()) + 1


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Return the bytes of text of each token [V]; special tokens have none.

    The sum over the tokens of a text is its length in bytes, also in byte-level and byte-fallback
    vocabularies, in which a token may be a part of a character.
    """
    alphabet = byte_characters()
    byte_level = "ByteLevel" in decoder_kinds(tokenizer)
    added = tokenizer.added_tokens_decoder.items()
    special = {*tokenizer.all_special_ids, *(i for i, token in added if token.special)}
    written = {i for i, token in added if not token.special}  # as in the text, in any vocabulary
    sizes = np.zeros(vocabulary_size(tokenizer), dtype=np.int64)
    for token, i in tokenizer.get_vocab().items():
        if i in special:
            continue
        if i in written:
            sizes[i] = len(token.encode())
        elif byte_level and all(character in alphabet for character in token):
            sizes[i] = len(token)
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            sizes[i] = 1
        else:
            sizes[i] = len(token.replace("\u2581", " ").encode())  # sentencepiece's space
    return sizes


# What tokenizers change: accents as two characters, wide and joined letters, capitals, white space.
CHANGEABLE_TEXT = (
    "Cafe\u0301 \u00c9t\u00e9 \uff21\uff11 \ufb01n ABC",
    "def f(x):\n\treturn  x  # two\u00a0spaces\n\n",
    " \u4f60\u597d, \ud55c\uad6d \u0928\u092e\u0938\u094d\u0924\u0947 \U0001f600 \u2603 \u221e ",
)


def spells_text(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokens of a text have as many bytes as the text.

    Byte-level tokens do. WordPiece drops white space, Unigram adds a space in front, and
    normalizers change letters. A tokenizer that refuses a character spells all others.
    """
    sizes = token_bytes(tokenizer)
    for text in CHANGEABLE_TEXT:
        try:
            ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        except Exception:  # a character vocabulary, which has no token for some of them
            continue
        if sizes[ids].sum() != len(text.encode()):
            return False
    return True


def byte_characters() -> set[str]:
    """Return the characters that stand for the 256 bytes in a byte-level vocabulary."""
    return set(pre_tokenizers.ByteLevel.alphabet())


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase, *, chat: bool = False) -> str:
    """Hash everything that determines the ids of a text, or with `chat` of a conversation."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    if chat:
        text += json.dumps(tokenizer.chat_template)
    return hashlib.sha256(text.encode()).hexdigest()


def decoder_kinds(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the decoder of a tokenizer as JSON; an empty string for one without a backend."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    return json.dumps(json.loads(backend.to_str()).get("decoder")) if backend else ""


def tokenizer_texts(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return the text files of a tokenizer, by name."""
    with tempfile.TemporaryDirectory() as folder, unwrap_os_errors(folder):
        tokenizer.save_pretrained(folder)
        return {
            path.name: path.read_text(encoding="utf-8")
            for path in sorted(Path(folder).iterdir())
            if path.suffix in (".json", ".txt", ".jinja")
        }
