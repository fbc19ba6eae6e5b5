"""Measure speed, disk and memory from text to blocks, against the tokenizer and run_clm.

    python benchmarks/data.py --rounds 3 --large 1000

Every measurement runs in its own process, and the measurements take turns, because the speed of
the machine drifts. Prints a table of medians; the last line is one JSON object.
  limit   only `encode_batch_fast` of tokenizers, on all text in memory
  ours    find, check, tokenize and group, from files to memory-mapped blocks, with empty caches
  stock   load, tokenize and group with `datasets.map()`, as run_clm does
  group   only our second map step, on ids in memory
  feed    collated batches of random blocks
  stream  batches of the same text streamed, compared with tokenizing it in memory
  near    a scan that compares the held-out documents with the training text, and one that does not
`ours` is also measured on gzip and zstd copies of the small generated text.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

STDLIB = "python-stdlib"
BLOCK, BATCH, VOCABULARY = 256, 32, 8192
TURNS = 4  # of a stream and of tokenizing in memory
Figures = dict[str, float]


def texts_of(source: str) -> list[str]:
    """Read all documents of a source into memory."""
    from hf_lm.data.text.documents import DocumentReader
    from hf_lm.data.text.sources import find_corpus

    data = recipe_of(source)
    return [document.text for document in DocumentReader(data, find_corpus(data), {})]


def recipe_of(source: str, **changes: Any) -> Any:
    """Make the data section that all measurements use."""
    from hf_lm.recipe import DataRecipe

    return DataRecipe(source=source, block_size=BLOCK, **changes)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer that all measurements use."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder / "tokenizer"))


def size_of(folder: Path) -> int:
    """Return the size of all files in bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def limit(source: str, folder: Path) -> Figures:
    """Measure the tokenizer alone."""
    texts, backend = texts_of(source), load_tokenizer(folder).backend_tokenizer
    began = time.perf_counter()
    for start in range(0, len(texts), 1_000):  # one batch would need 50 bytes per character
        backend.encode_batch_fast(texts[start : start + 1_000], add_special_tokens=False)
    return {"seconds": time.perf_counter() - began}


def prepared(source: str, folder: Path) -> tuple[Any, float]:
    """Prepare blocks from empty caches; return them and the seconds it took."""
    from hf_lm.data.blocks import build
    from hf_lm.data.load import load_blocks, load_documents
    from hf_lm.data.text.scan import scan_documents
    from hf_lm.data.text.sources import find_corpus

    assert build  # imported before the clock starts, as in the other measurements
    data, tokenizer = recipe_of(source), load_tokenizer(folder)
    began = time.perf_counter()
    corpus = find_corpus(data)
    scan = scan_documents(data, corpus, keep=True)
    text = load_documents(data, corpus, scan)
    return load_blocks(data, text, tokenizer, seed=0), time.perf_counter() - began


def ours(source: str, folder: Path) -> Figures:
    """Measure our preparation from files to blocks."""
    cache = Path(os.environ["HF_DATASETS_CACHE"])
    blocks, seconds = prepared(source, folder)
    tokens = sum(counts.tokens for counts in blocks.counts.values())
    stored = (blocks.splits["train"].blocks, blocks.splits["validation"])
    files = [Path(file["filename"]) for split in stored for file in split.dataset.cache_files]
    return {
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "bytes_per_token": sum(file.stat().st_size for file in files) / tokens,
        "cache_bytes_per_token": size_of(cache) / tokens,
    }


def stock(source: str, folder: Path) -> Figures:
    """Measure the preparation of run_clm, on the same documents as JSONL."""
    sys.path.insert(0, str(Path(__file__).parent))
    from stock_trainer import prepare

    file = folder / "stdlib.jsonl" if source == STDLIB else Path(source)
    validation, out = folder / "validation.jsonl", folder / "stock"
    shutil.rmtree(out, ignore_errors=True)
    args = Namespace(train=str(file), validation=str(validation), out=out, block=BLOCK)
    tokenizer = load_tokenizer(folder)
    began = time.perf_counter()
    blocks = prepare(args, tokenizer)
    seconds = time.perf_counter() - began
    tokens = sum(len(split) for split in blocks.values()) * BLOCK
    return {
        "seconds": seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "cache_bytes_per_token": size_of(out) / tokens,
    }


