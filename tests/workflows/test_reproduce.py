"""Compare a published model with a run: results that differ, and what may be the cause."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_lm.errors import RecipeError
from hf_lm.system.files import sha256
from hf_lm.workflows.reproduce import Published, compare

METRICS = {"loss": 3.5, "perplexity": 33.1, "accuracy": 0.25, "bits_per_byte": 1.5}
PROVENANCE = {"data": "a1", "packages": {"torch": "2.13.0"}, "seconds": 3, "threads": 2}


def run_of(folder: Path, metrics: dict[str, Any], provenance: dict[str, Any]) -> Path:
    """Write the files of a finished run."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"weights")
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "provenance.json").write_text(json.dumps(provenance))
    return folder


def published(folder: Path, metrics: dict[str, Any]) -> Published:
    """Return the published model of a run."""
    weights = folder / "model" / "model.safetensors"
    return Published(metrics, PROVENANCE, weights.name, sha256(weights))


def test_equal_results_are_reported_as_equal_also_if_infinite(tmp_path: Path) -> None:
    metrics = {**METRICS, "perplexity": "Infinity"}
    run = run_of(tmp_path / "run", metrics, {**PROVENANCE, "seconds": 5})
    found = compare(published(run, metrics), run)
    rows, notes = found.rows, found.notes
    assert rows == [
        ("loss", "3.5 published, 3.5 here: equal"),
        ("perplexity", "inf published, inf here: equal"),
        ("accuracy", "0.25 published, 0.25 here: equal"),
        ("bits_per_byte", "1.5 published, 1.5 here: equal"),
        ("weights", "the same bits"),
    ]
    assert notes == []


def test_different_results_are_reported_with_possible_causes(tmp_path: Path) -> None:
    provenance = {"data": "b2", "packages": {"torch": "2.14.0"}, "threads": 2}
    run = run_of(tmp_path / "run", {**METRICS, "loss": 3.75}, provenance)
    original = published(run, METRICS)._replace(digest="0")
    found = compare(original, run)
    rows, notes = found.rows, found.notes
    assert rows[0] == ("loss", "3.5 published, 3.75 here: 0.25 apart")
    assert rows[-1] == ("weights", "other bits")
    assert notes == [
        "data was a1, is b2 here",
        "packages.torch was 2.13.0, is 2.14.0 here",
    ]


def test_a_name_that_is_not_a_published_model_is_rejected() -> None:
    with pytest.raises(RecipeError, match="name one as hub:USER/MODEL"):
        Published.fetch("runs/small")
