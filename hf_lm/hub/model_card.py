"""Write the model card: results, curve, samples and recipe.

What a person wrote (names, prompts, samples) reaches the page as code or escaped, so that none of
it becomes a heading, a link or markup, and no path of the machine is in it.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_lm.evaluation.metrics import metric_rows
from hf_lm.hub.markdown import LONGEST, code, fenced, plain
from hf_lm.recipe import Recipe, recipe_dict
from hf_lm.recipe.paths import HUB_ID
from hf_lm.recipe.published import published_recipe

CARD, CURVE, RECIPE = "README.md", "loss.png", "recipe.json"


METRICS, PROVENANCE = "metrics.json", "provenance.json"


CHAT_TEMPLATE = "chat_template.jinja"  # as transformers saves it


MEASURED = {  # for model-index: the Hub's ids of metrics
    "loss": "Loss",
    "perplexity": "Perplexity",
    "accuracy": "Accuracy",
    "bits_per_byte": "Bits per byte",
}


class Facts(NamedTuple):
    """What the folder of a run says of it; without metrics while it trains."""

    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, Any]
    chat: bool  # whether the tokenizer renders messages


def write_card(
    folder: Path, run: Path, recipe: Recipe, rows: Iterable[Mapping[str, Any]], *, step: int = 0
) -> None:
    """Put beside the weights in a folder what tells a stranger of them.

    Args:
        folder: of the model.
        run: the folder of its run.
        recipe: of the run.
        rows: of its log.
        step: of a model whose training goes on; it has no metrics yet.
    """
    found = {}
    for name in (PROVENANCE,) if step else (PROVENANCE, METRICS):
        shutil.copyfile(run / name, folder / name)
        found[name] = json.loads((run / name).read_text(encoding="utf-8"))
    metrics = {name: number(value) for name, value in found.get(METRICS, {}).items()}
    chat = (folder / CHAT_TEMPLATE).is_file()
    facts = Facts(recipe_dict(recipe), found[PROVENANCE], [*rows], metrics, chat)
    own = published_recipe(facts.recipe)
    (folder / RECIPE).write_text(json_text(own) + "\n", encoding="utf-8")
    curve = draw_curve(facts.rows, folder / CURVE)
    text = card_text(facts, own, curve=CURVE if curve else "", step=step)
    (folder / CARD).write_text(text, encoding="utf-8")


def number(value: Any) -> Any:
    """A metric; what is not finite is a word in JSON."""
    return float(value) if isinstance(value, str) else value


def json_text(raw: Mapping[str, Any]) -> str:
    """An object as JSON for people."""
    return json.dumps(raw, indent=2, ensure_ascii=False)


def card_text(facts: Facts, recipe: Mapping[str, Any], *, curve: str, step: int) -> str:
    """The page, in Markdown behind a front matter of YAML."""
    pages = Environment(  # what is escaped is escaped by name: this is no HTML
        loader=PackageLoader("hf_lm.hub", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    pages.filters.update(code=code, fenced=fenced, plain=plain, python=repr)
    hub, provenance = facts.recipe["hub"], facts.provenance
    pretrained = recipe["model"]["pretrained"]
    address = hub["model_id"] or recipe["name"]
    samples = next((row["samples"] for row in reversed(facts.rows) if row.get("samples")), [])
    talks = recipe["data"]["train_on"] == "completion" and facts.chat
    return pages.get_template("model_card.md.jinja").render(
        talks=talks,
        front_matter=front_matter(facts, recipe),
        title=address,
        address=address,
        base=code(pretrained) if pretrained else "",
        step=step,
        adapts=adapts(recipe["model"]),
        context=recipe["data"]["block_size"],
        prompt=next((s["prompt"] for s in samples if s["prompt"]), "Once upon a time"),
        sources=sources_of(recipe["data"]["source"]),
        license=hub["license"],
        text=text_rows(provenance),
        measured=metric_rows(facts.metrics) if facts.metrics else [],
        training=training_rows(facts, recipe),
        recipe=json_text(recipe),
        metrics=facts.metrics,
        provenance={"commits": [], **provenance},
        samples=samples,
        curve=curve,
    )


def front_matter(facts: Facts, recipe: Mapping[str, Any]) -> str:
    """What the Hub reads: licence, tags, base model, data sets and results, as YAML."""
    hub, sources = facts.recipe["hub"], sources_of(recipe["data"]["source"])
    pretrained = facts.recipe["model"]["pretrained"]  # where a local one is a path
    base = pretrained if pretrained and HUB_ID.match(pretrained) else None
    on_hub = [name for name in sources if HUB_ID.match(name) and "/" in name]
    held_out = "held-out documents of " + ", ".join(sources)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=on_hub[0] if on_hub else "text",
            dataset_name=held_out[:LONGEST],
            metric_type=key,
            metric_name=name,
            metric_value=facts.metrics[key],
        )
        for key, name in MEASURED.items()
        if math.isfinite(facts.metrics.get(key, math.nan))
    ]
    data = ModelCardData(
        base_model=base,
        base_model_relation=relation(recipe["model"]) if base else None,
        datasets=on_hub or None,
        eval_results=results or None,
        library_name="peft" if adapts(recipe["model"]) else "transformers",
        license=hub["license"],
        model_name=str(hub["model_id"] or recipe["name"]),
        pipeline_tag="text-generation",
        tags=[*dict.fromkeys(("hf_lm", *hub["tags"]))],
    )
    return data.to_yaml() + "\n"


def adapts(model: Mapping[str, Any]) -> bool:
    """Whether what is published is an adapter."""
    return bool(model["lora"] and not model["lora"]["merge"])


def relation(model: Mapping[str, Any]) -> str:
    """What a model is to its base, in the Hub's words."""
    return "adapter" if adapts(model) else "finetune"


