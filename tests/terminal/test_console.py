"""Test what is printed on a terminal and in a file."""

import io
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import TrainerControl, TrainerState

from hf_lm.run_dir.directory import RunDirectory, TrainResult
from hf_lm.terminal import console
from hf_lm.terminal.progress import ProgressBar
from hf_lm.workflows import summary

METRICS = {
    "loss": 1.5,
    "perplexity": 4.4817,
    "accuracy": 0.25,
    "bits_per_byte": 1.25,
    "loss_stderr": 0.01,
    "tokens": 1000,
    "bytes": 3000,
    "train_tokens": 123456,
    "train_seconds": 3725.0,
    "tokens_per_second": 33.1,
}


def printed(call: Any, monkeypatch: Any, *, terminal: bool = False) -> str:
    """Return what a call prints."""
    out = io.StringIO()
    fake = Console(file=out, force_terminal=terminal, width=120, soft_wrap=True, highlight=False)
    monkeypatch.setattr(console, "console", fake)
    call()
    return out.getvalue()


def test_end_of_a_run_shows_results_and_commands(monkeypatch: Any) -> None:
    samples = [{"prompt": "def ", "text": "f(x): [/bold]"}]
    result = TrainResult(Path("a b/model"), METRICS, samples)
    text = printed(lambda: summary.show_result(result, chat=False), monkeypatch)
    assert "def f(x): [/bold]" in text
    assert "loss           1.5000 ± 0.0100 nats per token" in text
    assert "bits per byte  1.2500 on 3,000 bytes" in text
    assert "123,456 tokens in 1:02:05, 33 tokens per second" in text
    assert "curves         hf-lm report 'a b'" in text
    assert "hf-lm generate 'a b/model' --prompt 'def '" in text
    assert 'AutoModelForCausalLM.from_pretrained("a b/model")' in text


def test_a_complete_run_is_named_relative_to_the_current_folder(
    tiny_run: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tiny_run.parent)
    run_dir = RunDirectory(tiny_run)
    text = printed(lambda: summary.show_complete(run_dir), monkeypatch)
    assert text == "already complete: run/model; start over with --fresh\n"
    result = summary.show_complete(run_dir)
    assert result.metrics == run_dir.read("metrics.json")
    assert [sample["prompt"] for sample in result.samples] == ["The "]


def test_durations_have_minutes_and_hours() -> None:
    assert [console.duration(s) for s in (5, 65, 3600)] == ["0:05", "1:05", "1:00:00"]


def test_console_writes_to_the_current_stdout(monkeypatch: Any) -> None:
    """Notebooks and tests replace sys.stdout after the console was created."""
    for _ in range(2):
        stdout = io.StringIO()
        monkeypatch.setattr(sys, "stdout", stdout)
        console.show_note("text")
        assert stdout.getvalue() == "note: text\n"


def prepare() -> None:
    """Report two portions of text, then a step without any."""
    with console.preparing("tokenize", 4_000_000) as report:
        report(3, 2_000_000)
        report(1, 2_000_000)
    with console.preparing("read", None):
        pass


def test_prepared_text_is_one_line_and_a_bar_on_a_terminal(
    monkeypatch: Any,
) -> None:
    line = r"tokenize: 4 documents, 4\.0 MB, [\d,.]+ MB/s, 0:00\n"
    assert re.fullmatch(line, printed(prepare, monkeypatch))
    text = printed(prepare, monkeypatch, terminal=True)
    assert "4 documents, 4.0 MB" in text
    assert "left" in text
    assert "read: " not in text


def play(bar: ProgressBar) -> None:
    """Send the events of a short run to a progress bar."""
    state = TrainerState(max_steps=20, is_world_process_zero=True)
    control = TrainerControl()
    bar.on_train_begin(None, state, control)
    for step in (5, 10):
        state.global_step = step
        bar.on_step_end(None, state, control)
        logs = {"loss": 3.25, "learning_rate": 1e-3, "tokens_per_second": 4321.0}
        bar.on_log(None, state, control, logs=logs)
    evaluated = {
        "eval_loss": 3.0,
        "eval_perplexity": 20.1,
        "eval_accuracy": 0.5,
        "eval_bits_per_byte": 1.7,
    }
    bar.on_log(None, state, control, logs=evaluated)
    bar.on_train_end(None, state, control)


def test_progress_is_lines_in_a_file_and_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    play(ProgressBar(Console(file=out, width=120)))
    assert "step  5  loss 3.250  learning rate 1.0e-03  4,321 tokens/s" in out.getvalue()
    assert "validation: loss 3.0000  perplexity 20.10  accuracy 50.0%  bits per byte 1.7000" in (
        out.getvalue()
    )
    out = io.StringIO()
    play(ProgressBar(Console(file=out, width=120, force_terminal=True)))
    assert "10/20" in out.getvalue()
    assert "step  5  loss" not in out.getvalue()


def test_only_the_main_process_shows_progress() -> None:
    out = io.StringIO()
    bar = ProgressBar(Console(file=out))
    state = TrainerState(max_steps=2, is_world_process_zero=False)
    bar.on_train_begin(None, state, TrainerControl())
    bar.on_log(None, state, TrainerControl(), logs={"loss": 1.0, "learning_rate": 1.0})
    assert out.getvalue() == ""


def test_brackets_in_a_path_are_no_markup(tmp_path: Path, capsys: Any) -> None:
    for name in ("run-[x]", "run-[/b]", ":smile:"):
        summary.console.console.print(f"already complete: {name}; start over with --fresh")
        assert f"complete: {name};" in capsys.readouterr().out
