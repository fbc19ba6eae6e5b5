"""Call each stage with its own recipe section.

The modules of the stages are imported inside the functions, so that a bad recipe or text is
reported before torch is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_lm.errors import RecipeError
from hf_lm.terminal.streams import SafeStream

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from hf_lm.data.blocks.dataset import Blocks, SplitCounts
    from hf_lm.data.load import LoadedText
    from hf_lm.data.text.scan import Scan
    from hf_lm.data.text.sources import Corpus
    from hf_lm.model.config import Vocabulary
    from hf_lm.planning.hardware import Hardware
    from hf_lm.planning.kernels import Kernels
    from hf_lm.planning.plan import Plan
    from hf_lm.recipe import DataRecipe, Recipe, TrainingRecipe
    from hf_lm.run_dir.directory import RunDirectory
    from hf_lm.workflows.train import RunContext


def find_recipe(name: str, overrides: Sequence[str], *, pretrained: str | None = None) -> Recipe:
    """Load the recipe of a file, or of a published model given as `hub:USER/MODEL[@REVISION]`.

    The relative paths of a published recipe start in the current directory.

    Raises:
        RecipeError: the recipe cannot be found, or something in it is wrong.
    """
    from hf_lm.recipe import load_recipe, make_recipe

    if not name.startswith("hub:"):
        return load_recipe(name, overrides=overrides, pretrained=pretrained)

    from hf_lm.hub.access import go_offline_if_unreachable
    from hf_lm.hub.download import fetch_recipe
    from hf_lm.terminal import console

    go_offline_if_unreachable(console.show_note)
    raw = fetch_recipe(name)
    return make_recipe(raw, Path.cwd(), name=name, overrides=overrides, pretrained=pretrained)


def read_corpus(data: DataRecipe) -> tuple[Corpus, Scan]:
    """Resolve the sources and read them once, to report everything that cannot be trained on."""
    from hf_lm.data.text.scan import scan_documents
    from hf_lm.data.text.sources import find_corpus
    from hf_lm.terminal import console

    corpus = find_corpus(data)
    with console.preparing("read", corpus.size) as report:
        return corpus, scan_documents(data, corpus, keep=True, report=report)


def prepare_libraries(recipe: Recipe, corpus: Corpus) -> None:
    """Quiet the libraries, and go offline if the recipe needs a Hub that cannot be reached.

    A recipe with an upload has already checked the Hub and needs it at the end.
    """
    from hf_lm.terminal import console

    console.quiet_libraries()
    names = (recipe.model.pretrained, recipe.tokenizer.pretrained)
    has_hub_names = any(name and not Path(name).is_absolute() for name in names)
    if recipe.hub.push == "never" and (has_hub_names or not corpus.local):
        from hf_lm.hub.access import go_offline_if_unreachable

        go_offline_if_unreachable(console.show_note)


def require_hardware(training: TrainingRecipe, run_dir: RunDirectory) -> Hardware:
    """Detect this machine's hardware, and connect the processes of the run.

    Raises:
        RecipeError: it lacks something that the recipe asks for, or a process does not see the
            directory of the run.
    """
    from hf_lm.planning.agreement import check_shared_folder, connect, with_common_memory
    from hf_lm.planning.hardware import detect_hardware

    hardware = detect_hardware(training)
    require(hardware.unmet_requirements)
    connect(hardware, training)
    check_shared_folder(run_dir.path, hardware)
    return with_common_memory(hardware)


def check_model(recipe: Recipe) -> None:
    """Check pretrained weights before any text is tokenized.

    Raises:
        RecipeError: they cannot be trained as the recipe asks.
    """
    if recipe.model.pretrained is not None:
        from hf_lm.model.probe import check_pretrained

        separates = recipe.data.document_mask or recipe.data.train_on == "completion"
        check_pretrained(recipe.model.pretrained, separates=separates)


def load_text(
    recipe: Recipe, corpus: Corpus, scan: Scan
) -> tuple[LoadedText, PreTrainedTokenizerBase]:
    """Load the documents of the recipe and the tokenizer for them.

    Raises:
        RecipeError: the tokenizer cannot be loaded, or cannot encode a prompt.
    """
    from hf_lm.data.cache import build_once, key_of
    from hf_lm.data.load import load_documents
    from hf_lm.data.text.documents import hub_selection
    from hf_lm.evaluation.generate import prompt_ids
    from hf_lm.tokenizer import build_tokenizer

    text = load_documents(recipe.data, corpus, scan)
    key = key_of(text.content, hub_selection(recipe.data), recipe.tokenizer.model_dump(mode="json"))
    tokenizer = build_tokenizer(
        recipe.tokenizer,
        text.documents,
        default=recipe.model.pretrained or corpus.tokenizer,
        keep=partial(build_once, "tokenizers", key),
    )
    is_chat = recipe.data.train_on == "completion" and tokenizer.chat_template is not None
    for prompt in recipe.evaluation.prompts:  # they are used at the first evaluation
        prompt_ids(tokenizer, prompt, limit=1, chat=is_chat)
    return text, tokenizer


def load_blocks(
    recipe: Recipe, text: LoadedText, tokenizer: PreTrainedTokenizerBase, hardware: Hardware
) -> Blocks:
    """Load the blocks of the documents, with a progress bar while they are prepared."""
    from hf_lm.data import load
    from hf_lm.data.streaming.blocks import StreamShard
    from hf_lm.terminal import console

    threads = max(1, recipe.training.dataloader_num_workers)
    with console.preparing("tokenize", text.size) as report:
        return load.load_blocks(
            recipe.data,
            text,
            tokenizer,
            seed=recipe.seed,
            num_validation_blocks=recipe.evaluation.max_blocks,
            shard=StreamShard(**hardware.shard(), threads=threads),
            report=report,
        )


def build_model(recipe: Recipe, vocabulary: Vocabulary, **options: Any) -> PreTrainedModel:
    """Build or load the model that the recipe describes."""
    from hf_lm.model import build

    return build.build_model(
        recipe.model,
        vocabulary,
        block_size=recipe.data.block_size,
        seed=recipe.seed,
        added=len(recipe.tokenizer.add_tokens) + len(recipe.tokenizer.special_tokens),
        **options,
    )


def plan_run(
    recipe: Recipe,
    vocabulary: Vocabulary,
    hardware: Hardware,
    counts: Mapping[str, SplitCounts],
) -> tuple[Plan, Kernels]:
    """Plan the run on this machine from a model without weights."""
    from hf_lm.planning.activations import measure_activations
    from hf_lm.planning.costs import describe_model
    from hf_lm.planning.hardware import used_memory
    from hf_lm.planning.kernels import choose_attention, choose_kernels
    from hf_lm.planning.plan import DeviceMemory, make_plan

    machine = {"device": hardware.device, "precision": hardware.precision}
    model = build_model(recipe, vocabulary, meta=True)
    attention, _ = choose_attention(recipe, model, **machine)
    activations = measure_activations(
        build_model(recipe, vocabulary, attention=attention, meta=True),
        recipe.data.block_size,
        device=hardware.device,
        dtype=hardware.dtype,
        activation_checkpointing=recipe.training.activation_checkpointing,
    )
    plan = make_plan(
        recipe.training,
        describe_model(model),
        activations,
        block_size=recipe.data.block_size,
        train_blocks=counts["train"].blocks if "train" in counts else None,
        world_size=hardware.world_size,
        memory=DeviceMemory(
            free=hardware.memory,
            used=used_memory(hardware.device),
            holds_copies=hardware.device == "cpu",
        ),
    )
    return plan, choose_kernels(recipe, model, flops=plan.flops, **machine)


def plan_and_build(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    counts: Mapping[str, SplitCounts],
    hardware: Hardware,
    run_dir: RunDirectory,
) -> tuple[PreTrainedModel, Plan, Kernels]:
    """Plan the run, build the model, and choose the micro-batch size where it is "auto".

    A GPU is tried; on a CPU the estimate is used. Rounding depends on the size, so a resumed run
    keeps the one in its directory, whatever else fills the memory by now.

    Raises:
        RecipeError: memory or disk is too small.
        HfLmError: the fast paths give another loss than transformers.
    """
    from hf_lm.model.config import Vocabulary
    from hf_lm.model.probe import check_fast_paths

    vocabulary = Vocabulary.of(tokenizer)
    plan, kernels = plan_run(recipe, vocabulary, hardware, counts)
    require((*plan.unmet_requirements, *run_dir.disk_shortfall(plan.disk)))
    model = build_model(recipe, vocabulary, attention=kernels.attention)
    check_fast_paths(model, block_size=plan.block_size)
    if recipe.training.micro_batch_size != "auto":
        return model, plan, kernels
    if run_dir.micro_batch_size in plan.micro_batch_sizes:
        plan = plan.with_micro_batch_size(run_dir.micro_batch_size)
    elif hardware.device == "cuda":
        from hf_lm.planning.micro_batch import find_micro_batch

        size = find_micro_batch(
            model,
            plan.micro_batch_sizes,
            block_size=plan.block_size,
            dtype=hardware.dtype,
            other_memory=plan.other_memory,
            activation_checkpointing=recipe.training.activation_checkpointing,
        )
        plan = plan.with_micro_batch_size(size)
    return model, plan, kernels


def describe_provenance(context: RunContext, text: LoadedText) -> dict[str, Any]:
    """Return the fields of provenance.json: everything that the weights depend on.

    Raises:
        MismatchError: another process of the run has other text, packages or another plan.
    """
    from hf_lm.planning.agreement import check_same_run
    from hf_lm.run_dir.provenance import describe_run
    from hf_lm.tokenizer import tokenizer_hash

    described = (context.hardware, context.plan, context.kernels, text, context.blocks)
    is_chat = context.recipe.data.train_on == "completion"
    provenance = describe_run(
        text.content,
        tokenizer_hash(context.tokenizer, chat=is_chat),
        {key: value for stage in described for key, value in stage.provenance().items()},
    )
    check_same_run(provenance, context.hardware)
    return provenance


def require(unmet_requirements: Sequence[str]) -> None:
    """Raise for requirements that this machine does not meet.

    Raises:
        RecipeError: there is one.
    """
    if unmet_requirements:
        raise RecipeError(unmet_requirements)


def check_model_path(name: str) -> None:
    """Check that a model given as a path exists, before anything is imported.

    Raises:
        RecipeError: the name is plainly a path, and there is no such directory.
    """
    is_path = Path(name).is_absolute() or name.startswith((".", "~"))
    if is_path and not Path(name).expanduser().is_dir():
        raise RecipeError(f"{name}: no such folder (current folder: {Path.cwd()})")


def reach_hub() -> None:
    """Go offline if the Hub cannot be reached; the note goes to stderr, not into the output."""
    from hf_lm.hub.access import go_offline_if_unreachable

    go_offline_if_unreachable(lambda note: SafeStream("stderr").write(f"note: {note}\n"))


def load_model(
    name: str, *, device: Literal["auto", "cpu"] = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model in fp32 with its tokenizer.

    Args:
        name: a directory or a Hub id.
        device: "auto" uses a GPU if there is one.

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
    hardware = detect_hardware(TrainingRecipe(device=device))
    tokenizer = load_tokenizer(name)
    return load_pretrained(name).to(hardware.device), tokenizer
