"""Hub datasets: their text column, at one commit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from datasets import load_dataset_builder

from hf_lm.dataset.documents import PARTS, HubTexts
from hf_lm.dataset.sources import Corpus
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe


def open_hub(name: str, data: DataRecipe, *, part: str) -> tuple[Any, str]:
    """A Hub dataset with its text column alone, and the commit it was read at.

    Returns:
        A `Dataset`, or an `IterableDataset` if the recipe streams, with the column "text".

    Raises:
        DataError: it cannot be reached, or has no such configuration, split or column.
    """
    own = data.validation if part == "validation" else data
    try:
        builder = load_dataset_builder(
            name, own.config or data.config, revision=own.revision or data.revision
        )
        if data.streaming:
            rows: Any = builder.as_streaming_dataset(split=own.split or data.split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=own.split or data.split)
    except Exception as error:  # the loader raises a dozen kinds, from many libraries
        raise DataError(unreachable(name, error)) from None
    columns = rows.column_names or [data.text_column]
    if data.text_column not in columns:
        named = ", ".join(f'"{column}"' for column in columns)
        raise DataError(
            f'{name}: has no column "{data.text_column}"; set data.text_column to one of {named}'
        )
    rows = rows.select_columns([data.text_column])
    if data.text_column != "text":
        rows = rows.rename_column(data.text_column, "text")
    return rows, str(builder.hash)


def unreachable(name: str, error: Exception) -> str:
    """Why a name is neither a local path nor a dataset the Hub gives."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    reason = "offline mode is on (HF_HUB_OFFLINE)" if offline else " ".join(str(error).split())
    return f"{name}: not found locally (no {Path.cwd() / name}), nor on the Hub: {reason[:300]}"


def hub_texts(data: DataRecipe, corpus: Corpus) -> tuple[HubTexts, tuple[str, ...]]:
    """The text columns of all Hub datasets of a corpus, and their commits."""
    texts: HubTexts = {}
    commits = []
    for part in PARTS:
        for source in corpus.of(part):
            if not source.local:
                rows, commit = open_hub(source.name, data, part=part)
                texts[part, source.name] = rows["text"]
                commits.append(f"{source.name}@{commit}")
    return texts, tuple(commits)
