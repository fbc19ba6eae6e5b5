"""Write a model as GGUF, for llama.cpp, Ollama and LM Studio.

The names of tensors and of the metadata are those of the `gguf` package of llama.cpp. What
llama.cpp computes from the file is compared with the model before the file gets its name.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.errors import RecipeError
from hf_lm.exporters.gguf_vocabulary import gguf_vocabulary
from hf_lm.exporters.llama_cpp import compare
from hf_lm.system.files import replace_directory
from hf_lm.tokenizer import document_prefix

FILE = "model.gguf"

ARCHITECTURES = {"gpt2": "GPT2", "qwen3": "QWEN3", "llama": "LLAMA", "arcee": "ARCEE"}
INTERLEAVED = ("llama", "arcee")  # llama.cpp rotates neighbouring numbers of a head in these

FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}

BLOCK = 32  # numbers that q8_0 rounds together


def check_gguf(model: str, config: Any, folder: Path) -> None:
    """Check, before a model is loaded, that it can be written.

    Raises:
        RecipeError: a package is missing, the family is not supported, or the directory exists.
    """
    if find_spec("gguf") is None:
        raise RecipeError("export needs gguf; pip install 'hf_lm[gguf]'")
    if config.model_type not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise RecipeError(f"{model}: {config.model_type} is not written to GGUF; {known} are")
    if folder.exists():
        raise RecipeError(f"{folder}: exists already; name a new folder")


def export_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, dtype: str
) -> float | None:
    """Write a model and a `Modelfile` for Ollama to a directory, atomically.

    Args:
        model: in fp32, on a CPU.
        tokenizer: its tokenizer.
        folder: the directory to create.
        dtype: "f32", "f16", "bf16" or "q8_0" for the matrices; vectors stay in fp32.

    Returns:
        The largest divergence of llama.cpp's probabilities from the model's, in nats; None if
        llama.cpp is not installed, so that nothing was compared.

    Raises:
        RecipeError: the tokenizer cannot be written, or llama.cpp computes something else.
    """
    import gguf

    config = model.config
    vocabulary = gguf_vocabulary(tokenizer, config.vocab_size)
    with replace_directory(folder) as staging:
        writer = gguf.GGUFWriter(staging / FILE, config.model_type)
        add_shape(writer, config, gguf.LlamaFileType[FILE_TYPES[dtype]])
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(vocabulary.pre)
        writer.add_token_list(vocabulary.tokens)
        writer.add_token_types(vocabulary.types)
        writer.add_token_merges(vocabulary.merges)
        writer.add_eos_token_id(tokenizer.eos_token_id)
        first = tokenizer.bos_token_id
        writer.add_bos_token_id(tokenizer.eos_token_id if first is None else first)
        writer.add_add_bos_token(bool(document_prefix(tokenizer)))
        if isinstance(tokenizer.chat_template, str):
            writer.add_chat_template(tokenizer.chat_template)
        for name, array in tensors(model):
            kind = quantization(name, array, dtype)
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        difference = compare(staging / FILE, model, tokenizer, dtype=dtype)
        (staging / "Modelfile").write_text(modelfile(config, tokenizer), encoding="utf-8")
    return difference


def add_shape(writer: Any, config: Any, file_type: int) -> None:
    """Add the sizes of a model."""
    writer.add_file_type(file_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if config.model_type == "gpt2":
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def tensors(model: PreTrainedModel) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the weights of each tensor as llama.cpp has them."""
    import gguf

    config: Any = model.config
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[config.model_type]]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, parameter in model.named_parameters():  # tied matrices come once
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise RecipeError(f"{name}: GGUF has no such tensor for {config.model_type}")
        yield target, as_stored(name, parameter.detach().to(torch.float32), config).numpy()


def as_stored(name: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    """Return a tensor in the order in which llama.cpp stores it.

    transformers' GPT-2 has its matrices transposed. Where llama.cpp rotates neighbouring numbers,
    the rows of each head change places: transformers rotates the two halves of a head.
    """
    is_conv1d = config.model_type == "gpt2" and ".h." in name and weight.ndim == 2
    if is_conv1d:
        return weight.T.contiguous()
    heads = {"q_proj": config.num_attention_heads}
    heads["k_proj"] = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    layer = name.split(".")[-2]
    if config.model_type in INTERLEAVED and layer in heads:
        halves = weight.reshape(heads[layer], 2, -1, *weight.shape[1:])
        return halves.swapaxes(1, 2).reshape(weight.shape).contiguous()
    return weight


def quantization(name: str, array: np.ndarray, dtype: str) -> Any:
    """Return the type of a tensor in the file; rows that q8_0 cannot divide are f16."""
    import gguf

    if array.ndim == 1 or name.startswith("position_embd"):
        return gguf.GGMLQuantizationType.F32
    if dtype == "q8_0" and array.shape[-1] % BLOCK:
        return gguf.GGMLQuantizationType.F16
    return gguf.GGMLQuantizationType[dtype.upper()]


def modelfile(config: Any, tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of a file from which `ollama create` makes a model."""
    stop, context = (
        json.dumps(tokenizer.eos_token, ensure_ascii=False),
        config.max_position_embeddings,
    )
    return f"FROM ./{FILE}\nPARAMETER num_ctx {context}\nPARAMETER stop {stop}\n"
