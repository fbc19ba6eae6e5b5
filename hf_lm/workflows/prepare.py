"""Write prepared blocks to a directory, push them, and manage the cache of prepared data."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from hf_lm.errors import DataError, RecipeError
from hf_lm.workflows.stages import prepare_libraries, read_text


def prepare(given: argparse.Namespace) -> None:
    """Write the blocks of a recipe to a folder that other recipes, and other people, can train on.

    Raises:
        RecipeError: the text cannot be prepared, because it is a stream or blocks already.
        DataError: the folder is somebody else's.
    """
    from hf_lm.data.text.scan import scan_documents
    from hf_lm.data.text.sources import check_foreign_directory, find_corpus
    from hf_lm.recipe import load_recipe
    from hf_lm.terminal import console

    recipe = load_recipe(given.recipe, overrides=given.overrides)
    if recipe.data.streaming:
        raise RecipeError("data.streaming = true: a stream is not prepared; set it to false")
    folder = Path(given.output).resolve()
    check_foreign_directory(folder)
    corpus = find_corpus(recipe.data)
    if corpus.prepared:
        raise RecipeError(f"data.source = {json.dumps(recipe.data.source)}: is prepared already")
    scan = scan_documents(recipe.data, corpus, keep=True)
    prepare_libraries(recipe, corpus)

    from hf_lm.data.load import write_blocks

    text, tokenizer = read_text(recipe, corpus, scan)
    with console.preparing("tokenize", text.size) as report:
        write_blocks(recipe.data, text, tokenizer, folder, report=report)
    rows = [("blocks", console.short(folder)), ("train on it", f'"data": {{"source": "{folder}"}}')]
    if given.push:
        rows.append(("dataset", push_prepared(folder, given.push)))
    console.show_rows(f"{recipe.name}: prepared", rows, notes=scan.notes)


def cache(given: argparse.Namespace) -> None:
    """Show the prepared text that is kept, or remove what was not used for some days."""
    from hf_lm.data.cache import cache_root, entries, prune
    from hf_lm.terminal import console

    removed = prune(given.prune) if given.prune is not None else 0
    kept = entries()
    rows = [
        (
            f"{entry.kind} {entry.key[:8]}",
            f"{entry.size / 1e6:,.1f} MB, used {entry.age:.1f} days ago",
        )
        for entry in kept
    ]
    total = f"{sum(entry.size for entry in kept) / 1e6:,.1f} MB in {cache_root()}"
    if given.prune is not None:
        total += f"; {removed / 1e6:,.1f} MB removed"
    console.show_rows("prepared text", [*rows, ("all", total)])


def push_prepared(folder: Path, name: str) -> str:
    """Upload a prepared folder as a private dataset; its address.

    Raises:
        DataError: the Hub refuses.
    """
    from huggingface_hub import HfApi

    from hf_lm.hub.retry import DEADLINE, retry, safe_error_message

    api = HfApi()

    def upload() -> Any:
        """One commit of all of it."""
        api.create_repo(name, repo_type="dataset", private=True, exist_ok=True)
        return api.upload_folder(
            repo_id=name,
            repo_type="dataset",
            folder_path=str(folder),
            commit_message="Blocks prepared by hf_lm",
        )

    try:
        done = retry(upload, deadline=DEADLINE)
    except Exception as error:  # HTTP errors, connections, offline mode, a name that is none
        raise DataError(
            f"{name}: not uploaded: {safe_error_message(error)}; the blocks are in {folder}, and "
            f"`hf upload --repo-type dataset {name} {folder}` tries again"
        ) from None
    return str(done.commit_url)
