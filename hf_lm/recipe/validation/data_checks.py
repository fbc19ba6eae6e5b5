"""Check rules between the keys of `data` and `tokenizer`."""

from __future__ import annotations

import codecs
from collections.abc import Iterator

from hf_lm.recipe.sections.data import DataRecipe, WeightedSource, template_fields
from hf_lm.recipe.sections.recipe import Recipe
from hf_lm.recipe.validation.conflicts import Conflict, conflict

BYTE_VOCABULARY = 257  # 256 bytes and end-of-text


def check_data(recipe: Recipe) -> Iterator[Conflict]:
    """Check that the validation set has one origin and that documents can be told apart."""
    data, validation = recipe.data, recipe.data.validation
    names = ("source", "config", "split", "revision")
    separate = [name for name in names if getattr(validation, name) is not None]
    if validation.holdout is not None and separate:
        other = f"data.validation.{separate[0]}"
        rule = f"cannot be combined with {other}; keep one"
        yield conflict("data.validation.holdout", rule, validation.holdout, other_keys=other)
    if validation.holdout is None and not separate:
        rule = 'is empty; give {"holdout": 0.05} or {"source": …} or {"split": …}'
        yield conflict("data.validation", rule)
    if not is_encoding(data.encoding):
        rule = 'is no encoding of text that Python knows; "utf-8", "cp1252" and "utf-16" are usual'
        yield conflict("data.encoding", rule, data.encoding)
    for name in ("document_mask", "grouping"):
        if getattr(data, name) in (True, "best_fit") and not data.append_eos:
            rule = "finds documents by their end-of-text token; set data.append_eos to true"
            yield conflict(f"data.{name}", rule, getattr(data, name), other_keys="data.append_eos")
    yield from check_near_duplicates(data)
    yield from check_sources(data)
    if data.streaming:
        yield from check_stream(recipe)
    if data.train_on == "completion":
        yield from check_completion(recipe)


def is_encoding(name: str) -> bool:
    """Return whether Python can decode text from an encoding of this name."""
    try:
        "a".encode(name)  # empty text is not looked up
        codecs.getincrementaldecoder(name)
    except (LookupError, ValueError):
        return False
    return True


def check_sources(data: DataRecipe) -> Iterator[Conflict]:
    """Check that all sources have a weight or none has, and that the text is described once."""
    if isinstance(data.source, tuple):
        has_weight = [isinstance(entry, WeightedSource) for entry in data.source]
        if not has_weight:
            yield conflict("data.source", "must not be empty", [])
        if len(set(has_weight)) > 1:
            rule = 'gives a weight to some sources only; write each as {"source": …, "weight": …}'
            yield conflict("data.source", rule)
    if data.text_template is not None:
        if data.text_column != "text":
            rule = "cannot be combined with data.text_template; keep one"
            keys = "data.text_template"
            yield conflict("data.text_column", rule, data.text_column, other_keys=keys)
        try:
            template_fields(data.text_template)
        except ValueError:
            rule = 'must name columns as in "{title}\\n\\n{body}", with nothing else in braces'
            yield conflict("data.text_template", rule, data.text_template)


def check_near_duplicates(data: DataRecipe) -> Iterator[Conflict]:
    """Check that near duplicates can be found."""
    choice = data.near_duplicates
    if choice != "off" and data.streaming:
        rule = "needs all text at once, which a stream does not give; remove it"
        yield conflict("data.near_duplicates", rule, choice, other_keys="data.streaming")


