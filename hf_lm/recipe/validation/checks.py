"""Check rules between keys, and warn about settings that are allowed but unwise."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.version import Version

from hf_lm import __version__
from hf_lm.recipe.paths import HUB_ID
from hf_lm.recipe.sections.model import ModelRecipe
from hf_lm.recipe.sections.recipe import Recipe
from hf_lm.recipe.validation.conflicts import Check, Conflict, conflict
from hf_lm.recipe.validation.data_checks import check_additions, check_data, check_tokenizer
from hf_lm.recipe.validation.effects import check_effects
from hf_lm.recipe.validation.extra_args import argument_problems

FROM_SCRATCH = tuple(
    name
    for name in ModelRecipe.model_fields
    if name not in ("pretrained", "dropout", "lora", "save_dtype")
)

# transformers from this version on refuses a peft below this one, when an adapter is added.
TRANSFORMERS_NEEDS_PEFT = (Version("5.24"), Version("0.22"))
OLDEST_PEFT = Version("0.21")


def find_conflicts(recipe: Recipe) -> list[Conflict]:
    """Return every rule between keys that the recipe breaks."""
    return [broken for check in CHECKS for broken in check(recipe)]


def check_version(recipe: Recipe) -> Iterator[Conflict]:
    """Check that this version of hf_lm can read the recipe."""
    needed = recipe.hf_lm_version
    if needed and Version(needed) > Version(__version__):
        yield conflict("hf_lm_version", f"needs hf_lm >= {needed}, this is {__version__}", needed)


END_KEYS = ("max_steps", "max_epochs", "max_tokens", "max_minutes")


def check_length(recipe: Recipe) -> Iterator[Conflict]:
    """Check that training has one end, and that the warmup is over before it."""
    training = recipe.training
    ends = {name: value for name in END_KEYS if (value := getattr(training, name)) is not None}
    keys = " ".join(f"training.{name}" for name in END_KEYS)
    if not ends:
        rule = "is missing; give it, or max_epochs, max_tokens or max_minutes"
        yield conflict("training.max_steps", rule, other_keys=keys)
    if len(ends) > 1:
        *first, last = ends
        rule = f"cannot be combined with {', '.join(first)}; keep one and set the others to null"
        yield conflict(f"training.{last}", rule, ends[last], other_keys=keys)
    steps, warmup = training.max_steps, training.warmup_steps
    if training.max_tokens and training.max_tokens < training.tokens_per_step:
        rule = f"is less than one step of {training.tokens_per_step} tokens; raise it"
        other = "training.tokens_per_step"
        yield conflict("training.max_tokens", rule, training.max_tokens, other_keys=other)
    if training.max_tokens:
        steps = -(-training.max_tokens // training.tokens_per_step)
    if steps and warmup >= 1 and warmup > steps:
        rule = f"is more than the {steps} steps of the run; lower it"
        yield conflict("training.warmup_steps", rule, warmup, other_keys=keys)


def check_rates(recipe: Recipe) -> Iterator[Conflict]:
    """Check that "auto" has a rule, and that spikes can be skipped."""
    training, kind = recipe.training, recipe.training.optimizer
    if training.skip_loss_spikes and training.precision == "fp16":
        rule = "cannot be combined with fp16, whose scaler skips steps itself; use bf16 or fp32"
        value, keys = training.skip_loss_spikes, "training.precision"
        yield conflict("training.skip_loss_spikes", rule, value, other_keys=keys)
    if training.learning_rate == "auto" and kind == "sgd":
        rule = "has no rule for sgd; give a number"
        yield conflict("training.learning_rate", rule, "auto", other_keys="training.optimizer")
    if training.matrix_learning_rate == "auto" and kind == "muon" and recipe.model.pretrained:
        rule = 'has no rule for pretrained weights; give a number or use training.optimizer "adamw"'
        keys = "training.optimizer model.pretrained"
        yield conflict("training.matrix_learning_rate", rule, "auto", other_keys=keys)


def check_batch(recipe: Recipe) -> Iterator[Conflict]:
    """Check that a step is a whole number of blocks."""
    tokens, block_size = recipe.training.tokens_per_step, recipe.data.block_size
    blocks, rest = divmod(tokens, block_size)
    if rest:
        near = " or ".join(str(n * block_size) for n in (blocks, blocks + 1) if n)
        rule = f"is not a multiple of data.block_size = {block_size}; use {near}"
        yield conflict("training.tokens_per_step", rule, tokens, other_keys="data.block_size")


def check_model(recipe: Recipe) -> Iterator[Conflict]:
    """Check that the sizes of the model fit each other and the blocks."""
    model = recipe.model
    if model.pretrained:
        for name in FROM_SCRATCH:
            if model.is_changed(name):
                rule = "describes a model from scratch; remove it or model.pretrained"
                value = getattr(model, name)
                yield conflict(f"model.{name}", rule, value, other_keys="model.pretrained")
        return
    for name in ("n_layer", "n_head", "n_embd"):
        value = getattr(model, name)
        if model.size and value is not None:
            rule = f'is set by model.size = "{model.size}"; remove one of them'
            yield conflict(f"model.{name}", rule, value, other_keys="model.size")
    yield from check_heads(model)
    _, heads, width = model.shape
    unit = heads if model.family == "gpt2" else 2 * heads  # rotary positions need an even width
    if width % unit and not model.head_dim:
        below, above = width // unit * unit, (width // unit + 1) * unit
        near = " or ".join(str(n) for n in (below, above) if n)
        rule = f"is not a multiple of {unit}, as model.n_head = {heads} requires; use {near}"
        keys = "model.n_head model.size model.family"
        yield conflict("model.n_embd", rule, width, other_keys=keys)
    if model.n_positions and recipe.data.block_size > model.n_positions:
        rule = (
            f"is more than model.n_positions = {model.n_positions}; lower the first or raise "
            "the second"
        )
        value = recipe.data.block_size
        yield conflict("data.block_size", rule, value, other_keys="model.n_positions")


def check_heads(model: ModelRecipe) -> Iterator[Conflict]:
    """Check the keys about attention that families with rotary positions have."""
    if model.family == "gpt2":
        for name in ("n_kv_head", "head_dim", "rope_theta"):
            if model.is_changed(name):
                rule = 'is not in gpt2; remove it, or set model.family, for example to "qwen3"'
                value = getattr(model, name)
                yield conflict(f"model.{name}", rule, value, other_keys="model.family")
        return
    heads = model.shape.n_head
    if model.n_kv_head and heads % model.n_kv_head:
        rule = f"does not divide model.n_head = {heads}, whose heads share them"
        keys = "model.n_head model.size"
        yield conflict("model.n_kv_head", rule, model.n_kv_head, other_keys=keys)
    if model.head_dim and model.head_dim % 2:
        rule = "must be even, for rotary positions"
        yield conflict("model.head_dim", rule, model.head_dim)


def check_lora(recipe: Recipe) -> Iterator[Conflict]:
    """Check that adapters have pretrained weights, a peft that works, and can be published."""
    model, hub = recipe.model, recipe.hub
    if model.lora is None:
        return
    if model.pretrained is None:
        rule = "adapts pretrained weights; set model.pretrained"
        yield conflict("model.lora", rule, other_keys="model.pretrained")
    if rule := peft_rule(installed("transformers"), installed("peft")):
        yield conflict("model.lora", rule)
    if hub.push == "every_save":
        rule = 'must be "end" or "never" with model.lora: a checkpoint of adapters has no model'
        yield conflict("hub.push", rule, hub.push, other_keys="model.lora")
    is_local = model.pretrained is not None and Path(model.pretrained).is_absolute()
    if hub.push != "never" and is_local and not model.lora.merge:
        rule = (
            "is a folder of this machine, so others cannot load the adapters; set model.lora.merge"
        )
        keys = "model.lora hub.push"
        yield conflict("model.pretrained", rule, model.pretrained, other_keys=keys)


def installed(package: str) -> Version | None:
    """Return the installed version of a package; None if there is none."""
    try:
        return Version(version(package))
    except PackageNotFoundError:
        return None


def peft_rule(transformers: Version | None, peft: Version | None) -> str | None:
    """Return what is wrong with the installed versions for LoRA; None if they work together.

    Without this check the error comes when the model is built, as a traceback.
    """
    if peft is None:
        return "needs peft; pip install 'hf_lm[lora]'"
    newer_transformers, newer_peft = TRANSFORMERS_NEEDS_PEFT
    if transformers and transformers >= newer_transformers and peft < newer_peft:
        return (
            f"transformers {transformers} needs peft >= {newer_peft}, and {peft} is installed; "
            f'pip install "transformers<{newer_transformers}"'
        )
    if peft < OLDEST_PEFT:
        return f"needs peft >= {OLDEST_PEFT}, and {peft} is installed; pip install 'hf_lm[lora]'"
    return None


def check_saving(recipe: Recipe) -> Iterator[Conflict]:
    """Check that every evaluation that may be the best one has a checkpoint."""
    training = recipe.training
    save, evaluate = training.save_steps, training.eval_steps
    is_mixed = (save < 1) != (evaluate < 1)
    is_multiple = abs(save / evaluate - round(save / evaluate)) < 1e-9 and save >= evaluate
    if training.load_best_model_at_end and (is_mixed or not is_multiple):
        rule = (
            f"with load_best_model_at_end it must be a multiple of training.eval_steps = {evaluate}"
        )
        keys = "training.eval_steps training.load_best_model_at_end"
        yield conflict("training.save_steps", rule, save, other_keys=keys)


def check_hub(recipe: Recipe) -> Iterator[Conflict]:
    """Check that a model to be published has a valid repository name."""
    name, push = recipe.hub.model_id, recipe.hub.push
    if push != "never" and name is None:
        rule = "needs hub.model_id; set it to USER/NAME"
        yield conflict("hub.push", rule, push, other_keys="hub.model_id")
    if name is not None and not ("/" in name and HUB_ID.match(name) and is_allowed_id(name)):
        yield conflict("hub.model_id", "must be USER/NAME", name)


def is_allowed_id(name: str) -> bool:
    """Return whether a Hub id has none of the parts that the Hub refuses."""
    has_refused = any(text in name for text in ("..", "--"))
    return not has_refused and not name.endswith((".git", ".ipynb"))


def check_extra_args(recipe: Recipe) -> Iterator[Conflict]:
    """Check that further TrainingArguments exist and break no promise."""
    for problem in argument_problems(recipe.training.extra_args):
        yield Conflict(problem, frozenset({problem.path}))
    for name in ("dataloader_prefetch_factor", "dataloader_persistent_workers"):
        training = recipe.training
        if training.extra_args.get(name) and not training.dataloader_num_workers:
            rule = "needs training.dataloader_num_workers of 1 or more"
            other = "training.dataloader_num_workers"
            yield conflict(f"training.extra_args.{name}", rule, other_keys=other)


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
    check_extra_args,
    check_effects,
)


def warnings(recipe: Recipe) -> list[str]:
    """Return a line for each setting that is allowed but is rarely what was meant."""
    training, lines = recipe.training, []
    if training.learning_rate != "auto" and training.learning_rate > 1:
        lines.append(f"training.learning_rate = {training.learning_rate} is very high")
    for name, missing in (("save_steps", "checkpoint"), ("eval_steps", "evaluation")):
        every = getattr(training, name)
        if training.max_steps and every > training.max_steps:
            lines.append(
                f"training.{name} = {every} is over max_steps = {training.max_steps}: "
                f"no {missing} before the end"
            )
    return lines
