"""Rules between keys know the keys they depend on, and LoRA knows the versions it needs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from hf_lm.errors import RecipeError
from hf_lm.recipe import load_recipe
from hf_lm.recipe.validation import checks
from hf_lm.recipe.validation.checks import find_conflicts, peft_rule
from hf_lm.recipe.validation.conflicts import conflict


def test_a_conflict_has_every_key_of_its_rule() -> None:
    broken = conflict("a.b", "is wrong", 1, other_keys="c.d e.f.g")
    assert broken.problem.line("recipe") == "recipe: a.b = 1: is wrong"
    assert broken.keys == {("a", "b"), ("c", "d"), ("e", "f", "g")}


def test_a_rule_is_not_reported_when_one_of_its_keys_is_invalid(
    write_recipe: Callable[..., Path],
) -> None:
    invalid = {"training.tokens_per_step": 100, "data.block_size": -1}
    with pytest.raises(RecipeError) as error:
        load_recipe(write_recipe(**invalid))
    (line,) = error.value.problems
    assert "data.block_size = -1: must be > 0" in line


@pytest.mark.parametrize(
    "keys",
    [
        {"training.tokens_per_step": 100},
        {"model.n_kv_head": 2},
        {"training.max_epochs": 1.0},
        {"model.size": "small"},
        {"tokenizer.pretrained": "USER/NAME"},
        {"data.grouping": "best_fit", "data.append_eos": False},
        {"data.train_on": "completion"},
        {"training.load_best_model_at_end": True, "training.save_steps": 3},
        {"hub.push": "end"},
    ],
)
def test_the_keys_that_a_rule_names_are_among_its_keys(
    keys: dict[str, Any], write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def record(recipe: Any) -> list[Any]:
        seen.extend(find_conflicts(recipe))
        return seen

    monkeypatch.setattr("hf_lm.recipe.load.find_conflicts", record)
    with pytest.raises(RecipeError):
        load_recipe(write_recipe(**keys))
    names = json.loads((Path(checks.__file__).parents[1] / "recipe.schema.json").read_text())
    sections = names["properties"].keys()
    assert seen
    for broken in seen:
        words = [word.strip(",;:\"'()") for word in broken.problem.rule.split()]
        named = {tuple(w.split(".")) for w in words if w.split(".")[0] in sections and "." in w}
        assert named <= broken.keys | {("model", "pretrained")}


@pytest.mark.parametrize(
    ("transformers", "peft", "rule"),
    [
        ("5.23.0", "0.21.2", None),
        ("5.20.2", "0.21.0", None),
        ("5.24.0", "0.22.0", None),
        ("5.24.0", "0.21.2", 'transformers 5.24.0 needs peft >= 0.22, and 0.21.2 is installed; '
                             'pip install "transformers<5.24"'),
        ("5.23.0", "0.18.1", "needs peft >= 0.21, and 0.18.1 is installed; "
                             "pip install 'hf_lm[lora]'"),
        ("5.23.0", None, "needs peft; pip install 'hf_lm[lora]'"),
    ],
)  # fmt: skip
def test_versions_that_lora_cannot_work_with_are_one_line(
    transformers: str, peft: str | None, rule: str | None
) -> None:
    assert peft_rule(Version(transformers), Version(peft) if peft else None) == rule


def test_a_peft_that_is_too_old_is_found_before_training(
    write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    versions = {"transformers": Version("5.24.0"), "peft": Version("0.21.2")}
    monkeypatch.setattr(checks, "installed", versions.get)
    path = write_recipe(model={"pretrained": str(tmp_path), "lora": {}}, tokenizer={})
    with pytest.raises(
        RecipeError, match=r"model\.lora: transformers 5\.24\.0 needs peft >= 0\.22"
    ):
        load_recipe(path)
