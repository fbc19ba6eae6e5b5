"""Models are causal, start as they should, and load in a process that has never seen hf_lm."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hf_lm.errors import RecipeError
from hf_lm.model.attention import FUSED, PLAIN
from hf_lm.model.build import build_model, compile_blocks, transformer_blocks
from hf_lm.model.config import FAMILIES, Vocabulary
from hf_lm.model.pretrained import load_pretrained
from hf_lm.model.saving import save_model
from hf_lm.recipe import ModelRecipe, TokenizerRecipe, TrainTokenizer
from hf_lm.tokenizer import build_tokenizer
from recipes import CORPUS

WORDS = Vocabulary(size=97, bos_token_id=0, eos_token_id=0)


def recipe(**keys: Any) -> ModelRecipe:
    """A small network."""
    return ModelRecipe.model_validate_json(
        json.dumps({"n_layer": 4, "n_head": 4, "n_embd": 64, **keys})
    )


@pytest.mark.parametrize("attention", [FUSED, PLAIN])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_token_changes_nothing_earlier(family: str, attention: str) -> None:
    model = build_model(recipe(family=family), WORDS, block_size=12, attention=attention).eval()
    ids = torch.randint(0, 97, (2, 12))
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 97
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


@pytest.mark.parametrize("family", FAMILIES)
def test_residual_projections_have_a_smaller_initial_scale(family: str) -> None:
    model = build_model(recipe(family=family), WORDS, block_size=12)
    small = 0.02 / math.sqrt(2 * 4)
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            continue
        residual = name.endswith(("c_proj.weight", "o_proj.weight", "down_proj.weight"))
        assert weight.std().item() == pytest.approx(small if residual else 0.02, rel=0.15), name


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_document_mask_hides_earlier_documents(family: str, attention: str) -> None:
    model = build_model(recipe(family=family), WORDS, block_size=8, attention=attention).eval()
    ids = torch.randint(0, 97, (1, 8))
    places = torch.tensor([[0, 1, 2, 0, 1, 2, 3, 4]])
    with torch.no_grad():
        both = model(ids, position_ids=places, use_cache=False).logits
        alone = model(ids[:, 3:], use_cache=False).logits
    torch.testing.assert_close(both[:, 3:], alone, atol=1e-5, rtol=1e-5)


def test_the_seed_decides_the_weights() -> None:
    def weights(seed: int) -> torch.Tensor:
        model = build_model(recipe(family="qwen3"), WORDS, block_size=8, seed=seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_parameters_are_counted_without_allocating_weights() -> None:
    real = build_model(recipe(), WORDS, block_size=8)
    meta = build_model(recipe(), WORDS, block_size=8, meta=True)
    assert meta.device.type == "meta"
    assert meta.num_parameters() == real.num_parameters()


def test_compiled_blocks_give_the_same_logits() -> None:
    model = build_model(recipe(), WORDS, block_size=8).eval()
    ids = torch.randint(0, 97, (2, 8))
    with torch.no_grad():
        before = model(ids).logits
        for block in transformer_blocks(model):
            block.compile(backend="eager")  # what is compiled is tested here, not the compiler
        torch.testing.assert_close(model(ids).logits, before)
    names = list(model.state_dict())
    compile_blocks(model)
    assert list(model.state_dict()) == names
    assert len(transformer_blocks(model)) == 4


def saved(family: str, folder: Path) -> torch.Tensor:
    """Save a model and tokenizer with the Trainer's use_cache; return what it computes loaded."""
    rows = [{"text": CORPUS.read_text()}]
    tokenizer = build_tokenizer(TokenizerRecipe(train=TrainTokenizer(kind="byte")), {"train": rows})
    model = build_model(recipe(family=family), Vocabulary.of(tokenizer), block_size=32).eval()
    model.config.use_cache = False
    save_model(model, tokenizer, folder)
    model.set_attn_implementation("sdpa")  # what loading chooses
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits


CLEAN_PROCESS = """
import sys
sys.modules["hf_lm"] = None  # importing it fails
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert type(model).__module__.startswith("transformers."), type(model)
    assert tokenizer.decode(tokenizer("caf\\u00e9")["input_ids"]) == "caf\\u00e9"
    with torch.no_grad():
        torch.save(model.eval()(torch.arange(20)[None]).logits, folder + "/logits.pt")
"""


def test_a_saved_model_loads_without_hf_lm(tmp_path: Path) -> None:
    expected = {family: saved(family, tmp_path / family) for family in FAMILIES}
    folders = [str(tmp_path / family) for family in FAMILIES]
    subprocess.run([sys.executable, "-c", CLEAN_PROCESS, *folders], check=True, timeout=120)
    for family, logits in expected.items():
        config = json.loads((tmp_path / family / "config.json").read_text())
        assert config["model_type"] == family
        assert config["architectures"] == [type_name(family)]
        assert config["use_cache"] is True
        assert config["eos_token_id"] == 0
        assert "auto_map" not in config
        generation = json.loads((tmp_path / family / "generation_config.json").read_text())
        assert generation["eos_token_id"] == 0
        assert torch.equal(torch.load(tmp_path / family / "logits.pt"), logits), family


def type_name(family: str) -> str:
    """The class that transformers has for a family."""
    return {"gpt2": "GPT2LMHeadModel"}.get(family, f"{family.capitalize()}ForCausalLM")


@pytest.mark.promise("21")
def test_pretrained_weights_with_too_few_tokens_or_positions_are_refused(tmp_path: Path) -> None:
    saved("gpt2", tmp_path / "base")
    base = ModelRecipe(pretrained=str(tmp_path / "base"))
    model = build_model(base, Vocabulary(257, 0, 0), block_size=32)
    assert model.config.n_layer == 4
    with pytest.raises(RecipeError, match=r"has 257 tokens, the tokenizer 300"):
        build_model(base, Vocabulary(300, 0, 0), block_size=32)
    with pytest.raises(RecipeError, match=r"data.block_size = 64: .* sees 32 tokens"):
        build_model(base, Vocabulary(257, 0, 0), block_size=64)


def test_weights_that_are_not_safetensors_are_refused_in_one_line(tmp_path: Path) -> None:
    saved("gpt2", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(RecipeError, match=r"model.pretrained = ") as caught:
        load_pretrained(str(tmp_path / "base"))
    assert "\n" not in str(caught.value)
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(RecipeError):
        load_pretrained(str(tmp_path / "base"))
