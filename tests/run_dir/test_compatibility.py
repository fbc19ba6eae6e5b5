"""Test which changes are free, allowed with a note, or refused when a run is resumed."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hf_lm.errors import MismatchError
from hf_lm.recipe import Recipe
from hf_lm.run import main
from hf_lm.run_dir.compatibility import (
    EXTENDABLE_KEYS,
    IGNORED_KEYS,
    NUMERICS_KEYS,
    check_same_content,
    check_same_recipe,
    numerics_changes,
)
from recipes import TINY, merged

REFUSED = {
    "seed",
    *(
        f"data.{key}"
        for key in (
            *("source", "config", "split", "revision", "text_column", "streaming", "validation"),
            *("block_size", "append_eos", "document_mask", "grouping", "deduplicate"),
            *(
                "max_documents",
                "max_bytes",
                "sample_by",
                "text_template",
                "on_bad_bytes",
                "train_on",
                "on_missing_text",
                "encoding",
                "delimiter",
                "near_duplicates",
                "near_duplicate_threshold",
                "fresh_blocks",
            ),
        )
    ),
    *("tokenizer.pretrained", "tokenizer.train"),
    *("tokenizer.eos_token", "tokenizer.bos_token", "tokenizer.pad_token"),
    *("tokenizer.add_tokens", "tokenizer.chat_template"),
    *(
        f"model.{key}"
        for key in (
            *("family", "size", "n_layer", "n_head", "n_embd", "n_inner", "n_positions", "dropout"),
            *("n_kv_head", "head_dim", "rope_theta"),
            *("tie_word_embeddings", "pad_vocab_to_multiple_of", "pretrained", "lora"),
        )
    ),
    *(
        f"training.{key}"
        for key in (
            *("tokens_per_step", "micro_batch_size", "optimizer", "learning_rate"),
            *("matrix_learning_rate", "betas", "momentum", "eps", "weight_decay", "max_grad_norm"),
            *("warmup_steps", "schedule", "decay_steps", "min_lr_ratio", "precision", "device"),
            *("compile", "activation_checkpointing", "eval_steps", "early_stopping_patience"),
            *("load_best_model_at_end", "best_metric", "skip_loss_spikes", "extra_args"),
        )
    ),
    "evaluation.max_blocks",
}


def keys() -> set[str]:
    """List every key of a recipe, such as "training.max_steps"; `hub` is one key."""
    names = set()
    for name, field in Recipe.model_fields.items():
        section = getattr(field.annotation, "model_fields", None)
        is_one_key = not section or name == "hub"
        names |= {field.alias or name} if is_one_key else {f"{name}.{key}" for key in section}
    return names


@pytest.mark.promise("T6")
def test_every_key_is_ignored_extendable_or_refused() -> None:
    """For a new key, decide here whether a run may be resumed with another value."""
    assert keys() == {*IGNORED_KEYS, *EXTENDABLE_KEYS, *REFUSED}
    assert len(keys()) == len(IGNORED_KEYS) + len(EXTENDABLE_KEYS) + len(REFUSED)


@pytest.mark.promise("67", "T6")
@pytest.mark.parametrize("key", sorted(REFUSED))
def test_key_that_affects_the_weights_is_refused_with_both_values(key: str, tmp_path: Path) -> None:
    before, now = merged({}, {key: 1}), merged({}, {key: 2})
    with pytest.raises(MismatchError) as caught:
        check_same_recipe(tmp_path, before, now, ())
    assert caught.value.exit_code == 4
    assert caught.value.problems == [
        f"{tmp_path}: {key} was 1, is now 2",
        f"continue the run with --accept-change {key}, or start over with --fresh",
    ]
    assert check_same_recipe(tmp_path, before, now, [key]) == {key: f"{key} was 1, is now 2"}


@pytest.mark.promise("T6")
def test_key_added_by_a_later_version_had_its_default_value(tmp_path: Path) -> None:
    for value, changed in (("text", set()), ("completion", {"data.train_on"})):
        before, now = {"seed": 1}, {"seed": 1, "data": {"train_on": value}}
        assert {*check_same_recipe(tmp_path, before, now, ["data.train_on"])} == changed


@pytest.mark.promise("T6")
@pytest.mark.parametrize("key", sorted(IGNORED_KEYS))
def test_ignored_key_is_not_reported(key: str, tmp_path: Path) -> None:
    assert check_same_recipe(tmp_path, merged({}, {key: 1}), merged({}, {key: 2}), ()) == {}


@pytest.mark.promise("T6")
@pytest.mark.parametrize("key", sorted(EXTENDABLE_KEYS))
def test_training_may_be_extended_with_a_note(key: str, tmp_path: Path) -> None:
    before, now = merged({}, {key: 8}), merged({}, {key: 9})
    assert check_same_recipe(tmp_path, before, now, ()) == {key: f"{key} was 8, is now 9"}
    with pytest.raises(MismatchError):
        check_same_recipe(tmp_path, now, before, ())
    with pytest.raises(MismatchError):
        check_same_recipe(tmp_path, before, merged({}, {key: None}), ())


@pytest.mark.promise("62", "97", "T6")
@pytest.mark.parametrize(
    ("name", "key"),
    [("data", "data.source"), ("tokenizer", "tokenizer"), ("world_size", "world_size")],
)
def test_changed_content_is_refused_with_both_values(name: str, key: str, tmp_path: Path) -> None:
    before, now = {"data": "a", "tokenizer": "b", "world_size": 1}, {}
    now = {**before, name: "other"}
    with pytest.raises(MismatchError, match=f"{name} was {before[name]}, is now other"):
        check_same_content(tmp_path, before, now, (), streaming=False)
    assert check_same_content(tmp_path, before, now, [key], streaming=False) == [key]


def test_another_number_of_processes_is_not_offered_for_a_stream(tmp_path: Path) -> None:
    before, now = {"world_size": 2}, {"world_size": 1}
    with pytest.raises(MismatchError, match="world_size was 2, is now 1") as caught:
        check_same_content(tmp_path, before, now, ["world_size"], streaming=True)
    assert "--accept-change" not in str(caught.value)


@pytest.mark.promise("86")
def test_folder_of_the_text_may_change_but_not_its_name(tmp_path: Path) -> None:
    sources = [[{"source": f"/{home}/{name}", "weight": 1.0}] for home, name in ("ab", "cb", "cd")]
    before, moved, renamed = ({"data": {"source": source}} for source in sources)
    assert check_same_recipe(tmp_path, before, moved, ()) == {}
    with pytest.raises(MismatchError):
        check_same_recipe(tmp_path, before, renamed, ())


@pytest.mark.promise("98")
def test_changed_machine_or_version_is_reported() -> None:
    before: dict[str, Any] = dict.fromkeys(NUMERICS_KEYS - {"packages"}, "a")
    before |= {"packages": {"torch": "2.13.0", "datasets": "5.2.0"}, "git": "f00", "hf_lm": "0.1"}
    assert numerics_changes(before, copy.deepcopy(before)) == []
    now = {**before, "threads": "b", "packages": {"torch": "2.14.0", "datasets": "5.2.0"}}
    now |= {"git": "f00-dirty", "hf_lm": "0.2"}
    assert numerics_changes(before, now) == [
        "packages.torch was 2.13.0, is now 2.14.0: the last bits of the weights may differ",
        "threads was a, is now b: the last bits of the weights may differ",
    ]
    assert numerics_changes({}, now) == []


@pytest.fixture
def stopped_run(
    tiny_run: Path, undo_end: Callable[[Path, int], None], tmp_path: Path
) -> Callable[..., tuple[Path, Path]]:
    """Return a function that makes a run stopped at step 4: its recipe file and directory."""

    def make(**changes: Any) -> tuple[Path, Path]:
        for name in ("corpus", "run"):
            shutil.copytree(tiny_run.parent / name, tmp_path / name)
        undo_end(tmp_path / "run", 8)
        recipe = tmp_path / "recipe.json"
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        recipe.write_text(json.dumps(merged(TINY, dotted)), encoding="utf-8")
        return recipe, tmp_path / "run"

    return make


def same_weights(first: Path, second: Path) -> bool:
    """Return whether the models of two finished runs are equal bit by bit."""
    models = [load_file(path / "model" / "model.safetensors") for path in (first, second)]
    return all(models[0][name].equal(value) for name, value in models[1].items())


@pytest.mark.promise("62")
def test_one_more_byte_of_text_is_refused_and_acceptance_is_recorded(
    stopped_run: Callable[..., tuple[Path, Path]], capsys: Any
) -> None:
    recipe, run = stopped_run()
    document = sorted((recipe.parent / "corpus").iterdir())[3]
    document.write_text(document.read_text() + "x")
    assert main([str(recipe)]) == 4
    line, *_ = capsys.readouterr().err.splitlines()
    assert "data was " in line
    assert ", is now " in line
    assert main([str(recipe), "--accept-change", "data.source"]) == 4  # The vocabulary differs too.
    accepted = ["--accept-change", "data.source", "--accept-change", "tokenizer"]
    assert main([str(recipe), *accepted]) == 0
    provenance = json.loads((run / "provenance.json").read_text())
    assert {"data.source", "tokenizer"} <= {*provenance["accepted_changes"]}


@pytest.mark.promise("67")
def test_set_option_on_a_resumed_run_follows_the_same_rules(
    stopped_run: Callable[..., tuple[Path, Path]], tiny_run: Path, capsys: Any
) -> None:
    recipe, run = stopped_run()
    assert main([str(recipe), "--set", "training.weight_decay=0.2"]) == 4
    assert "training.weight_decay was 0.1, is now 0.2" in capsys.readouterr().err
    free = ["--set", "training.logging_steps=1", "--set", "training.save_total_limit=5"]
    assert main([str(recipe), *free]) == 0
    assert same_weights(run, tiny_run)


@pytest.mark.promise("83")
def test_weights_of_another_shape_are_refused_even_if_accepted(
    stopped_run: Callable[..., tuple[Path, Path]], capsys: Any
) -> None:
    recipe, _ = stopped_run(model__n_layer=3)
    assert main([str(recipe), "--accept-change", "model.n_layer"]) == 4
    assert "checkpoint-4: holds another model: transformer.h.2." in capsys.readouterr().err


@pytest.mark.promise("98")
def test_numerics_changes_are_reported_and_recorded(
    stopped_run: Callable[..., tuple[Path, Path]], capsys: Any
) -> None:
    recipe, run = stopped_run()
    provenance = json.loads((run / "provenance.json").read_text())
    provenance["packages"]["torch"] = "2.0.0"
    (run / "provenance.json").write_text(json.dumps(provenance))
    assert main([str(recipe)]) == 0
    line = next(
        line for line in capsys.readouterr().out.splitlines() if "packages.torch was" in line
    )
    assert line.startswith("note: packages.torch was 2.0.0, is now ")
    assert json.loads((run / "provenance.json").read_text())["drift"]


@pytest.mark.promise("86")
def test_moved_directory_is_resumed(
    stopped_run: Callable[..., tuple[Path, Path]], tiny_run: Path
) -> None:
    recipe, run = stopped_run(output_dir="elsewhere")
    run.rename(recipe.parent / "elsewhere")
    assert main([str(recipe)]) == 0
    assert same_weights(recipe.parent / "elsewhere", tiny_run)


@pytest.mark.promise("84")
def test_linked_directory_is_used_but_linked_checkpoint_is_not(
    stopped_run: Callable[..., tuple[Path, Path]], tiny_run: Path
) -> None:
    """A symbolic link to a run is that run; a symbolic link to a checkpoint is ignored."""
    recipe, run = stopped_run(output_dir="linked")
    target = run.rename(recipe.parent / "target")
    (recipe.parent / "linked").symlink_to(target)
    (target / "checkpoint-6").symlink_to(target / "checkpoint-4")
    assert main([str(recipe)]) == 0
    assert same_weights(target, tiny_run)
    assert (recipe.parent / "linked").is_symlink()
    assert (target / "checkpoint-6").is_symlink()


@pytest.mark.promise("74", "79")
def test_run_with_damaged_checkpoints_only_exits_with_code_3(
    stopped_run: Callable[..., tuple[Path, Path]], capsys: Any
) -> None:
    recipe, run = stopped_run()
    weights = run / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    before = {path: path.stat().st_mtime_ns for path in (run / "checkpoint-4").iterdir()}
    for _ in range(2):
        assert main([str(recipe)]) == 3
        assert "checkpoint-4: model.safetensors is damaged" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in (run / "checkpoint-4").iterdir()} == before
    assert main([str(recipe), "--fresh"]) == 0
