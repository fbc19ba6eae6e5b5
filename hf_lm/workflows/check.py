"""Validate everything that can be known without training, and print the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_lm.workflows.stages import plan_run, prepare_libraries
from hf_lm.workflows.summary import run_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_lm.model.config import Vocabulary
    from hf_lm.recipe import Recipe


def check(recipe: Recipe) -> None:
    """Everything that can be known without training, and the plan; nothing is written."""
    from hf_lm.data.estimate import sample_counts, sample_documents
    from hf_lm.data.text.scan import scan_documents
    from hf_lm.data.text.sources import find_corpus
    from hf_lm.hub.access import check_write_access
    from hf_lm.recipe import warnings
    from hf_lm.run_dir.directory import RunDirectory
    from hf_lm.workflows.summary import text_rows

    folder = RunDirectory(recipe.folder)
    folder.check_owner()
    folder.check_compatible(recipe, ())
    access = check_write_access(recipe.hub, create=False) if recipe.hub.push != "never" else []
    corpus = find_corpus(recipe.data)
    scan = scan_documents(recipe.data, corpus)

    from hf_lm.planning.hardware import detect_hardware
    from hf_lm.terminal import console
    from hf_lm.tokenizer import build_tokenizer

    prepare_libraries(recipe, corpus)
    machine = detect_hardware(recipe.training)
    sample = sample_documents(recipe.data, corpus, scan)
    default = recipe.model.pretrained or corpus.tokenizer
    tokenizer = build_tokenizer(recipe.tokenizer, sample.documents, default=default)
    counts = sample_counts(recipe.data, sample, tokenizer)
    vocabulary = estimate_vocabulary(recipe, tokenizer, whole=sample.whole)
    plan, kernels = plan_run(recipe, vocabulary, machine, counts)
    lacking = folder.disk_shortfall(plan.disk)
    missing = (*machine.unmet_requirements, *plan.unmet_requirements, *lacking)
    rows = text_rows(recipe.data, counts, about=not sample.whole)
    console.show_rows(
        f"{recipe.name}: checked, nothing written",
        [*rows, *run_rows(recipe, plan, machine, kernels)],
        notes=[
            *(*warnings(recipe), *access, *scan.notes, *sample.notes),
            *(f"not on this machine: {line}" for line in missing),
        ],
    )


def estimate_vocabulary(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, *, whole: bool
) -> Vocabulary:
    """The vocabulary that training on all text will give.

    Args:
        recipe: how the tokenizer is made.
        tokenizer: made from a sample of the text.
        whole: whether the sample is all text.
    """
    from hf_lm.model.config import Vocabulary
    from hf_lm.tokenizer import bpe_size, trains_bpe

    vocabulary = Vocabulary.of(tokenizer)
    if not whole and trains_bpe(recipe.tokenizer, default=recipe.model.pretrained):
        return vocabulary._replace(size=bpe_size(recipe.tokenizer))
    return vocabulary
