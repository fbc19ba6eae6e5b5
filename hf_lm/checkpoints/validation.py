"""Check field names and types of a loaded checkpoint before they are used.

A manifest proves that files are undamaged, not who wrote them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerState

from hf_lm.checkpoints.manifest import STATE_JSON, TRAINER_STATE
from hf_lm.errors import CheckpointError, MismatchError, one_line

FieldTypes = Mapping[str, tuple[type, ...]]

MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError, SafetensorError)

TRAINER_STATE_TYPES: FieldTypes = {
    "global_step": (int,),
    "epoch": (int, float),
    "num_input_tokens_seen": (int,),
    "total_flos": (int, float),
    "best_metric": (int, float, type(None)),
    "best_global_step": (int, type(None)),
    "log_history": (list,),
    "stateful_callbacks": (dict,),
}


RANK_TYPES: FieldTypes = {"loss": (int, float), "python": (list,), "numpy": (dict,)}


@contextmanager
def invalid_checkpoint_errors(checkpoint: Path) -> Iterator[None]:
    """Turn an error about the content of a checkpoint into one that names the checkpoint.

    Raises:
        CheckpointError: a field is missing or has another type or value than hf_lm writes.
    """
    try:
        yield
    except MALFORMED as error:
        reason = f"{type(error).__name__}: {one_line(error, limit=200)}"
        raise CheckpointError(f"{checkpoint}: was not written by hf_lm ({reason})") from None


def check_types(name: str, values: Mapping[str, Any], field_types: FieldTypes) -> None:
    """Check that values have exactly the types that are written: "3" is not 3, nor is true 1.

    Args:
        name: the name of the file.
        values: its content.
        field_types: the types that each field may have.

    Raises:
        KeyError: a field is missing.
        TypeError: a field has another type.
    """
    for key, types in field_types.items():
        if type(values[key]) not in types:
            raise TypeError(f"{name}: {key} is {type(values[key]).__name__}")


def check_trainer_state(state: Mapping[str, Any]) -> None:
    """Check the fields of a Trainer's state.

    Raises:
        KeyError: a field is missing.
        TypeError: a field is unknown or has another type than the Trainer writes.
    """
    TrainerState(**copy.deepcopy(dict(state)))  # it refuses unknown fields
    check_types(TRAINER_STATE, state, TRAINER_STATE_TYPES)
    for callback in state["stateful_callbacks"].values():
        attributes = callback.get("attributes", {})
        if any(type(value) not in (int, float) for value in attributes.values()):
            raise TypeError(f"{TRAINER_STATE}: a callback's attribute is not a number")


def state_of_rank(
    ranks: Sequence[Mapping[str, Any]],
    checkpoint: Path,
    *,
    rank: int,
    world_size: int,
    streaming: bool,
) -> Mapping[str, Any]:
    """Return the state that a checkpoint has for a process.

    Processes of another number get the mean loss, and no random generators.

    Args:
        ranks: the state of each process that wrote the checkpoint.
        checkpoint: the checkpoint, for messages.
        rank: the rank of the process.
        world_size: the number of processes that continue.
        streaming: whether they read a stream.

    Raises:
        MismatchError: a stream is read by another number of processes.
        ValueError: there is no state of any process.
    """
    for state in ranks:
        check_types(STATE_JSON, state, RANK_TYPES)
    if len(ranks) == world_size:
        return ranks[rank]
    if not ranks:
        raise ValueError(f"{STATE_JSON}: ranks is empty")
    if streaming:
        raise MismatchError(
            f"{checkpoint}: world_size was {len(ranks)}, is now {world_size}: a position in a "
            "stream belongs to a process; start as many processes, or start over with --fresh"
        )
    return {"loss": sum(state["loss"] for state in ranks) / len(ranks)}
