"""Train or fine-tune a GPT-2-scale language model from one JSON recipe.

    from hf_lm import load_recipe, check, train, evaluate, generate, export, publish

    recipe = load_recipe("recipes/small.json", overrides=["training.max_steps=200"])
    print(check(recipe))  # the plan: tokens, FLOPs, memory, disk
    result = train(recipe)  # TrainResult(model_path, metrics, samples)
    evaluate(result.model_path, source="README.md")  # {"loss": ..., "bits_per_byte": ...}
    generate(result.model_path, ["def "], max_new_tokens=40)
    export(result.model_path, "onnx/")
    publish("runs/small", overrides=["hub.model_id=USER/small"])

The parts of a training script of your own: Recipe, GPTConfig, LMTrainer, Muon, RunDirectory,
CheckpointStore, load_documents, load_blocks, build_tokenizer, build_model, build_optimizer,
build_lr_schedule, make_plan, detect_hardware and HfLmError.

Every name is imported on first use, so `import hf_lm` stays light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from hf_lm.checkpoints.store import CheckpointStore
    from hf_lm.data.load import load_blocks, load_documents
    from hf_lm.errors import HfLmError
    from hf_lm.model.build import build_model
    from hf_lm.model.config import GPTConfig
    from hf_lm.planning.hardware import detect_hardware
    from hf_lm.planning.plan import make_plan
    from hf_lm.recipe import Recipe, load_recipe
    from hf_lm.run import train
    from hf_lm.run_dir.directory import RunDirectory, TrainResult
    from hf_lm.tokenizer import build_tokenizer
    from hf_lm.training.muon import Muon
    from hf_lm.training.optimizer import build_optimizer
    from hf_lm.training.schedule import build_lr_schedule
    from hf_lm.training.trainer import LMTrainer
    from hf_lm.workflows.check import CheckResult, check
    from hf_lm.workflows.evaluate import evaluate, generate
    from hf_lm.workflows.export import export
    from hf_lm.workflows.publish import publish

_MODULES = {
    "CheckResult": "workflows.check",
    "CheckpointStore": "checkpoints.store",
    "GPTConfig": "model.config",
    "HfLmError": "errors",
    "LMTrainer": "training.trainer",
    "Muon": "training.muon",
    "Recipe": "recipe",
    "RunDirectory": "run_dir.directory",
    "TrainResult": "run_dir.directory",
    "build_lr_schedule": "training.schedule",
    "build_model": "model.build",
    "build_optimizer": "training.optimizer",
    "build_tokenizer": "tokenizer",
    "check": "workflows.check",
    "detect_hardware": "planning.hardware",
    "evaluate": "workflows.evaluate",
    "export": "workflows.export",
    "generate": "workflows.evaluate",
    "load_blocks": "data.load",
    "load_documents": "data.load",
    "load_recipe": "recipe",
    "make_plan": "planning.plan",
    "publish": "workflows.publish",
    "train": "run",
}

__all__ = [
    "CheckResult",
    "CheckpointStore",
    "GPTConfig",
    "HfLmError",
    "LMTrainer",
    "Muon",
    "Recipe",
    "RunDirectory",
    "TrainResult",
    "__version__",
    "build_lr_schedule",
    "build_model",
    "build_optimizer",
    "build_tokenizer",
    "check",
    "detect_hardware",
    "evaluate",
    "export",
    "generate",
    "load_blocks",
    "load_documents",
    "load_recipe",
    "make_plan",
    "publish",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULES:
        raise AttributeError(f"module 'hf_lm' has no attribute {name!r}")
    return getattr(import_module(f"hf_lm.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