def check_completion(recipe: Recipe) -> Iterator[Conflict]:
    """Check that conversations stay whole, are masked, and have a tokenizer with a template."""
    data, needs, keys = recipe.data, 'with data.train_on = "completion"', "data.train_on"
    if data.grouping != "best_fit":
        rule = f'would cut conversations in two; {needs} it must be "best_fit"'
        yield conflict("data.grouping", rule, data.grouping, other_keys=keys)
    if not data.document_mask:
        rule = f"lets a conversation see the one before it; {needs} it must be true"
        yield conflict("data.document_mask", rule, data.document_mask, other_keys=keys)
    if data.streaming:
        rule = f"{needs} it must be false: conversations are prepared first"
        yield conflict("data.streaming", rule, data.streaming, other_keys=keys)
    for name, default in (("text_column", "text"), ("text_template", None)):
        if getattr(data, name) != default:
            rule = f"is for text; {needs} columns have fixed names; remove it"
            yield conflict(f"data.{name}", rule, getattr(data, name), other_keys=keys)
    if not (recipe.model.pretrained or recipe.tokenizer.pretrained):
        rule = "needs a tokenizer with a chat template; set model.pretrained"
        keys = "model.pretrained tokenizer.pretrained"
        yield conflict("data.train_on", rule, data.train_on, other_keys=keys)


def check_stream(recipe: Recipe) -> Iterator[Conflict]:
    """Check that a stream has an end and a validation set of known size."""
    keys = "data.streaming"
    if recipe.training.max_epochs is not None:
        rule = "a stream has no epochs; use training.max_tokens or training.max_steps"
        yield conflict("training.max_epochs", rule, recipe.training.max_epochs, other_keys=keys)
    if recipe.data.max_bytes is not None:
        rule = "is not counted in a stream; use data.max_documents or training.max_tokens"
        yield conflict("data.max_bytes", rule, recipe.data.max_bytes, other_keys=keys)
    if recipe.evaluation.max_blocks is None:
        rule = "is missing: with data.streaming it is the size of the validation set"
        yield conflict("evaluation.max_blocks", rule, other_keys=keys)


def check_tokenizer(recipe: Recipe) -> Iterator[Conflict]:
    """Check that there is one tokenizer, with a vocabulary that suits its kind and the model."""
    tokenizer, train = recipe.tokenizer, recipe.tokenizer.train
    if tokenizer.pretrained and train:
        rule = "cannot be combined with tokenizer.pretrained; keep one"
        yield conflict("tokenizer.train", rule, other_keys="tokenizer.pretrained")
    if train and recipe.model.pretrained:
        rule = "model.pretrained knows its own tokens only; remove tokenizer.train"
        yield conflict("tokenizer.train", rule, other_keys="model.pretrained")
    size = train.vocab_size if train else None
    if train and size is not None and train.kind != "bpe":
        rule = f'follows from the text for kind "{train.kind}"; remove it'
        yield conflict("tokenizer.train.vocab_size", rule, size, other_keys="tokenizer.train.kind")
    elif size is not None and size < BYTE_VOCABULARY:
        rule = f"must be >= {BYTE_VOCABULARY}: 256 bytes and the end-of-text token"
        yield conflict("tokenizer.train.vocab_size", rule, size)
    if train and train.kind == "char" and recipe.data.streaming:
        rule = 'needs the whole text, which a stream does not give; use "bpe" or "byte"'
        yield conflict("tokenizer.train.kind", rule, "char", other_keys="data.streaming")


def check_additions(recipe: Recipe) -> Iterator[Conflict]:
    """Check that tokens and a template are added to a pretrained tokenizer and can be trained."""
    tokenizer, model = recipe.tokenizer, recipe.model
    names = ("eos_token", "bos_token", "pad_token", "add_tokens", "chat_template")
    for name in names:
        if getattr(tokenizer, name) and not (tokenizer.pretrained or model.pretrained):
            rule = "is for a pretrained tokenizer; set model.pretrained or remove it"
            keys = "model.pretrained tokenizer.pretrained"
            yield conflict(f"tokenizer.{name}", rule, other_keys=keys)
    if tokenizer.add_tokens and model.lora:
        rule = "would never be trained: model.lora freezes the embeddings; remove one"
        yield conflict("tokenizer.add_tokens", rule, other_keys="model.lora")
