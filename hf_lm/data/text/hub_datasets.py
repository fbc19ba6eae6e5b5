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
    """Open a Hub dataset with only its text, at one commit.

    Args:
        name: the Hub id.
        data: the `data` section.
        split: "train" or "validation"; `data.validation` may name another configuration.

    Returns:
        A `Dataset`, or an `IterableDataset` if the recipe streams, with the column "text"; and the
        commit.

    Raises:
        DataError: it cannot be reached, or has no such configuration, split or column.
    """
    keys = data.validation if split == "validation" else data
    revision = keys.revision or data.revision
    config = keys.config or data.config
    try:
        commit = commit_of(name, revision)
        builder = load_dataset_builder(name, config, revision=commit or revision)
        if data.streaming:
            rows: Any = builder.as_streaming_dataset(split=keys.split or data.split)
        else:
            builder.download_and_prepare()
            rows = cast("Any", builder.as_dataset(split=keys.split or data.split))
    except Exception as error:  # the loader raises a dozen types, from many libraries
        raise DataError(unreachable_message(name, error)) from None
    check_revision(name, str(builder.hash), commit or revision)
    columns = columns_of(data)
    fields = [*(rows.column_names or ()), *nested_fields(rows.features)]
    missing = columns.missing(fields) if rows.column_names else None
    if missing:
        raise DataError(f"{name}: {missing}")
    names = columns.chosen(rows.column_names or ())
    rows = rows.select_columns([*names])
    if columns != TextColumns((data.text_column,)) or data.text_column not in names:
        # map() would write a dataset on the disk a second time.
        rows = rows if data.streaming else cast("Dataset", rows).to_iterable_dataset()
        others = [column for column in names if column != "text"]
        rows = rows.map(join_columns, remove_columns=others, fn_kwargs={"columns": columns})
    elif names != ("text",):
        rows = rows.rename_column(data.text_column, "text")
    return rows, str(builder.hash)


def nested_fields(features: Any) -> list[str]:
    """Return the names of fields in columns that are structures, such as "data.text"."""
    structures = {
        name: value for name, value in (features or {}).items() if isinstance(value, dict)
    }
    return [f"{name}.{field}" for name, value in structures.items() for field in value]


def commit_of(name: str, revision: str | None) -> str | None:
    """Return the commit that a branch or tag points to; None in offline mode."""
    try:
        return HfApi().dataset_info(name, revision=revision).sha
    except OfflineModeIsEnabled:
        return None


def check_revision(name: str, cached: str, requested: str | None) -> None:
    """Check that the commit is the one requested: datasets silently falls back to a cached one.

    Raises:
        DataError: it is another commit.
    """
    if requested and cached != requested:
        raise DataError(
            f"{name}: revision {requested} is not in the cache, and the Hub cannot be reached; the "
            f"cached copy is of {cached}: set data.revision to that"
        )


def join_columns(row: dict[str, Any], *, columns: Columns) -> dict[str, Any]:
    """Join the columns of a row to one text; a row without a valid text gets None."""
    try:
        return {"text": columns.text(row)}
    except (KeyError, ValueError):
        return {"text": None}


def unreachable_message(name: str, error: Exception) -> str:
    """Describe why a name is neither a local path nor a dataset of the Hub."""
    is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    reason = "offline mode is on (HF_HUB_OFFLINE)" if is_offline else one_line(error)
    return f"{name}: not found locally (no {Path.cwd() / name}), nor on the Hub: {reason}"


def hub_texts(data: DataRecipe, corpus: Corpus) -> tuple[HubTexts, tuple[str, ...]]:
    """Open all Hub datasets of a corpus; return their text columns and commits."""
    texts: dict[tuple[str, str], Any] = {}
    commits = []
    for split in SPLITS:
        for source in corpus.of(split):
            if not source.local:
                rows, commit = open_hub(source.name, data, split=split)
                texts[split, source.name] = rows["text"]
                commits.append(f"{source.name}@{commit}")
    return texts, tuple(commits)
