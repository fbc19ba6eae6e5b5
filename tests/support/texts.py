"""Write data files, read and scan them, and train tokenizers on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_lm.data.text.documents import Documents
from hf_lm.data.text.holdout import Holdout
from hf_lm.data.text.scan import Scan, scan_documents
from hf_lm.data.text.sources import find_corpus
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe, TokenizerRecipe
from hf_lm.tokenizer import build_tokenizer

TEXT = "A sentence of the test, which is long enough to fill a block. "


def write(path: Path, content: str | bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_jsonl(path: Path, texts: list[str]) -> Path:
    """Write a JSONL file with one document per line."""
    return write(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def data_recipe(source: Any, **keys: Any) -> DataRecipe:
    """Make the data section of a recipe for some files."""
    names = [
        str(s) if isinstance(s, Path) else s
        for s in (source if isinstance(source, list) else [source])
    ]
    raw = {"source": names, "block_size": 8, **keys}
    return DataRecipe.model_validate_json(json.dumps(raw))


def scanned(data: DataRecipe, **options: Any) -> Scan:
    """Scan the text of a recipe."""
    return scan_documents(data, find_corpus(data), **options)


def scan_error(data: DataRecipe) -> str:
    """Scan text that has problems, and return the lines of the error."""
    with pytest.raises(DataError) as caught:
        scanned(data)
    return "\n".join(caught.value.problems)


def read(data: DataRecipe, split: Holdout | None = None, part: str = "train") -> list[str]:
    """Return the documents of one split; without a `Holdout`, all are in the training split."""
    documents = Documents(data, find_corpus(data), {}, split or Holdout(0))
    return [row["text"] for row in documents[part]]


def tokenizer_of(kind: str, texts: list[str]) -> Any:
    """Train a tokenizer on texts."""
    recipe = TokenizerRecipe.model_validate_json(json.dumps({"train": {"kind": kind}}))
    rows = [{"text": text} for text in texts]
    return build_tokenizer(recipe, {"train": rows, "validation": rows})
