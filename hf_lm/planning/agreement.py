"""Connect the processes of a run, and make sure that all of them train the same run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object

from hf_lm.errors import MismatchError, RecipeError
from hf_lm.planning.hardware import Hardware
from hf_lm.recipe import TrainingRecipe
from hf_lm.run_dir.lock import LOCK
from hf_lm.system.signals import default_signal_handlers

Value = TypeVar("Value")

# Fields of provenance.json that have to be the same on every process; a processor may differ.
COMMON_KEYS = (
    *("data", "tokenizer", "text", "packages", "precision", "attention", "compile"),
    *("micro_batch_size", "max_steps"),
)


def connect(hardware: Hardware, recipe: TrainingRecipe) -> None:
    """Connect the processes; the Trainer uses this connection.

    Args:
        hardware: the hardware of this process.
        recipe: the `training` section, whose `extra_args` may have `ddp_backend` and `ddp_timeout`.
    """
    is_cpu = hardware.device == "cpu"
    if hardware.world_size == 1:
        PartialState(cpu=is_cpu)
        return
    options: dict[str, Any] = {}
    if backend := recipe.extra_args.get("ddp_backend"):
        options["backend"] = backend
    if seconds := recipe.extra_args.get("ddp_timeout"):
        options["timeout"] = timedelta(seconds=seconds)
    with default_signal_handlers():
        PartialState(cpu=is_cpu, **options)


def gather(value: Value, hardware: Hardware) -> list[Value]:
    """Return the values of all processes, in the order of their ranks."""
    return gather_object([value]) if hardware.world_size > 1 else [value]


def with_common_memory(hardware: Hardware) -> Hardware:
    """Return the hardware with the free memory of the process that has least.

    Each process plans the run itself: with its own memory, it would choose its own micro-batch
    size, and read blocks that belong to another process.
    """
    return replace(hardware, memory=min(gather(hardware.memory, hardware)))


def check_shared_folder(folder: Path, hardware: Hardware) -> None:
    """Check that all processes see the directory of the run, which the main process has locked.

    Raises:
        RecipeError: one does not, as on a machine with disks of its own; on every process.
    """
    for rank, is_seen in enumerate(gather((folder / LOCK).is_file(), hardware)):
        if not is_seen:
            raise RecipeError(
                f"output_dir = {json.dumps(str(folder))}: process {rank} does not see what process "
                "0 writes there; several machines need a file system that all of them share"
            )


def check_same_run(provenance: Mapping[str, Any], hardware: Hardware) -> None:
    """Check that all processes have the same text, tokenizer, plan and packages.

    Raises:
        MismatchError: they differ; it has one line per field, on every process.
    """
    everyone = gather({key: provenance.get(key) for key in COMMON_KEYS}, hardware)
    problems = [
        f"{key} is {everyone[0][key]} on process 0 and {other[key]} on process {rank}; all "
        "processes need the same files, packages and hardware"
        for key in COMMON_KEYS
        for rank, other in enumerate(everyone)
        if other[key] != everyone[0][key]
    ]
    if problems:
        raise MismatchError(problems)
