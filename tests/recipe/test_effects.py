"""No key is accepted that changes nothing in the recipe at hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from hf_lm.data.text.sources import find_corpus
from hf_lm.errors import DataError, RecipeError
from hf_lm.recipe import Recipe, load_recipe

PRETRAINED = {"model": {"pretrained": "USER/base"}, "tokenizer": {}}
CONVERSATIONS = {
    "data.train_on": "completion",
    "data.grouping": "best_fit",
    "data.document_mask": True,
    **PRETRAINED,
}

# A recipe in which the key would change nothing: it is refused there. The last value is that of the
# key; the others are the rest of the recipe.
USELESS: dict[str, tuple[dict[str, Any], Any]] = {
    "data.config": ({}, "name"),
    "data.split": ({}, "test"),
    "data.revision": ({}, "main"),
    "data.text_column": ({}, "body"),
    "data.text_template": ({}, "{a} {b}"),
    "data.sample_by": ({"data.source": "a.csv"}, "line"),
    "data.delimiter": ({}, ";"),
    "data.encoding": ({"data.source": "python-stdlib"}, "cp1252"),
    "data.on_bad_bytes": ({"data.source": "python-stdlib"}, "skip"),
    "data.on_missing_text": ({}, "error"),
    "data.near_duplicate_threshold": ({}, 0.9),
    "data.num_proc": (CONVERSATIONS, 2),
    "data.validation.config": ({"data.validation": {"source": "a.csv"}}, "name"),
    "data.validation.split": ({"data.validation": {"source": "a.csv"}}, "test"),
    "data.validation.revision": ({"data.validation": {"source": "a.csv"}}, "main"),
    "tokenizer.train.vocab_size": ({"tokenizer": {"train": {"kind": "byte"}}}, 300),
    "tokenizer.eos_token": ({}, "</s>"),
    "tokenizer.bos_token": ({}, "<s>"),
    "tokenizer.pad_token": ({}, "<pad>"),
    "tokenizer.add_tokens": ({}, ["<a>"]),
    "tokenizer.chat_template": ({}, "{{ messages }}"),
    **{
        f"model.{name}": (PRETRAINED, value)
        for name, value in {
            "family": "qwen3",
            "size": "small",
            "n_layer": 2,
            "n_head": 2,
            "n_embd": 32,
            "n_inner": 64,
            "n_kv_head": 1,
            "head_dim": 8,
            "rope_theta": 500.0,
            "n_positions": 64,
            "tie_word_embeddings": False,
            "pad_vocab_to_multiple_of": 64,
        }.items()
    },
    "model.lora": ({}, {"r": 4}),
    "data.fresh_blocks": ({"data.grouping": "best_fit"}, False),
    "training.matrix_learning_rate": ({"training.optimizer": "adamw"}, 0.1),
    "training.momentum": ({"training.optimizer": "adamw"}, 0.9),
    "training.betas": ({"training.optimizer": "sgd"}, [0.8, 0.9]),
    "training.eps": ({"training.optimizer": "sgd"}, 1e-6),
    "training.decay_steps": ({"training.schedule": "linear"}, 3),
    "training.min_lr_ratio": ({"training.schedule": "constant"}, 0.2),
    "training.dataloader_pin_memory": ({"training.device": "cpu"}, False),
    "evaluation.max_new_tokens": ({"evaluation": {"prompts": []}}, 9),
    "hub.push": ({}, "end"),
}

# These change every recipe: the text, the weights, the speed, or what is written.
ALWAYS = {
    *("schema_", "hf_lm_version", "name", "output_dir", "seed"),
    *("data.source", "data.train_on", "data.deduplicate", "data.near_duplicates"),
    *("data.streaming", "data.block_size", "data.append_eos", "data.document_mask"),
    *("data.grouping", "data.max_documents", "data.max_bytes"),
    *("data.validation.holdout", "data.validation.source"),
    *("tokenizer.pretrained", "tokenizer.train.kind"),
    *("model.pretrained", "model.dropout", "model.save_dtype"),
    *("training.max_steps", "training.max_epochs", "training.max_tokens"),
    "training.max_minutes",
    *("training.tokens_per_step", "training.micro_batch_size", "training.optimizer"),
    *("training.learning_rate", "training.weight_decay", "training.max_grad_norm"),
    *("training.warmup_steps", "training.schedule", "training.precision", "training.device"),
    *("training.compile", "training.activation_checkpointing", "training.dataloader_num_workers"),
    *("training.logging_steps", "training.eval_steps", "training.save_steps"),
    *("training.save_total_limit", "training.early_stopping_patience"),
    *("training.load_best_model_at_end", "training.skip_nonfinite_steps", "training.best_metric"),
    *("training.skip_loss_spikes", "training.report_to", "training.extra_args"),
    *("evaluation.prompts", "evaluation.max_blocks", "evaluation.batch_size"),
    # `hf-lm publish` uses them after a run that does not publish by itself.
    *("hub.model_id", "hub.private", "hub.license", "hub.tags"),
}


def all_keys(section: type[BaseModel] = Recipe, start: str = "") -> set[str]:
    """List every key of a recipe; `model.lora` is one, because it means nothing in part."""
    found = set[str]()
    for name, field in section.model_fields.items():
        kinds = [kind for kind in (field.annotation, *get_args(field.annotation)) if kind]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if inner and name != "lora":
            found |= all_keys(inner[0], f"{start}{name}.")
        else:
            found.add(f"{start}{name}")
    return found


def test_every_key_is_useful_always_or_refused_where_it_is_not() -> None:
    """For a new key, say here in which recipe it would change nothing, and refuse it there."""
    assert all_keys() == {*USELESS, *ALWAYS}
    assert not {*USELESS} & ALWAYS


@pytest.mark.parametrize("key", USELESS)
def test_a_key_that_changes_nothing_is_refused(
    key: str, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    rest, value = USELESS[key]
    (tmp_path / "a.csv").write_text("text\na line\nanother line\n")
    dotted = {name.replace(".", "__"): setting for name, setting in rest.items()}
    path = write_recipe(**dotted)
    if not PRETRAINED.keys() <= rest.keys():
        load_recipe(path)  # without the key it is valid
    with pytest.raises((RecipeError, DataError)) as caught:
        recipe = load_recipe(write_recipe(**{**dotted, key.replace(".", "__"): value}))
        find_corpus(recipe.data)
    assert any(key in line for line in caught.value.problems), caught.value.problems


def test_a_recipe_that_a_run_wrote_is_read_whatever_its_keys(
    write_recipe: Callable[..., Path],
) -> None:
    useless = {"training__decay_steps": 3, "training__schedule": "linear"}
    with pytest.raises(RecipeError):
        load_recipe(write_recipe(**useless))
    assert load_recipe(write_recipe(**useless, hf_lm_version="0.1.0")).training.decay_steps == 3


def test_a_recipe_for_muon_fine_tunes_with_adamw(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(training__momentum=0.85, training__matrix_learning_rate=0.01)
    assert load_recipe(path).training.momentum == 0.85
    recipe = load_recipe(path, pretrained="USER/base")
    assert (recipe.training.optimizer, recipe.training.momentum) == ("adamw", 0.95)
