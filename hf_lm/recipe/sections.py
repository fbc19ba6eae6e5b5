"""The recipe as frozen pydantic models: every key, unit, default and range stands here, once.

Six sections, one a stage, plus a few keys at the top; `data` has a file of its own. Only the
standard library and pydantic are imported, so a wrong recipe is refused before anything heavy is
loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from hf_lm.recipe.data_section import DataRecipe
from hf_lm.recipe.section import Section

Share = Annotated[float, Field(ge=0, lt=1)]
# A count of steps, or the share of all steps that it makes: transformers' own meaning of such keys.
Steps = Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(gt=0)] | Literal["auto"]


class Shape(NamedTuple):
    """Layers, heads and width of a network, in GPT-2's words."""

    n_layer: int
    n_head: int
    n_embd: int


SIZES = {  # GPT-2's four published sizes (Radford et al., 2019, table 2)
    "small": Shape(12, 12, 768),
    "medium": Shape(24, 16, 1024),
    "large": Shape(36, 20, 1280),
    "xl": Shape(48, 25, 1600),
}


class TrainTokenizer(Section):
    """A tokenizer trained on the recipe's own training text."""

    kind: Literal["bpe", "char", "byte"] = Field(
        "bpe", description="byte-level BPE, one token a character, or one token a byte"
    )
    vocab_size: int | None = Field(
        None, gt=0, description="tokens of a bpe vocabulary; 8192 unless set"
    )


class TokenizerRecipe(Section):
    """Which tokenizer: a ready one, or one trained here."""

    pretrained: str | None = Field(None, min_length=1, description="folder or Hub id to load")
    train: TrainTokenizer | None = Field(
        None, description="train one instead; the default, as bpe, for a model from scratch"
    )
    add_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (),
        description="special tokens to add to a pretrained one, as the marks of a chat template; "
        "the embeddings of model.pretrained grow",
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        description="Jinja that renders messages, in place of the tokenizer's own, or a file with "
        "it that ends in .jinja",
    )


class LoraRecipe(Section):
    """Low-rank adapters, trained in place of pretrained weights; they need the extra `[lora]`."""

    r: int = Field(16, gt=0, description="rank of the adapters")
    alpha: int = Field(32, gt=0, description="their weight is alpha/r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout in front of them")
    target_modules: tuple[str, ...] | Literal["auto"] = Field(
        "auto", description="ends of the names of layers that get one; auto: all linear ones"
    )
    merge: bool = Field(False, description="save the whole model with them added, and no adapter")


