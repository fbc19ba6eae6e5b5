"""Fine-tune a tiny model of every family: it is trained like a plain loop, or refused at once.

HF_LM_WRITE_FAMILIES=1 makes the tests write their lines into the table of docs/families.md.
"""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_lm.data.load import load_blocks, load_documents
from hf_lm.data.loader import RandomOrder
from hf_lm.data.text.sources import find_corpus
from hf_lm.model.probe import separates_documents
from hf_lm.recipe import TokenizerRecipe, load_recipe
from hf_lm.recipe.sections.tokenizer import TrainTokenizer
from hf_lm.run import main
from hf_lm.tokenizer import build_tokenizer

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
VOCABULARY, STEPS, RATE = 257, 3, 0.05

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 32,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
GPT2_SHAPE = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}

FAMILIES: dict[str, dict[str, Any]] = {  # what is not in SHAPE
    "afmoe": {**EXPERTS, "moe_intermediate_size": 16, "num_dense_layers": 1},
    "apertus": {},
    "arcee": {},
    "biogpt": {},
    "bloom": {"n_layer": 2, "n_head": 2},
    "codegen": {**GPT2_SHAPE, "n_head": 4, "rotary_dim": 4, "n_ctx": 64},
    "cohere": {},
    "ernie4_5": {},
    "exaone4": {"sliding_window": 8},
    "falcon": {},
    "gemma": {},
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 8},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 8},
    "glm": {},
    "glm4": {},
    "gpt2": GPT2_SHAPE,
    "gpt_bigcode": GPT2_SHAPE,
    "gpt_neo": {"num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gptj": {**GPT2_SHAPE, "rotary_dim": 8},
    "gpt_oss": {**EXPERTS, "sliding_window": 8},
    "granite": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "mamba": {"state_size": 4},
    "mistral": {"sliding_window": 8},
    "mixtral": EXPERTS,
    "mpt": {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 64},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {"sliding_window": 8},
    "openai-gpt": GPT2_SHAPE,
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen2_moe": {**EXPERTS, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "qwen3": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3_moe": {**EXPERTS, "moe_intermediate_size": 16},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "xglm": {
        "pad_token_id": 1,
        "d_model": 16,
        "num_layers": 2,
        "attention_heads": 2,
        "ffn_dim": 32,
    },
    "t5": {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "d_kv": 8},
    "bert": {},
}


def publish_tiny(family: str, folder: Path) -> None:
    """Save a random model of a family and a tokenizer with one token a byte."""
    rows = [{"text": "text"}]
    tokenizer = build_tokenizer(TokenizerRecipe(train=TrainTokenizer(kind="byte")), {"train": rows})
    tokens = {"bos_token_id": 256, "eos_token_id": 256, "pad_token_id": 256}
    without = {"falcon": ("head_dim",), "t5": SHAPE, "codegen": SHAPE}.get(family, ())
    shape = {name: value for name, value in SHAPE.items() if name not in without}
    fields = {"vocab_size": VOCABULARY, **tokens, **shape, **FAMILIES[family]}
    config = AutoConfig.for_model(family, **fields)
    torch.manual_seed(0)
    if type(config) in AutoModelForCausalLM._model_mapping:
        model = AutoModelForCausalLM.from_config(config)
        for (
            parameter
        ) in model.parameters():  # zero weights would hide what they are multiplied with
            parameter.data += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(folder)
    else:
        config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def plain_losses(folder: Path, recipe: Any) -> list[float]:
    """Train the published model by a plain loop of torch and transformers; return its losses."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    text = load_documents(recipe.data, find_corpus(recipe.data))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    blocks = load_blocks(recipe.data, text, tokenizer, seed=recipe.seed).splits["train"]
    order = RandomOrder(len(blocks), seed=recipe.seed).of_epoch(0)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for step in range(STEPS):
        rows = [blocks[int(index)]["input_ids"] for index in order[8 * step : 8 * step + 8]]
        ids = torch.from_numpy(np.stack(rows).astype(np.int64))
        logits = model(input_ids=ids[:, :-1]).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


CHANGES = {
    "training__max_steps": STEPS,
    "training__optimizer": "sgd",
    "training__momentum": 0.0,
    "training__learning_rate": RATE,
    "training__schedule": "constant",
    "training__warmup_steps": 0,
    "training__weight_decay": 0.0,
    "training__max_grad_norm": 0.0,
    "training__logging_steps": 1,
    "data__max_documents": 40,
    "tokenizer": {},
    "model": {},
}


def outcome(folder: Path, run: Path, recipe: Path, output: str, code: int) -> dict[str, str]:
    """Return the row of a family in the table; it fails if something is neither right nor refused.

    Args:
        folder: the published model.
        run: the run that fine-tuned it.
        recipe: its recipe.
        output: what the run printed on stderr.
        code: its exit code.
    """
    if code:
        (line,) = output.splitlines()
        assert code == 2
        assert not run.exists() or not (run / "log.jsonl").exists()
        return {"works": "no", "reason": re.sub(r'^model.pretrained = ".*": ', "", line)}
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    expected = plain_losses(folder, load_recipe(recipe, pretrained=str(folder)))
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    saved = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    assert isinstance(saved, PreTrainedModel)
    ids = torch.arange(8)[None]
    assert saved.generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0).shape[1] >= 9
    assert any("samples" in row and row["samples"][0]["text"] is not None for row in rows)
    return {"works": "yes", "mask": "yes" if separates_documents(saved) else "refused"}


def line_of(family: str, row: dict[str, str]) -> str:
    """Return the line of a family in the table."""
    if row["works"] == "no":
        return f"| {family} | refused: {row['reason']} | |"
    return f"| {family} | yes | {row['mask']} |"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_like_a_plain_loop_or_refused(
    family: str,
    write_recipe: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    publish_tiny(family, tmp_path / "base")
    recipe = write_recipe(**CHANGES)
    capsys.readouterr()
    code = main([str(recipe), "--from", str(tmp_path / "base")])
    row = outcome(tmp_path / "base", tmp_path / "run", recipe, capsys.readouterr().err, code)
    if os.environ.get("HF_LM_WRITE_FAMILIES"):
        write_line(family, line_of(family, row))
    assert line_of(family, row) in PAGE.read_text(encoding="utf-8").splitlines()


def write_line(family: str, line: str) -> None:
    """Replace the line of a family in the table, or add it to the end of the page."""
    lines = PAGE.read_text(encoding="utf-8").rstrip().splitlines()
    kept = [other for other in lines if not other.startswith(f"| {family} |")]
    start = next(n for n, other in enumerate(kept) if other.startswith("|---")) + 1
    table = sorted([*kept[start:], line])
    PAGE.write_text("\n".join([*kept[:start], *table]) + "\n", encoding="utf-8")


def test_an_own_mask_is_refused_before_any_text_is_tokenized(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    publish_tiny("bloom", tmp_path / "base")
    recipe = write_recipe(**CHANGES, data__document_mask=True)
    assert main([str(recipe), "--from", str(tmp_path / "base")]) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert "bloom has no positions that separate the documents of a block" in line
    assert "tokenize:" not in shown.out
