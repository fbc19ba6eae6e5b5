"""Every wrong key, type and clash has its line; every shipped recipe loads; dump and load agree."""

import ast
import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lm.errors import RecipeError
from hf_lm.recipe import Recipe, load_recipe, recipe_text, warnings
from hf_lm.recipe.schema import SCHEMA_FILE, readme_text, schema_text
from hf_lm.recipe.validation.extra_args import COVERED_BY, REFUSED, training_arguments
from hf_lm.recipe.validation.messages import key_names, sections
from hf_lm.recipe.validation.suggestions import ALIASES, closest_key
from recipes import TINY, merged

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.json"))


def problems(path: Path, *overrides: str) -> list[str]:
    """The lines with which a recipe is refused, without the file's name."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides=overrides)
    return [line.removeprefix(f"{path}: ") for line in caught.value.problems]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads_and_names_its_schema(path: Path) -> None:
    load_recipe(path)
    tree = json.loads(path.read_text())
    assert (path.parent / tree["$schema"]).resolve() == SCHEMA_FILE
    jsonschema.validate(tree, json.loads(SCHEMA_FILE.read_text()))


def test_the_schema_and_the_table_of_keys_are_up_to_date() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text()
    assert (ROOT / "recipes" / "README.md").read_text(encoding="utf-8") == readme_text()


def test_every_key_has_a_description() -> None:
    for model in sections().values():
        for name, field in model.model_fields.items():
            assert field.description, name


def test_every_row_of_the_table_of_keys_is_one_line() -> None:
    tables = [line for line in readme_text().splitlines() if line.startswith("|")]
    assert all(line.endswith("|") for line in tables)


def test_a_resolved_recipe_loads_as_the_same_recipe(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe())
    recipe.folder.mkdir()
    (recipe.folder / "recipe.json").write_text(recipe_text(recipe, recipe.folder))
    again = load_recipe(recipe.folder / "recipe.json")
    skipped = {"schema_", "hf_lm_version"}
    assert again.model_dump(exclude=skipped) == recipe.model_dump(exclude=skipped)


def test_a_resolved_fine_tuning_recipe_loads_again(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    recipe = load_recipe(
        write_recipe(model={"pretrained": "./base"}, tokenizer={"pretrained": "./base"})
    )
    (tmp_path / "resolved.json").write_text(recipe_text(recipe, tmp_path))
    assert load_recipe(tmp_path / "resolved.json").model.pretrained == str(tmp_path / "base")


# Rows of the catalogue of bad input that one key alone can break: change, expected line.
SINGLE = {
    "7 typo": (
        {"training.learning_rte": 1},
        r'learning_rte: unknown key; did you mean "learning_rate"',
    ),
    "7 camel": ({"training.learningRate": 1}, r'did you mean "learning_rate"'),
    "7 foreign": ({"training.lr": 1}, r'lr: unknown key; did you mean "learning_rate"'),
    "7 batch": ({"training.batch_size": 1}, r'did you mean "tokens_per_step"'),
    "7 epochs": ({"training.epochs": 1}, r'did you mean "max_epochs"'),
    "7 plural": ({"evaluation.prompt": []}, r'did you mean "prompts"'),
    "7 section": ({"trainig": {}}, r'trainig: unknown key; did you mean "training"'),
    "8 section": (
        {"data.learning_rate": 1},
        r"data.learning_rate: unknown key; belongs under training",
    ),
    "8 top": ({"learning_rate": 1}, r"learning_rate: unknown key; belongs under training"),
    "8 seed": ({"training.seed": 1}, r"training.seed: unknown key; belongs at the top level"),
    "9": (
        {"training.learning_rate": "1e-3"},
        r'learning_rate = "1e-3": is a string, expected a number or "auto"$',
    ),
    "9 object": ({"model": 3}, r"model = 3: is a number, expected an object"),
    "10 text": (
        {"training.max_steps": "24"},
        r'max_steps = "24": is a string, expected a whole number',
    ),
    "10 real": ({"training.max_steps": 24.5}, r"max_steps = 24.5: .*expected a whole number"),
    "10 bool": (
        {"training.max_steps": True},
        r"max_steps = true: is a boolean, expected a whole number",
    ),
    "12 zero": ({"training.learning_rate": 0}, r"learning_rate = 0: must be > 0"),
    "12 negative": ({"training.learning_rate": -1e-3}, r"learning_rate = -0.001: must be > 0$"),
    "13": ({"training.warmup_steps": 1000}, r"warmup_steps = 1000: is more than the 8 steps"),
    "14 zero": ({"training.max_steps": 0}, r"max_steps = 0: must be > 0"),
    "14 both": ({"training.max_epochs": 1}, r"max_epochs = 1.0: cannot be combined with max_steps"),
    "14 neither": ({"training.max_steps": None}, r"max_steps: is missing; give it, or max_epochs"),
    "15": ({"training.tokens_per_step": 0}, r"tokens_per_step = 0: must be > 0"),
    "15 rest": (
        {"training.tokens_per_step": 100},
        r"= 100: is not a multiple of data.block_size = 16; use 96 or 112",
    ),
    "16 zero": ({"training.micro_batch_size": 0}, r"micro_batch_size = 0: must be > 0"),
    "16 negative": ({"training.micro_batch_size": -4}, r"micro_batch_size = -4: must be > 0"),
    "16 word": (
        {"training.micro_batch_size": "big"},
        r'micro_batch_size = "big": is a string, expected a whole number or "auto"$',
    ),
    "17": ({"model.n_embd": 33}, r"n_embd = 33: is not a multiple of 2.*use 32 or 34"),
    "17 rotary": (
        {"model.family": "qwen3", "model.n_embd": 18},
        r"n_embd = 18: is not a multiple of 4",
    ),
    "17 shared": (
        {"model.family": "llama", "model.n_head": 4, "model.n_kv_head": 3},
        r"n_kv_head = 3: does not divide model.n_head = 4",
    ),
    "17 gpt2": ({"model.n_kv_head": 1}, r"n_kv_head = 1: is not in gpt2; remove it"),
    "17 odd": ({"model.family": "qwen3", "model.head_dim": 7}, r"head_dim = 7: must be even"),
    "18": ({"model.n_head": 0}, r"n_head = 0: must be > 0"),
    "19": ({"model.n_layer": 0}, r"n_layer = 0: must be > 0"),
    "20": ({"model.n_positions": 8}, r"data.block_size = 16: is more than model.n_positions = 8"),
    "22": ({"tokenizer.train.vocab_size": 0}, r"vocab_size = 0: must be > 0"),
    "22 small": ({"tokenizer.train.vocab_size": 100}, r"vocab_size = 100: must be >= 257"),
    "25 high": ({"model.dropout": 1.5}, r"dropout = 1.5: must be < 1"),
    "25 low": ({"model.dropout": -0.1}, r"dropout = -0.1: must be >= 0"),
    "26 decay": ({"training.weight_decay": -1}, r"weight_decay = -1: must be >= 0"),
    "26 clip": ({"training.max_grad_norm": -1}, r"max_grad_norm = -1: must be >= 0"),
    "27 negative": ({"seed": -1}, r"seed = -1: must be >= 0"),
    "27 large": ({"seed": 2**32}, r"seed = 4294967296: must be < 4294967296"),
    "27 text": ({"seed": "x"}, r'seed = "x": is a string, expected a whole number'),
    "28 save": ({"training.save_steps": 0}, r"save_steps = 0: must be"),
    "28 eval": ({"training.eval_steps": 0}, r"eval_steps = 0: must be"),
    "29": ({"training.save_total_limit": 0}, r"save_total_limit = 0: must be > 0"),
    "29 negative": ({"training.save_total_limit": -1}, r"save_total_limit = -1: must be > 0"),
    "30": (
        {"training.load_best_model_at_end": True, "training.save_steps": 6},
        r"save_steps = 6: with load_best_model_at_end it must be a multiple",
    ),
    "30 metric": (
        {"training.extra_args": {"metric_for_best_model": "los"}},
        r"metric_for_best_model: is not allowed: use training\.best_metric",
    ),
    "32": (
        {"training.device": "cuda:7"},
        r"device = \"cuda:7\": must be \"auto\", \"cpu\" or \"cuda\"",
    ),
    "37": ({"hf_lm_version": "99.0"}, r'hf_lm_version = "99.0": needs hf_lm >= 99.0'),
    "39 newline": ({"data.source": "a\nb"}, r"data.source = .*: contains a control character"),
    "39 nul": ({"data.source": "./a\x00b"}, r"data.source = .*: contains a control character"),
    "39 long": (
        {"data.source": "./" + "a" * 300},
        r"data.source = .*: has a part longer than 255 bytes",
    ),
    "39 url": (
        {"data.source": "https://x.y/z.txt"},
        r"data.source = .*: is a URL; download it first",
    ),
    "40": (
        {"model": {"pretrained": "./nowhere"}, "tokenizer": {}},
        r"model.pretrained = .*: no such folder",
    ),
    "hub id": ({"data.source": "a/b/c"}, r"data.source = .*: is not a path and not a Hub id"),
    "betas": ({"training.betas": [0.9]}, r"training.betas.1: is missing"),
    "schedule": ({"training.schedule": "cosin"}, r'must be "cosine", .*did you mean "cosine"'),
    "size": ({"model.size": "small"}, r'model.n_layer = 2: is set by model.size = "small"'),
    "scratch": (
        {"model.pretrained": "gpt2", "tokenizer": {}},
        r"model.n_layer = 2: describes a model from scratch",
    ),
    "tokenizer": (
        {"tokenizer.pretrained": "gpt2"},
        r"tokenizer.train: cannot be combined with tokenizer.pretrained",
    ),
    "char": (
        {"tokenizer.train.kind": "char"},
        r'vocab_size = 320: follows from the text for kind "char"',
    ),
    "holdout": (
        {"data.validation.split": "test"},
        r"holdout = 0.2: cannot be combined with data.validation.split",
    ),
    "no holdout": ({"data.validation": {}}, r"data.validation: is empty; give"),
    "mask": (
        {"data.document_mask": True, "data.append_eos": False},
        r"document_mask = true: finds documents by",
    ),
    "grouping": (
        {"data.grouping": "best_fit", "data.append_eos": False},
        r'grouping = "best_fit": finds documents by their end-of-text token',
    ),
    "weights": (
        {"data.source": ["a", {"source": "b", "weight": 2}]},
        r"data.source: gives a weight to some sources only; write each as",
    ),
    "matrix rate": (
        {"training.optimizer": "adamw", "training.matrix_learning_rate": 0.1},
        r"matrix_learning_rate = 0.1: has no effect, because it is for training.optimizer muon",
    ),
    "sgd": (
        {"training.optimizer": "sgd", "training.learning_rate": "auto"},
        r'learning_rate = "auto": has no rule for sgd; give a number',
    ),
    "muon": (
        {"training.optimizer": "muon", "model": {"pretrained": "a/b"}, "tokenizer": {}},
        r'matrix_learning_rate = "auto": has no rule for pretrained weights',
    ),
    "no weight": ({"data.source": [{"source": "a"}]}, r"data.source.0.weight: is missing"),
    "weight": (
        {"data.source": [{"source": "a", "weight": 0}]},
        r"data.source.0.weight = 0: must be > 0",
    ),
    "no source": ({"data.source": []}, r"data.source = \[\]: must not be empty"),
    "template": (
        {"data.text_template": "{text}", "data.text_column": "body"},
        r'text_column = "body": cannot be combined with data.text_template',
    ),
    "template none": ({"data.text_template": "text"}, r"must name columns as"),
    "template open": ({"data.text_template": "{text"}, r"must name columns as"),
    "template format": ({"data.text_template": "{text:>9}"}, r"must name columns as"),
    "template member": ({"data.text_template": "{text.real}"}, r"must name columns as"),
    "max_bytes": ({"data.max_bytes": 0}, r"max_bytes = 0: must be > 0"),
    "stream": (
        {"data.streaming": True, "evaluation.max_blocks": None},
        r"evaluation.max_blocks: is missing",
    ),
    "codec of bytes": ({"data.encoding": "hex"}, r'encoding = "hex": is no encoding of text'),
    "encoding": ({"data.encoding": "utf8mb4"}, r'encoding = "utf8mb4": is no encoding of text'),
    "threshold": (
        {"data.near_duplicate_threshold": 0.9},
        r"near_duplicate_threshold = 0.9: has no effect, because data.near_duplicates is off",
    ),
    "near duplicates of a stream": (
        {"data.streaming": True, "data.near_duplicates": "drop", "evaluation.max_blocks": 4},
        r'near_duplicates = "drop": needs all text at once, which a stream does not give',
    ),
    "push": ({"hub.push": "end"}, r'hub.push = "end": needs hub.model_id; set it to USER/NAME'),
    **{
        f"model id {name!r}": ({"hub.model_id": name}, r"hub.model_id = .*: must be USER/NAME")
        for name in ("../../etc/x", "a/b/c", "x y/z", "u/m\n# in", "-bad/m", "u/..", "u/m.git", "m")
    },
    "licence": ({"hub.license": "mit\n---"}, r"hub.license = .*"),
    "tag": ({"hub.tags": ["[a](b)"]}, r"hub.tags.*"),
    "extra": (
        {"training.extra_args": {"adam_beta1": 0.9}},
        r"adam_beta1: has a recipe key; use training.betas",
    ),
    "extra typo": (
        {"training.extra_args": {"torch_empty_cache_step": 3}},
        r'did you mean "torch_empty_cache_steps"',
    ),
    "extra type": (
        {"training.extra_args": {"full_determinism": "yes"}},
        r"full_determinism: is str, expected bool",
    ),
    "output": ({"output_dir": "/"}, r'output_dir = "/": is not a folder of its own'),
    "token": ({"hub.token": "x"}, r"hub.token: unknown key; a recipe must not hold a secret"),
}


@pytest.mark.parametrize("name", SINGLE)
def test_an_invalid_key_is_reported_with_value_and_rule(
    name: str, write_recipe: Callable[..., Path]
) -> None:
    changes, expected = SINGLE[name]
    path = write_recipe(**{key.replace(".", "__"): value for key, value in changes.items()})
    lines = problems(path)
    assert len(lines) == (3 if name in ("size", "scratch") else 1), lines
    assert re.search(expected, lines[0]), lines


def test_everything_that_completions_need_is_reported_at_once(
    write_recipe: Callable[..., Path],
) -> None:
    path = write_recipe(
        data__train_on="completion",
        data__streaming=True,
        data__text_template="{a}{b}",
        data__text_column="body",
    )
    lines = problems(path)
    for key in ("grouping", "document_mask", "streaming", "text_column", "text_template"):
        assert any(line.startswith(f"data.{key} = ") and "train_on" in line for line in lines), key
    assert any("data.train_on" in line and "set model.pretrained" in line for line in lines)


# Rows that break the JSON itself: text, expected line.
BROKEN = {
    "2 empty": ("", "is empty"),
    "2 not json": ("learning_rate: 3", r"line 1 column 1: Expecting value"),
    "2 comma": ('{"name": "x",\n}', r"line [12] column \d+: .* no comma before a closing bracket"),
    "2 comment": ('{\n// no\n"name": "x"}', r"line 2 column 1: .*JSON has no comments.*// no"),
    "2 quotes": ("{'name': 3}", r"line 1 column 2: .*double quotes"),
    "4": ('{"seed": 1, "seed": 2}', r"seed: is given twice"),
    "4 nested": ('{"data": {"split": "a", "split": "b"}}', r"data.split: is given twice"),
    "5 nan": ('{"training": {"eps": NaN}}', r"training.eps = NaN: is not a finite number"),
    "5 infinity": ('{"training": {"eps": -Infinity}}', r"eps = -Infinity: is not a finite"),
    "5 large": ('{"training": {"eps": 1e999}}', r"eps = 1e999: is not a finite number"),
    "5 int": (f'{{"seed": 1{"0" * 400}}}', r"seed = 10+\.\.\.: is not a finite number in range"),
    "6 list": ("[1]", r"the top level is \[1\], expected an object"),
    "6 text": ('"x"', r'the top level is "x"'),
    "6 null": ("null", r"the top level is null"),
    "deep": ("[" * 100_000, r"is nested too deeply"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_syntax_errors_are_reported_with_line_and_cause(name: str, tmp_path: Path) -> None:
    text, expected = BROKEN[name]
    path = tmp_path / "recipe.json"
    path.write_text(text)
    assert re.search(expected, "\n".join(problems(path)))


def test_a_missing_recipe_is_shown_with_its_full_path(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name, expected in (("none.json", "no such recipe"), (".", "is a folder")):
        with pytest.raises(RecipeError, match=expected) as caught:
            load_recipe(name)
        assert str(caught.value).startswith(str(tmp_path))


def test_a_byte_order_mark_is_accepted_and_utf16_is_not(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    text = json.dumps({"training": {"max_steps": 3}})
    path.write_text(text, encoding="utf-8-sig")
    assert load_recipe(path).training.max_steps == 3
    path.write_text(text, encoding="utf-16")
    assert problems(path) == ["is UTF-16; save it as UTF-8"]


@pytest.mark.parametrize(
    "secret", ["hf_" + "a" * 34, "ghp_" + "b" * 36, "AKIA" + "C" * 16, "https://me:pw@host/x"]
)
def test_a_secret_is_refused_and_not_printed(
    secret: str, write_recipe: Callable[..., Path]
) -> None:
    for key in ("name", "data__source", "evaluation__prompts", "training__extra_args"):
        value: Any = {"run": secret} if key.endswith("args") else secret
        lines = problems(write_recipe(**{key: [secret] if key.endswith("prompts") else value}))
        assert any("looks like a secret" in line for line in lines)
        assert not any(secret in line for line in lines)


def test_all_problems_are_reported_at_once(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(
        seed=-1,
        data__block_size=0,
        data__streming=True,
        tokenizer__train__kind="bpee",
        model__n_embd=33,
        model__dropout=2,
        training__learning_rate="fast",
        training__lr=1,
        training__warmup_steps=99,
        training__extra_args={"hub_token": "x", "nope": 1},
        evaluation__prompts="The",
    )
    assert len(problems(path, "training.max_grad_norm=-1")) == 13


def test_set_overrides_obey_every_check(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe()
    recipe = load_recipe(path, overrides=["training.max_steps=3", "training.schedule=wsd"])
    assert (recipe.training.max_steps, recipe.training.schedule) == (3, "wsd")
    assert problems(path, "training.max_stepz=3")[0].endswith('did you mean "max_steps"?')
    assert problems(path, "training.eps=NaN") == [
        "training.eps = NaN: is not a finite number in range"
    ]
    assert problems(path, "oops") == ['--set "oops": expected section.key=value']


def test_paths_start_at_the_recipe_and_in_overrides_at_the_current_folder(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: Any
) -> None:
    path = write_recipe()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    recipe = load_recipe(path)
    assert recipe.data.source == str(tmp_path / "corpus")
    assert recipe.folder == tmp_path / "run"
    recipe = load_recipe(path, overrides=["data.source=own.txt", "output_dir=out"])
    assert recipe.data.source == str(tmp_path / "elsewhere" / "own.txt")
    assert recipe.folder == tmp_path / "elsewhere" / "out"


def test_a_home_a_space_and_a_dollar_in_a_path_are_handled(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(data__source="~/a b.txt", output_dir="$HOME/ünï"))
    assert recipe.data.source == str(Path("~/a b.txt").expanduser())
    assert recipe.folder == tmp_path / "$HOME" / "ünï"


def test_a_stream_is_read_from_files_and_by_several_readers(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = load_recipe(
        write_recipe(
            data__streaming=True, training__dataloader_num_workers=3, data__source="corpus"
        )
    )
    assert recipe.data.source == str(tmp_path / "corpus")
    assert recipe.training.dataloader_num_workers == 3


def test_a_hub_id_stays_a_hub_id(write_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(write_recipe(data__source="USER/text", data__validation={"split": "test"}))
    assert recipe.data.source == "USER/text"


def test_from_turns_a_recipe_into_a_fine_tuning_recipe(write_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(write_recipe(), pretrained="USER/model")
    assert recipe.model.pretrained == recipe.tokenizer.pretrained == "USER/model"
    assert recipe.tokenizer.train is None
    path = write_recipe(model={"n_layer": 3, "lora": {}}, tokenizer={"chat_template": "{{ x }}"})
    recipe = load_recipe(path, overrides=["model.dropout=0.1"], pretrained="USER/model")
    assert recipe.model.n_layer is None
    assert (recipe.model.lora.r, recipe.model.dropout) == (16, 0.1)
    assert recipe.tokenizer.chat_template == "{{ x }}"
    with pytest.raises(RecipeError, match="n_layer = 2: describes a model from scratch"):
        load_recipe(path, overrides=["model.n_layer=2"], pretrained="USER/model")


@pytest.mark.parametrize(
    ("changes", "pretrained", "resolved"),
    [
        ({}, None, ("muon", 0.08, 0.02)),
        ({"training__optimizer": "adamw", "model__n_embd": 230}, None, ("adamw", 0.002, "auto")),
        ({"model": {}}, None, ("muon", 1.28 / 768, 0.02)),
        ({}, "USER/model", ("adamw", 5e-5, "auto")),
        ({"training__learning_rate": 0.5}, None, ("muon", 0.5, 0.02)),
        ({"training__matrix_learning_rate": 0.5}, None, ("muon", 0.08, 0.5)),
    ],
)
def test_auto_values_follow_from_the_recipe(
    changes: dict[str, Any],
    pretrained: str | None,
    resolved: tuple[Any, ...],
    write_recipe: Callable[..., Path],
    tmp_path: Path,
) -> None:
    given = {"training__learning_rate": "auto", **changes}
    recipe = load_recipe(write_recipe(**given), pretrained=pretrained)
    training = recipe.training
    found = training.optimizer, training.learning_rate, training.matrix_learning_rate
    assert found == pytest.approx(resolved)
    (tmp_path / "kept.json").write_text(recipe_text(recipe, tmp_path))
    assert load_recipe(tmp_path / "kept.json").training == training


def test_unwise_values_give_a_warning(write_recipe: Callable[..., Path]) -> None:
    recipe = load_recipe(write_recipe(training__learning_rate=1e3, training__save_steps=99))
    said = warnings(recipe)
    assert len(said) == 2
    assert "very high" in said[0]
    assert "no checkpoint before the end" in said[1]


def test_every_alias_of_another_tool_is_a_key() -> None:
    known = {key for model in sections().values() for key in key_names(model)}
    known |= {"holdout", "kind"}
    assert not {word for word, key in ALIASES.items() if key not in known}


def test_every_named_argument_is_a_field_of_training_arguments() -> None:
    from dataclasses import fields

    from transformers import TrainingArguments

    real = {field.name for field in fields(TrainingArguments)}
    assert set(training_arguments()) == real
    renamed = {"activation_checkpointing"}  # transformers 5.20 has gradient_checkpointing only
    assert set(COVERED_BY) | set(REFUSED) <= real | renamed
    assert not set(COVERED_BY) & set(REFUSED)


def test_no_argument_that_hf_lm_sets_itself_is_accepted_from_a_recipe() -> None:
    tree = ast.parse((ROOT / "hf_lm" / "training" / "arguments.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    call = next(c for c in calls if ast.unparse(c.func) == "TrainingArguments")
    ours = {keyword.arg for keyword in call.keywords if keyword.arg}
    assert "ddp_find_unused_parameters" in ours
    assert ours <= set(COVERED_BY) | set(REFUSED)


LEAVES = [
    (section, key)
    for section, tree in merged(Recipe().model_dump(mode="json", by_alias=True), TINY).items()
    for key in (tree if isinstance(tree, dict) else [""])
]
NASTY = [None, "", [], {}, -1, 0, 1e308, "1", True, "\0", [[]], {"": 0}, "a" * 400, 2**62, [None]]


@pytest.mark.parametrize("leaf", LEAVES, ids=".".join)
def test_any_value_of_any_key_raises_only_recipe_errors(
    leaf: tuple[str, str], write_recipe: Callable[..., Path]
) -> None:
    for value in NASTY:
        path = write_recipe(**{"__".join(filter(None, leaf)): value})
        with contextlib.suppress(RecipeError):
            load_recipe(path)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_key_with_one_wrong_letter_is_suggested(data: st.DataObject) -> None:
    known = [
        key
        for key in key_names(data.draw(st.sampled_from(list(sections().values()))))
        if len(key) > 5
    ]
    if not known:
        return
    typo = data.draw(st.sampled_from(one_letter_away(data.draw(st.sampled_from(known)))))
    # "os_token" is as close to eos_token as to bos_token: either is a good suggestion.
    closest = [key for key in known if typo in one_letter_away(key)]
    assert typo in known or closest_key(typo, known) in closest


def one_letter_away(key: str) -> list[str]:
    """Return `key` with one letter left out, or one more written."""
    places = range(len(key))
    left_out = [key[:place] + key[place + 1 :] for place in places]
    added = [key[:place] + letter + key[place:] for place in places for letter in ascii_lowercase]
    return left_out + added


@settings(max_examples=200, deadline=None)
@given(text=st.binary(max_size=200))
def test_random_bytes_are_refused_in_one_line(text: bytes, tmp_path_factory: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "random.json"
    path.write_bytes(text)
    with pytest.raises(RecipeError):
        load_recipe(path)
