"""Call each stage with its own recipe section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_lm.errors import RecipeError
from hf_lm.terminal.streams import SafeStream

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_lm.data.blocks.dataset import Blocks
    from hf_lm.data.load import LoadedText
    from hf_lm.data.text.scan import Scan
    from hf_lm.data.text.sources import Corpus
    from hf_lm.model.config import Vocabulary
    from hf_lm.planning.hardware import Hardware
    from hf_lm.planning.kernels import Kernels
    from hf_lm.planning.plan import Plan
    from hf_lm.recipe import Recipe
    from hf_lm.run_dir.directory import RunDirectory


def read_corpus(recipe: Recipe) -> tuple[Corpus, Scan]:
    """The sources of the recipe, read once to find what cannot be trained on."""
    from hf_lm.data.text.scan import scan_documents
    from hf_lm.data.text.sources import find_corpus
    from hf_lm.terminal import console

    corpus = find_corpus(recipe.data)
    with console.preparing("read", corpus.size) as report:
        return corpus, scan_documents(recipe.data, corpus, keep=True, report=report)


def prepare_libraries(recipe: Recipe, corpus: Corpus) -> None:
    """Make them quiet; where the recipe names something on the Hub, find out whether it answers.

    A run that is published has found that out already, and needs it again.
    """
    from hf_lm.terminal import console

    console.quiet_libraries()
    names = (recipe.model.pretrained, recipe.tokenizer.pretrained)
    named = any(name and not Path(name).is_absolute() for name in names)
    if recipe.hub.push == "never" and (named or not corpus.local):
        from hf_lm.hub.access import go_offline_if_unreachable

        go_offline_if_unreachable(console.show_note)


def read_text(
    recipe: Recipe, corpus: Corpus, scan: Scan
) -> tuple[LoadedText, PreTrainedTokenizerBase]:
    """The documents of the recipe and the tokenizer for them."""
    from hf_lm.data.load import load_documents
    from hf_lm.tokenizer import build_tokenizer

    text = load_documents(recipe.data, corpus, scan)
    default = recipe.model.pretrained or corpus.tokenizer
    return text, build_tokenizer(recipe.tokenizer, text.documents, default=default)


def make_blocks(
    recipe: Recipe, text: LoadedText, tokenizer: PreTrainedTokenizerBase, **place: int
) -> Blocks:
    """The blocks of those documents, with a bar for whoever waits while they are prepared."""
    from hf_lm.data.load import load_blocks
    from hf_lm.data.streaming.blocks import StreamShard
    from hf_lm.terminal import console

    shard = StreamShard(**place, threads=max(1, recipe.training.dataloader_num_workers))
    with console.preparing("tokenize", text.size) as report:
        return load_blocks(
            recipe.data,
            text,
            tokenizer,
            seed=recipe.seed,
            num_validation_blocks=recipe.evaluation.max_blocks,
            shard=shard,
            report=report,
        )


def make_model(recipe: Recipe, vocabulary: Vocabulary, **options: Any) -> PreTrainedModel:
    """The network the recipe describes, for its blocks."""
    from hf_lm.model.build import build_model

    return build_model(
        recipe.model,
        vocabulary,
        block_size=recipe.data.block_size,
        seed=recipe.seed,
        added=len(recipe.tokenizer.add_tokens),
        **options,
    )


def plan_run(
    recipe: Recipe, vocabulary: Vocabulary, machine: Hardware, counts: Mapping[str, Any]
) -> tuple[Plan, Kernels]:
    """What the run will do on this machine and how, from a network without weights."""
    from hf_lm.planning.costs import describe_model
    from hf_lm.planning.kernels import choose_kernels
    from hf_lm.planning.plan import make_plan

    model = make_model(recipe, vocabulary, meta=True)
    plan = make_plan(
        recipe.training,
        describe_model(model),
        block_size=recipe.data.block_size,
        train_blocks=counts["train"].blocks if "train" in counts else None,
        world_size=machine.world_size,
        memory=machine.memory,
    )
    kernels = choose_kernels(
        recipe,
        device=machine.device,
        precision=machine.precision,
        model_type=model.config.model_type,
        flops=plan.flops,
    )
    return plan, kernels


def make_planned(
    recipe: Recipe,
    vocabulary: Vocabulary,
    machine: Hardware,
    counts: Mapping[str, Any],
    folder: RunDirectory,
) -> tuple[PreTrainedModel, Plan, Kernels]:
    """The network, and the plan with a number for the micro-batch "auto".

    A GPU is tried; of a CPU the estimate is taken. Rounding depends on the number, so a continued
    run keeps the one its folder has, whatever else fills the memory by now.
    """
    plan, kernels = plan_run(recipe, vocabulary, machine, counts)
    require((*plan.unmet_requirements, *folder.disk_shortfall(plan.disk)))
    model = make_model(recipe, vocabulary, attention=kernels.attention)
    if recipe.training.micro_batch_size != "auto":
        return model, plan, kernels
    if folder.micro_batch_size in plan.micro_batch_sizes:
        plan = plan.with_micro_batch_size(folder.micro_batch_size)
    elif machine.device == "cuda":
        from hf_lm.planning.micro_batch import find_micro_batch

        size = find_micro_batch(
            model,
            plan.micro_batch_sizes,
            block_size=plan.block_size,
            dtype=machine.dtype,
            other_memory=plan.other_memory,
            activation_checkpointing=plan.activation_checkpointing,
        )
        plan = plan.with_micro_batch_size(size)
    return model, plan, kernels


def require(missing: Sequence[str]) -> None:
    """End a run that its machine cannot do; a check, which may be of a run elsewhere, says it."""
    if missing:
        raise RecipeError(missing)


def check_model_path(name: str) -> None:
    """Refuse a model that is plainly a path, and not there, before anything is loaded."""
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise RecipeError(f"{name}: no such folder (current folder: {Path.cwd()})")


def reach_hub() -> None:
    """Find out whether the Hub answers; what is said of it is not in the way of what is printed."""
    from hf_lm.hub.access import go_offline_if_unreachable

    go_offline_if_unreachable(lambda note: SafeStream("stderr").write(f"note: {note}\n"))


def load(
    name: str, *, device: Literal["auto", "cpu"] = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model with its tokenizer, in fp32; on the GPU if there is one and may be.

    Raises:
        RecipeError: there is no such model.
    """
    from hf_lm.model.pretrained import load_pretrained
    from hf_lm.planning.hardware import detect_hardware
    from hf_lm.recipe import TrainingRecipe
    from hf_lm.terminal import console
    from hf_lm.tokenizer import load_tokenizer

    console.quiet_libraries()
    if not Path(name).is_dir():
        reach_hub()
    machine = detect_hardware(TrainingRecipe(device=device))
    tokenizer = load_tokenizer(name)
    return load_pretrained(name).to(machine.device), tokenizer
