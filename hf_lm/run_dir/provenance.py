"""Record what a result depends on: data, tokenizer, versions, commit and device."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping

from hf_lm import __version__

PACKAGES = ("torch", "transformers", "datasets", "tokenizers", "accelerate", "evaluate")


def describe_run(data: str, tokenizer: str, machine: Mapping[str, object]) -> dict[str, object]:
    """Return the fields of provenance.json: what the weights depend on besides the recipe.

    Args:
        data: the fingerprint of the text.
        tokenizer: the hash of the tokenizer.
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
    """Return the commit of the current folder, with "-dirty" if files differ from it.

    Returns:
        None outside a git repository, or without git.
    """
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
