"""Convert the state of model, optimizer and random generators to safetensors and JSON.

Nothing is pickled, so loading a checkpoint from the internet runs no code. Process 0 writes for all
processes: the state of the others (random generators, the position in a stream) is a few kilobytes
and is gathered.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor, distribute_tensor

from hf_lm.system.files import Write, unwrap_os_errors

Tensors = dict[str, torch.Tensor]


def model_state(model: torch.nn.Module) -> Tensors:
    """Copy the trainable weights to memory; weights that share a tensor are copied once."""
    weights: Tensors = {}
    storages: set[int] = set()
    for name, value in trainable_state(model).items():
        if not value.numel() or storage_of(value) not in storages:
            weights[name] = to_cpu(value)
            storages.add(storage_of(value))
    return weights


def restore_weights(model: torch.nn.Module, weights: Tensors) -> None:
    """Load the weights that `model_state` returned.

    Raises:
        ValueError: a weight is missing, is not in the model, or has another shape or type.
    """
    state = trainable_state(model)
    shared = {storage_of(value): weights[name] for name, value in state.items() if name in weights}
    if len(shared) != len(weights):
        unknown = next(iter(weights.keys() - state.keys()), "a tensor")
        raise ValueError(f"{unknown} is not in this model")
    loaded: Tensors = {}
    for name, value in state.items():
        saved = shared.get(storage_of(value))
        if saved is None or (saved.shape, saved.dtype) != (value.shape, value.dtype):
            other = "missing" if saved is None else f"{list(saved.shape)}, {saved.dtype}"
            raise ValueError(
                f"{name} is {list(value.shape)}, {value.dtype} in the model and {other} in the file"
            )
        loaded[name] = shard_like(value, saved)
    model.load_state_dict({**model.state_dict(), **loaded})


def trainable_state(model: torch.nn.Module) -> Tensors:
    """Return the state of a model without its frozen parameters."""
    frozen = frozen_weights(model)
    return {name: value for name, value in model.state_dict().items() if name not in frozen}


def frozen_weights(model: torch.nn.Module) -> Tensors:
    """Return the parameters that are not trained: those under adapters."""
    named = model.named_parameters(remove_duplicate=False)
    return {name: value for name, value in named if not value.requires_grad}


def digest(tensors: Tensors) -> str:
    """Return the SHA-256 of tensors and their names."""
    sha256 = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        sha256.update(name.encode())
        sha256.update(to_cpu(value).view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def optimizer_state(optimizer: Any) -> Tensors:
    """Copy the tensors of an optimizer to memory, with the names PARAMETER_NUMBER.NAME."""
    return {
        f"{number}.{name}": to_cpu(value)
        for number, values in optimizer.state_dict()["state"].items()
        for name, value in values.items()
    }


def parameter_names(model: torch.nn.Module, optimizer: Any) -> list[str]:
    """Return the names of the parameters of an optimizer, in the order of their numbers."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


def restore_optimizer(
    optimizer: Any, tensors: Tensors, *, names: Sequence[str], saved_names: Sequence[str]
) -> list[str]:
    """Load the tensors that `optimizer_state` returned; learning rates stay the recipe's.

    The state of a parameter is loaded if the optimizer keeps the same values for it, as Adam and
    AdamW do.

    Args:
        optimizer: a new optimizer.
        tensors: the content of its file.
        names: the parameters of the optimizer, by number.
        saved_names: the parameters of the file, by number.

    Returns:
        The parameters whose state in the file is that of another algorithm.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    kinds = [state_names(optimizer, g) for g in optimizer.param_groups for _ in g["params"]]
    numbers = {name: number for number, name in enumerate(names)}
    saved: dict[str, Tensors] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        saved.setdefault(saved_names[int(number)], {})[name] = value
    serialized = optimizer.state_dict()
    state = dict(serialized["state"])  # zeros that SGD cannot do without
    fresh = []
    for parameter, values in saved.items():
        number = numbers[parameter]
        if values.keys() <= kinds[number]:
            state[number] = {name: like(weights[number], value) for name, value in values.items()}
        else:
            fresh.append(parameter)
    optimizer.load_state_dict({"state": state, "param_groups": serialized["param_groups"]})
    return fresh


def state_names(optimizer: Any, group: Mapping[str, Any]) -> set[str]:
    """Return the names of the values that an optimizer keeps for each parameter of a group."""
    if "matrices" in group:
        return {"momentum"}  # Muon
    return {"momentum_buffer"} if "nesterov" in group else {"step", "exp_avg", "exp_avg_sq"}


def like(weight: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Shard a value as its parameter is; a number of steps stays as it is."""
    return shard_like(weight, value) if value.shape == weight.shape else value


def restore_schedule(schedule: Any, step: int) -> None:
    """Set a new schedule to the learning rates after a number of steps."""
    counts = {"last_epoch": step - 1, "_step_count": step + 1}  # 1 would mean its first step
    schedule.load_state_dict({**schedule.state_dict(), **counts})
    schedule.step()


def rng_state() -> tuple[Tensors, dict[str, Any]]:
    """Return the state of the random generators of this process, as tensors and as JSON values."""
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
    """Restore the random generators that `rng_state` returned."""
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])
    version, words, gauss = numbers["python"]
    random.setstate((version, tuple(words), gauss))
    state = numbers["numpy"]
    key = np.asarray(state["state"]["key"], np.uint32)
    np.random.set_state({**state, "state": {**state["state"], "key": key}})


def as_list(value: Any) -> Any:
    """Return an array as a list, and any other value as it is."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def storage_of(value: torch.Tensor) -> int:
    """Return the memory address of the part of a tensor that this process holds."""
    return (value.to_local() if isinstance(value, DTensor) else value).data_ptr()


def to_cpu(value: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to the CPU; a sharded one is gathered from all processes."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().to("cpu", copy=True).contiguous()


def shard_like(reference: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Shard a tensor over the processes as another tensor is sharded."""
    if not isinstance(reference, DTensor):
        return value
    device, mesh = reference.device, reference.device_mesh
    return distribute_tensor(value.to(device), mesh, reference.placements)


def tensor_file(tensors: Tensors) -> Write:
    """Return a function that writes tensors to a path, with the metadata transformers needs."""

    def write(path: Path) -> None:
        with unwrap_os_errors(path):
            save_file(tensors, path, metadata={"format": "pt"})

    return write


def read_tensors(path: Path) -> Tensors:
    """Read the tensors of a safetensors file."""
    with unwrap_os_errors(path):
        return load_file(path)
