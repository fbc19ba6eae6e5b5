"""Check field names and types of a loaded checkpoint before they are used.

A manifest proves that nothing was damaged, not who wrote it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import TrainerState

from hf_lm.checkpoints.manifest import TRAINER_STATE
from hf_lm.errors import CheckpointError, one_line

FieldTypes = Mapping[str, tuple[type, ...]]


MALFORMED = (AttributeError, IndexError, KeyError, TypeError, ValueError, SafetensorError)


USED: FieldTypes = {  # fields of the Trainer's state
    "global_step": (int,),
    "epoch": (int, float),
    "num_input_tokens_seen": (int,),
    "total_flos": (int, float),
    "best_metric": (int, float, type(None)),
    "best_global_step": (int, type(None)),
    "log_history": (list,),
    "stateful_callbacks": (dict,),
}


@contextmanager
def invalid_checkpoint_errors(checkpoint: Path) -> Iterator[None]:
    """Say of whose files an error is, when they are whole and do not hold what they should.

    Raises:
        CheckpointError: they do not.
    """
    try:
        yield
    except MALFORMED as error:
        reason = f"{type(error).__name__}: {one_line(error, limit=200)}"
        raise CheckpointError(f"{checkpoint}: was not written by hf_lm ({reason})") from None


def check_types(name: str, values: Mapping[str, Any], kinds: FieldTypes) -> None:
    """Refuse values of other types than were written: "3" is not 3, nor is true 1.

    Args:
        name: of the file.
        values: what it holds.
        kinds: the types that each may have.

    Raises:
        KeyError: one is missing.
        TypeError: one is of another type.
    """
    for key, types in kinds.items():
        if type(values[key]) not in types:
            raise TypeError(f"{name}: {key} is {type(values[key]).__name__}")


def check_trainer_state(state: Mapping[str, Any]) -> None:
    """Refuse a Trainer's state with what the Trainer would not write.

    Raises:
        TypeError: it has such a thing.
    """
    TrainerState(**copy.deepcopy(dict(state)))  # which knows its fields
    check_types(TRAINER_STATE, state, USED)
    for kept in state["stateful_callbacks"].values():
        if any(type(value) not in (int, float) for value in kept.get("attributes", {}).values()):
            raise TypeError(f"{TRAINER_STATE}: a callback's attribute is no number")
