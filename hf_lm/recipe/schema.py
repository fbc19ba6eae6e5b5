"""Generate recipe.schema.json and recipes/README.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hf_lm.recipe.paths import SCHEMA_FILE
from hf_lm.recipe.sections.recipe import Recipe


def schema_text() -> str:
    """Return the text of recipe.schema.json."""
    schema = Recipe.model_json_schema(by_alias=True)
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "hf_lm recipe"
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def kind(field: dict[str, Any]) -> str:
    """Describe the type of a key in a few words."""
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(kind(option) for option in field["anyOf"]))
    if "enum" in field:
        return " | ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if "$ref" in field:
        return "object"
    name = {"integer": "whole number", "boolean": "true or false", "array": "list"}.get(
        field.get("type", ""), field.get("type", "any")
    )
    bounds = {
        "exclusiveMinimum": ">",
        "minimum": "≥",
        "exclusiveMaximum": "<",
        "maximum": "≤",
    }
    limits = [f"{sign} {field[key]:.10g}" for key, sign in bounds.items() if key in field]
    return f"{name} {', '.join(limits)}".rstrip()


def table(model: dict[str, Any]) -> list[str]:
    """Return a Markdown table with the name, type, default and description of each key."""
    rows = ["| key | type | default | what it is |", "|---|---|---|---|"]
    for key, field in model["properties"].items():
        default = json.dumps(field["default"], ensure_ascii=False) if "default" in field else "–"
        if default.startswith("{") and len(default) > 40:
            default = "see below"
        cells = (f"`{key}`", kind(field), f"`{default}`", field.get("description", ""))
        rows.append("| " + " | ".join(c.replace(" | ", " \\| ") for c in cells) + " |")
    return rows


def readme_text() -> str:
    """Return the text of recipes/README.md: every key of every section."""
    schema = Recipe.model_json_schema(by_alias=True)
    lines = [HEAD, "## Top level", "", *table(schema)]
    for name, title in TITLES.items():
        definition = schema["$defs"][name]
        lines += ["", f"## {title}", "", definition["description"], "", *table(definition)]
    return "\n".join(lines) + "\n"


TITLES = {
    "DataRecipe": "`data`",
    "WeightedSource": "an item of `data.source`",
    "Validation": "`data.validation`",
    "TokenizerRecipe": "`tokenizer`",
    "TrainTokenizer": "`tokenizer.train`",
    "ModelRecipe": "`model`",
    "LoraRecipe": "`model.lora`",
    "TrainingRecipe": "`training`",
    "EvaluationRecipe": "`evaluation`",
    "HubRecipe": "`hub`",
}


HEAD = """\
# Recipes

<!-- Generated from hf_lm/recipe by `python -m hf_lm.recipe.schema`; do not edit. -->

| recipe | what it trains | where |
|---|---|---|
| `small.json` | a GPT-2 on the source of Python's standard library | a CPU, minutes |
| `small_modern.json` | the same budget, with the blocks of Qwen3 | a CPU, minutes |
| `shakespeare_char.json` | nanoGPT's CPU setting, one token per character | a CPU, minutes |
| `gpt2_124m.json` | GPT-2 small on streamed web text | one GPU to eight |
| `instruct.json` | any `model.pretrained` with a chat template, on conversations | a GPU |
| `finetune.json` | any `model.pretrained`, on your own text | a CPU or a GPU |

A recipe is one JSON object with six sections. Every key has a default; unknown keys are errors.
Relative paths start at the recipe's folder; in `--set section.key=value` at the current folder.
A number of steps below 1 is a fraction of all steps. Environment variables are not expanded: a `$`
is a dollar sign. In text files, line ends are read as `\\n` and a byte-order mark is removed.
"""


def main() -> None:
    """Write both files."""
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
    readme = Path(__file__).parents[2] / "recipes" / "README.md"
    readme.write_text(readme_text(), encoding="utf-8")


if __name__ == "__main__":
    main()
