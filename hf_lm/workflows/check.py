"""Validate everything that can be known without training, and print the plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hf_lm.workflows.stages import plan_run, prepare_libraries
from hf_lm.workflows.summary import run_rows

if TYPE_CHECKING:
    from hf_lm.recipe import Recipe


def check(recipe: Recipe) -> None:
    """Everything that can be known without training, and the plan; nothing is written."""
    from hf_lm.data.estimate import sample_counts, sample_documents
    from hf_lm.data.text.scan import scan_documents
    from hf_lm.data.text.sources import find_corpus
    from hf_lm.hub.access import refuse_access
    from hf_lm.recipe import warnings
    from hf_lm.run_dir.directory import RunFolder
    from hf_lm.workflows.summary import text_rows

    folder = RunFolder(recipe.folder)
    folder.refuse_others()
    folder.refuse_changes(recipe, ())
    access = refuse_access(recipe.hub, create=False) if recipe.hub.push != "never" else []
    corpus = find_corpus(recipe.data)
    scan = scan_documents(recipe.data, corpus)

    from hf_lm.model.config import Vocabulary
    from hf_lm.planning.hardware import find_machine
    from hf_lm.terminal import console
    from hf_lm.tokenizer import bpe_size, build_tokenizer, trains_bpe

    prepare_libraries(recipe, corpus)
    machine = find_machine(recipe.training)
    sample = sample_documents(recipe.data, corpus, scan)
    default = recipe.model.pretrained or corpus.tokenizer
    tokenizer = build_tokenizer(recipe.tokenizer, sample.documents, default=default)
    counts = sample_counts(recipe.data, sample, tokenizer)
    vocabulary = Vocabulary.of(tokenizer)
    if not sample.whole and trains_bpe(recipe.tokenizer, default=recipe.model.pretrained):
        vocabulary = vocabulary._replace(size=bpe_size(recipe.tokenizer))
    plan, kernels = plan_run(recipe, vocabulary, machine, counts)
    lacking = folder.missing_disk(plan.disk)
    missing = (*machine.missing, *plan.missing, *lacking)
    rows = text_rows(recipe.data, counts, about=not sample.whole)
    console.show_rows(
        f"{recipe.name}: checked, nothing written",
        [*rows, *run_rows(recipe, plan, machine, kernels)],
        notes=[
            *(*warnings(recipe), *access, *scan.notes, *sample.notes),
            *(f"not on this machine: {line}" for line in missing),
        ],
    )
