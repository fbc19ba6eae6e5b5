"""The sub-commands evaluate and generate with a finished model, and run and check recipes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_lm import check, load_recipe
from hf_lm.cli import HANDLERS, main


@pytest.mark.parametrize("is_cached", [True, False])
def test_evaluating_a_run_gives_its_reported_metrics(
    is_cached: bool, tiny_run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    if not is_cached:  # then the text is prepared again
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert main(["evaluate", str(tiny_run / "model"), "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    reported = json.loads((tiny_run / "metrics.json").read_text())
    for name, value in measured.items():
        assert reported[name] == pytest.approx(value, rel=1e-6), name


def test_evaluating_on_another_source_uses_all_of_its_text(
    tiny_run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other.jsonl").write_text(json.dumps({"body": "Some other text. " * 20}))
    model = str(tiny_run / "model")
    assert main(["evaluate", model, "--source", "other.jsonl"]) == 2
    assert 'set data.text_column to one of "body"' in capsys.readouterr().err
    options = ["--set", "data.text_column=body"]
    assert main(["evaluate", model, "--source", "other.jsonl", *options, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    assert 300 < measured["bytes"] <= 340
    options += ["--set", "data.block_size=8", "--set", "evaluation.max_blocks=2"]
    assert main(["evaluate", model, "--source", "other.jsonl", *options]) == 0
    assert "of 16 tokens" in capsys.readouterr().out


def test_a_missing_model_is_a_one_line_error(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, line in (
        (["evaluate", "./none"], "./none: no such folder"),
        (["evaluate", "no/where"], "no/where: no run around it"),
        (["generate", "./none"], "./none: no such folder"),
        (["generate", "no/where"], 'tokenizer.pretrained = "no/where": '),
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert err.startswith(line)
        assert err.count("\n") == 1


def test_generate_continues_each_prompt_and_is_reproducible_with_a_seed(
    tiny_run: Path, capsys: Any
) -> None:
    arguments = ["generate", str(tiny_run / "model"), "--prompt", "The run", "--prompt", "A "]
    arguments += ["--max-new-tokens", "5"]
    assert main(arguments) == 0
    first = capsys.readouterr().out
    assert first.startswith("The run")
    assert "\nA " in first
    assert main(arguments) == 0
    assert capsys.readouterr().out == first
    assert main([*arguments, "--seed", "7", "--temperature", "2"]) == 0
    assert capsys.readouterr().out != first


@pytest.mark.parametrize("bad", [["--max-new-tokens", "0"], ["--temperature", "-1"]])
def test_numbers_out_of_range_are_rejected_by_the_parser(bad: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["generate", "x", *bad])
    assert caught.value.code == 2


def test_run_and_check_work_as_sub_commands(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    assert main(["check", str(write_recipe())]) == 0
    assert "checked, nothing written" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    assert main(["check", str(write_recipe()), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["max_steps"], plan["tokens_per_step"]) == (8, 128)
    assert plan["train_tokens"] == 8 * 128
    assert plan["text"]["train"]["tokens"] > 0
    assert plan["notes"] == check(load_recipe(write_recipe())).notes
    assert main(["run", str(write_recipe(training__max_steps=2))]) == 0
    assert (tmp_path / "run" / "model" / "config.json").is_file()


JSON_PAGE = Path(__file__).parents[1] / "docs" / "json.md"


def documented_fields(command: str) -> set[str]:
    """The fields of a command in docs/json.md, without those in parentheses."""
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", JSON_PAGE.read_text(), re.MULTILINE)
    text = re.sub(r"\([^()]*\)|;.*", "", dict(rows)[command])
    return set(re.findall(r"`(\w+)`", text))


@pytest.mark.parametrize(
    "command",
    ["check", "status", "report", "verify", "inspect", "prepare", "cache", "evaluate", "generate"],
)
def test_stdout_has_one_object_with_the_documented_fields(
    command: str, tiny_run: Path, write_recipe: Callable[..., Path], tmp_path: Path, capfd: Any
) -> None:
    recipe, model = str(write_recipe()), str(tiny_run / "model")
    arguments = {
        "check": [recipe],
        "status": [str(tiny_run)],
        "report": [str(tiny_run), "--output", str(tmp_path / "report.html")],
        "verify": [str(tiny_run)],
        "inspect": [str(tmp_path / "corpus")],
        "prepare": [recipe, "--output", str(tmp_path / "blocks")],
        "cache": [],
        "evaluate": [model],
        "generate": [model, "--prompt", "The "],
    }
    assert main([command, *arguments[command], "--json"]) == 0
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line).keys() == documented_fields(command)


def test_a_run_gives_its_result_as_one_object(
    write_recipe: Callable[..., Path], tmp_path: Path, capfd: Any
) -> None:
    path = str(write_recipe())
    assert main(["run", path, "--json"]) == 0
    shown = capfd.readouterr()
    (line,) = shown.out.splitlines()
    result = json.loads(line)
    assert result.keys() == documented_fields("run")
    assert result["metrics"] == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert "step 8  validation" in shown.err
    assert main(["run", path, "--json", "--check"]) == 0
    assert json.loads(capfd.readouterr().out).keys() == documented_fields("check")
    assert main(["run", path, "--json", "--set", "training.max_stepps=3"]) == 2
    assert capfd.readouterr().out == ""


def test_every_command_has_json_but_chat(capsys: Any) -> None:
    rows = re.findall(r"^\| `(\w+)` \|", JSON_PAGE.read_text(), re.MULTILINE)
    assert {*rows, "chat"} == HANDLERS.keys()
    for name in HANDLERS:
        with pytest.raises(SystemExit):
            main([name, "--help"])
        assert ("--json" in capsys.readouterr().out) == (name != "chat")
