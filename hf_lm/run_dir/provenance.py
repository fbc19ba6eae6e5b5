"""Record what a result depends on: data, tokenizer, versions, commit and device."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from typing import Any

from hf_lm import __version__

PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "accelerate", "evaluate")


def describe_run(data: str, tokenizer: str, machine: Mapping[str, Any]) -> dict[str, Any]:
    """What the weights depend on besides the recipe; the fields of provenance.json.

    Args:
        data: fingerprint of the text.
        tokenizer: hash of the tokenizer.
        machine: device, threads, precision and number of processes.
    """
    return {
        "data": data,
        "tokenizer": tokenizer,
        **machine,
        "hf_lm": __version__,
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "git": git_commit(),
    }


def git_commit() -> str | None:
    """The commit checked out in the current folder, marked where files differ from it."""
    try:
        run = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()
