"""Decide what may change when a run is resumed.

Some changes are free, some are allowed with a note, and the rest is refused key by key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_lm.errors import MismatchError
from hf_lm.recipe import Recipe
from hf_lm.recipe.published import strip_local_paths

EXTENDABLE_KEYS = {
    "training.max_steps",
    "training.max_epochs",
    "training.max_tokens",
}  # may be moved back


# Keys that change nothing about the weights: a run may be continued with other values.
IGNORED_KEYS = {
    *("$schema", "hf_lm_version", "name", "output_dir", "data.num_proc", "hub"),
    *("training.logging_steps", "training.save_steps", "training.save_total_limit"),
    *("training.report_to", "training.dataloader_num_workers", "training.dataloader_pin_memory"),
    "training.skip_nonfinite_steps",
    *("evaluation.prompts", "evaluation.max_new_tokens", "evaluation.batch_size"),
}


# What a changed content is called where it is accepted, and in provenance.json.
CONTENT = {"data.source": "data", "tokenizer": "tokenizer", "world_size": "world_size"}


# What may change the last bits of the weights, and is allowed with a note.
NUMERICS_KEYS = {"device", "threads", "precision", "attention", "compile", "python", "packages"}


def check_same_recipe(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], accepted: Sequence[str]
) -> dict[str, str]:
    """Compare the recipe of a run with the one it would be continued with.

    Returns:
        The changed keys that are accepted, with what they were and are.

    Raises:
        MismatchError: one line for each other changed key.
    """
    old, new = flatten(before), flatten(now)
    defaults = flatten(Recipe().model_dump(mode="json", by_alias=True))
    old = {key: defaults[key] for key in new if key in defaults} | old  # a key that came later
    changed = {
        key: f"{key} was {json.dumps(old.get(key))}, is now {json.dumps(new.get(key))}"
        for key in sorted({*old, *new})
        if strip_local_paths(old.get(key)) != strip_local_paths(new.get(key))
        and not {key, key.split(".")[0]} & IGNORED_KEYS
    }
    longer = [
        key for key in changed if key in EXTENDABLE_KEYS and both_above(new.get(key), old.get(key))
    ]
    check_changes(folder, changed, [*accepted, *longer])
    return changed


def check_same_content(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], accepted: Sequence[str]
) -> list[str]:
    """Compare what a run was trained on with what it would be continued on.

    Returns:
        What changed and is accepted.

    Raises:
        MismatchError: the data, the tokenizer or the number of processes is another.
    """
    changed = {
        key: f"{name} was {before[name]}, is now {now[name]}"
        for key, name in CONTENT.items()
        if name in before and before[name] != now[name]
    }
    check_changes(folder, changed, accepted)
    return [*changed]


def check_changes(folder: Path, changed: Mapping[str, str], accepted: Sequence[str]) -> None:
    """Refuse what changed and is not accepted."""
    refused = [key for key in changed if key not in accepted]
    if refused:
        flags = " ".join(f"--accept-change {key}" for key in refused)
        remedy = f"continue the run with {flags}, or start anew with --fresh"
        raise MismatchError([*(f"{folder}: {changed[key]}" for key in refused), remedy])


def numerics_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What else is not as it was, and may change the last bits of the weights."""
    old, new = flatten(before), flatten(now)
    return [
        f"{key} was {old[key]}, is now {new.get(key)}: the weights will not be the same bits"
        for key in sorted(old)
        if key.split(".")[0] in NUMERICS_KEYS and old[key] != new.get(key)
    ]


def both_above(now: Any, before: Any) -> bool:
    """Whether an end of training was moved back, rather than exchanged for another kind."""
    return isinstance(now, (int, float)) and isinstance(before, (int, float)) and now > before


def flatten(tree: Any, path: str = "") -> dict[str, Any]:
    """A nested object as one of dotted keys."""
    if not isinstance(tree, Mapping) or not tree:
        return {path: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in flatten(branch, f"{path}.{name}" if path else name).items()
    }
