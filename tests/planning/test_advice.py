"""Sizes that rarely are what was meant are named in the plan; the shipped ones are not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_lm.recipe import load_recipe
from hf_lm.workflows.check import check

RECIPES = Path(__file__).parents[2] / "recipes"
GOOD: dict[str, Any] = {
    "data__source": "words.txt",
    "data__sample_by": "line",
    "tokenizer__train": {"kind": "bpe", "vocab_size": 300},
    "training__max_steps": 400,
    "training__warmup_steps": 40,
}
BAD = {
    "training__warmup_steps": (41, "training.warmup_steps = 41 is 10% of all steps"),
    "training__max_steps": (1_700, "the text is read 12 times"),
    "tokenizer__train": (
        {"kind": "bpe", "vocab_size": 500},
        "tokenizer.train.vocab_size = 500: the text has 29 tokens for each of them",
    ),
}


def notes(path: Path) -> list[str]:
    """The notes of the plan of a recipe."""
    return check(load_recipe(path)).notes


@pytest.fixture
def write(write_recipe: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """Write a recipe on a text of about 17,000 tokens, with changes."""
    lines = [f"{number:x} {number * 7919 % 65_536:x}\n" for number in range(3_000)]
    (tmp_path / "words.txt").write_text("".join(lines))

    def write_changed(**changes: Any) -> Path:
        """Write the recipe with changes."""
        return write_recipe(**{**GOOD, **changes})

    return write_changed


def test_usual_sizes_are_not_named(write: Callable[..., Path]) -> None:
    assert notes(write()) == []


@pytest.mark.parametrize("key", BAD)
def test_each_size_far_from_the_usual_is_named(key: str, write: Callable[..., Path]) -> None:
    value, expected = BAD[key]
    changes = {key: value}
    if key == "training__max_steps":
        changes["training__warmup_steps"] = 100
    (note,) = notes(write(**changes))
    assert note.startswith(expected)


def test_who_keeps_the_best_model_may_read_a_text_often(write: Callable[..., Path]) -> None:
    changes = {"training__max_steps": 1_700, "training__load_best_model_at_end": True}
    assert notes(write(**changes)) == []


@pytest.mark.parametrize("name", ["small", "small_modern"])
def test_the_shipped_recipes_have_usual_sizes(name: str) -> None:
    assert not [note for note in notes(RECIPES / f"{name}.json") if "training." in note]
