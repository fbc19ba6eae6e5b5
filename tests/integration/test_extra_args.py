"""Every TrainingArguments field that a recipe may set works in a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_lm.recipe.validation.extra_args import COVERED_BY, REFUSED, training_arguments
from hf_lm.run import main

pytestmark = pytest.mark.slow

VALUES: dict[str, Any] = {
    "tf32": False,  # true needs a GPU
    "activation_checkpointing_kwargs": {"use_reentrant": False},
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "neftune_noise_alpha": 5.0,
    "torch_empty_cache_steps": 2,
    "logging_first_step": True,
    "log_on_each_node": False,
    "log_level": "info",
    "log_level_replica": "info",
    "project": "mine",
    "trackio_space_id": "USER/space",
    "trackio_bucket_id": "USER/bucket",
    "trackio_static_space_id": "USER/static",
    "eval_delay": 2.0,
    "full_determinism": True,
    "dataloader_persistent_workers": True,
    "dataloader_prefetch_factor": 2,
    "dataloader_multiprocessing_context": "fork",
    "dataloader_in_order": False,
    "ddp_bucket_cap_mb": 5,
    "ddp_broadcast_buffers": True,
    "ddp_static_graph": True,
    "ddp_backend": "gloo",
    "ddp_timeout": 60,
    "debug": "underflow_overflow",
    "skip_memory_metrics": False,
}
ACCEPTED = {
    name
    for name in training_arguments()
    if name not in {*COVERED_BY, *REFUSED} and not name.startswith("hub_")
}


def test_every_accepted_field_is_tried() -> None:
    assert VALUES.keys() >= ACCEPTED


@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed in v6:FutureWarning")
@pytest.mark.parametrize("name", sorted(ACCEPTED & VALUES.keys()))
def test_an_accepted_field_works_in_a_run(
    name: str, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    changes: dict[str, Any] = {"training__extra_args": {name: VALUES[name]}}
    if name.startswith("dataloader"):
        changes["training__dataloader_num_workers"] = 1
    if name == "activation_checkpointing_kwargs":
        changes["training__activation_checkpointing"] = True
    try:
        assert main([str(write_recipe(**changes))]) == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert (tmp_path / "run" / "metrics.json").is_file()
