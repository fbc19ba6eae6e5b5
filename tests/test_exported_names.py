"""The public names resolve, are documented, and work in a process without a terminal."""

import inspect
import json
import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_hub import serve

import hf_lm
from recipes import TINY, merged, write_corpus

WORKFLOWS = ("load_recipe", "check", "train", "evaluate", "generate", "export", "publish")

# What a notebook does: every public function in one process that has no terminal.
NOTEBOOK = """
import json, signal, sys

handlers = [signal.getsignal(number) for number in signal.valid_signals()]
from hf_lm import HfLmError, check, evaluate, export, generate, load_recipe, publish, train

recipe = load_recipe("recipe.json", overrides=["training.max_steps=4"])
plan = check(recipe)
result = train(recipe)
again = train(recipe)
longer = train(load_recipe("recipe.json", overrides=["training.max_steps=6"]))
other = train(load_recipe("recipe.json", overrides=["training.max_steps=4", "output_dir=other"]))
try:
    load_recipe("recipe.json", overrides=["training.max_stepps=4"])
except HfLmError as error:
    refused = str(error)
print(json.dumps({
    "plan": str(plan),
    "steps": plan.plan.max_steps,
    "shortfalls": plan.shortfalls,
    "model": str(result.model_path),
    "again": again.metrics == result.metrics,
    "other": other.metrics["loss"] == result.metrics["loss"],
    "longer": longer.metrics["train_tokens"] / result.metrics["train_tokens"],
    "samples": result.samples,
    "evaluated": evaluate(other.model_path),
    "stored": other.metrics,
    "evaluated_text": evaluate(other.model_path, source="corpus/000.txt"),
    "texts": generate(other.model_path, ["The ", "A "], max_new_tokens=3),
    "difference": export(other.model_path, "onnx"),
    "commit": publish("other", overrides=["hub.model_id=USER/tiny"]),
    "refused": refused,
    "handlers": handlers == [signal.getsignal(number) for number in signal.valid_signals()],
}), file=sys.stderr)
"""


def test_every_public_name_resolves() -> None:
    for name in hf_lm.__all__:
        assert getattr(hf_lm, name) is not None, name
    assert dir(hf_lm) == sorted(hf_lm.__all__)
    with pytest.raises(AttributeError, match="module 'hf_lm' has no attribute 'trian'"):
        _ = hf_lm.trian


def test_the_names_of_the_package_docstring_are_the_public_ones() -> None:
    named = {*re.findall(r"\w+", hf_lm.__doc__ or "")}
    documented = {*hf_lm.__all__} - {"__version__", "CheckResult"}
    assert documented <= named


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_workflow_documents_arguments_results_and_errors(name: str) -> None:
    function = getattr(hf_lm, name)
    text = inspect.getdoc(function) or ""
    for heading in ("Args:", "Returns:", "Raises:", "Example:"):
        assert f"\n{heading}" in text, heading
    for parameter, value in inspect.signature(function).parameters.items():
        assert re.search(rf"^    {parameter}: \S", text, re.MULTILINE), parameter
        assert value.annotation is not inspect.Parameter.empty


def test_help_shows_every_function_with_its_first_line() -> None:
    text = pydoc.plain(pydoc.render_doc(hf_lm))
    for name in WORKFLOWS:
        first_line = (inspect.getdoc(getattr(hf_lm, name)) or "").partition("\n")[0]
        assert re.search(rf"^    {name}\(", text, re.MULTILINE), name
        assert first_line in text


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The folder, the values and the output of the script above."""
    folder = tmp_path_factory.mktemp("notebook")
    write_corpus(folder / "corpus")
    changes = {"training.save_steps": 2, "training.eval_steps": 2}
    (folder / "recipe.json").write_text(json.dumps(merged(TINY, changes)), encoding="utf-8")
    with serve(folder / "hub") as hub:
        environment = {**os.environ, **hub.environment, "HF_TOKEN": "hf_writes"}
        done = subprocess.run(
            [sys.executable, "-c", NOTEBOOK],
            cwd=folder,
            env={**environment, "HF_HOME": str(folder / "home")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stderr.splitlines()[-1]), done.stdout


def test_every_public_function_works_without_a_terminal(notebook: Any) -> None:
    folder, values, _ = notebook
    assert values["steps"] == 4
    assert values["shortfalls"] == []
    assert values["plan"].startswith("tiny: checked, nothing written")
    assert Path(values["model"]) == folder / "run" / "model"
    assert values["evaluated"]["loss"] == values["stored"]["loss"]
    assert values["evaluated_text"]["tokens"] > 0
    assert len(values["texts"]) == 2
    assert values["difference"] < 1e-4
    assert (folder / "onnx" / "onnx" / "model.onnx").is_file()
    assert "USER/tiny" in values["commit"]
    assert (folder / "hub" / "models" / "USER" / "tiny" / "model.safetensors").is_file()
    assert 'training.max_stepps: unknown key; did you mean "max_steps"?' in values["refused"]


def test_train_can_be_called_twice_in_one_process(notebook: Any) -> None:
    _, values, _ = notebook
    assert values["again"]  # a finished run is not trained again
    assert values["longer"] == 1.5  # it goes on from step 4 to step 6
    assert values["other"]  # the same recipe in another folder ends in the same loss
    assert [sample["prompt"] for sample in values["samples"]] == ["The "]


def test_no_signal_handlers_are_left_behind(notebook: Any) -> None:
    _, values, _ = notebook
    assert values["handlers"]


def test_progress_is_shown_without_control_characters(notebook: Any) -> None:
    _, _, output = notebook
    assert "step 4" in output or "4/4" in output
    assert "\x1b" not in output
    assert "\r" not in output
