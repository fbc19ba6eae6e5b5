"""Detect the device, threads, precision, memory and peak FLOPs per second of this machine."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from hf_lm.errors import one_line
from hf_lm.recipe import TrainingRecipe, nearest
from hf_lm.system.launch import is_set, launched
from hf_lm.system.processes import (
    local_rank,
    local_world_size,
    rank,
    usable_cores,
    world_size,
)

# Dense bf16 FLOPs per second of one GPU, from NVIDIA's and AMD's data sheets.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
    "MI300X": 1307e12,
}


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h

ONE_GIB = 2**30

PEAK_SECONDS = 0.25  # the first product of a process is slow, and a shared machine drifts


@dataclass(frozen=True)
class Hardware:
    """The hardware that a run uses, as one process sees it.

    Attributes:
        device: "cpu" or "cuda".
        name: the name of the GPU or processor.
        world_size: the number of processes.
        rank: the rank of this process.
        threads: the CPU threads of this process.
        memory: free bytes of this process.
        precision: "fp32", "bf16" or "fp16".
        unmet_requirements: what the recipe asks for and this machine lacks, one line each.
    """

    device: str
    name: str
    world_size: int
    rank: int
    threads: int
    memory: int
    precision: str
    unmet_requirements: tuple[str, ...]

    @property
    def is_main(self) -> bool:
        """True for the process that writes files and prints."""
        return self.rank == 0

    def shard(self) -> dict[str, int]:
        """Return the rank of this process and the number of processes, as keyword arguments."""
        return {"rank": self.rank, "world_size": self.world_size}

    def provenance(self) -> dict[str, object]:
        """Return the fields of provenance.json about the hardware."""
        return {
            "world_size": self.world_size,
            "device": self.name,
            "threads": self.threads,
            "precision": self.precision,
        }

    def arguments(self) -> dict[str, object]:
        """Return the TrainingArguments that follow from the hardware."""
        return {
            "use_cpu": self.device == "cpu",
            "bf16": self.precision == "bf16",
            "fp16": self.precision == "fp16",
        }

    @property
    def dtype(self) -> torch.dtype:
        """The type of matrix products."""
        return DTYPES[self.precision]

    @cached_property
    def peak_flops(self) -> float:
        """Peak FLOPs per second of all processes: from the data sheet, or measured."""
        words = f" {self.name} ".replace("-", " ")  # "NVIDIA A100-SXM4-80GB"; L4 is not in L40
        known = (flops for key, flops in PEAK_FLOPS.items() if f" {key} " in words)
        listed = next(known, None) if self.device == "cuda" and self.precision != "fp32" else None
        return self.world_size * (listed or measured_flops(self.device, self.dtype))


def detect_hardware(recipe: TrainingRecipe) -> Hardware:
    """Detect the hardware that the recipe and the launcher select, and set the CPU threads.

    Args:
        recipe: the `training` section, with `device` and `precision`.

    Example:
        >>> detect_hardware(load_recipe("recipes/small.json").training).precision
    """
    precision = recipe.precision
    if recipe.extra_args.get("full_determinism"):  # cuBLAS reads it once, before the Trainer does
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    cuda = torch.cuda.is_available() and not is_set("ACCELERATE_USE_CPU")
    kind = "cuda" if cuda and recipe.device != "cpu" else "cpu"
    if kind == "cuda":  # otherwise the first question makes every process use memory of GPU 0
        torch.cuda.set_device(local_rank())
    if precision == "auto":
        precision = "bf16" if computes_bf16(kind) else "fp32"
    local_size = local_world_size()
    return Hardware(
        device=kind,
        name=torch.cuda.get_device_name() if kind == "cuda" else processor_name(),
        world_size=world_size(),
        rank=rank(),
        threads=use_cores(local_size) if kind == "cpu" else torch.get_num_threads(),
        memory=free_memory(kind) // (local_size if kind == "cpu" else 1),
        precision=precision,
        unmet_requirements=tuple(find_unmet_requirements(recipe, kind)),
    )


def find_unmet_requirements(recipe: TrainingRecipe, kind: str) -> Iterator[str]:
    """Yield a line for each thing that a recipe asks for and a kind of device lacks."""
    if recipe.device == "cuda" and kind == "cpu":
        yield 'training.device = "cuda": no CUDA device was found; use "auto"'
    if recipe.precision == "fp16" and kind == "cpu":
        yield 'training.precision = "fp16": needs a CUDA device; use "auto" or "fp32"'
    if recipe.precision == "bf16" and not computes_bf16(kind):
        yield (
            'training.precision = "bf16": this processor only emulates it, hundreds of times '
            'slower; use "auto" or "fp32"'
        )
    has_tf32 = kind == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    if recipe.extra_args.get("tf32") and not has_tf32:
        yield "training.extra_args.tf32: needs a CUDA device of 2020 or later; remove it"
    yield from missing_trackers(recipe.report_to)


def missing_trackers(report_to: str | Sequence[str]) -> Iterator[str]:
    """Yield a line for each tracker that is unknown or whose package is not installed."""
    names = [report_to] if isinstance(report_to, str) else list(report_to)
    for name in names:
        if name in ("none", "all"):
            continue
        callback = INTEGRATION_TO_CALLBACK.get(name)
        if callback is None:
            hint = nearest(name, INTEGRATION_TO_CALLBACK)
            yield f'training.report_to = "{name}": transformers has no such tracker; {hint}'
            continue
        try:
            callback()
        except (RuntimeError, ImportError) as error:
            yield f'training.report_to = "{name}": {one_line(error)}'


def computes_bf16(kind: str) -> bool:
    """Return whether the hardware multiplies matrices in bf16.

    torch accepts bf16 on every CPU. Without AVX512-BF16 or AMX we measured 0.2 to 0.9 GFLOP/s,
    compared with 75 GFLOP/s in fp32.
    """
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 2)[1].split("\n")[0].split()
    except (OSError, IndexError):
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def measured_flops(kind: str, dtype: torch.dtype) -> float:
    """Measure the FLOPs per second of large matrix products, the best within PEAK_SECONDS."""
    width = 1024 if kind == "cpu" else 8192
    matrix = torch.ones(width, width, dtype=dtype, device=kind)
    began, best = time.perf_counter(), math.inf
    while time.perf_counter() - began < PEAK_SECONDS:
        start = time.perf_counter()
        torch.mm(matrix, matrix)[0, 0].item()  # waits for a GPU
        best = min(best, time.perf_counter() - start)
    return 2 * width**3 / best


def use_cores(processes: int) -> int:
    """Set the threads of this process to its share of the cores, and return their number.

    OMP_NUM_THREADS overrides this, except for the 1 that `accelerate launch` sets by itself.

    Args:
        processes: the number of processes on this machine.
    """
    requested = int(os.environ.get("OMP_NUM_THREADS", "0") or 0)
    if requested > 1 or (requested == 1 and not launched()):
        return torch.get_num_threads()
    torch.set_num_threads(max(1, usable_cores(physical=True) // processes))
    return torch.get_num_threads()


def keep_freed_memory() -> None:
    """Tell glibc to keep freed tensors instead of returning them to the kernel at every step.

    Page faults of large tensors cost 10 to 13 % of a CPU step. Other C libraries have no mallopt.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)  # memory left over from preparing the text does not fit a step's needs
        libc.mallopt(M_MMAP_THRESHOLD, ONE_GIB)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def free_memory(kind: str) -> int:
    """Return the bytes of free memory, of the GPU or of the machine."""
    return torch.cuda.mem_get_info()[0] if kind == "cuda" else psutil.virtual_memory().available


def used_memory(kind: str) -> int:
    """Return the bytes that this process holds, of the GPU or of the machine."""
    return torch.cuda.memory_allocated() if kind == "cuda" else psutil.Process().memory_info().rss


def peak_memory(kind: str) -> int:
    """Return the most bytes that this process has used, of the GPU or of the machine."""
    if kind == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        memory: Any = psutil.Process().memory_info()
        return memory.peak_wset

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def processor_name() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
