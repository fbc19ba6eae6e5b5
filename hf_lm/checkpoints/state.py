"""Convert the state of model, optimizer and random generators to safetensors and JSON.

Tensors are safetensors and everything else JSON: nothing is pickled, so a checkpoint from a
stranger is data. Process 0 writes for all: what the others hold of their own (random numbers, the
place in a stream) is a few kilobytes, and is gathered.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_lm.system.files import Write, unwrap_os_errors

Tensors = dict[str, torch.Tensor]


def model_state(model: torch.nn.Module) -> Tensors:
    """A copy of the weights in memory, those that share a tensor once, without frozen ones."""
    found: Tensors = {}
    seen: set[int] = set()
    for name, value in trainable_state(model).items():
        if not value.numel() or storage_of(value) not in seen:
            found[name] = to_cpu(value)
            seen.add(storage_of(value))
    return found


def restore_weights(model: torch.nn.Module, found: Tensors) -> None:
    """Take weights that `weights_of` returned; every one of them, and no other.

    Raises:
        ValueError: they are those of another network.
    """
    own = trainable_state(model)
    shared = {storage_of(value): found[name] for name, value in own.items() if name in found}
    if len(shared) != len(found):
        raise ValueError(f"{next(iter(found.keys() - own.keys()), 'a tensor')} is not in this one")
    whole: Tensors = {}
    for name, value in own.items():
        given = shared.get(storage_of(value))
        if given is None or (given.shape, given.dtype) != (value.shape, value.dtype):
            shape = "not there" if given is None else f"{list(given.shape)}, {given.dtype}"
            raise ValueError(f"{name} is {list(value.shape)}, {value.dtype} and there {shape}")
        whole[name] = shard_like(value, given)
    model.load_state_dict({**model.state_dict(), **whole})


def trainable_state(model: torch.nn.Module) -> Tensors:
    """The state of a network without the parameters that are not trained."""
    frozen = frozen_weights(model)
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def frozen_weights(model: torch.nn.Module) -> Tensors:
    """The parameters that are not trained: those under adapters."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: value for name, value in named if not value.requires_grad}


def digest(tensors: Tensors) -> str:
    """The SHA-256 of tensors with their names."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(name.encode())
        found.update(to_cpu(value).view(torch.uint8).numpy().data)
    return found.hexdigest()


def optimizer_state(optimizer: Any) -> Tensors:
    """A copy of an optimizer's tensors, named NUMBER.NAME; its rates are the recipe's."""
    return {
        f"{number}.{name}": to_cpu(value)
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def restore_optimizer(optimizer: Any, tensors: Tensors) -> None:
    """Take what `optimizer_state` returned.

    Raises:
        ValueError: it is the state of another optimizer.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        weight = weights[int(number)]
        state.setdefault(int(number), {})[name] = (
            shard_like(weight, value) if value.shape == weight.shape else value
        )
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def restore_schedule(schedule: Any, step: int) -> None:
    """Set the rates of a schedule that was just made to those behind a number of steps."""
    counts = {"last_epoch": step - 1, "_step_count": step + 1}  # 1 would be taken for its first
    schedule.load_state_dict({**schedule.state_dict(), **counts})
    schedule.step()


def rng_state() -> tuple[Tensors, dict[str, Any]]:
    """Where this process's random numbers stand."""
    tensors = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    numpy_state: Any = np.random.get_state(legacy=False)
    numbers = {
        "python": random.getstate(),
        "numpy": {**numpy_state, "state": {k: as_list(v) for k, v in numpy_state["state"].items()}},
    }
    return tensors, numbers


def restore_rng(tensors: Tensors, numbers: Mapping[str, Any]) -> None:
    """Go on with the random numbers of `random_state`."""
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    version, words, gauss = numbers["python"]
    random.setstate((version, tuple(words), gauss))
    state = numbers["numpy"]
    key = np.asarray(state["state"]["key"], np.uint32)
    np.random.set_state({**state, "state": {**state["state"], "key": key}})


def as_list(value: Any) -> Any:
    """An array as JSON has it."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def storage_of(value: torch.Tensor) -> int:
    """Where a tensor's numbers stand on this process."""
    return (value.to_local() if isinstance(value, DTensor) else value).data_ptr()


def to_cpu(value: torch.Tensor) -> torch.Tensor:
    """A whole tensor in memory that the next step does not change."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().to("cpu", copy=True).contiguous()


def shard_like(own: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A tensor shared out over processes as another one is."""
    if not isinstance(own, DTensor):
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements)


def tensor_file(tensors: Tensors) -> Write:
    """Writes tensors; with the word that transformers looks for before it reads them."""

    def write(path: Path) -> None:
        with unwrap_os_errors(path):
            save_file(tensors, path, metadata={"format": "pt"})

    return write


def read_tensors(path: Path) -> Tensors:
    """The tensors of a file."""
    with unwrap_os_errors(path):
        return load_file(path)
