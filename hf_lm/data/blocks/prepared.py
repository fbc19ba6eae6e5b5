"""Write and open a folder of prepared blocks with their tokenizer, to share.

    blocks.json  README.md  train*.arrow  validation.arrow  tokenizer/

The files hold the same blocks that a run would build for itself, so nothing is converted.
blocks.json is written last and lists every other file with its SHA-256.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_lm.data.blocks.dataset import COUNTS, Blocks
from hf_lm.data.blocks.open import open_blocks
from hf_lm.data.text.sources import PREPARED, check_foreign_directory
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe
from hf_lm.system.files import replace_directory, sha256

TOKENIZER = "tokenizer"
FORMAT = 1
BLOCK_KEYS = ("block_size", "append_eos", "grouping", "train_on")  # blocks depend on these keys

CARD = """---
configs:
- config_name: default
  data_files:
{files}
tags:
- hf_lm
---

# Blocks of token ids

Text, tokenized and cut into blocks of {block_size} + 1 token ids by `hf-lm prepare`. The first
{block_size} ids of a row predict its last {block_size}. The tokenizer is in `tokenizer/`. With
`"train_on": "completion"`, bit 29 of an id is set if the id is in the loss, and bit 30 if a
conversation starts with it.

| split | documents | bytes | tokens | blocks | unused | padded | in the loss |
|---|---|---|---|---|---|---|---|
{counts}

To train on these blocks, set `data.source` of a recipe to this folder, with
`"block_size": {block_size}, "grouping": "{grouping}", "append_eos": {append_eos},
"train_on": "{train_on}"`.
"""


def write_prepared(
    folder: Path,
    blocks: Path,
    tokenizer: PreTrainedTokenizerBase,
    data: DataRecipe,
    *,
    weights: list[float],
    provenance: Mapping[str, Any],
) -> None:
    """Write a prepared folder atomically, and replace one that is already there.

    Args:
        folder: the folder to write.
        blocks: the cached folder with the blocks.
        tokenizer: the tokenizer that made the ids.
        data: how the ids were grouped.
        weights: the share of the training tokens of each source of a mixture.
        provenance: of the text: its fingerprint and the commits of Hub datasets.

    Raises:
        DataError: the folder is not empty and holds no prepared blocks.
    """
    check_foreign_directory(folder)
    settings = {name: getattr(data, name) for name in BLOCK_KEYS}
    with replace_directory(folder) as staging:
        for file in sorted(blocks.glob("*.arrow")):
            shutil.copyfile(file, staging / file.name)
        shutil.copyfile(blocks / COUNTS, staging / COUNTS)
        tokenizer.save_pretrained(str(staging / TOKENIZER))
        (staging / "README.md").write_text(dataset_card(staging, settings), encoding="utf-8")
        manifest = {"format": FORMAT, **settings, "weights": weights, **provenance}
        manifest["files"] = hash_files(staging)
        (staging / PREPARED).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def dataset_card(folder: Path, settings: Mapping[str, object]) -> str:
    """Write the dataset card: the files of each split, and the counts of its text."""
    train = ", ".join(f'"{file.name}"' for file in sorted(folder.glob("train*.arrow")))
    files = f"  - split: train\n    path: [{train}]\n"
    files += '  - split: validation\n    path: "validation.arrow"'
    counts = json.loads((folder / COUNTS).read_text(encoding="utf-8"))
    rows = (
        f"| {split} | {' | '.join(f'{n:,}' for n in row.values())} |"
        for split, row in counts.items()
    )
    values = {name: json.dumps(value).strip('"') for name, value in settings.items()}
    return CARD.format(files=files, counts="\n".join(rows), **values)


def hash_files(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file, by its path in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read blocks.json.

    Raises:
        DataError: blocks.json cannot be read, or has another format version.
    """
    try:
        manifest = json.loads((folder / PREPARED).read_text(encoding="utf-8"))
        is_supported = manifest["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / PREPARED}: cannot be read: {error}") from None
    if not is_supported:
        raise DataError(f"{folder}: was prepared by another version; run `hf-lm prepare` again")
    return manifest


def prepared_content(folder: Path) -> str:
    """Return a hash of the content of a prepared folder, namely of blocks.json."""
    return sha256(folder / PREPARED)


def open_prepared(
    folder: Path, data: DataRecipe, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> Blocks:
    """Open a prepared folder, after checking its files against the recipe and the tokenizer.

    Args:
        folder: the prepared folder.
        data: its keys must equal those that the blocks were made with.
        tokenizer: the tokenizer of the model to train.
        seed: seeds the order of a mixture.

    Returns:
        The blocks of both splits, memory-mapped.

    Raises:
        DataError: a key, file or tokenizer does not match; the message has one line for each.
    """
    manifest = read_manifest(folder)
    # Folders written before `train_on` was a key lack it, and hold text.
    made_with = {"train_on": "text", **manifest}
    problems = [
        f"data.{name} = {json.dumps(getattr(data, name))}: the blocks in {folder} were made with "
        f"{json.dumps(made_with[name])}; use that value"
        for name in BLOCK_KEYS
        if getattr(data, name) != made_with[name]
    ]
    actual_hashes = hash_files(folder)
    problems += [
        f"{folder / name}: is missing or damaged; run `hf-lm prepare` again"
        for name, expected_hash in manifest["files"].items()
        if actual_hashes.get(name) != expected_hash
    ]
    if not problems and encoding_of(prepared_tokenizer(folder), data) != encoding_of(
        tokenizer, data
    ):
        problems.append(
            f"{folder}: was made with another tokenizer than this model's; prepare the text again, "
            "with tokenizer.pretrained set to the model"
        )
    if problems:
        raise DataError(problems)
    eos = tokenizer.eos_token_id
    return open_blocks(folder, manifest["weights"], data, eos=eos, seed=seed)


def prepared_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a prepared folder."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder / TOKENIZER), trust_remote_code=False)
    return tokenizer


def encoding_of(tokenizer: PreTrainedTokenizerBase, data: DataRecipe) -> tuple[object, ...]:
    """Return what the ids depend on: the vocabulary, the end-of-text id and the chat template."""
    template = tokenizer.chat_template if data.train_on == "completion" else None
    return tokenizer.get_vocab(), tokenizer.eos_token_id, template
