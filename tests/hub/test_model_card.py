"""Test that the model card describes its run and escapes text that people wrote."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_lm.hub.markdown import code, fenced, plain
from hf_lm.hub.model_card import write_card
from hf_lm.recipe import make_recipe
from hf_lm.recipe.strict_json import read_raw
from recipes import TINY, merged

PROVENANCE = {
    "data": "0" * 64,
    "tokenizer": "1" * 64,
    "world_size": 2,
    "device": "a <b>fast</b> one",
    "precision": "fp32",
    "commits": ["USER/text@abc"],
    "text": {"train": {"documents": 3, "bytes": 4000, "tokens": 1000}},
    "packages": {"torch": "2.13.0"},
    "hf_lm": "0.1.0",
    "python": "3.11.7",
}
METRICS = {
    "loss": 2.5,
    "loss_stderr": 0.1,
    "perplexity": 12.1825,
    "accuracy": 0.25,
    "bits_per_byte": 1.5,
    "tokens": 640,
    "bytes": 1045,
    "parameters": 11968,
    "train_tokens": 1024,
    "train_seconds": 72.0,
    "tokens_per_second": 14.2,
    "train_flops": 7.2e7,
    "mfu": 0.1,
}
ROWS = [
    {"step": 4, "loss": 3.0},
    {"step": 8, "loss": 2.0, "eval_loss": 2.5, "samples": [{"prompt": "The ", "text": "end"}]},
]
MARKUP = [
    "<script>alert(1)</script>",
    "# a heading",
    "[a link](https://example.com)",
    "```\n# out of the fence\n```",
    "a\n---\nlicense: other\n---\n# heading",
    "{{ 7 * 7 }}",
    "\x1b[31mred\x1b[0m",
    "| a | cell |",
]


def card(folder: Path, changes: dict[str, Any] | None = None, **record: Any) -> str:
    """Write the card of a run and return its text."""
    tree = merged(TINY, {"hub.model_id": "USER/tiny", **(changes or {})})
    recipe = make_recipe(tree, folder, name="recipe.json")
    run = folder / "run"
    run.mkdir(exist_ok=True)
    record = {"provenance": PROVENANCE, "rows": ROWS, "metrics": METRICS, "step": 0, **record}
    for name in ("provenance", "metrics"):
        (run / f"{name}.json").write_text(json.dumps(record[name]))
    write_card(folder, run, recipe, record["rows"], step=record["step"])
    return (folder / "README.md").read_text(encoding="utf-8")


def front_matter(text: str) -> dict[str, Any]:
    """Parse the YAML at the start of a card."""
    return yaml.safe_load(text.split("---\n")[1])


def without_code(text: str) -> str:
    """Remove the front matter, code blocks and inline code from a card."""
    page = text.split("---\n", 2)[2]
    page = re.sub(r"^(`{3,})[^\n]*\n.*?^\1$", "", page, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", page)


def test_front_matter_has_the_fields_of_the_hub(tmp_path: Path) -> None:
    changes = {"hub.license": "mit", "hub.tags": ["tiny", "hf_lm"], "data.source": "USER/text"}
    fields = front_matter(card(tmp_path, changes))
    results = fields.pop("model-index")
    assert fields == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "license": "mit",
        "tags": ["hf_lm", "tiny"],
        "datasets": ["USER/text"],
    }
    (model,) = results
    measured = {m["type"]: m["value"] for m in model["results"][0]["metrics"]}
    assert model["name"] == "USER/tiny"
    assert measured == {
        key: METRICS[key] for key in ("loss", "perplexity", "accuracy", "bits_per_byte")
    }


def test_fine_tuned_model_names_its_base_without_linking_a_local_one(tmp_path: Path) -> None:
    text = card(tmp_path, {"model": {"pretrained": "USER/base"}, "tokenizer": {}})
    assert front_matter(text)["base_model"] == "USER/base"
    assert "fine-tuned from `USER/base`" in text
    (tmp_path / "mine").mkdir()
    text = card(tmp_path, {"model": {"pretrained": "./mine"}, "tokenizer": {}})
    assert "fine-tuned from `mine`" in text
    assert "base_model" not in front_matter(text)
    assert "base_model_relation" not in front_matter(text)
    assert str(tmp_path) not in text


def test_adapter_names_its_base_and_needs_peft(tmp_path: Path) -> None:
    model = {"pretrained": "USER/base", "lora": {"r": 4}}
    text = card(tmp_path, {"model": model, "tokenizer": {}})
    assert "a LoRA adapter of `USER/base`" in text
    assert "This needs only transformers and peft" in text
    assert front_matter(text)["library_name"] == "peft"
    assert front_matter(text)["base_model_relation"] == "adapter"
    model["lora"]["merge"] = True
    text = card(tmp_path, {"model": model, "tokenizer": {}})
    assert front_matter(text)["library_name"] == "transformers"
    assert front_matter(text)["base_model_relation"] == "finetune"


def test_non_finite_metric_is_shown_but_not_sent_as_a_result(tmp_path: Path) -> None:
    text = card(tmp_path, metrics={**METRICS, "perplexity": "Infinity"})
    assert "| perplexity | inf |" in text
    results = front_matter(text)["model-index"][0]["results"][0]["metrics"]
    assert [m["type"] for m in results] == ["loss", "accuracy", "bits_per_byte"]


def test_card_shows_results_and_how_to_use_the_model(tmp_path: Path) -> None:
    text = card(tmp_path)
    for piece in (
        "2.5000 ± 0.1000 nats per token",
        "![Training and validation loss",
        "The end",
        'from_pretrained("USER/tiny")',
        "hf_lm.run hub:USER/tiny --from USER/tiny",
        "| tokens | 1,000 | not counted |",
        "`USER/text@abc`",
    ):
        assert piece in text
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_published_recipe_is_complete_and_has_no_local_paths(tmp_path: Path) -> None:
    text = card(tmp_path, {"data.source": "corpus.txt"})
    block = re.findall(r"```json\n(.*?)\n```", text, flags=re.DOTALL)[-1]
    published = read_raw(tmp_path / "recipe.json")
    assert json.loads(block) == published
    assert published["data"]["source"] == "corpus.txt"
    assert not {"output_dir", "hub", "$schema"} & published.keys()
    recipe = make_recipe(published, tmp_path, name="published")
    assert recipe.training == make_recipe(merged(TINY, {}), tmp_path, name="tiny").training


def test_card_of_a_checkpoint_says_so_and_has_no_results(tmp_path: Path) -> None:
    text = card(tmp_path, rows=[], step=4)
    assert "**Not finished**: this is the model after step 4" in text
    assert "model-index" not in front_matter(text)
    assert "It has not been evaluated" in text
    assert not (tmp_path / "metrics.json").exists()
    assert not (tmp_path / "loss.png").exists()


def test_names_keep_their_spaces_and_joiners_and_lose_what_turns_a_line(tmp_path: Path) -> None:
    for kept in ("a\u202fb", "a\u00a0b", "a\u200cb"):  # screenshots of macOS, and Persian
        assert kept in card(tmp_path, provenance={**PROVENANCE, "device": kept})
    assert "\u202e" not in card(tmp_path, provenance={**PROVENANCE, "device": "a\u202eb"})


@pytest.mark.promise("S11")
@pytest.mark.parametrize("words", MARKUP)
def test_text_of_people_never_becomes_markup(words: str, tmp_path: Path) -> None:
    samples = [{"prompt": words, "text": words}]
    text = card(
        tmp_path,
        {"evaluation.prompts": [words]},
        rows=[{"step": 8, "loss": 1.0, "samples": samples}],
        provenance={**PROVENANCE, "device": words, "commits": [words]},
    )
    expected = without_code(card(tmp_path))
    page = without_code(text)
    for mark in (r"^#+ ", r"(?<!\\)\]\(", r"(?<!\\)<", r"\x1b", "49", r"^---$"):
        assert len(re.findall(mark, page, re.MULTILINE)) == len(
            re.findall(mark, expected, re.MULTILINE)
        ), mark
    assert front_matter(text) == front_matter(card(tmp_path))


def test_fence_is_longer_than_any_in_the_text() -> None:
    assert fenced("a\n````\nb") == "`````\na\n````\nb\n`````"
    assert code("a `b` c") == "`` a `b` c ``"
    assert plain("a_b *c*") == r"a\_b \*c\*"
    assert len(plain("x" * 10_000)) < 2_100
