"""Tell the languages of documents, with py3langid (Lui and Baldwin, 2012, "langid.py")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib import import_module
from typing import Any

PIECE, LOOKED_AT = 2_000, 300  # characters; 300 take 0.2 ms
SURE = 0.9  # probability below which a language is not named
UNKNOWN = "unknown"


@cache
def load_identifier() -> Any:
    """Load the model, which takes a second; the package has no types."""
    langid = import_module("py3langid.langid")
    return langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)


def language_of(text: str) -> str:
    """Return the ISO 639-1 code of a text's language, or "unknown" if it is not sure."""
    language, probability = load_identifier().classify(text)
    return language if probability >= SURE else UNKNOWN


def language_shares(texts: Iterable[str]) -> dict[str, float]:
    """Return the share of the characters of texts that each language has, largest first."""
    sizes = Counter[str]()
    for text in texts:
        for start in range(0, len(text), PIECE):
            language = language_of(text[start : start + LOOKED_AT])
            sizes[language] += min(PIECE, len(text) - start)
    total = sizes.total() or 1
    return {language: size / total for language, size in sizes.most_common()}
