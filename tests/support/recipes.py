"""The recipe that most tests train, and its corpus."""

import copy
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parents[1] / "fixtures" / "corpus.txt"


TINY: dict[str, Any] = {
    "name": "tiny",
    "output_dir": "run",
    "data": {"source": "corpus", "block_size": 16, "validation": {"holdout": 0.2}},
    "tokenizer": {"train": {"kind": "bpe", "vocab_size": 320}},
    "model": {"n_layer": 2, "n_head": 2, "n_embd": 16},
    "training": {
        "max_steps": 8,
        "tokens_per_step": 128,
        "learning_rate": 0.01,
        "warmup_steps": 2,
        "precision": "fp32",
        "device": "cpu",
        "logging_steps": 2,
        "eval_steps": 4,
        "save_steps": 4,
    },
    "evaluation": {"prompts": ["The "], "max_new_tokens": 4, "max_blocks": 40},
}


def merged(raw: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a raw recipe with dotted keys set."""
    raw = copy.deepcopy(raw)
    for dotted, value in changes.items():
        *parents, key = dotted.split(".")
        section = raw
        for parent in parents:
            section = section.setdefault(parent, {})
        section[key] = copy.deepcopy(value)
    return raw


def write_corpus(folder: Path) -> None:
    """Write the test corpus as one file per paragraph."""
    if folder.exists():
        return
    folder.mkdir(parents=True)
    for number, paragraph in enumerate(CORPUS.read_text(encoding="utf-8").split("\n\n")):
        (folder / f"{number:03}.txt").write_text(paragraph + "\n", encoding="utf-8")