def sources_of(source: Any) -> list[str]:
    """The names in `data.source`."""
    if isinstance(source, Mapping):
        return sources_of(source["source"])
    if isinstance(source, str):
        return [source]
    return [name for item in source for name in sources_of(item)]


def text_rows(provenance: Mapping[str, Any]) -> list[dict[str, str]]:
    """What was trained on and held out, as rows of a table; a stream is not counted."""
    text = provenance.get("text", {})
    parts = ("train", "validation")
    names = ("documents", "bytes", "tokens")
    found = [
        {"name": name, **{p: counted(text.get(p, {}).get(name)) for p in parts}} for name in names
    ]
    return [row for row in found if any(row[part] != UNKNOWN for part in parts)]


UNKNOWN = "not counted"


def counted(number: int | None) -> str:
    """A count, or that there is none."""
    return UNKNOWN if number is None else f"{number:,}"


def training_rows(facts: Facts, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """How it was trained, and on what."""
    training, provenance, metrics = recipe["training"], facts.provenance, facts.metrics
    steps = facts.rows[-1]["step"] if facts.rows else 0
    yield "steps", f"{steps:,} of {training['tokens_per_step']:,} tokens"
    yield "optimizer", f"{training['optimizer']}, schedule {training['schedule']}"
    if metrics:
        yield "parameters", f"{metrics['parameters']:,}"
        yield "tokens", f"{metrics['train_tokens']:,}"
        yield "time", f"{metrics['train_seconds'] / 3600:.2f} h"
        yield "speed", f"{metrics['tokens_per_second']:,.0f} tokens a second"
        yield "operations", f"{metrics['train_flops']:.3g} FLOP, MFU {metrics['mfu']:.1%}"
    machine = (f"{provenance['world_size']} process(es)", provenance["device"])
    yield "machine", ", ".join((*machine, provenance["precision"]))
    yield "versions", ", ".join(f"{name} {v}" for name, v in provenance["packages"].items())
    yield "made by", f"hf_lm {provenance['hf_lm']}, python {provenance['python']}"


def draw_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """The losses over the steps as a picture; whether there were any."""
    lines = [
        (label, [(row["step"], row[key]) for row in rows if isinstance(row.get(key), float)])
        for label, key in (("training", "loss"), ("held out", "eval_loss"))
    ]
    if not any(points for _, points in lines):
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for label, points in lines:
        mark = "o" if label == "held out" else ""
        axes.plot([x for x, _ in points], [y for _, y in points], marker=mark, label=label)
    axes.set(xlabel="step", ylabel="loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True
