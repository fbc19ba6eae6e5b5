"""Adapters: they alone are trained and saved, continued exactly, and load without hf_lm."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_lm import cli
from hf_lm.model.saving import save_model
from hf_lm.recipe import load_recipe
from hf_lm.run import main
from recipes import TINY, merged, write_corpus

LORA = {"r": 4, "alpha": 8}
IDS = torch.arange(16)[None]


def tuned(path: Path, base: Path, *settings: str) -> int:
    """Fine-tune the model of a run by a recipe; the exit code."""
    sets = [part for setting in settings for part in ("--set", setting)]
    return main([str(path), "--from", str(base / "model"), *sets])


def rows(run: Path) -> list[dict[str, Any]]:
    """The rows of its log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def logits(folder: Path) -> torch.Tensor:
    """What a saved model says."""
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(IDS).logits


def files(folder: Path) -> set[str]:
    """The names in it."""
    return {path.name for path in folder.iterdir()}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def base(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A run of each family: the layers of GPT-2 are transposed, those of llama are not."""
    folder = tmp_path_factory.mktemp(request.param)
    write_corpus(folder / "corpus")
    recipe = merged(TINY, {"model.family": request.param, "training.max_steps": 24})
    (folder / "recipe.json").write_text(json.dumps(recipe))
    assert main([str(folder / "recipe.json")]) == 0
    return folder / "run"


def test_an_adapter_is_trained_saved_and_loads_without_hf_lm(
    write_recipe: Callable[..., Path], tmp_path: Path, base: Path
) -> None:
    run, changes = tmp_path / "run", {"training__max_steps": 24, "training__learning_rate": 0.02}
    assert tuned(write_recipe(model__lora=LORA, **changes), base) == 0
    assert {"adapter_model.safetensors", "adapter_config.json"} <= files(run / "model")
    assert "model.safetensors" not in files(run / "model")
    config = json.loads((run / "model" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    adapter = load_file(run / "model" / "adapter_model.safetensors")
    assert all("lora_" in name for name in adapter)
    assert all(value.any() for name, value in adapter.items() if "lora_B" in name)
    log = rows(run)
    own = json.loads((base / "metrics.json").read_text())
    assert log[0]["eval_loss"] == pytest.approx(own["loss"], abs=1e-4)
    assert log[-1]["eval_loss"] < log[0]["eval_loss"]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["loss"] == pytest.approx(log[-1]["eval_loss"], abs=1e-5)
    code = f"""
import torch, sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(run / "model")!r})
assert not [name for name in sys.modules if name.startswith("hf_lm")]
print(model(torch.arange(16)[None]).logits.sum().item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(logits(run / "model").sum().item(), rel=1e-5)
    assert not torch.allclose(logits(run / "model"), logits(base / "model"))


def test_a_merged_model_gives_the_logits_of_its_adapter(
    write_recipe: Callable[..., Path], tmp_path: Path, tiny_run: Path
) -> None:
    assert tuned(write_recipe(model__lora=LORA), tiny_run) == 0
    whole = write_recipe(model__lora={**LORA, "merge": True}, output_dir="merged")
    assert tuned(whole, tiny_run) == 0
    assert files(tmp_path / "merged" / "model") == files(tiny_run / "model")
    torch.testing.assert_close(
        logits(tmp_path / "merged" / "model"), logits(tmp_path / "run" / "model")
    )


def test_a_resumed_lora_run_ends_in_the_same_bits(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    tiny_run: Path,
    undo_end: Callable[[Path, int], None],
) -> None:
    path = write_recipe(model__lora={**LORA, "dropout": 0.1})
    assert tuned(path, tiny_run) == 0
    saved = tmp_path / "run" / "checkpoint-4"
    assert "config.json" not in files(saved)  # which would promise a whole model
    assert all("lora_" in name for name in load_file(saved / "model.safetensors"))
    weights = tmp_path / "run" / "model" / "adapter_model.safetensors"
    expected = weights.read_bytes()
    undo_end(tmp_path / "run", 8)
    assert tuned(path, tiny_run) == 0
    assert weights.read_bytes() == expected


def test_adapters_do_not_resume_on_other_pretrained_weights(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    tiny_run: Path,
    undo_end: Callable[[Path, int], None],
    capsys: Any,
) -> None:
    base = Path(shutil.copytree(tiny_run, tmp_path / "base"))
    path = write_recipe(model__lora=LORA)
    assert tuned(path, base) == 0
    undo_end(tmp_path / "run", 8)
    model = AutoModelForCausalLM.from_pretrained(base / "model")
    model.transformer.h[0].attn.c_attn.weight.data += 0.1
    model.save_pretrained(base / "model")
    assert tuned(path, base) == 4
    assert "its adapters were trained on other weights" in capsys.readouterr().err


def test_the_plan_counts_trained_parameters(
    write_recipe: Callable[..., Path], tiny_run: Path, capsys: Any
) -> None:
    path = str(write_recipe(model__lora=LORA))
    assert main([path, "--from", str(tiny_run / "model"), "--check"]) == 0
    adapters = 2 * 4 * ((16 + 48) + (16 + 16) + (16 + 64) + (64 + 16))
    whole = 11968 + adapters
    assert f"{whole:,} parameters, {adapters:,} of them trained" in capsys.readouterr().out


def test_from_keeps_the_lora_section(write_recipe: Callable[..., Path], tiny_run: Path) -> None:
    recipe = load_recipe(write_recipe(model__lora=LORA), pretrained=str(tiny_run / "model"))
    assert recipe.model.lora.r == 4
    assert recipe.training.optimizer == "adamw"
    recipe = load_recipe(
        write_recipe(model__lora=LORA, training__learning_rate="auto"),
        pretrained=str(tiny_run / "model"),
    )
    assert recipe.training.learning_rate == 2e-4


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ([], "model.lora: adapts pretrained weights; set model.pretrained"),
        (
            ["hub.push=every_save", "hub.model_id=u/m", "model.pretrained=u/base"],
            'hub.push = "every_save": must be "end" or "never" with model.lora',
        ),
        (
            ["hub.push=end", "hub.model_id=u/m", "model.pretrained=BASE"],
            "is a folder of this machine, so others cannot load the adapters; set model.lora.merge",
        ),
    ],
)
def test_adapters_that_others_could_not_load_are_refused(
    settings: list[str],
    expected: str,
    write_recipe: Callable[..., Path],
    tiny_run: Path,
    capsys: Any,
) -> None:
    path = write_recipe(model={"lora": LORA}, tokenizer={})
    settings = [part.replace("BASE", str(tiny_run / "model")) for part in settings]
    sets = [part for setting in settings for part in ("--set", setting)]
    assert main([str(path), *sets]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("target", ["wte", "embed_tokens", "lm_head"])
def test_a_merged_adapter_of_tied_embeddings_gives_the_trained_loss(
    target: str, write_recipe: Callable[..., Path], tmp_path: Path, base: Path
) -> None:
    """Merging into the shared matrix would change the layer that has no adapter."""
    embeddings = AutoModelForCausalLM.from_pretrained(base / "model").get_input_embeddings()
    names = {"GPT2LMHeadModel": "wte", "LlamaForCausalLM": "embed_tokens"}
    config = json.loads((base / "model" / "config.json").read_text())
    if target not in ("lm_head", names[config["architectures"][0]]):
        return
    lora = {**LORA, "target_modules": [target], "merge": True}
    path = write_recipe(model__lora=lora, training__learning_rate=0.02, training__max_steps=24)
    assert tuned(path, base) == 0
    run = tmp_path / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["loss"] == pytest.approx(rows(run)[-1]["eval_loss"], abs=1e-4)
    first, last = (rows(run)[number]["eval_loss"] for number in (0, -1))
    assert last < first - 0.001
    saved = AutoModelForCausalLM.from_pretrained(run / "model")
    assert not saved.config.tie_word_embeddings
    is_embedding_changed = not torch.equal(saved.get_input_embeddings().weight, embeddings.weight)
    is_head_changed = not torch.equal(saved.get_output_embeddings().weight, embeddings.weight)
    assert (is_embedding_changed, is_head_changed) == (target != "lm_head", target == "lm_head")


def test_an_adapter_on_the_output_matrix_beside_others_is_trained(
    write_recipe: Callable[..., Path], tmp_path: Path, base: Path
) -> None:
    lora = {**LORA, "target_modules": ["lm_head", "c_attn", "q_proj"]}
    path = write_recipe(model__lora=lora, training__learning_rate=0.02)
    assert tuned(path, base) == 0
    adapter = load_file(tmp_path / "run" / "model" / "adapter_model.safetensors")
    assert all(value.any() for name, value in adapter.items() if "lora_B" in name)
    assert any("lm_head" in name for name in adapter)
    log = rows(tmp_path / "run")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["loss"] == pytest.approx(log[-1]["eval_loss"], abs=1e-4)


def test_a_saved_model_of_another_loss_ends_the_run(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    tiny_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def save_damaged(model: Any, tokenizer: Any, folder: Path, **options: Any) -> None:
        for weight in model.parameters():
            weight.data.mul_(3)
        save_model(model, tokenizer, folder, **options)

    monkeypatch.setattr("hf_lm.workflows.train.save_model", save_damaged)
    assert tuned(write_recipe(), tiny_run) == 1
    assert "the saved model has loss" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()


def test_adapters_are_not_taken_for_a_model(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    base: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert tuned(write_recipe(model__lora=LORA, output_dir="adapters"), base) == 0
    capsys.readouterr()
    assert main([str(write_recipe()), "--from", str(tmp_path / "adapters" / "model")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"holds adapters, not a model; their base is {base / 'model'}" in line


def test_adapters_of_a_local_base_are_not_published(
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    base: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """They name a folder of this machine, which others do not have and should not see."""
    assert tuned(write_recipe(model__lora=LORA), base) == 0
    capsys.readouterr()
    command = ["publish", str(tmp_path / "run"), "--set", "hub.model_id=u/m"]
    assert cli.main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is a folder of this machine" in line
    assert "model.lora.merge" in line
