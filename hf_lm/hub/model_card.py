"""Write the model card: results, curve, samples and recipe.

Names, prompts and samples were written by people. They appear as code or escaped, so that none of
them becomes a heading, a link or markup. Paths of this machine do not appear.
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

from hf_lm.evaluation import metrics as evaluation_metrics
from hf_lm.evaluation.metrics import metric_rows
from hf_lm.hub.markdown import MAX_LENGTH, code, fenced, plain
from hf_lm.recipe import Recipe, recipe_dict
from hf_lm.recipe.paths import HUB_ID
from hf_lm.recipe.published import published_recipe

CARD, CURVE, RECIPE = "README.md", "loss.png", "recipe.json"
METRICS, PROVENANCE = "metrics.json", "provenance.json"
CHAT_TEMPLATE = "chat_template.jinja"  # written by transformers, if the tokenizer has one
TEMPLATE = "model_card.md.jinja"

NOT_COUNTED = "not counted"


class RunRecord(NamedTuple):
    """The files of a run that its card is made from; the metrics are empty while it trains."""

    recipe: Mapping[str, Any]
    provenance: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    metrics: Mapping[str, float]
    has_chat_template: bool


def write_card(
    folder: Path, run: Path, recipe: Recipe, rows: Iterable[Mapping[str, Any]], *, step: int = 0
) -> None:
    """Write the model card, recipe, metrics, provenance and loss curve beside the weights.

    Args:
        folder: the directory of the model.
        run: the output directory of the run.
        recipe: the recipe of the run.
        rows: the rows of its log.
        step: the step of a checkpoint, which has no metrics yet; 0 for the finished model.
    """
    copied: dict[str, dict[str, Any]] = {}
    for name in (PROVENANCE,) if step else (PROVENANCE, METRICS):
        shutil.copyfile(run / name, folder / name)
        copied[name] = json.loads((run / name).read_text(encoding="utf-8"))
    metrics = {name: parse_number(value) for name, value in copied.get(METRICS, {}).items()}
    has_chat_template = (folder / CHAT_TEMPLATE).is_file()
    record = RunRecord(recipe_dict(recipe), copied[PROVENANCE], [*rows], metrics, has_chat_template)
    public_recipe = published_recipe(record.recipe)
    (folder / RECIPE).write_text(json_text(public_recipe) + "\n", encoding="utf-8")
    has_curve = draw_curve(record.rows, folder / CURVE)
    text = card_text(record, public_recipe, curve=CURVE if has_curve else "", step=step)
    (folder / CARD).write_text(text, encoding="utf-8")


def parse_number(value: float | str) -> float:
    """Parse a metric; metrics.json has NaN and infinity as strings."""
    return float(value) if isinstance(value, str) else value


def json_text(raw: Mapping[str, Any]) -> str:
    """Format an object as indented JSON."""
    return json.dumps(raw, indent=2, ensure_ascii=False)


def card_text(record: RunRecord, recipe: Mapping[str, Any], *, curve: str, step: int) -> str:
    """Render the card: YAML front matter, then Markdown.

    Args:
        record: what is known of the run.
        recipe: the recipe as it is published, without local paths.
        curve: the file name of the loss curve; empty if there is none.
        step: the step of a checkpoint; 0 for the finished model.
    """
    environment = Environment(  # The output is Markdown, so HTML autoescape would be wrong.
        loader=PackageLoader("hf_lm.hub", "."),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(code=code, fenced=fenced, plain=plain, python=repr)
    hub, provenance = record.recipe["hub"], record.provenance
    pretrained = recipe["model"]["pretrained"]
    address = hub["model_id"] or recipe["name"]
    samples = next((row["samples"] for row in reversed(record.rows) if row.get("samples")), [])
    is_chat = recipe["data"]["train_on"] == "completion" and record.has_chat_template
    return environment.get_template(TEMPLATE).render(
        is_chat=is_chat,
        front_matter=front_matter(record, recipe),
        title=address,
        address=address,
        base=code(pretrained) if pretrained else "",
        step=step,
        is_adapter=is_adapter(recipe["model"]),
        context=recipe["data"]["block_size"],
        prompt=next((s["prompt"] for s in samples if s["prompt"]), "Once upon a time"),
        sources=sources_of(recipe["data"]["source"]),
        license=hub["license"],
        text=text_rows(provenance),
        measured=metric_rows(record.metrics) if record.metrics else [],
        training=training_rows(record, recipe),
        recipe=json_text(recipe),
        metrics=record.metrics,
        provenance={"commits": [], **provenance},
        samples=samples,
        curve=curve,
    )


def front_matter(record: RunRecord, recipe: Mapping[str, Any]) -> str:
    """Format what the Hub reads as YAML: license, tags, base model, datasets and results."""
    hub, sources = record.recipe["hub"], sources_of(recipe["data"]["source"])
    pretrained = record.recipe["model"]["pretrained"]
    base = pretrained if pretrained and HUB_ID.match(pretrained) else None  # else a local path
    on_hub = [name for name in sources if HUB_ID.match(name) and "/" in name]
    validation_set = "validation set of " + ", ".join(sources)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=on_hub[0] if on_hub else "text",
            dataset_name=validation_set[:MAX_LENGTH],
            metric_type=key,
            metric_name=metric.label.capitalize(),
            metric_value=record.metrics[key],
        )
        for key, metric in evaluation_metrics.METRICS.items()
        if math.isfinite(record.metrics.get(key, math.nan))
    ]
    card_data = ModelCardData(
        base_model=base,
        base_model_relation=base_model_relation(recipe["model"]) if base else None,
        datasets=on_hub or None,
        eval_results=results or None,
        library_name="peft" if is_adapter(recipe["model"]) else "transformers",
        license=hub["license"],
        model_name=str(hub["model_id"] or recipe["name"]),
        pipeline_tag="text-generation",
        tags=[*dict.fromkeys(("hf_lm", *hub["tags"]))],
    )
    return card_data.to_yaml() + "\n"


def is_adapter(model: Mapping[str, Any]) -> bool:
    """Return whether a LoRA adapter is published, rather than a whole model."""
    return bool(model["lora"] and not model["lora"]["merge"])


def base_model_relation(model: Mapping[str, Any]) -> str:
    """Return the Hub's word for how a model relates to its base model."""
    return "adapter" if is_adapter(model) else "finetune"


def sources_of(source: Any) -> list[str]:
    """List the names in `data.source`, which is a name, a weighted source, or a list of them."""
    if isinstance(source, Mapping):
        return sources_of(source["source"])
    if isinstance(source, str):
        return [source]
    return [name for item in source for name in sources_of(item)]


def text_rows(provenance: Mapping[str, Any]) -> list[dict[str, str]]:
    """Format the documents, bytes and tokens of each split; a stream is not counted."""
    text = provenance.get("text", {})
    splits = ("train", "validation")
    rows = [
        {"name": name, **{split: format_count(text.get(split, {}).get(name)) for split in splits}}
        for name in ("documents", "bytes", "tokens")
    ]
    return [row for row in rows if any(row[split] != NOT_COUNTED for split in splits)]


def format_count(number: int | None) -> str:
    """Format a count with thousands separators; None is "not counted"."""
    return NOT_COUNTED if number is None else f"{number:,}"


def training_rows(record: RunRecord, recipe: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield how the model was trained, and on which hardware."""
    training, provenance, metrics = recipe["training"], record.provenance, record.metrics
    steps = record.rows[-1]["step"] if record.rows else 0
    yield "steps", f"{steps:,} of {training['tokens_per_step']:,} tokens"
    yield "optimizer", f"{training['optimizer']}, schedule {training['schedule']}"
    if metrics:
        yield "parameters", f"{metrics['parameters']:,}"
        yield "tokens", f"{metrics['train_tokens']:,}"
        yield "time", f"{metrics['train_seconds'] / 3600:.2f} h"
        yield "speed", f"{metrics['tokens_per_second']:,.0f} tokens per second"
        yield "compute", f"{metrics['train_flops']:.3g} FLOP, MFU {metrics['mfu']:.1%}"
    num_processes = provenance["world_size"]
    processes = f"{num_processes} process{'es' if num_processes > 1 else ''}"
    yield "hardware", ", ".join((processes, provenance["device"], provenance["precision"]))
    yield "versions", ", ".join(f"{name} {v}" for name, v in provenance["packages"].items())
    yield "made by", f"hf_lm {provenance['hf_lm']}, python {provenance['python']}"


def draw_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> bool:
    """Draw training and validation loss over the steps.

    Args:
        rows: the rows of the log.
        path: the PNG file.

    Returns:
        False if there are no losses; no file is written then.
    """
    lines = [
        (label, [(row["step"], row[key]) for row in rows if isinstance(row.get(key), float)])
        for label, key in (("training", "loss"), ("validation", "eval_loss"))
    ]
    if not any(points for _, points in lines):
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.add_subplot()
    for label, points in lines:
        mark = "o" if label == "validation" else ""
        axes.plot([x for x, _ in points], [y for _, y in points], marker=mark, label=label)
    axes.set(xlabel="step", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
    return True
