"""Write prepared blocks to a directory, push them, and manage the cache of prepared data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_lm.errors import DataError, RecipeError
from hf_lm.workflows.stages import load_text, prepare_libraries

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from hf_lm.recipe import Recipe


def prepare(recipe: Recipe, output: str | Path, *, push: str | None = None) -> str | None:
    """Write the blocks of a recipe to a directory that other recipes can train on.

    Args:
        recipe: as `load_recipe` returns it.
        output: the directory, to be named as `data.source`.
        push: a private Hub dataset to upload the directory to, as USER/NAME.

    Returns:
        The address of the upload, if there was one.

    Raises:
        RecipeError: the text cannot be prepared, because it is a stream or is prepared already.
        DataError: the directory holds something else, or the upload failed.
    """
    from hf_lm.data.text.scan import scan_documents
    from hf_lm.data.text.sources import check_foreign_directory, find_corpus
    from hf_lm.terminal import console

    if recipe.data.streaming:
        raise RecipeError("data.streaming = true: a stream cannot be prepared; set it to false")
    directory = Path(output).resolve()
    check_foreign_directory(directory)
    corpus = find_corpus(recipe.data)
    if corpus.prepared:
        raise RecipeError(f"data.source = {json.dumps(recipe.data.source)}: is prepared already")
    scan = scan_documents(recipe.data, corpus, keep=True)
    prepare_libraries(recipe, corpus)

    from hf_lm.data.load import write_blocks

    text, tokenizer = load_text(recipe, corpus, scan)
    with console.preparing("tokenize", text.size) as report:
        write_blocks(recipe.data, text, tokenizer, directory, report=report)
    rows = [
        ("blocks", console.short(directory)),
        ("train on it", f'"data": {{"source": "{directory}"}}'),
    ]
    url = push_prepared(directory, push) if push else None
    if url:
        rows.append(("dataset", url))
    console.show_rows(f"{recipe.name}: prepared", rows, notes=scan.notes)
    return url


def show_cache(*, prune_days: float | None = None) -> dict[str, Any]:
    """Show the prepared data in the cache, after deleting what was not used for some days.

    Args:
        prune_days: delete entries that were not used for so many days; 0 deletes all.

    Returns:
        The folder, "removed_bytes", and "kind", "key", "bytes" and "days" since the last use of
        each of the "entries" that are left.
    """
    from hf_lm.data.cache import cache_root, entries, prune
    from hf_lm.terminal import console

    removed = prune(prune_days) if prune_days is not None else 0
    remaining = entries()
    rows = [
        (
            f"{entry.kind} {entry.key[:8]}",
            f"{entry.size / 1e6:,.1f} MB, used {entry.age:.1f} days ago",
        )
        for entry in remaining
    ]
    total = f"{sum(entry.size for entry in remaining) / 1e6:,.1f} MB in {cache_root()}"
    if prune_days is not None:
        total += f"; {removed / 1e6:,.1f} MB removed"
    console.show_rows("prepared text", [*rows, ("all", total)])
    left = [
        {"kind": entry.kind, "key": entry.key, "bytes": entry.size, "days": entry.age}
        for entry in remaining
    ]
    return {"folder": str(cache_root()), "removed_bytes": removed, "entries": left}


def push_prepared(directory: Path, name: str) -> str:
    """Upload a prepared directory as a private dataset and return the address of the commit.

    Raises:
        DataError: the Hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    from hf_lm.hub.retry import DEADLINE, retry, safe_error_message

    api = HfApi()

    def upload() -> CommitInfo:
        """Upload everything in one commit."""
        api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        return api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=str(directory),
            commit_message="Blocks prepared by hf_lm",
        )

    try:
        commit = retry(upload, deadline=DEADLINE)
    except Exception as error:  # HTTP errors, connection errors, offline mode, an invalid name
        raise DataError(
            f"{name}: not uploaded: {safe_error_message(error)}; the blocks are in {directory}, "
            f"and `hf upload --repo-type dataset {name} {directory}` tries again"
        ) from None
    return str(commit.commit_url)
