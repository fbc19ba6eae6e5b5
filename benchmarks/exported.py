"""Measure how fast llama.cpp and ONNX Runtime write text with an exported model.

    python benchmarks/exported.py runs/small/model

Beside transformers, and beside a graph that computes the whole context anew for each token. For
each type of the matrices in GGUF: the size of the file, the divergence from the model, and tokens
per second of texts of 56 tokens on all cores, in turn with transformers in fp32, medians of the
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

import numpy as np
import torch

from hf_lm.exporters.gguf import FILE, FILE_TYPES, export_gguf
from hf_lm.exporters.llama_cpp import ask, start
from hf_lm.exporters.onnx import FILES, cache_shapes, export_onnx
from hf_lm.exporters.onnx_session import CachedSession
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


def onnx_speed(session: CachedSession, prompt: list[int], *, cached: bool) -> float:
    """Return tokens per second of greedy generation, with or without the cache of the graph."""
    ids, new = [*prompt], prompt
    session.start(1)
    began = time.perf_counter()
    for _ in range(TOKENS):
        positions = np.arange(len(ids) - len(new), len(ids))[None]
        logits = session.run(np.array([new]), np.ones((1, len(ids)), np.int64), positions)
        ids.append(int(logits[0, -1].argmax()))
        new = ids[-1:]
        if not cached:
            new = ids
            session.start(1)
    return TOKENS / (time.perf_counter() - began)


def onnx_figures(
    model: Any, tokenizer: Any, prompt: list[int], rounds: int
) -> dict[str, dict[str, float]]:
    """Export a model as ONNX in each type, and measure it in turn with transformers."""
    figures, speeds = {}, {"onnx, no cache": list[float](), "beside onnx": list[float]()}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for dtype, file in FILES.items():
            target, name = Path(folder, dtype), f"onnx {dtype}"
            distance = export_onnx(model, tokenizer, target, dtype=dtype)
            size = (target / "onnx" / file).stat().st_size
            figures[name] = {"megabytes": size / 1e6, "distance": distance}
            sessions[name] = CachedSession(target / "onnx" / file, cache_shapes(model))
            speeds[name] = []
        whole = sessions["onnx f32"]
        for _ in range(rounds + 1):
            for name, session in sessions.items():
                speeds[name].append(onnx_speed(session, prompt, cached=True))
            speeds["onnx, no cache"].append(onnx_speed(whole, prompt, cached=False))
            speeds["beside onnx"].append(transformers_speed(model, prompt))
    return with_medians(figures, speeds)


def with_medians(
    figures: dict[str, dict[str, float]], speeds: dict[str, list[float]]
) -> dict[str, dict[str, float]]:
    """Add the median speed of each side to its figures; the first of each only warms up."""
    for name, measured in speeds.items():
        figures.setdefault(name, {})["tokens_per_second"] = statistics.median(measured[1:])
    return figures


def main() -> None:
    """Export the model in each type, and measure it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder or Hub id")
    parser.add_argument("--rounds", type=int, default=5, help="texts of each side (5)")
    args = parser.parse_args()
    model, tokenizer = load_model(args.model, device="cpu")
    prompt = tokenizer("import os\n")["input_ids"] or [tokenizer.eos_token_id]
    speeds: dict[str, list[float]] = {"transformers": []}
    # Before the servers start, whose threads take a part of the processor.
    figures = onnx_figures(model, tokenizer, prompt, args.rounds)
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
    figures = with_medians(figures, speeds)
    for name, row in figures.items():
        print(f"{name:16}" + "  ".join(f"{key} {value:,.4g}" for key, value in row.items()))
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
