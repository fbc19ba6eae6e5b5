"""Validate everything that can be known without training, and plan the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_lm.system.launch import check_launcher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_lm.data.blocks.dataset import SplitCounts
    from hf_lm.data.text.scan import Scan
    from hf_lm.data.text.sources import Corpus
    from hf_lm.model.config import Vocabulary
    from hf_lm.planning.plan import Plan
    from hf_lm.recipe import Recipe
    from hf_lm.run_dir.directory import RunDirectory


class CheckResult(NamedTuple):
    """The plan of a run; `str()` gives the text that `--check` prints.

    Attributes:
        title: the name of the recipe.
        counts: documents, bytes, tokens and blocks of each split, as far as they are known.
        plan: steps, batch sizes, memory, FLOPs and disk.
        rows: the plan as pairs of a label and a text.
        notes: warnings and other notes.
        shortfalls: what the run needs and this machine lacks; they are among the notes.
    """

    title: str
    counts: Mapping[str, SplitCounts]
    plan: Plan
    rows: list[tuple[str, str]]
    notes: list[str]
    shortfalls: tuple[str, ...]

    def __str__(self) -> str:
        width = max(len(label) for label, _ in self.rows) + 2
        lines = [self.title, *(f"{label.ljust(width)}{text}" for label, text in self.rows)]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def as_json(self) -> dict[str, Any]:
        """Return the plan as values that JSON can hold; docs/json.md lists them."""
        plan, size = self.plan, self.plan.model_size
        return {
            "text": {split: asdict(counts) for split, counts in self.counts.items()},
            "parameters": size.parameters,
            "trained_parameters": size.trained,
            "max_steps": plan.max_steps,
            "tokens_per_step": plan.tokens_per_step,
            "micro_batch_size": plan.micro_batch_size,
            "train_tokens": plan.train_tokens,
            "epochs": plan.epochs,
            "train_flops": plan.flops,
            "memory_bytes": plan.memory,
            "checkpoint_bytes": plan.checkpoint,
            "disk_bytes": plan.disk,
            "notes": self.notes,
            "shortfalls": list(self.shortfalls),
        }


def check(recipe: Recipe) -> CheckResult:
    """Check a recipe, its text and this machine, and plan the run; nothing is written.

    Text of up to 32 MB is tokenized whole; larger text is estimated from a sample, and Hub datasets
    are not downloaded.

    Args:
        recipe: as `load_recipe` returns it.

    Returns:
        The plan, its text, and notes.

    Raises:
        RecipeError: the recipe cannot be run anywhere, or its upload is not allowed.
        DataError: the text cannot be used.
        MismatchError: the output directory holds a run of another recipe.

    Example:
        >>> print(check(load_recipe("recipes/small.json")))
    """
    from hf_lm.run_dir.directory import RunDirectory

    check_launcher()
    run_dir = RunDirectory(recipe.folder)
    run_dir.check_owner()
    recipe = run_dir.with_earlier_values(recipe)
    run_dir.check_compatible(recipe, ())
    access_notes = check_access(recipe)

    from hf_lm.data.text.scan import scan_documents
    from hf_lm.data.text.sources import find_corpus

    corpus = find_corpus(recipe.data)
    scan = scan_documents(recipe.data, corpus)
    result = plan_without_training(recipe, run_dir, corpus, scan)
    return result._replace(notes=[*access_notes, *result.notes])


def check_access(recipe: Recipe) -> list[str]:
    """Check that the Hub would accept the model; return notes."""
    if recipe.hub.push == "never":
        return []
    from hf_lm.hub.access import check_write_access

    return check_write_access(recipe.hub, create=False)


def plan_without_training(
    recipe: Recipe, run_dir: RunDirectory, corpus: Corpus, scan: Scan
) -> CheckResult:
    """Plan a run from a sample of its text."""
    from hf_lm.data.blocks.byte_counts import bytes_note
    from hf_lm.data.estimate import sample_counts, sample_documents
    from hf_lm.model.pretrained import pretrained_notes
    from hf_lm.planning.advice import advice
    from hf_lm.planning.hardware import detect_hardware
    from hf_lm.recipe import warnings
    from hf_lm.tokenizer import build_tokenizer
    from hf_lm.workflows import stages, summary

    stages.prepare_libraries(recipe, corpus)
    hardware = detect_hardware(recipe.training)
    stages.check_model(recipe)
    sample = sample_documents(recipe.data, corpus, scan)
    default = recipe.model.pretrained or corpus.tokenizer
    tokenizer = build_tokenizer(recipe.tokenizer, sample.documents, default=default)
    counts = sample_counts(recipe.data, sample, tokenizer)
    vocabulary = estimate_vocabulary(recipe, tokenizer, is_whole=sample.whole)
    plan, kernels = stages.plan_run(recipe, vocabulary, hardware, counts)
    shortfalls = (
        *hardware.unmet_requirements,
        *plan.unmet_requirements,
        *run_dir.disk_shortfall(plan.disk),
    )
    return CheckResult(
        title=f"{recipe.name}: checked, nothing written",
        counts=counts,
        plan=plan,
        rows=[
            *summary.text_rows(recipe.data, counts, is_estimate=not sample.whole),
            *summary.run_rows(recipe, plan, hardware, kernels),
        ],
        notes=[
            *(*warnings(recipe), *advice(recipe, plan)),
            *(*pretrained_notes(recipe.model), *scan.notes, *sample.notes),
            *bytes_note(tokenizer, recipe.data),
            *(f"not on this machine: {line}" for line in shortfalls),
        ],
        shortfalls=shortfalls,
    )


def estimate_vocabulary(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, is_whole: bool
) -> Vocabulary:
    """Estimate the vocabulary that training on all text will give.

    Args:
        recipe: how the tokenizer is made.
        tokenizer: made from a sample of the text.
        is_whole: whether the sample is all text.
    """
    from hf_lm.model.config import Vocabulary
    from hf_lm.tokenizer import bpe_size, trains_bpe

    vocabulary = Vocabulary.of(tokenizer)
    if not is_whole and trains_bpe(recipe.tokenizer, default=recipe.model.pretrained):
        return vocabulary._replace(size=bpe_size(recipe.tokenizer))
    return vocabulary
