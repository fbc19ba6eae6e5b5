"""Check rules between keys, and warn about settings that are allowed but unwise."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hf_lm import __version__
from hf_lm.recipe.paths import HUB_ID
from hf_lm.recipe.sections.data import DataRecipe, WeightedSource, template_fields
from hf_lm.recipe.sections.model import ModelRecipe
from hf_lm.recipe.sections.recipe import Recipe
from hf_lm.recipe.strict_json import NO_VALUE, Problem
from hf_lm.recipe.validation.extra_args import argument_problems

FROM_SCRATCH = tuple(
    name for name in ModelRecipe.model_fields if name not in ("pretrained", "dropout", "lora")
)


BYTE_VOCABULARY = 257  # 256 bytes and end-of-text


Check = Callable[[Recipe], Iterator["Conflict"]]


class Conflict(Problem):
    """A problem of one key that other keys have a part in."""

    @property
    def keys(self) -> set[tuple[str, ...]]:
        """Every key the rule names, its own among them."""
        named = re.findall(
            r"\b((?:data|tokenizer|model|training|evaluation|hub)\.[a-z_.]+)", self.rule
        )
        return {self.path, *(tuple(name.rstrip(".").split(".")) for name in named)}


def clash(key: str, rule: str, value: Any = NO_VALUE) -> Conflict:
    """A clash, by its dotted key."""
    return Conflict(tuple(key.split(".")), rule, value)


def find_conflicts(recipe: Recipe) -> list[Conflict]:
    """Every rule between keys that the recipe breaks."""
    return [found for check in CHECKS for found in check(recipe)]


def check_version(recipe: Recipe) -> Iterator[Conflict]:
    """The program can read the recipe."""
    needs = recipe.hf_lm_version
    if needs and [int(n) for n in needs.split(".")] > [int(n) for n in __version__.split(".")]:
        yield clash("hf_lm_version", f"needs hf_lm >= {needs}, this is {__version__}", needs)


def check_length(recipe: Recipe) -> Iterator[Conflict]:
    """One end of training, and warmup before it."""
    training = recipe.training
    ends = {
        name: value
        for name in ("max_steps", "max_epochs", "max_tokens")
        if (value := getattr(training, name)) is not None
    }
    if not ends:
        yield clash("training.max_steps", "is missing; give it, or max_epochs or max_tokens")
    if len(ends) > 1:
        *first, last = ends
        yield clash(
            f"training.{last}",
            f"cannot stand beside {', '.join(first)}; keep one and set the others to null",
            ends[last],
        )
    steps, warmup = training.max_steps, training.warmup_steps
    if training.max_tokens:
        steps = -(-training.max_tokens // training.tokens_per_step)
    if steps and warmup >= 1 and warmup > steps:
        yield clash(
            "training.warmup_steps", f"is more than the {steps} steps of the run; lower it", warmup
        )


def check_rates(recipe: Recipe) -> Iterator[Conflict]:
    """Every rate has a use, and "auto" a rule."""
    training, kind = recipe.training, recipe.training.optimizer
    if training.matrix_learning_rate != "auto" and kind not in ("auto", "muon"):
        rule = f'is muon\'s; remove it or training.optimizer = "{kind}"'
        yield clash("training.matrix_learning_rate", rule, training.matrix_learning_rate)
    if training.skip_loss_spikes and training.precision == "fp16":
        rule = (
            "cannot be combined with fp16, whose scaler decides what is skipped; use bf16 or fp32"
        )
        yield clash("training.skip_loss_spikes", rule, training.skip_loss_spikes)
    if training.learning_rate == "auto" and kind == "sgd":
        rule = "has no rule for sgd; give a number"
        yield clash("training.learning_rate", rule, "auto")
    if training.matrix_learning_rate == "auto" and kind == "muon" and recipe.model.pretrained:
        rule = 'has no rule for pretrained weights; give a number or use training.optimizer "adamw"'
        yield clash("training.matrix_learning_rate", rule, "auto")


def check_batch(recipe: Recipe) -> Iterator[Conflict]:
    """A step is a whole number of blocks, and of micro-batches."""
    training, block = recipe.training, recipe.data.block_size
    tokens, micro = training.tokens_per_step, training.micro_batch_size
    blocks, rest = divmod(tokens, block)
    if rest:
        near = " or ".join(str(n * block) for n in (blocks, blocks + 1) if n)
        yield clash(
            "training.tokens_per_step",
            f"is no multiple of data.block_size = {block}; use {near}",
            tokens,
        )
    elif micro != "auto" and blocks % micro:
        divisors = ", ".join(str(n) for n in range(1, blocks + 1) if blocks % n == 0)
        yield clash(
            "training.micro_batch_size",
            f"does not divide the {blocks} blocks of training.tokens_per_step; use one of "
            f"{divisors}",
            micro,
        )


def check_model(recipe: Recipe) -> Iterator[Conflict]:
    """The numbers of the network fit each other and the blocks."""
    model = recipe.model
    if model.pretrained:
        for name in FROM_SCRATCH:
            value = getattr(model, name)
            if value != ModelRecipe.model_fields[name].default:
                rule = "describes a model from scratch; remove it or model.pretrained"
                yield clash(f"model.{name}", rule, value)
        return
    for name in ("n_layer", "n_head", "n_embd"):
        if model.size and getattr(model, name) is not None:
            rule = f'is said by model.size = "{model.size}"; remove one of them'
            yield clash(f"model.{name}", rule, getattr(model, name))
    _, heads, width = model.shape
    unit = heads if model.family == "gpt2" else 2 * heads  # rotary positions turn pairs of numbers
    if width % unit:
        below, above = width // unit * unit, (width // unit + 1) * unit
        near = " or ".join(str(n) for n in (below, above) if n)
        rule = f"is no multiple of {unit}, which model.n_head = {heads} needs; use {near}"
        yield clash("model.n_embd", rule, width)
    if model.n_positions and recipe.data.block_size > model.n_positions:
        yield clash(
            "data.block_size",
            f"is more than model.n_positions = {model.n_positions}; lower the first or raise "
            "the second",
            recipe.data.block_size,
        )


def check_lora(recipe: Recipe) -> Iterator[Conflict]:
    """Adapters are of pretrained weights, and useless to others without them."""
    model, hub = recipe.model, recipe.hub
    if model.lora is None:
        return
    if model.pretrained is None:
        yield clash("model.lora", "adapts pretrained weights; set model.pretrained")
    if find_spec("peft") is None:
        yield clash("model.lora", "needs peft; pip install 'hf_lm[lora]'")
    if hub.push == "every_save":
        rule = 'with model.lora is "end" or "never": what is saved meanwhile is no whole model'
        yield clash("hub.push", rule, hub.push)
    local = model.pretrained is not None and Path(model.pretrained).is_absolute()
    if hub.push != "never" and local and not model.lora.merge:
        rule = "is on this machine alone, and so is what the adapters are for; set model.lora.merge"
        yield clash("model.pretrained", rule, model.pretrained)


def check_tokenizer(recipe: Recipe) -> Iterator[Conflict]:
    """One tokenizer, with a vocabulary of its own kind, that suits the model."""
    tokenizer, train = recipe.tokenizer, recipe.tokenizer.train
    if tokenizer.pretrained and train:
        yield clash("tokenizer.train", "cannot stand beside tokenizer.pretrained; keep one")
    if train and recipe.model.pretrained:
        rule = "model.pretrained knows its own tokens only; remove tokenizer.train"
        yield clash("tokenizer.train", rule)
    size = train.vocab_size if train else None
    if train and size is not None and train.kind != "bpe":
        rule = f'is fixed by the text for kind "{train.kind}"; remove it'
        yield clash("tokenizer.train.vocab_size", rule, size)
    elif size is not None and size < BYTE_VOCABULARY:
        rule = f"must be >= {BYTE_VOCABULARY}: 256 bytes and the end-of-text token"
        yield clash("tokenizer.train.vocab_size", rule, size)
    if train and train.kind == "char" and recipe.data.streaming:
        rule = 'a stream\'s alphabet is not known before it ends; use "bpe" or "byte"'
        yield clash("tokenizer.train.kind", rule, "char")


def check_additions(recipe: Recipe) -> Iterator[Conflict]:
    """What is added to a tokenizer is added to one that exists, and is learnt."""
    tokenizer, model = recipe.tokenizer, recipe.model
    for name in ("add_tokens", "chat_template"):
        if getattr(tokenizer, name) and not (tokenizer.pretrained or model.pretrained):
            rule = "is for a tokenizer that exists; set model.pretrained or remove it"
            yield clash(f"tokenizer.{name}", rule)
    if tokenizer.add_tokens and model.lora:
        rule = "would never be learnt: model.lora leaves embeddings as they are; remove one"
        yield clash("tokenizer.add_tokens", rule)


def check_data(recipe: Recipe) -> Iterator[Conflict]:
    """The held-out text has one origin, and streaming has an end."""
    data, held = recipe.data, recipe.data.validation
    own = [n for n in ("source", "config", "split", "revision") if getattr(held, n) is not None]
    if held.holdout is not None and own:
        rule = f"cannot stand beside data.validation.{own[0]}; keep one"
        yield clash("data.validation.holdout", rule, held.holdout)
    if held.holdout is None and not own:
        rule = 'is empty; give {"holdout": 0.05} or {"source": …} or {"split": …}'
        yield clash("data.validation", rule)
    for name in ("document_mask", "grouping"):
        if getattr(data, name) in (True, "best_fit") and not data.append_eos:
            rule = "finds documents by their end-of-text token; set data.append_eos to true"
            yield clash(f"data.{name}", rule, getattr(data, name))
    yield from check_sources(data)
    if data.streaming:
        yield from check_stream(recipe)
    if data.train_on == "completion":
        yield from check_completion(recipe)


def check_sources(data: DataRecipe) -> Iterator[Conflict]:
    """Sources are mixed or read in turn, and their text has one description."""
    if isinstance(data.source, tuple):
        weighted = [isinstance(entry, WeightedSource) for entry in data.source]
        if not weighted:
            yield clash("data.source", "must not be empty", [])
        if len(set(weighted)) > 1:
            rule = 'gives a weight to some sources only; write each as {"source": …, "weight": …}'
            yield clash("data.source", rule)
    if data.text_template is not None:
        if data.text_column != "text":
            rule = "cannot stand beside data.text_template; keep one"
            yield clash("data.text_column", rule, data.text_column)
        try:
            template_fields(data.text_template)
        except ValueError:
            rule = 'must name columns as "{title}\\n\\n{body}" does, and nothing else in braces'
            yield clash("data.text_template", rule, data.text_template)


def check_completion(recipe: Recipe) -> Iterator[Conflict]:
    """Conversations are whole, see no other, and are rendered by a tokenizer that exists."""
    data, needs = recipe.data, 'with data.train_on = "completion"'
    if data.grouping != "best_fit":
        rule = f'cuts a conversation in two; {needs} it must be "best_fit"'
        yield clash("data.grouping", rule, data.grouping)
    if not data.document_mask:
        rule = f"lets a conversation see the one before it; {needs} it must be true"
        yield clash("data.document_mask", rule, data.document_mask)
    if data.streaming:
        rule = f"{needs} must be false: conversations are prepared first"
        yield clash("data.streaming", rule, data.streaming)
    for name, usual in (("text_column", "text"), ("text_template", None)):
        if getattr(data, name) != usual:
            rule = f"is of text; {needs} columns have fixed names; remove it"
            yield clash(f"data.{name}", rule, getattr(data, name))
    if not (recipe.model.pretrained or recipe.tokenizer.pretrained):
        rule = "needs a tokenizer that knows its turns; set model.pretrained"
        yield clash("data.train_on", rule, data.train_on)


def check_stream(recipe: Recipe) -> Iterator[Conflict]:
    """A stream has no end of its own, and its held-out text is read before it."""
    if recipe.training.max_epochs is not None:
        rule = "a stream has no epochs; use training.max_tokens or training.max_steps"
        yield clash("training.max_epochs", rule, recipe.training.max_epochs)
    if recipe.data.max_bytes is not None:
        rule = "is not counted in a stream; use data.max_documents or training.max_tokens"
        yield clash("data.max_bytes", rule, recipe.data.max_bytes)
    if recipe.evaluation.max_blocks is None:
        rule = "is missing: with data.streaming it says how much text to hold out"
        yield clash("evaluation.max_blocks", rule)


def check_saving(recipe: Recipe) -> Iterator[Conflict]:
    """The best model is among those that were saved."""
    training = recipe.training
    save, evaluate = training.save_steps, training.eval_steps
    mixed = (save < 1) != (evaluate < 1)
    multiple = abs(save / evaluate - round(save / evaluate)) < 1e-9 and save >= evaluate
    if training.load_best_model_at_end and (mixed or not multiple):
        rule = (
            f"with load_best_model_at_end it must be a multiple of training.eval_steps = {evaluate}"
        )
        yield clash("training.save_steps", rule, save)


def check_hub(recipe: Recipe) -> Iterator[Conflict]:
    """What is to be published has an address."""
    name, push = recipe.hub.model_id, recipe.hub.push
    if push != "never" and name is None:
        yield clash("hub.push", "needs hub.model_id; set it to USER/NAME", push)
    if name is not None and not ("/" in name and HUB_ID.match(name) and plain_id(name)):
        yield clash("hub.model_id", "must be USER/NAME", name)


def plain_id(name: str) -> bool:
    """Whether a Hub id has none of what the Hub refuses in one."""
    return not any(split in name for split in ("..", "--")) and not name.endswith(
        (".git", ".ipynb")
    )


def check_arguments(recipe: Recipe) -> Iterator[Conflict]:
    """The further TrainingArguments exist and break no promise."""
    yield from (Conflict(*problem) for problem in argument_problems(recipe.training.extra_args))


CHECKS: tuple[Check, ...] = (
    check_version,
    check_data,
    check_tokenizer,
    check_additions,
    check_model,
    check_lora,
    check_length,
    check_rates,
    check_batch,
    check_saving,
    check_hub,
    check_arguments,
)


def warnings(recipe: Recipe) -> list[str]:
    """Legal values that rarely mean what they say, one line each."""
    training, found = recipe.training, []
    if training.learning_rate != "auto" and training.learning_rate > 1:
        found.append(f"training.learning_rate = {training.learning_rate} is very high")
    for name, missing in (("save_steps", "checkpoint"), ("eval_steps", "evaluation")):
        every = getattr(training, name)
        if training.max_steps and every > training.max_steps:
            found.append(
                f"training.{name} = {every} is over max_steps = {training.max_steps}: "
                f"no {missing} before the end"
            )
    return found