class ModelRecipe(Section):
    """The network, from scratch or from pretrained weights."""

    family: Literal["gpt2", "qwen3", "llama", "arcee"] = Field(
        "gpt2", description="architecture that transformers ships; all speak GPT-2's words here"
    )
    size: Literal["small", "medium", "large", "xl"] | None = Field(
        None, description="a published GPT-2 size, in place of n_layer, n_head and n_embd"
    )
    n_layer: int | None = Field(None, gt=0, description="transformer blocks")
    n_head: int | None = Field(None, gt=0, description="attention heads a block")
    n_embd: int | None = Field(None, gt=0, description="width of the residual stream")
    n_inner: int | None = Field(
        None, gt=0, description="width of the MLP; 4·n_embd, or 8/3·n_embd where it is gated"
    )
    n_positions: int | None = Field(
        None, gt=0, description="longest context in tokens; data.block_size unless set"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout everywhere the family has one")
    tie_word_embeddings: bool = Field(True, description="one matrix for input and output tokens")
    pad_vocab_to_multiple_of: int | None = Field(
        None, gt=0, description="round the embedding rows up, for speed on a GPU; 64 is usual"
    )
    pretrained: str | None = Field(
        None, min_length=1, description="folder or Hub id of the model to fine-tune"
    )
    lora: LoraRecipe | None = Field(None, description="train adapters in place of its weights")

    @property
    def shape(self) -> Shape:
        """Layers, heads and width: the named size, with GPT-2 small where nothing is named."""
        named = SIZES[self.size or "small"]
        return Shape(
            self.n_layer or named.n_layer, self.n_head or named.n_head, self.n_embd or named.n_embd
        )


class TrainingRecipe(Section):
    """How long, how fast and with which optimizer."""

    max_steps: int | None = Field(None, gt=0, description="optimizer steps")
    max_epochs: float | None = Field(None, gt=0, description="passes over the training blocks")
    max_tokens: int | None = Field(None, gt=0, description="tokens to train on, repeats included")
    tokens_per_step: int = Field(
        32_768, gt=0, description="tokens of one optimizer step, all processes together"
    )
    micro_batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="blocks one process holds at a time; accumulation follows from it; auto: the "
        "most that fit, tried on a GPU",
    )
    optimizer: Literal["auto", "muon", "adamw", "adam", "sgd"] = Field(
        "auto",
        description="muon: that for matrices, adamw for the rest; adam adds its decay to the "
        "gradient; auto: muon from scratch, adamw for pretrained weights",
    )
    learning_rate: Rate = Field(
        "auto",
        description="peak learning rate, of muon for all but matrices; auto: 0.46/n_embd of adamw, "
        "1.28/n_embd of muon, 5e-5 for pretrained weights, 2e-4 for adapters",
    )
    matrix_learning_rate: Rate = Field(
        "auto", description="peak rate of muon for matrices, the same at every width; auto: 0.02"
    )
    betas: tuple[Share, Share] = Field(
        (0.9, 0.95), description="decay of Adam's first and second moment"
    )
    momentum: float = Field(0.95, ge=0, lt=1, description="momentum of muon and sgd")
    eps: float = Field(1e-8, gt=0, description="Adam's division guard")
    weight_decay: float = Field(0.1, ge=0, description="decay of matrices; nothing else decays")
    max_grad_norm: float = Field(1.0, ge=0, description="global-norm clipping; 0 turns it off")
    warmup_steps: Annotated[int, Field(ge=0)] | Share = Field(
        0.03, description="steps of linear warmup, or their share of all steps if below 1"
    )
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        "cosine", description="decay after warmup; wsd holds, then decays"
    )
    decay_steps: Steps = Field(
        0.2, description="steps of the decay at the end of wsd, or their share of all steps"
    )
    min_lr_ratio: float = Field(0.1, ge=0, le=1, description="final learning rate ÷ peak")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="autocast type; auto: bf16 where the hardware computes in it"
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA when there is one"
    )
    compile: bool | Literal["auto"] = Field(
        "auto",
        description="torch.compile each block; auto: on CUDA, and on a CPU where it wins time",
    )
    activation_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass, to save memory"
    )
    dataloader_num_workers: int = Field(
        0, ge=0, description="processes that collate batches; for a stream, threads that read"
    )
    dataloader_pin_memory: bool = Field(True, description="page-locked batches, for CUDA")
    logging_steps: int = Field(10, gt=0, description="steps between two rows of log.jsonl")
    eval_steps: Steps = Field(0.1, description="steps, or share of all, between evaluations")
    save_steps: Steps = Field(0.1, description="steps, or share of all, between checkpoints")
    save_total_limit: int | None = Field(2, gt=0, description="newest checkpoints kept; null: all")
    early_stopping_patience: int | None = Field(
        None, gt=0, description="evaluations without a better loss before training stops"
    )
    load_best_model_at_end: bool = Field(
        False, description="finish with the checkpoint of lowest eval_loss, not the last"
    )
    skip_nonfinite_steps: int = Field(
        0, ge=0, description="steps with a NaN or infinity that are left out before one ends a run"
    )
    skip_loss_spikes: float | None = Field(
        None,
        gt=0,
        description="leave out steps whose loss or gradient norm is as many standard deviations "
        "above the mean of the last 128; 6 is usual",
    )
    report_to: Annotated[str, Field(min_length=1)] | tuple[str, ...] = Field(
        "none", description='trackers transformers knows: "tensorboard", "wandb", "trackio", …'
    )
    extra_args: dict[str, Any] = Field(
        {}, description="any other TrainingArguments field, checked by name and type"
    )


class EvaluationRecipe(Section):
    """What is measured and what is sampled."""

    prompts: tuple[str, ...] = Field(("",), description="beginnings to continue at each evaluation")
    max_new_tokens: int = Field(64, gt=0, description="tokens of one sample")
    max_blocks: int | None = Field(
        None, gt=0, description="evaluate the first blocks only, for speed"
    )
    batch_size: Annotated[int, Field(gt=0)] | Literal["auto"] = Field(
        "auto", description="blocks evaluated at a time; no result depends on it"
    )


Tag = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w.:+ -]{0,63}$")]


class HubRecipe(Section):
    """Where the model is published."""

    model_id: str | None = Field(None, description="USER/NAME on the Hub")
    private: bool = Field(True, description="visible to you alone")
    push: Literal["never", "end", "every_save"] = Field("never", description="when to upload")
    license: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9.+-]{0,63}$",
        description="licence id of the model card, as `apache-2.0`",
    )
    tags: tuple[Tag, ...] = Field((), description="tags of the model card")


class Recipe(Section):
    """One run: text in; a trained, measured, published model out."""

    schema_: str | None = Field(None, alias="$schema", description="path of the JSON Schema")
    hf_lm_version: str | None = Field(
        None, pattern=r"^\d+\.\d+(\.\d+)?$", description="oldest hf_lm that can read this recipe"
    )
    name: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,95}$", description="short name of the run"
    )
    output_dir: str | None = Field(
        None, min_length=1, description='folder of the run; "runs/NAME" unless set'
    )
    seed: int = Field(42, ge=0, lt=2**32, description="of python, numpy, torch and the data order")
    data: DataRecipe = Field(DataRecipe(), description="where the text comes from")
    tokenizer: TokenizerRecipe = Field(TokenizerRecipe(), description="text to tokens")
    model: ModelRecipe = Field(ModelRecipe(), description="the network")
    training: TrainingRecipe = Field(TrainingRecipe(), description="optimization")
    evaluation: EvaluationRecipe = Field(EvaluationRecipe(), description="metrics and samples")
    hub: HubRecipe = Field(HubRecipe(), description="publishing")

    @property
    def folder(self) -> Path:
        """Where the run takes place; absolute in a recipe that was loaded from a file."""
        return Path(self.output_dir or f"runs/{self.name}")
