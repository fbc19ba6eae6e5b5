"""The machine is used as the launcher and the recipe ask, or what is missing is named."""

import os
import platform
import subprocess
import sys
from typing import Any

import pytest
import torch

from hf_lm.planning import hardware as machine
from hf_lm.planning.hardware import Hardware, detect_hardware, peak_memory
from hf_lm.recipe import TrainingRecipe


@pytest.fixture(autouse=True)
def _no_cuda(monkeypatch: Any) -> Any:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.promise("31")
def test_missing_hardware_is_named(monkeypatch: Any) -> None:
    monkeypatch.setattr(machine, "computes_bf16", lambda kind: False)
    assert detect_hardware(TrainingRecipe()).unmet_requirements == ()
    for keys, rule in (
        ({"device": "cuda"}, 'device = "cuda": no CUDA device was found; use "auto"'),
        ({"precision": "fp16"}, 'precision = "fp16": needs a CUDA device; use "auto" or "fp32"'),
        ({"precision": "bf16"}, 'precision = "bf16": this processor only emulates it, '),
        ({"extra_args": {"tf32": True}}, "extra_args.tf32: needs a CUDA device of 2020 or later"),
        ({"report_to": "wandbb"}, 'report_to = "wandbb": transformers has no such tracker; did'),
        ({"report_to": ("none", "clearml")}, 'report_to = "clearml": ClearMLCallback requires '),
    ):
        (line,) = detect_hardware(TrainingRecipe(**keys)).unmet_requirements
        assert line.startswith(f"training.{rule}")


def test_auto_precision_is_bf16_if_the_hardware_supports_it(monkeypatch: Any) -> None:
    for able, chosen in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(machine, "computes_bf16", lambda kind, able=able: able)
        assert detect_hardware(TrainingRecipe()).precision == chosen


def test_threads_set_by_the_launcher_are_overridden_and_by_the_user_kept(monkeypatch: Any) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda physical: 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    torch.set_num_threads(1)
    assert detect_hardware(TrainingRecipe()).threads == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert detect_hardware(TrainingRecipe()).threads == 1
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    torch.set_num_threads(1)
    assert detect_hardware(TrainingRecipe()).threads == 1


def test_rank_and_world_size_come_from_the_environment(monkeypatch: Any) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    found = detect_hardware(TrainingRecipe())
    assert found.shard() == {"rank": 3, "world_size": 4}
    assert not found.is_main
    assert found.arguments()["use_cpu"] is True
    assert found.peak_flops > 4e8  # measured, of four processes


def test_memory_is_counted_in_bytes() -> None:
    assert detect_hardware(TrainingRecipe()).memory > 10**8
    assert peak_memory("cpu") > 10**7


FREED_TENSORS = """
import resource
import psutil
import torch
from hf_lm.planning.hardware import keep_freed_memory

def faults(tensors):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(tensors):
        torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

small = [torch.ones(2**12) for _ in range(5000)]  # 80 MB, and the last one pins the heap
del small[:-1]
before = psutil.Process().memory_info().rss
keep_freed_memory()
print(before - psutil.Process().memory_info().rss)
faults(5)  # the heap grows to what the tensors need
print(faults(20), 2**26 // resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_memory_freed_earlier_is_returned_and_later_kept() -> None:
    run = subprocess.run(  # this process has its allocator set already
        [sys.executable, "-c", FREED_TENSORS], stdout=subprocess.PIPE, check=True, timeout=120
    )
    given_back, faults, pages = map(int, run.stdout.split())
    assert given_back > 50 * 2**20
    # None was counted, or those of one more growth; each of 20 faults on all its pages otherwise.
    assert faults < 2 * pages


@pytest.mark.gpu
def test_a_gpu_is_detected_with_its_peak_flops() -> None:
    found = detect_hardware(TrainingRecipe())
    assert found.device == "cuda"
    assert found.precision == "bf16"


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA L4", 121e12), ("NVIDIA L40", 181e12), ("NVIDIA L40S", 362e12)]
)
def test_a_gpu_is_found_by_its_whole_name(name: str, peak: float) -> None:
    hardware = Hardware("cuda", name, 1, 0, 1, 1, "bf16", ())
    assert hardware.peak_flops == peak


def test_the_peak_memory_of_a_mac_is_counted_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    linux = peak_memory("cpu")
    monkeypatch.setattr("hf_lm.planning.hardware.sys.platform", "darwin")
    assert linux / 1024 <= peak_memory("cpu") < linux / 512


def test_full_determinism_is_known_to_cublas_before_its_first_product(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")  # so that it is removed at the end
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    detect_hardware(TrainingRecipe())
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    detect_hardware(TrainingRecipe(extra_args={"full_determinism": True}))
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
