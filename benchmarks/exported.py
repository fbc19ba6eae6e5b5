"""Measure how fast llama.cpp writes text with an exported model, beside transformers.

    python benchmarks/exported.py runs/small/model

For each type of the matrices: the size of the file, the divergence from the model, and tokens per
second of texts of 56 tokens on all cores, in turn with transformers in fp32, medians of the
rounds. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hf_lm.exporters.gguf import FILE, FILE_TYPES, export_gguf
from hf_lm.exporters.llama_cpp import ask, start
from hf_lm.workflows.stages import load_model

TOKENS = 56  # with the prompt, less than the shortest context of the shipped recipes


def transformers_speed(model: Any, prompt: list[int]) -> float:
    """Return tokens per second of greedy generation."""
    ids = torch.tensor([prompt])
    began = time.perf_counter()
    model.generate(ids, max_new_tokens=TOKENS, min_new_tokens=TOKENS, do_sample=False)
    return TOKENS / (time.perf_counter() - began)


def llama_speed(server: Any, prompt: list[int]) -> float:
    """Return tokens per second of greedy generation, with the time of the request."""
    body = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "ignore_eos": True}
    began = time.perf_counter()
    answer = ask(server, "/completion", {**body, "cache_prompt": False})
    seconds = time.perf_counter() - began
    return answer["tokens_predicted"] / seconds


def main() -> None:
    """Export the model in each type, and measure it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder or Hub id")
    parser.add_argument("--rounds", type=int, default=5, help="texts of each side (5)")
    args = parser.parse_args()
    model, tokenizer = load_model(args.model, device="cpu")
    prompt = tokenizer("import os\n")["input_ids"] or [tokenizer.eos_token_id]
    speeds: dict[str, list[float]] = {"transformers": []}
    figures: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        servers = {}
        for dtype in FILE_TYPES:
            target = Path(folder, dtype)
            divergence = export_gguf(model, tokenizer, target, dtype=dtype)
            size = (target / FILE).stat().st_size
            figures[dtype] = {"megabytes": size / 1e6, "divergence": divergence or 0.0}
            servers[dtype], speeds[dtype] = start(target / FILE), []
        for _ in range(args.rounds + 1):
            speeds["transformers"].append(transformers_speed(model, prompt))
            for dtype, server in servers.items():
                speeds[dtype].append(llama_speed(server, prompt))
    for name, measured in speeds.items():  # the first of each warms up
        figures.setdefault(name, {})["tokens_per_second"] = statistics.median(measured[1:])
    for name, row in figures.items():
        print(f"{name:14}" + "  ".join(f"{key} {value:,.4g}" for key, value in row.items()))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
