"""Train vocabularies on text: byte-level BPE, bytes, or characters.

Only `tokenizers` is imported, which takes a twentieth of a second; transformers takes seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

EOS = "<|endoftext|>"  # GPT-2's only special token: it ends a document and begins a sample

TRAIN_BYTES = 200 * 2**20  # more text hardly changes the merges; training on it takes about 45 s


# The time of training grows with the square of a word: 300,000 equal letters take 52 s, and 0.1 s
# in pieces. The words are those of GPT-2's splitting: letters, digits, other marks, or white space.
LONGEST_WORD = 1_000
LONG_WORD = re.compile(
    "|".join(f"{kind}{{{LONGEST_WORD}}}" for kind in (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s"))
)
BLANKS = tuple(mark * LONGEST_WORD for mark in " \n\t")


def first_bytes(texts: Iterable[str]) -> Iterator[str]:
    """Yield texts up to TRAIN_BYTES, in pieces where words are very long."""
    size = 0
    for text in texts:
        yield from with_short_words(text)
        size += len(text.encode())
        if size > TRAIN_BYTES:
            return


def with_short_words(text: str) -> Iterator[str]:
    """Yield a text in pieces, cut only within words that are longer than LONGEST_WORD."""
    start = 0
    longest = max(map(len, text.split()), default=0)
    if longest >= LONGEST_WORD or any(run in text for run in BLANKS):
        for match in LONG_WORD.finditer(text):
            yield text[start : match.end()]
            start = match.end()
    yield text[start:]


def train_bpe(texts: Iterable[str], *, vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE tokenizer with GPT-2's splitting (Radford et al., 2019)."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(first_bytes(texts), trainer)
    return backend


def byte_tokenizer() -> Tokenizer:
    """Make a tokenizer with one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([EOS, *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([EOS])
    return backend


def char_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Make a tokenizer with one token per character of the texts, in code point order."""
    alphabet: set[str] = set()
    for text in texts:
        alphabet.update(text)
    vocabulary = {token: i for i, token in enumerate([EOS, *sorted(alphabet)])}
    # The token for unknown characters is not in the vocabulary, so that they are an error.
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens([EOS])
    return backend


def smaller_bpe(backend: Tokenizer, vocab_size: int) -> Tokenizer:
    """Return the tokenizer that `train_bpe` gives for a smaller vocabulary of the same text.

    Merges are found one after the other, so a smaller vocabulary has the first of them.
    """
    values = json.loads(backend.to_str())
    model = values["model"]
    removed = max(0, len(model["vocab"]) - vocab_size)
    model["vocab"] = {token: i for token, i in model["vocab"].items() if i < vocab_size}
    model["merges"] = model["merges"][: len(model["merges"]) - removed]
    return Tokenizer.from_str(json.dumps(values))
