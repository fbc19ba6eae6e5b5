"""Compare a model with what llama.cpp computes from its GGUF file.

llama.cpp runs in this process, as the server of the `xllamacpp` package on a free port of
loopback. It gives the ids of a text and the log-probabilities of the next token.
"""

from __future__ import annotations

import importlib
import json
import random
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_lm.errors import RecipeError

TEXTS, PROMPTS = 100, 4
MAX_PROMPT = 64  # tokens

# Nats of divergence: what rounding the matrices can do. The most that we measured with random
# prompts is 3e-8 in f32 (gpt2, whose GELU llama.cpp looks up in f16; 4e-11 on SmolLM2-135M), and on
# SmolLM2 1.7e-5 in f16, 3e-4 in bf16 and 1.1e-2 in q8_0.
TOLERANCE = {"f32": 1e-5, "f16": 1e-3, "bf16": 1e-2, "q8_0": 5e-2}

PIECES = (
    *(
        "Hello",
        " world",
        "  ",
        "\n",
        "\n\n\n",
        "\t",
        "don't",
        " they'll",
        "x=1",
        " 2026",
        "1234567",
    ),
    *("naïve", " Ünïcödé", "日本語", "Привет", "שלום", "\U0001f600", "e\u0301", "\u200d", "\r\n"),
    *("def f(x):", "    return x**2", "<b>", "</b>", "...", " !?", "a" * 50, "ﬁ", "\u00a0", "_"),
)


def compare(
    path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, dtype: str
) -> float | None:
    """Return how far the probabilities of llama.cpp are from the model's.

    Returns:
        The largest Kullback-Leibler divergence from the model for the next token of a prompt, in
        nats: what the rounding can add to the loss. None if xllamacpp is not installed.

    Raises:
        RecipeError: llama.cpp gives other ids for a text, or probabilities beyond the tolerance.
    """
    if find_spec("xllamacpp") is None:
        return None
    server = start(path)
    for text in sample_texts(tokenizer, TEXTS):
        expected = tokenizer(text, add_special_tokens=False)["input_ids"]
        body = {"content": text, "add_special": False}
        if ask(server, "/tokenize", body)["tokens"] != expected:
            raise RecipeError(
                f"not written: llama.cpp splits {text[:40]!r} into other tokens than this tokenizer"
            )
    word = next(
        i for token, i in tokenizer.get_vocab().items() if token.isascii() and token.isalnum()
    )
    prompts = sample_prompts(model, tokenizer)
    largest = max(divergence(server, model, ids, word=word) for ids in prompts)
    if not largest <= TOLERANCE[dtype]:
        raise RecipeError(
            f"not written: the probabilities of llama.cpp diverge by {largest:.1e} nats, and "
            f"{TOLERANCE[dtype]:g} is the most that rounding to {dtype} explains"
        )
    return largest


def start(path: Path) -> Any:
    """Start llama.cpp on a CPU with a file; it stops when the object is deleted."""
    xllamacpp: Any = importlib.import_module("xllamacpp")  # a compiled module without types
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_gpu_layers = 0
    params.n_parallel = 1
    params.n_ctx = 2 * MAX_PROMPT
    params.warmup = False
    params.verbosity = 0
    # The fused attention computes in f16: 7e-6 nats on SmolLM2, the plain one has 4e-11 in f32.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    return xllamacpp.Server(params)


def ask(server: Any, path: str, body: dict[str, Any]) -> Any:
    """Send a request to llama.cpp's server and return its answer."""
    request = urllib.request.Request(  # the address is that of our own server
        server.listening_address + path,
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def sample_texts(tokenizer: PreTrainedTokenizerBase, count: int) -> Iterator[str]:
    """Yield odd texts that a tokenizer can encode: of pieces, and of its own tokens."""
    choose = random.Random(0)
    special = set(tokenizer.all_special_ids)
    ids = sorted(set(tokenizer.get_vocab().values()) - special)
    for number in range(count):
        if number % 2:
            text = str(tokenizer.decode(choose.choices(ids, k=12)))
        else:
            text = "".join(choose.choices(PIECES, k=8))
        try:
            tokenizer(text)
        except Exception:  # a vocabulary of characters lacks some
            continue
        if text:
            yield text


def sample_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> Iterator[list[int]]:
    """Yield prompts of ids, from one token to as many as the context holds."""
    choose = random.Random(0)
    ids = sorted(tokenizer.get_vocab().values())
    longest = min(MAX_PROMPT, model.config.max_position_embeddings - 1)
    for number in range(PROMPTS):
        yield choose.choices(ids, k=max(1, longest * number // (PROMPTS - 1)))


def divergence(server: Any, model: PreTrainedModel, ids: list[int], *, word: int) -> float:
    """Return the divergence of llama.cpp from a model for the token after some ids, in nats.

    Args:
        server: llama.cpp with the file.
        model: what it is compared with.
        ids: the prompt.
        word: a token to continue with, which changes no probability in the answer: there are none
            if the text ends, or after a part of a character.
    """
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
    expected = torch.log_softmax(logits.double(), -1).numpy()
    body = {"prompt": ids, "n_predict": 1, "n_probs": len(expected), "temperature": 0}
    answer = ask(
        server, "/completion", {**body, "cache_prompt": False, "logit_bias": [[word, 1e4]]}
    )
    found = np.full(len(expected), -np.inf)
    for row in answer["completion_probabilities"][0]["top_logprobs"]:
        found[row["id"]] = row["logprob"]
    found -= np.log(np.exp(found).sum())  # summed in f32 there: 1e-4 from 1 with 49,152 tokens
    return float((np.exp(expected) * (expected - found)).sum())
