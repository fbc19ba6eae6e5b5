"""Run whole recipes: their files, reproducible weights, and resumed runs."""

import _thread
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_lm.errors import DataError, RecipeError
from hf_lm.model.attention import FUSED, PLAIN
from hf_lm.model.build import transformer_blocks
from hf_lm.model.dropout import Dropout
from hf_lm.planning import hardware
from hf_lm.recipe import load_recipe
from hf_lm.run import main, train
from hf_lm.workflows import train as train_workflow
from hf_lm.workflows.check import check

DROPOUT = {"model__dropout": 0.1, "training__max_steps": 12}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Load the weights of the saved model."""
    return load_file(folder / "model" / "model.safetensors")


def assert_same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    """Check that two sets of weights are equal bit for bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of log.jsonl without their times."""
    timing_keys = ("seconds", "tokens_per_second", "mfu")
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timing_keys} for line in lines]


def test_a_finished_run_has_exactly_the_documented_files(tiny_run: Path) -> None:
    names = {path.name for path in tiny_run.iterdir()}
    assert names == {
        *("recipe.json", "provenance.json", "log.jsonl", "metrics.json", "status.json"),
        *("checkpoint-4", "checkpoint-8", "model"),
    }
    assert {path.name for path in (tiny_run / "model").iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
        *("README.md", "recipe.json", "metrics.json", "provenance.json", "loss.png"),
    }
    assert json.loads((tiny_run / "status.json").read_text()) == {
        "state": "done",
        "reason": "",
        "step": 8,
    }
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    assert set(metrics) == {
        *("loss", "perplexity", "accuracy", "bits_per_byte", "loss_stderr", "tokens", "bytes"),
        *("train_tokens", "train_seconds", "tokens_per_second", "mfu", "peak_memory_bytes"),
        *("parameters", "train_flops"),
    }
    assert metrics["train_tokens"] == 8 * 128


def test_log_rows_have_the_documented_keys(tiny_run: Path) -> None:
    log_rows = [json.loads(line) for line in (tiny_run / "log.jsonl").read_text().splitlines()]
    trained = [row for row in log_rows if "loss" in row]
    assert [row["step"] for row in trained] == [2, 4, 6, 8]
    assert set(trained[0]) == {
        *("step", "tokens", "seconds", "loss", "learning_rate", "grad_norm"),
        *("tokens_per_second", "mfu"),
    }
    assert trained[0]["learning_rate"] == 0.01  # the learning rate of the second step
    assert trained[-1]["loss"] < trained[0]["loss"]
    evaluated = [row for row in log_rows if "eval_loss" in row]
    assert [row["step"] for row in evaluated] == [4, 8]
    assert set(evaluated[0]) == {
        *("step", "tokens", "seconds", "eval_loss", "eval_perplexity", "eval_accuracy"),
        *("eval_bits_per_byte", "samples"),
    }
    assert evaluated[0]["samples"][0]["prompt"] == "The "


def test_the_saved_tokenizer_has_the_context_length_of_the_model(tiny_run: Path) -> None:
    config = json.loads((tiny_run / "model" / "tokenizer_config.json").read_text())
    assert config["model_max_length"] == 16


def test_the_same_recipe_gives_the_same_weights_also_with_other_eval_steps(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    for name, every in (("a", 4), ("b", 4), ("c", 5)):
        train(load_recipe(write_recipe(**DROPOUT, output_dir=name, training__eval_steps=every)))
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert rows(tmp_path / "a") == rows(tmp_path / "b")
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "c"))


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Handle SIGINT as at a terminal; a shell starts background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt_at(log: Path, step: int) -> None:
    """Press Ctrl-C when the log has a row of a step."""

    def watch() -> None:
        while not (log.is_file() and f'"step": {step},' in log.read_text()):
            time.sleep(0.002)
        _thread.interrupt_main()

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_an_interrupted_run_resumes_bit_for_bit_with_the_same_command(
    family: str, write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    changes = {
        **DROPOUT,
        "model__family": family,
        "training__max_steps": 30,
        "training__save_steps": 7,
        "training__micro_batch_size": 4,
    }
    train(load_recipe(write_recipe(**changes, output_dir="whole")))
    path = write_recipe(**changes, output_dir="broken")
    interrupt_at(tmp_path / "broken" / "log.jsonl", 16)
    assert main([str(path)]) == 130
    assert "the same command continues" in capsys.readouterr().err
    status = json.loads((tmp_path / "broken" / "status.json").read_text())
    assert status["state"] == "stopped"
    assert main([str(path)]) == 0
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))
    assert rows(tmp_path / "whole") == rows(tmp_path / "broken")


@pytest.mark.promise("87")
def test_a_complete_run_is_not_changed(tiny_run: Path, capsys: Any) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")}
    metrics = train(load_recipe(tiny_run.parent / "recipe.json")).metrics
    assert metrics["train_tokens"] == 8 * 128
    assert "already complete" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tiny_run.rglob("*")} == before


def test_a_complete_run_can_be_extended(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    train(load_recipe(write_recipe()))
    train(load_recipe(write_recipe(training__max_steps=12)))
    assert "more steps: the learning rate goes from " in capsys.readouterr().out
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == [2, 4, 6, 8, 10, 12]


def test_a_changed_recipe_exits_with_4_and_fresh_starts_a_new_run(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    train(load_recipe(write_recipe()))
    path = str(write_recipe(training__learning_rate=0.02))
    assert main([path]) == 4
    assert "training.learning_rate was 0.01, is now 0.02" in capsys.readouterr().err
    assert main([path, "--fresh"]) == 0
    assert (tmp_path / "run-2" / "model").is_dir()


def test_fine_tuning_starts_from_the_published_weights(
    write_recipe: Callable[..., Path], tmp_path: Path, tiny_run: Path
) -> None:
    path = write_recipe(training__learning_rate=1e-9, training__warmup_steps=0)
    assert main([str(path), "--from", str(tiny_run / "model")]) == 0
    before, after = weights(tiny_run), weights(tmp_path / "run")
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=0)


def test_a_pretrained_model_is_evaluated_once_before_the_first_step(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    tiny_run: Path,
    undo_end: Callable[[Path, int], None],
) -> None:
    path = write_recipe()
    assert main([str(path), "--from", str(tiny_run / "model")]) == 0
    undo_end(tmp_path / "run", 8)
    assert main([str(path), "--from", str(tiny_run / "model")]) == 0
    log = (tmp_path / "run" / "log.jsonl").read_text()
    measured = {
        r["step"]: r["eval_loss"] for r in map(json.loads, log.splitlines()) if "eval_loss" in r
    }
    assert [*measured] == [0, 4, 8]
    pretrained_loss = json.loads((tiny_run / "metrics.json").read_text())["loss"]
    assert measured[0] == pytest.approx(pretrained_loss, abs=1e-4)
    assert measured[8] < measured[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"model__family": "llama"},
        {"model__family": "arcee", "data__document_mask": True},
        {"training__optimizer": "sgd", "training__schedule": "wsd"},
        {"tokenizer__train": {"kind": "char"}, "training__activation_checkpointing": True},
        {"tokenizer__train": {"kind": "byte"}, "model__pad_vocab_to_multiple_of": 64},
        {"training__max_steps": None, "training__max_epochs": 0.3, "training__micro_batch_size": 2},
        {"training__dataloader_num_workers": 1, "training__report_to": "tensorboard"},
        {"data__grouping": "best_fit", "data__document_mask": True},
        {"data__deduplicate": False, "data__max_bytes": 9000},
    ],
    ids="-".join,
)
def test_every_option_of_a_recipe_trains(
    changes: dict[str, Any], write_recipe: Callable[..., Path], monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    metrics = train(load_recipe(write_recipe(**changes))).metrics
    assert metrics["loss"] < 6


@pytest.mark.parametrize(
    ("changes", "attention", "compiled", "dropout"),
    [
        ({}, FUSED, False, 0),
        ({"model__dropout": 0.1}, PLAIN, False, 7),
        ({"training__compile": True}, FUSED, True, 0),
    ],
)
def test_the_trainer_gets_the_planned_attention_compilation_and_dropout(
    changes: dict[str, Any],
    attention: str,
    compiled: bool,
    dropout: int,
    write_recipe: Callable[..., Path],
    monkeypatch: Any,
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(train_workflow, "keep_freed_memory", lambda: seen.update(keeps_memory=True))

    def record(*_: Any, **arguments: Any) -> None:
        seen.update(arguments)
        raise RecipeError("recorded")

    monkeypatch.setattr(train_workflow, "build_trainer", record)
    with pytest.raises(RecipeError, match="recorded"):
        train(load_recipe(write_recipe(**changes)))
    assert seen["keeps_memory"]
    model = seen["model"]
    assert model.config._attn_implementation == attention
    assert [bool(block._compiled_call_impl) for block in transformer_blocks(model)] == [
        compiled
    ] * 2
    dropout_modules = [m for m in model.modules() if isinstance(m, Dropout) and m.p]
    assert len(dropout_modules) == dropout
    assert seen["hooks"].make_optimizer.keywords["precision"] == "fp32"


def test_train_tokens_counts_the_smaller_last_step_of_an_epoch(
    write_recipe: Callable[..., Path],
) -> None:
    recipe = load_recipe(
        write_recipe(
            training__max_steps=None,
            training__max_epochs=1.0,
            data__block_size=64,
            training__tokens_per_step=1024,
        )
    )
    metrics = train(recipe).metrics
    assert metrics["train_tokens"] % 64 == 0
    assert metrics["train_tokens"] % 1024 != 0  # the last step of an epoch is smaller


def test_unreadable_text_leaves_no_files(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = write_recipe(data__source="none.txt")
    before = sorted(tmp_path.rglob("*"))
    for call in (train, check):
        with pytest.raises(DataError):
            call(load_recipe(path))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.promise("40")
def test_an_unknown_hub_name_says_that_offline_mode_is_on(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"no/where: not found locally .*offline mode is on"):
        train(load_recipe(write_recipe(data__source="no/where")))
    with pytest.raises(RecipeError, match=r'model.pretrained = "no/where"'):
        train(load_recipe(write_recipe(model={"pretrained": "no/where"}, tokenizer={})))
    with pytest.raises(RecipeError, match=r'tokenizer.pretrained = "no/where"'):
        train(load_recipe(write_recipe(tokenizer={"pretrained": "no/where"})))
    assert not (tmp_path / "run").exists()


@pytest.mark.promise("31", "36")
def test_unmet_requirements_end_a_run_and_are_shown_by_check(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(hardware, "free_memory", lambda kind: 1000)
    monkeypatch.setattr(hardware, "computes_bf16", lambda kind: False)
    recipe = load_recipe(write_recipe(training__precision="bf16"))
    out = " ".join(str(check(recipe)).split())
    assert 'not on this machine: training.precision = "bf16"' in out
    assert "not on this machine: model:" in out
    with pytest.raises(RecipeError, match=r'training.precision = "bf16"'):
        train(recipe)
    with pytest.raises(RecipeError, match=r"parameters need about .* GB are free"):
        train(load_recipe(write_recipe()))
    assert not (tmp_path / "run").exists()


def test_help_takes_under_half_a_second_and_lists_every_option(
    run_recipe: Callable[..., CompletedProcess[str]],
) -> None:
    durations = []
    for _ in range(3):
        began = time.monotonic()
        run = run_recipe("--help")
        durations.append(time.monotonic() - began)
    assert min(durations) < 0.5
    assert set(re.findall(r"--[a-z-]+", run.stdout)) == {
        *("--help", "--version", "--set", "--from", "--check", "--fresh", "--accept-change"),
        *("--force-unlock", "--traceback"),
    }


def test_twelve_mistakes_give_twelve_lines_within_two_seconds(
    write_recipe: Callable[..., Path], run_recipe: Callable[..., CompletedProcess[str]]
) -> None:
    path = write_recipe(
        seed=-1,
        nmae="x",
        data__block_size=0,
        data__streming=True,
        tokenizer__train__kind="bpee",
        model__n_embd=33,
        model__dropout=2,
        training__learning_rate="fast",
        training__lr=1,
        training__warmup_steps=99,
        training__extra_args={"hub_token": "x"},
        evaluation__prompts="x",
    )
    began = time.monotonic()
    run = run_recipe(path, code=2)
    assert time.monotonic() - began < 2
    assert run.stdout == ""
    lines = run.stderr.splitlines()
    assert len(lines) == 12
    assert all(line.startswith(f"{path}: ") for line in lines)


def test_a_process_that_fails_alone_prints_its_number(
    write_recipe: Callable[..., Path], run_recipe: Callable[..., CompletedProcess[str]]
) -> None:
    """It waits for the launcher first, which ends it if the main process has failed, too."""
    (line,) = run_recipe(write_recipe(seed=-1), code=2, RANK="1").stderr.splitlines()
    assert line.startswith("process 1: ")
    assert line.endswith("seed = -1: must be >= 0")