def group(source: str, folder: Path) -> Figures:
    """Measure the second map step alone."""
    import numpy as np

    from hf_lm.data.blocks.dataset import table_of
    from hf_lm.data.blocks.grouping import Concat

    ids = np.random.default_rng(0).integers(0, VOCABULARY, 2_000_000, dtype=np.uint16)
    ends = np.arange(1_000, len(ids) + 1, 1_000)
    grouper, count = Concat(BLOCK, ids[:0]), 50
    began = time.perf_counter()
    for _ in range(count):
        table_of(grouper.add(ids, ends))
    return {"mtok_s": count * len(ids) / (time.perf_counter() - began) / 1e6}


def feed(source: str, folder: Path) -> Figures:
    """Measure batches of random blocks from a memory map, as the trainer reads them."""
    from torch.utils.data import DataLoader

    from hf_lm.data.collator import make_collate

    blocks, _ = prepared(source, folder)
    collate = make_collate(recipe_of(source), load_tokenizer(folder), split="train")
    train = blocks.splits["train"]
    loader = DataLoader(train, batch_size=BATCH, shuffle=True, collate_fn=collate)
    # The first pass reads the file into memory, as the first steps of a run do.
    for _ in loader:
        pass
    began = time.perf_counter()
    count = sum(batch["input_ids"].numel() for batch in loader)
    return {"mtok_s": count / (time.perf_counter() - began) / 1e6}


def stream(source: str, folder: Path) -> Figures:
    """Measure tokens per second of streamed batches, and of tokenizing the same text in memory.

    The two take turns, because the speed of the machine drifts within a minute.
    """
    from torch.utils.data import DataLoader

    from hf_lm.data.blocks.tokenization import Tokenize
    from hf_lm.data.collator import make_collate
    from hf_lm.data.load import load_blocks, load_documents
    from hf_lm.data.text.sources import find_corpus

    data, tokenizer = recipe_of(source, streaming=True), load_tokenizer(folder)
    text = load_documents(data, find_corpus(data))
    blocks = load_blocks(data, text, tokenizer, seed=0, num_validation_blocks=8)
    collate = make_collate(data, tokenizer, split="train")
    batches = iter(DataLoader(blocks.splits["train"], batch_size=BATCH, collate_fn=collate))
    documents = (row["text"] for row in text.documents["train"])
    batches_of_text = cycle([list(islice(documents, 500)) for _ in range(40)])
    tokenize = Tokenize(tokenizer, append_eos=True)
    streamed = (batch["input_ids"].numel() for batch in batches)
    memory = (len(tokenize({"text": texts})["input_ids"]) for texts in batches_of_text)
    rates: Figures = {"streamed": 0.0, "memory": 0.0}
    for _ in range(TURNS):
        # Skip the batches that were prefetched while the other side had its turn.
        for _ in islice(batches, 200):
            pass
        rates["streamed"] += rate(streamed) / TURNS
        rates["memory"] += rate(memory) / TURNS
    return {**rates, "ratio": rates["streamed"] / rates["memory"]}


def near(source: str, folder: Path) -> Figures:
    """Measure the search for near duplicates, beside the scan without it."""
    from hf_lm.data.text.scan import scan_documents
    from hf_lm.data.text.sources import find_corpus

    seconds = []
    for choice in ("off", "count"):
        data = recipe_of(source, near_duplicates=choice)
        corpus = find_corpus(data)
        began = time.perf_counter()
        scan_documents(data, corpus)
        seconds.append(time.perf_counter() - began)
    plain, compared = seconds
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": compared - plain, "plain": plain, "peak_mb": peak}


def rate(tokens: Iterator[int], seconds: float = 8) -> float:
    """Measure tokens per second over some seconds."""
    began, count = time.perf_counter(), 0
    for num_tokens in tokens:
        count += num_tokens
        if time.perf_counter() - began > seconds:
            break
    return count / (time.perf_counter() - began)


MEASURED: dict[str, Callable[[str, Path], Figures]] = {
    f.__name__: f for f in (limit, ours, stock, group, feed, stream, near)
}


