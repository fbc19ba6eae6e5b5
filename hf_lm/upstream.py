"""Private parts of other libraries that this package overrides, reads or matches.

Their libraries do not promise to keep them. `check_upstream` compares the lists with what is
installed each time a trainer is made (3 ms), so that a renamed hook is an error that names it; an
override that is never called would train with stock behaviour and say nothing.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from hf_lm.errors import HfLmError

TRAINER_HOOKS = {  # methods of the transformers Trainer, as it calls them
    "_get_grad_norm": ("model", "grad_norm"),  # the only call between backward and the optimizer
    "_determine_best_metric": ("metrics", "trial"),  # the only call between evaluating and saving
    "_save_checkpoint": ("model", "trial"),  # atomic, verified, in the background
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),  # strict, without pickle
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_load_scaler": ("checkpoint",),
    "_load_rng_state": ("checkpoint",),
    "_load_callback_state": (),
    "_load_best_model": (),
    "create_scheduler": ("num_training_steps", "optimizer"),
    "evaluate": (),
    "floating_point_ops": ("inputs",),
    "get_batch_samples": ("epoch_iterator", "num_batches", "device"),
    "get_train_dataloader": (),
    "log": ("logs", "start_time"),
}

SOURCE = {  # what the file of a class or module has to contain
    "transformers.Trainer": (
        "self._tr_loss",  # the sum of losses since the last row, on the device
        "self._globalstep_last_logged",
        "self._train_batch_size",
        "self._created_lr_scheduler",
        "self._get_learning_rate()",
        "self.optimizer_cls_and_kwargs",
    ),
    "transformers.TrainingArguments": ("_n_gpu",),  # 1: nn.DataParallel scales a loss wrongly
    "transformers.AutoModelForCausalLM": ("_model_mapping",),  # which classes are causal models
    "transformers.PreTrainedConfig": ("_attn_implementation",),
    "transformers.integrations.peft": ("_hf_peft_config_loaded",),  # whether adapters are saved
    "torch.nn.Module": ("_compiled_call_impl",),  # whether a block is compiled
    "accelerate.optimizer.AcceleratedOptimizer": ("self.optimizer",),
    "torch.utils.data.dataloader": ("exited unexpectedly",),
}

FUNCTIONS = (
    "torch._foreach_add_",
    "torch._foreach_lerp",
    "torch._foreach_lerp_",
    "torch._foreach_mul_",
    "torch._subclasses.fake_tensor.FakeTensorMode",
    "transformers.integrations.sdpa_attention.repeat_kv",
    "transformers.integrations.sdpa_attention.sdpa_attention_forward",
)

# Messages that say what an error's class does not. torch raises a RuntimeError for both.
OUT_OF_MEMORY = re.compile(r"can't allocate memory|not enough memory|Cannot allocate memory")
WORKER_KILLED = re.compile(r"DataLoader worker .*(killed by signal|exited unexpectedly)")
PEER_LOST = re.compile(  # gloo and NCCL
    r"Connection (closed|reset) by peer|Broken pipe|Socket closed|remote process exited"
)
OS_ERROR = re.compile(r"os error (\d+)")  # safetensors and tokenizers, which are written in Rust

PEFT_WARNINGS = (
    "Model (has|with) `tie_word_embeddings=True`",  # of a wrong merge; merge_adapter does it right
    "fan_in_fan_out is set to",  # peft corrects it for each layer
    "Setting `save_embedding_layers` to `True`",  # the embeddings are saved beside their adapter
)


def check_upstream() -> None:
    """Check that everything in the lists of this module exists.

    Raises:
        HfLmError: something is missing, with its name and the supported versions.
    """
    if missing := list(missing_parts()):
        raise HfLmError(
            f"{', '.join(missing)}: hf_lm depends on it, and the installed version does not have "
            f"it; install a supported one: pip install {' '.join(supported_versions())}"
        )


def missing_parts() -> Iterator[str]:
    """Yield the name of each hook, attribute and function that is not there."""
    from transformers import Trainer

    source = module_source(Trainer)
    for name, parameters in TRAINER_HOOKS.items():
        method = getattr(Trainer, name, None)
        if method is None or not {*parameters} <= {*inspect.signature(method).parameters}:
            yield f"transformers.Trainer.{name}({', '.join(parameters)})"
        elif not re.search(rf"self\.{name}\b", source):
            yield f"a use of transformers.Trainer.{name}"
    for owner, texts in SOURCE.items():
        source = module_source(find(owner))
        yield from (f"{owner}: {text}" for text in texts if text not in source)
    yield from (name for name in FUNCTIONS if find(name) is None)


def find(name: str) -> Any:
    """Return the module, class or function of a dotted name; None if there is none."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute, None)
    except ImportError:
        owner = find(module)
        return getattr(owner, attribute, None)


def module_source(value: Any) -> str:
    """Return the text of the file that a class or module is from; a class alone takes 0.1 s."""
    return Path(inspect.getfile(value)).read_text(encoding="utf-8") if value else ""


def supported_versions() -> list[str]:
    """Return the requirements of this package that have an upper bound, quoted for a shell."""
    requirements = metadata.requires("hf_lm") or []
    return [f'"{r}"' for r in requirements if "<" in r and "extra ==" not in r]


def checkpointing_name() -> str:
    """Return how transformers calls activation checkpointing.

    The name was "gradient_checkpointing" up to 5.20, the last version for Python 3.10.
    """
    from transformers import TrainingArguments

    new = "activation_checkpointing"
    return new if hasattr(TrainingArguments, new) else "gradient_checkpointing"
