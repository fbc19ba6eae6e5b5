"""Evaluate finished models, compare them, or let one write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_lm.errors import DataError
from hf_lm.workflows.stages import check_model_path, load_model, reach_hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_lm.data.text.scan import Scan
    from hf_lm.data.text.sources import Corpus
    from hf_lm.evaluation.chat import Chat
    from hf_lm.evaluation.compare import Comparison
    from hf_lm.recipe import Recipe

LONGEST_BLOCK = 1024  # tokens of context to evaluate with, unless the model has fewer


def evaluate(
    model: str | Path, *, source: str | Path | None = None, overrides: Sequence[str] = ()
) -> dict[str, float]:
    """Compute loss, perplexity, accuracy and bits per byte of a model.

    Args:
        model: a directory or a Hub id.
        source: text, as `data.source` of a recipe; without it, the validation set of the run that
            the model directory belongs to.
        overrides: keys of the data or evaluation section, such as "data.text_column=body".

    Returns:
        loss (nats per token), perplexity, accuracy, bits_per_byte, loss_stderr, tokens and bytes.

    Raises:
        RecipeError: there is no such model, or an override is wrong.
        DataError: the text cannot be used, or there is no run around the model.

    Example:
        >>> evaluate("runs/small/model", source="README.md")["bits_per_byte"]
    """
    name = str(model)
    check_model_path(name)
    recipe, corpus, scan, is_any_length = read_evaluation_text(name, source, overrides)
    network, tokenizer = load_model(name)
    if recipe.tokenizer.chat_template:
        tokenizer.chat_template = recipe.tokenizer.chat_template

    from hf_lm.data.collator import make_collate
    from hf_lm.data.load import text_tokens
    from hf_lm.evaluation import evaluate as evaluation
    from hf_lm.evaluation.generate import context_length
    from hf_lm.tokenizer import token_bytes

    if is_any_length:
        longest = min(context_length(network), LONGEST_BLOCK)
        tokens = text_tokens(recipe.data, corpus, tokenizer, limit=longest + 1)
        recipe = with_block_size(recipe, min(longest, tokens - 1))
    return evaluation.evaluate(
        network,
        load_evaluation_blocks(recipe, corpus, scan, tokenizer, is_whole=source is not None),
        recipe.evaluation,
        collate=make_collate(recipe.data, tokenizer, split="validation"),
        token_bytes=token_bytes(tokenizer),
    )


def compare(
    models: Sequence[str | Path], *, source: str | Path, overrides: Sequence[str] = ()
) -> Comparison:
    """Compare models on the same documents, whatever their tokenizers.

    Args:
        models: directories or Hub ids; the others are compared with the first.
        source: text, as `data.source` of a recipe.
        overrides: keys of the data section, such as "data.text_column=body".

    Raises:
        RecipeError: there is no such model, or an override is wrong.
        DataError: the text cannot be used.

    Example:
        >>> compare(["runs/a/model", "openai-community/gpt2"], source="README.md").models[1].verdict
    """
    names = [str(model) for model in models]
    for name in names:
        check_model_path(name)
    text = read_evaluation_text(names[0], source, [*overrides, "data.block_size=1"])

    from hf_lm.data.load import whole_texts
    from hf_lm.evaluation.compare import compare_scores, score_documents

    texts = whole_texts(text.recipe.data, text.corpus)
    sizes = [len(document.encode()) for document in texts]
    scores = [score_documents(*load_model(name), texts) for name in names]
    return compare_scores(names, scores, sizes)


class EvaluationText(NamedTuple):
    """The text that models are evaluated on, found and read once.

    Attributes:
        recipe: how it is read.
        corpus: its files and Hub ids.
        scan: the result of reading it.
        is_any_length: whether the block size is still open, and 1 so that any text is long enough.
    """

    recipe: Recipe
    corpus: Corpus
    scan: Scan
    is_any_length: bool


def read_evaluation_text(
    model: str, source: str | Path | None, overrides: Sequence[str]
) -> EvaluationText:
    """Find and read the text to evaluate a model on, before a model is loaded."""
    from hf_lm.data.text.scan import scan_documents
    from hf_lm.data.text.sources import find_corpus

    recipe = find_evaluation_recipe(model, source, overrides)
    is_any_length = source is not None and "block_size" not in recipe.data.model_fields_set
    if is_any_length:
        recipe = with_block_size(recipe, 1)
    corpus = find_corpus(recipe.data)
    scan = scan_documents(recipe.data, corpus, keep=source is None, whole=source is not None)
    if not corpus.local:
        reach_hub()
    if source is not None:  # nothing else will scan it
        corpus = corpus.without(scan.left_out)
    return EvaluationText(recipe, corpus, scan, is_any_length)


def with_block_size(recipe: Recipe, block_size: int) -> Recipe:
    """Return a recipe with another `data.block_size`."""
    data = recipe.data.model_copy(update={"block_size": block_size})
    return recipe.model_copy(update={"data": data})


def load_evaluation_blocks(
    recipe: Recipe,
    corpus: Corpus,
    scan: Scan,
    tokenizer: PreTrainedTokenizerBase,
    *,
    is_whole: bool,
) -> Any:
    """Load the blocks of a whole text, or those of the validation set of a run."""
    from hf_lm.data.load import load_blocks, load_documents, text_blocks

    if is_whole:
        return text_blocks(recipe.data, corpus, tokenizer)
    text = load_documents(recipe.data, corpus, scan)
    blocks = load_blocks(
        recipe.data,
        text,
        tokenizer,
        seed=recipe.seed,
        num_validation_blocks=recipe.evaluation.max_blocks,
    )
    return blocks.splits["validation"]


def find_evaluation_recipe(
    model: str, source: str | Path | None, overrides: Sequence[str]
) -> Recipe:
    """Load the recipe of the run that a model belongs to, or make one around a source.

    Raises:
        DataError: there is no source, and no run around the model.
    """
    from hf_lm.recipe import load_recipe, make_recipe

    if source is not None:
        raw: dict[str, Any] = {
            "data": {"source": str(source), "deduplicate": False},
            "tokenizer": {"pretrained": model},
            "training": {"max_steps": 1},
        }
        return make_recipe(raw, Path.cwd(), name="--source", overrides=overrides)
    path = Path(model).parent / "recipe.json"
    if not path.is_file():
        raise DataError(f"{model}: no run around it (no {path}); name the text with --source")
    return load_recipe(path, overrides=overrides)


def generate(
    model: str | Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    seed: int = 0,
    chat: bool = False,
) -> list[str]:
    """Generate a continuation of each prompt.

    Args:
        model: a directory or a Hub id.
        prompts: the texts to continue; an empty one begins a document.
        max_new_tokens: tokens to add to each.
        temperature: 0 takes the likeliest token.
        seed: the same seed gives the same text.
        chat: answer each prompt as a user's message, by the model's chat template.

    Returns:
        What the model adds to each prompt.

    Raises:
        RecipeError: there is no such model, or it cannot encode a prompt.

    Example:
        >>> generate("runs/small/model", ["def "], max_new_tokens=40)
    """
    check_model_path(str(model))
    network, tokenizer = load_model(str(model))

    from hf_lm.evaluation.generate import generate_samples

    samples = generate_samples(
        network,
        tokenizer,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        chat=chat,
    )
    return [sample["text"] for sample in samples]


def start_chat(
    model: str | Path,
    *,
    write: Callable[[str], object],
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> Chat:
    """Load a model to talk with; see `Chat` for the arguments.

    Raises:
        RecipeError: there is no such model, or it has no chat template for an instruction.
    """
    check_model_path(str(model))
    network, tokenizer = load_model(str(model))

    from hf_lm.evaluation.chat import Chat

    return Chat(
        network,
        tokenizer,
        write=write,
        system=system,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )
