"""Write and open a directory of prepared blocks with their tokenizer, to share.

    blocks.json  README.md  train*.arrow  validation.arrow  tokenizer/

The blocks are those a run would have prepared for itself, so nothing is converted on either side.
blocks.json, written last, lists every file with its SHA-256.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_lm.data.blocks.dataset import COUNTS, Blocks, open_blocks
from hf_lm.data.text.sources import PREPARED, check_foreign_directory
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe
from hf_lm.system.files import replace_directory, sha256

TOKENIZER = "tokenizer"


FORMAT = 1


CUTTING = ("block_size", "append_eos", "grouping", "train_on")  # keys that blocks depend on


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
`"train_on": "completion"` bit 29 of an id says that it is learnt, and bit 30 that a conversation
begins with it.

| part | documents | bytes | tokens | blocks | unused | padded | learnt |
|---|---|---|---|---|---|---|---|
{counts}

To train on them, name this folder as `data.source` of a recipe with `"block_size": {block_size},
"grouping": "{grouping}", "append_eos": {append_eos}, "train_on": "{train_on}"`.
"""


def write_prepared(
    folder: Path,
    blocks: Path,
    tokenizer: PreTrainedTokenizerBase,
    data: DataRecipe,
    *,
    weights: list[float],
    facts: Mapping[str, Any],
) -> None:
    """Write a prepared folder, whole or not at all; what an earlier try left is replaced.

    Args:
        folder: to write.
        blocks: the folder that holds them, from the cache.
        tokenizer: that made the ids.
        data: how the text was cut.
        weights: shares of the sources of a mixture.
        facts: what else to say of the text: its fingerprint and commits.

    Raises:
        DataError: the folder is there and is not one of ours.
    """
    check_foreign_directory(folder)
    cutting = {name: getattr(data, name) for name in CUTTING}
    with replace_directory(folder) as staging:
        for file in sorted(blocks.glob("*.arrow")):
            shutil.copyfile(file, staging / file.name)
        shutil.copyfile(blocks / COUNTS, staging / COUNTS)
        tokenizer.save_pretrained(str(staging / TOKENIZER))
        (staging / "README.md").write_text(card(staging, cutting), encoding="utf-8")
        about = {"format": FORMAT, **cutting, "weights": weights, **facts, "files": hashes(staging)}
        (staging / PREPARED).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def card(folder: Path, cutting: Mapping[str, Any]) -> str:
    """The dataset card: which files make which split, and what they hold."""
    train = ", ".join(f'"{file.name}"' for file in sorted(folder.glob("train*.arrow")))
    files = f"  - split: train\n    path: [{train}]\n"
    files += '  - split: validation\n    path: "validation.arrow"'
    counts = json.loads((folder / COUNTS).read_text())
    rows = (
        f"| {split} | {' | '.join(f'{n:,}' for n in row.values())} |"
        for split, row in counts.items()
    )
    shown = {name: json.dumps(value).strip('"') for name, value in cutting.items()}
    return CARD.format(files=files, counts="\n".join(rows), **shown)


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file by its name in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def read_about(folder: Path) -> dict[str, Any]:
    """What blocks.json says.

    Raises:
        DataError: it is of another version, or cannot be read.
    """
    try:
        about = json.loads((folder / PREPARED).read_text(encoding="utf-8"))
        known = about["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / PREPARED}: cannot be read: {error}") from None
    if not known:
        raise DataError(f"{folder}: was prepared by another version; run `hf-lm prepare` again")
    return about


def prepared_content(folder: Path) -> str:
    """What stands for the content of a prepared folder: the hash of its list of hashes."""
    return sha256(folder / PREPARED)


def open_prepared(
    folder: Path, data: DataRecipe, tokenizer: PreTrainedTokenizerBase, *, seed: int
) -> Blocks:
    """The blocks of a prepared folder, if they are whole and fit the recipe and the tokenizer.

    Raises:
        DataError: one line for each thing that does not fit.
    """
    about = read_about(folder)
    made = {"train_on": "text", **about}  # which was the only choice once
    problems = [
        f"data.{name} = {json.dumps(getattr(data, name))}: the blocks in {folder} were made with "
        f"{json.dumps(made[name])}; set it to that"
        for name in CUTTING
        if getattr(data, name) != made[name]
    ]
    found = hashes(folder)
    problems += [
        f"{folder / name}: is missing or damaged; run `hf-lm prepare` again"
        for name, value in about["files"].items()
        if found.get(name) != value
    ]
    if not problems and ids_of(prepared_tokenizer(folder), data) != ids_of(tokenizer, data):
        problems.append(
            f"{folder}: was made with another tokenizer than this model's; prepare the text again, "
            "with tokenizer.pretrained set to the model"
        )
    if problems:
        raise DataError(problems)
    return open_blocks(folder, about["weights"], data, seed=seed)


def prepared_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a prepared folder."""
    tokenizer: Any = AutoTokenizer.from_pretrained(str(folder / TOKENIZER), trust_remote_code=False)
    return tokenizer


def ids_of(tokenizer: PreTrainedTokenizerBase, data: DataRecipe) -> tuple[Any, ...]:
    """Every token with its id, which one ends a text, and what renders a conversation."""
    template = tokenizer.chat_template if data.train_on == "completion" else None
    return tokenizer.get_vocab(), tokenizer.eos_token_id, template
