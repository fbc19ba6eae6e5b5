"""Every private part of another library that the package relies on is listed, and exists."""

import ast
import builtins
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer

from hf_lm import upstream
from hf_lm.errors import HfLmError

MODULES = sorted(Path(upstream.__file__).parent.rglob("*.py"))
LISTED = {
    *upstream.TRAINER_HOOKS,
    *(name.rpartition(".")[2] for name in upstream.FUNCTIONS),
    *(
        text.removeprefix("self.").removesuffix("()")
        for texts in upstream.SOURCE.values()
        for text in texts
    ),
}
DOCUMENTED = {  # for use by others, in spite of the underscore
    "_replace",  # collections.namedtuple
    "_info",  # evaluate.Metric: the methods that a metric has to define
    "_compute",
    "_SubParsersAction",  # argparse: no other name for the type
}


def private_names(path: Path) -> set[str]:
    """Names with one leading underscore that a module reads or overrides, and does not define."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    defined = {
        node.name
        for kind in ast.walk(tree)
        if isinstance(kind, ast.ClassDef) and kind.bases
        for node in kind.body
        if isinstance(node, ast.FunctionDef)
    }
    return {
        name
        for name in read | defined
        if name.startswith("_") and not name.startswith("__") and not hasattr(builtins, name)
    }


def test_everything_listed_is_there() -> None:
    upstream.check_upstream()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_every_private_name_in_use_is_listed(path: Path) -> None:
    assert private_names(path) - LISTED <= DOCUMENTED


def test_every_overridden_trainer_method_is_listed() -> None:
    from hf_lm.training.resumable_trainer import ResumableTrainer
    from hf_lm.training.trainer import LMTrainer

    ours = {name for owner in (LMTrainer, ResumableTrainer) for name in vars(owner)}
    overridden = {name for name in ours & {*dir(Trainer)} if not name.startswith("__")}
    assert overridden == {*upstream.TRAINER_HOOKS}


@pytest.mark.parametrize(
    ("table", "key", "value", "message"),
    [
        ("TRAINER_HOOKS", "_save_all", ("model",), "transformers.Trainer._save_all(model)"),
        ("TRAINER_HOOKS", "_load_scaler", ("folder",), "transformers.Trainer._load_scaler(folder)"),
        ("TRAINER_HOOKS", "__reduce__", (), "a use of transformers.Trainer.__reduce__"),
        ("SOURCE", "torch.nn.Module", ("_compiled_call",), ""),
        ("SOURCE", "torch.nn.Module", ("_compiled_by",), "torch.nn.Module: _compiled_by"),
        ("SOURCE", "torch.nn.Gone", ("x",), "torch.nn.Gone: x"),
    ],
)
def test_a_missing_part_is_named(
    table: str, key: str, value: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(getattr(upstream, table), key, value)
    assert list(upstream.missing_parts()) == ([message] if message else [])
    if message:
        with pytest.raises(HfLmError, match=r"install a supported one: .*transformers<5\.25"):
            upstream.check_upstream()


def test_a_missing_function_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "FUNCTIONS", ("torch._foreach_cube_", "torch.gone.cube"))
    assert list(upstream.missing_parts()) == ["torch._foreach_cube_", "torch.gone.cube"]


def test_activation_checkpointing_has_the_name_that_transformers_reads() -> None:
    from transformers import PreTrainedModel, TrainingArguments

    assert hasattr(TrainingArguments, upstream.checkpointing_name())
    assert hasattr(PreTrainedModel, f"{upstream.checkpointing_name()}_enable")
