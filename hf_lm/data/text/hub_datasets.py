"""Load Hub datasets at a recorded commit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, load_dataset_builder
from huggingface_hub import HfApi
from huggingface_hub.errors import OfflineModeIsEnabled

from hf_lm.data.text.columns import Columns, TextColumns, columns_of
from hf_lm.data.text.documents import SPLITS, HubTexts
from hf_lm.data.text.sources import Corpus
from hf_lm.errors import DataError, one_line
from hf_lm.recipe import DataRecipe


def open_hub(name: str, data: DataRecipe, *, split: str) -> tuple[Any, str]:
    """A Hub dataset with its text column alone, and the commit it was read at.

    Returns:
        A `Dataset`, or an `IterableDataset` if the recipe streams, with the column "text".

    Raises:
        DataError: it cannot be reached, or has no such configuration, split or column.
    """
    own = data.validation if split == "validation" else data
    revision = own.revision or data.revision
    try:
        commit = commit_of(name, revision)
        builder = load_dataset_builder(name, own.config or data.config, revision=commit or revision)
        if data.streaming:
            rows: Any = builder.as_streaming_dataset(split=own.split or data.split)
        else:
            builder.download_and_prepare()
            rows = builder.as_dataset(split=own.split or data.split)
    except Exception as error:  # the loader raises a dozen kinds, from many libraries
        raise DataError(unreachable(name, error)) from None
    refuse_another(name, str(builder.hash), commit or revision)
    columns = columns_of(data)
    missing = columns.missing(rows.column_names) if rows.column_names else None
    if missing:
        raise DataError(f"{name}: {missing}")
    names = columns.chosen(rows.column_names or ())
    rows = rows.select_columns([*names])
    if columns != TextColumns((data.text_column,)):
        # A dataset on disk would be written again by map().
        rows = rows if data.streaming else cast("Dataset", rows).to_iterable_dataset()
        others = [column for column in names if column != "text"]
        rows = rows.map(joined, remove_columns=others, fn_kwargs={"columns": columns})
    elif names != ("text",):
        rows = rows.rename_column(data.text_column, "text")
    return rows, str(builder.hash)


def commit_of(name: str, revision: str | None) -> str | None:
    """The commit a branch or tag stands for now; None where offline mode forbids to ask."""
    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except OfflineModeIsEnabled:
        return None


def refuse_another(name: str, found: str, asked: str | None) -> None:
    """Refuse the cached copy of another commit, which datasets falls back to without an error."""
    if asked and found != asked:
        raise DataError(
            f"{name}: revision {asked} is not here, and the Hub cannot be asked; the cached copy "
            f"is of {found}: set data.revision to that"
        )


def joined(row: dict[str, Any], *, columns: Columns) -> dict[str, Any]:
    """The columns of a row as one text; what is no text, or no conversation, is to be skipped."""
    try:
        return {"text": columns.text(row)}
    except ValueError:
        return {"text": None}


def unreachable(name: str, error: Exception) -> str:
    """Why a name is neither a local path nor a dataset the Hub gives."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    reason = "offline mode is on (HF_HUB_OFFLINE)" if offline else one_line(error)
    return f"{name}: not found locally (no {Path.cwd() / name}), nor on the Hub: {reason}"


def hub_texts(data: DataRecipe, corpus: Corpus) -> tuple[HubTexts, tuple[str, ...]]:
    """The text columns of all Hub datasets of a corpus, and their commits."""
    texts: dict[tuple[str, str], Any] = {}
    commits = []
    for split in SPLITS:
        for source in corpus.of(split):
            if not source.local:
                rows, commit = open_hub(source.name, data, split=split)
                texts[split, source.name] = rows["text"]
                commits.append(f"{source.name}@{commit}")
    return texts, tuple(commits)
