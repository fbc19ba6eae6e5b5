"""What is planned is what happens; what cannot be shared out or held in memory is refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from texts import data_recipe, scanned, tokenizer_of, write_jsonl

from hf_lm.data import estimate as dataset
from hf_lm.data.estimate import sample_counts, sample_documents
from hf_lm.data.text.sources import find_corpus
from hf_lm.errors import RecipeError
from hf_lm.model.build import build_model
from hf_lm.model.config import Vocabulary
from hf_lm.planning.activations import Activations
from hf_lm.planning.costs import describe_model, flops_per_token
from hf_lm.planning.plan import DeviceMemory, make_plan
from hf_lm.recipe import ModelRecipe, TrainingRecipe, load_recipe
from hf_lm.workflows.check import check
from hf_lm.workflows.summary import readable

GPT2 = ModelRecipe(size="small", n_positions=1024)


def plan(
    *, world_size: int = 1, memory: int = 10**12, blocks: int | None = 1000, **keys: Any
) -> Any:
    """The plan of a small network."""
    recipe = TrainingRecipe.model_validate_json(
        json.dumps({"tokens_per_step": 512, "optimizer": "adamw", **keys})
    )
    model_size = ModelRecipe(n_layer=2, n_head=2, n_embd=16)
    model = build_model(model_size, Vocabulary(50, 0, 0), block_size=16, meta=True)
    return make_plan(
        recipe,
        describe_model(model),
        Activations(fixed=1_000, per_block=20_000),
        block_size=16,
        train_blocks=blocks,
        world_size=world_size,
        memory=DeviceMemory(memory),
    )


def test_gpt2_small_has_its_published_size_and_cost() -> None:
    model = build_model(GPT2, Vocabulary(50257, 50256, 50256), block_size=1024, meta=True)
    model_size = describe_model(model)
    assert model_size.parameters == 124_439_808
    # 6·(85 M of blocks + 38.6 M of output matrix) and attention over 512 tokens on average
    assert flops_per_token(model_size, 1024) == pytest.approx(7.98e8, rel=0.01)


def test_an_untied_output_matrix_is_counted_once() -> None:
    tied = build_model(GPT2, Vocabulary(1000, 0, 0), block_size=8, meta=True)
    untied_recipe = GPT2.model_copy(update={"tie_word_embeddings": False})
    untied = build_model(untied_recipe, Vocabulary(1000, 0, 0), block_size=8, meta=True)
    both = describe_model(tied), describe_model(untied)
    assert both[0].matrix_parameters == both[1].matrix_parameters
    assert both[1].parameters - both[0].parameters == 1000 * 768


def test_steps_follow_from_steps_tokens_or_epochs() -> None:
    assert plan(max_steps=7).max_steps == 7
    assert plan(max_tokens=5000).max_steps == 10
    assert plan(max_epochs=1).max_steps == 32  # 1000 blocks in steps of 32, the last one smaller
    assert plan(max_epochs=1).train_tokens == 16_000
    assert plan(max_epochs=2.5).max_steps == 80
    assert plan(max_steps=33).train_tokens == 16_000 + 512
    assert plan(max_steps=33).flops_per_step * 33 > plan(max_steps=33).flops  # a smaller last one
    assert plan(max_steps=10, blocks=None).train_tokens == 5120


def test_other_steps_have_their_own_checkpoints() -> None:
    keys = {"save_steps": 5, "save_total_limit": None}
    unknown = TrainingRecipe(max_minutes=1, max_steps=None, **keys)
    minutes = plan(**{**keys, "max_minutes": 1})
    assert minutes.with_steps(20, unknown) == plan(**keys, max_steps=20)
    assert minutes.with_steps(20, unknown).checkpoints == 5


def test_micro_batches_follow_from_memory_and_processes() -> None:
    roomy = plan(max_steps=1)
    assert (roomy.micro_batch_size, roomy.accumulation) == (32, 1)
    tight = plan(max_steps=1, memory=roomy.memory // 2)
    assert tight.micro_batch_size < 32
    assert tight.tokens_per_step == roomy.tokens_per_step == 512
    assert tight.memory <= roomy.memory // 2
    eight = plan(max_steps=1, world_size=8)
    assert (eight.micro_batch_size, eight.accumulation, eight.tokens_per_step) == (4, 1, 512)
    fixed = plan(max_steps=1, micro_batch_size=8)
    assert (fixed.micro_batch_size, fixed.accumulation) == (8, 4)


@pytest.mark.parametrize(
    ("world_size", "micro", "expected"), [(1, 12, 8), (4, 16, 8), (32, 16, 1), (2, 5, 4)]
)
def test_a_micro_batch_size_is_the_most_blocks_for_any_number_of_processes(
    world_size: int, micro: int, expected: int
) -> None:
    made = plan(max_steps=1, world_size=world_size, micro_batch_size=micro)
    assert made.micro_batch_size == expected
    assert made.tokens_per_step == 512


@pytest.mark.promise("16", "57")
@pytest.mark.parametrize(
    ("keys", "rule"),
    [
        ({"world_size": 3}, r"cannot be divided between 3 processes; use a multiple of 48"),
        ({"blocks": 20}, r"32 blocks of 16 tokens per step, but the training text has only 20"),
    ],
)
def test_steps_that_cannot_be_divided_are_refused_with_numbers(
    keys: dict[str, Any], rule: str
) -> None:
    with pytest.raises(RecipeError, match=rule):
        plan(max_steps=1, **keys)


@pytest.mark.promise("36")
def test_a_model_that_does_not_fit_is_refused_with_numbers() -> None:
    assert plan(max_steps=1).unmet_requirements == ()
    (line,) = plan(max_steps=1, memory=1000).unmet_requirements
    assert re.match(r"model: 7,\d\d\d parameters need about .* GB are free; use a smaller", line)


def test_a_check_prints_the_numbers_of_the_run_and_writes_nothing(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any, tiny_run: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = write_recipe()
    before = sorted(tmp_path.rglob("*"))
    out = str(check(load_recipe(path)))
    assert sorted(tmp_path.rglob("*")) == before
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    assert f"{metrics['parameters']:,} parameters" in out
    assert f"8 steps, {metrics['train_tokens']:,} tokens" in out
    assert "about" not in out.split("cost")[0]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("files", [1, 300])
def test_estimated_counts_are_close_to_the_exact_ones(
    files: int, own: bool, tmp_path: Path, monkeypatch: Any
) -> None:
    texts = [
        "".join(f"{line} of {number}\n" for line in range(9000 // files)) for number in range(files)
    ]
    text = write_jsonl(tmp_path / "a.jsonl", texts)
    validation_text = write_jsonl(tmp_path / "b.jsonl", [text.upper() for text in texts[:100]])
    validation = {"source": str(validation_text)} if own else {"holdout": 0.2}
    data = data_recipe(text, validation=validation)
    corpus = find_corpus(data)
    found = []
    for limit in (10**9, 20_000):
        monkeypatch.setattr(dataset, "CHECK_BYTES", limit)
        sample = sample_documents(data, corpus, scanned(data))
        assert sample.whole == (limit == 10**9)
        counts = sample_counts(data, sample, tokenizer_of("byte", []))
        found.append({split: row.tokens for split, row in counts.items()})
    whole, estimated = found
    assert sum(estimated.values()) == pytest.approx(sum(whole.values()), rel=0.1)
    if own:
        assert estimated["validation"] == pytest.approx(whole["validation"], rel=0.1)


def test_a_check_names_hub_data_that_was_not_read(
    write_recipe: Callable[..., Path],
) -> None:
    path = write_recipe(
        data={"source": "USER/text", "streaming": True, "block_size": 16},
        tokenizer={"train": {"vocab_size": 5000}},
    )
    text = str(check(load_recipe(path)))
    assert "5,000 tokens" in text
    assert "USER/text: not looked at" in text
    assert re.search("^text +a stream", text, re.MULTILINE)
    epochs = ["training.max_steps=null", "training.max_epochs=2", "data.streaming=false"]
    assert "as many steps as its epochs" in str(check(load_recipe(path, overrides=epochs)))


def test_numbers_are_formatted_with_an_si_prefix() -> None:
    sizes = [readable(n, "B") for n in (12, 3456, 7.8e6, 9e9, 5e15, 8e18)]
    assert sizes == ["12 B", "3.46 kB", "7.8 MB", "9 GB", "5 PB", "8 EB"]
