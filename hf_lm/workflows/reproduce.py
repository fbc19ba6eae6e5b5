"""Compare a published model with a new run of its recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hf_lm.errors import RecipeError
from hf_lm.hub.download import PREFIX, fetch_file
from hf_lm.run_dir.compatibility import CONTENT, NUMERICS_KEYS, flatten
from hf_lm.run_dir.directory import METRICS, PROVENANCE, RECIPE, RunDirectory
from hf_lm.system.files import sha256

MEASURED = ("loss", "perplexity", "accuracy", "bits_per_byte")


WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"


CAUSES = {*CONTENT, *CONTENT.values(), *NUMERICS_KEYS, "commits", "hf_lm"}  # of another result


class Published(NamedTuple):
    """What a published model says of the run that made it."""

    metrics: Mapping[str, float]
    provenance: Mapping[str, Any]
    weights: str  # the file of that name
    digest: str  # its SHA-256

    @classmethod
    def of(cls, name: str) -> Published:
        """That of `hub:USER/MODEL[@REVISION]`.

        Raises:
            RecipeError: it is none, or was published before its training ended.
        """
        if not name.startswith(PREFIX):
            raise RecipeError(f"{name}: is no published model; name one as hub:USER/MODEL")
        metrics, provenance = (
            json.loads(fetch_file(name, file).read_text(encoding="utf-8"))
            for file in (METRICS, PROVENANCE)
        )
        model = json.loads(fetch_file(name, RECIPE).read_text(encoding="utf-8"))["model"]
        weights = ADAPTER if model["lora"] and not model["lora"]["merge"] else WEIGHTS
        return cls(metrics, provenance, weights, sha256(fetch_file(name, weights)))


def compare(there: Published, run: Path) -> tuple[list[tuple[str, str]], list[str]]:
    """A published model beside the one of a run.

    Returns:
        Rows of a name and both results, and what in text, versions or machine is another.
    """
    folder = RunDirectory(run)
    here = folder.read(METRICS)
    rows = [(name, beside(float(there.metrics[name]), float(here[name]))) for name in MEASURED]
    same = there.digest == sha256(folder.model / there.weights)
    rows.append(("weights", "the same bits" if same else "other bits"))
    old, new = flatten(there.provenance), flatten(folder.provenance)
    notes = [
        f"{key} was {old.get(key)}, is {new.get(key)} here"
        for key in sorted({*old, *new})
        if key.split(".")[0] in CAUSES and old.get(key) != new.get(key)
    ]
    return rows, notes


def beside(there: float, here: float) -> str:
    """Two results, and how far they are apart."""
    apart = "equal" if there == here else f"{abs(here - there):.2g} apart"
    return f"{there:.6g} published, {here:.6g} here: {apart}"