def run(what: str, source: str, folder: Path) -> Figures:
    """Run one measurement in its own process, with empty caches."""
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    done = subprocess.run(
        [sys.executable, __file__, "--measure", what, "--source", source, "--folder", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={
            **os.environ,
            "HF_DATASETS_CACHE": str(cache),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        },
    )
    return json.loads(done.stdout.splitlines()[-1])


def write_texts(folder: Path, megabytes: int, lines: list[str]) -> str:
    """Write different documents of about 2 kB each, from neighbouring lines of real code."""
    chance, path = random.Random(0), folder / f"made-{megabytes}.jsonl"
    size = number = 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            start = chance.randrange(len(lines))
            text = f"# {number}\n" + "".join(lines[start : start + chance.randrange(20, 100)])
            file.write(json.dumps({"text": text}) + "\n")
            size, number = size + len(text.encode()), number + 1
    return str(path)


def set_up(folder: Path, sizes: list[int]) -> dict[int, str]:
    """Write the tokenizer, the standard library as JSONL, and generated text of each size."""
    from hf_lm.recipe import TokenizerRecipe
    from hf_lm.tokenizer import build_tokenizer

    texts = texts_of(STDLIB)
    rows = [{"text": text} for text in texts]
    build_tokenizer(TokenizerRecipe(), {"train": rows}).save_pretrained(str(folder / "tokenizer"))
    with (folder / "stdlib.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    validation = json.dumps({"text": "held out\n" * BLOCK}) + "\n"
    (folder / "validation.jsonl").write_text(validation)
    lines = [line for text in texts for line in text.splitlines(keepends=True)]
    return {size: write_texts(folder, size, lines) for size in sizes}


def compare(source: str, folder: Path, rounds: int) -> dict[str, Figures]:
    """Measure the three preparations of one text in turn, and return medians."""
    measured: dict[str, list[Figures]] = {"limit": [], "ours": [], "stock": []}
    for _ in range(rounds):
        for side, rows in measured.items():
            rows.append(run(side, source, folder))
    medians = {
        side: {name: statistics.median(row[name] for row in rows) for name in rows[0]}
        for side, rows in measured.items()
    }
    for side, row in medians.items():
        columns = "  ".join(f"{name} {value:,.2f}" for name, value in row.items())
        print(f"{Path(source).stem:14}{side:8}{columns}", flush=True)
    return medians


def write_compressed(source: str) -> list[str]:
    """Write gzip and zstd copies of a file, at their usual levels; return all three names."""
    import pyarrow as pa

    raw, names = Path(source).read_bytes(), [f"{source}.gz", f"{source}.zst"]
    Path(names[0]).write_bytes(gzip.compress(raw, 6))
    Path(names[1]).write_bytes(pa.Codec("zstd", 3).compress(raw, asbytes=True))
    return [source, *names]


def compare_compressed(source: str, folder: Path, rounds: int) -> Figures:
    """Measure the preparation of a file and of its compressed copies in turn.

    Returns:
        The speed from each copy as a ratio to that from the plain file, of medians.
    """
    names = write_compressed(source)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            seconds[name].append(run("ours", name, folder)["seconds"])
    plain, gz, zst = (statistics.median(seconds[name]) for name in names)
    return {"gz_vs_plain": plain / gz, "zst_vs_plain": plain / zst}


def main() -> None:
    """Measure everything, or in a child process one measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", type=int, default=200, help="MB of generated text")
    parser.add_argument(
        "--large", type=int, default=1000, help="MB of text for the memory peak; 0 skips it"
    )
    parser.add_argument("--measure", choices=MEASURED, help=argparse.SUPPRESS)
    parser.add_argument("--source", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(MEASURED[args.measure](args.source, args.folder)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generated = set_up(folder, [size for size in (args.small, args.large) if size])
        library = compare(STDLIB, folder, args.rounds)
        small = compare(generated[args.small], folder, args.rounds)
        large = run("ours", generated[args.large], folder) if args.large else {"peak_mb": 0.0}
        others = {
            what: run(what, generated[args.small], folder) for what in ("group", "feed", "stream")
        }
        others["near"] = run("near", generated[args.large or args.small], folder)
        compressed = compare_compressed(generated[args.small], folder, args.rounds)
    figures = {
        **{
            f"{key}{suffix}": side[beside]["seconds"] / side["ours"]["seconds"]
            for suffix, side in (("", library), ("_made", small))
            for key, beside in (("tokenize_vs_limit", "limit"), ("prepare_vs_peer", "stock"))
        },
        "group_mtok_s": others["group"]["mtok_s"],
        "feed_mtok_s": others["feed"]["mtok_s"],
        "bytes_per_token": small["ours"]["bytes_per_token"],
        "cache_bytes_per_token": small["ours"]["cache_bytes_per_token"],
        "peer_cache_bytes_per_token": small["stock"]["cache_bytes_per_token"],
        "peak_mb_200mb": small["ours"]["peak_mb"],
        "peer_peak_mb_200mb": small["stock"]["peak_mb"],
        "peak_mb_1gb": large["peak_mb"],
        "stream_vs_memory": others["stream"]["ratio"],
        **compressed,
        **{f"near_{name}": value for name, value in others["near"].items()},
    }
    for key, value in figures.items():
        print(f"{key:28}{value:12,.3f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
