"""Decide what may change when a run is resumed.

Some changes are free, some are allowed with a note, and the rest is refused key by key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from hf_lm.errors import MismatchError
from hf_lm.recipe import Recipe
from hf_lm.recipe.defaults import EARLIER_DATA
from hf_lm.recipe.published import strip_local_paths

# Keys that may grow: training is extended, and a note says so.
EXTENDABLE_KEYS = {
    f"training.{name}" for name in ("max_steps", "max_epochs", "max_tokens", "max_minutes")
}

# Keys that cannot affect the weights: a run may be resumed with other values, without a note.
IGNORED_KEYS = {
    *("$schema", "hf_lm_version", "name", "output_dir", "data.num_proc", "hub"),
    *("training.logging_steps", "training.save_steps", "training.save_total_limit"),
    *("training.report_to", "training.dataloader_num_workers", "training.dataloader_pin_memory"),
    *("training.skip_nonfinite_steps", "model.save_dtype"),
    *("evaluation.prompts", "evaluation.max_new_tokens", "evaluation.batch_size"),
}

# Content besides the recipe: its name for --accept-change, and its field of provenance.json.
CONTENT = {"data.source": "data", "tokenizer": "tokenizer", "world_size": "world_size"}

# Fields of provenance.json that may change the last bits of the weights; allowed with a note.
NUMERICS_KEYS = {"device", "threads", "precision", "attention", "compile", "python", "packages"}


def check_same_recipe(
    folder: Path, before: Mapping[str, object], now: Mapping[str, object], accepted: Sequence[str]
) -> dict[str, str]:
    """Compare the recipe that a run was started with and the recipe it is to be resumed with.

    Args:
        folder: the output directory, for messages.
        before: the recipe in that directory.
        now: the recipe to resume with.
        accepted: keys that the user allows to differ.

    Returns:
        The changed keys that are accepted, each with its old and new value as text.

    Raises:
        MismatchError: other keys differ; it has one line per key.
    """
    old_values, new_values = flatten(before), flatten(now)
    defaults = flatten(Recipe().model_dump(mode="json", by_alias=True))
    defaults |= flatten({"data": EARLIER_DATA})
    # A key that a later version added had its default value, or the one that it had in effect.
    old_values = {key: defaults[key] for key in new_values if key in defaults} | old_values
    changed = {
        key: (
            f"{key} was {json.dumps(old_values.get(key))}, is now {json.dumps(new_values.get(key))}"
        )
        for key in sorted({*old_values, *new_values})
        if strip_local_paths(old_values.get(key)) != strip_local_paths(new_values.get(key))
        and not {key, key.split(".")[0]} & IGNORED_KEYS
    }
    extended = [
        key
        for key in changed
        if key in EXTENDABLE_KEYS and is_larger(new_values.get(key), old_values.get(key))
    ]
    require_accepted(folder, changed, [*accepted, *extended])
    return changed


def check_same_content(
    folder: Path,
    before: Mapping[str, object],
    now: Mapping[str, object],
    accepted: Sequence[str],
    *,
    streaming: bool,
) -> list[str]:
    """Compare the data, tokenizer and number of processes of a run with those to resume it with.

    Args:
        folder: the output directory, for messages.
        before: the provenance in that directory; empty for a new run.
        now: the provenance to resume with.
        accepted: keys of CONTENT that the user allows to differ.
        streaming: whether the text is a stream, whose positions belong to the processes.

    Returns:
        The keys that differ and are accepted.

    Raises:
        MismatchError: other keys differ; it has one line per key.
    """
    changed = {
        key: f"{name} was {before[name]}, is now {now[name]}"
        for key, name in CONTENT.items()
        if name in before and before[name] != now[name]
    }
    if streaming and "world_size" in changed:
        raise MismatchError(
            f"{folder}: {changed['world_size']}: a position in a stream belongs to a process; "
            "start as many processes as before, or start over with --fresh"
        )
    require_accepted(folder, changed, accepted)
    return [*changed]


def require_accepted(folder: Path, changed: Mapping[str, str], accepted: Sequence[str]) -> None:
    """Raise MismatchError if a changed key is not accepted."""
    refused = [key for key in changed if key not in accepted]
    if refused:
        flags = " ".join(f"--accept-change {key}" for key in refused)
        remedy = f"continue the run with {flags}, or start over with --fresh"
        raise MismatchError([*(f"{folder}: {changed[key]}" for key in refused), remedy])


def numerics_changes(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """List the changes of machine and versions that may change the last bits of the weights."""
    old_values, new_values = flatten(before), flatten(now)
    return [
        f"{key} was {old_values[key]}, is now {new_values.get(key)}: "
        "the last bits of the weights may differ"
        for key in sorted(old_values)
        if key.split(".")[0] in NUMERICS_KEYS and old_values[key] != new_values.get(key)
    ]


def is_larger(now: object, before: object) -> bool:
    """Return whether both values are numbers and the new one is larger."""
    return isinstance(now, (int, float)) and isinstance(before, (int, float)) and now > before


def flatten(tree: object, path: str = "") -> dict[str, object]:
    """Turn a nested object into one with dotted keys, such as "training.max_steps"."""
    if not isinstance(tree, Mapping) or not tree:
        return {path: tree}
    return {
        key: value
        for name, branch in tree.items()
        for key, value in flatten(branch, f"{path}.{name}" if path else name).items()
    }
