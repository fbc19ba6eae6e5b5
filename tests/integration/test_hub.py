"""Test training on datasets and models of the Hub, with a fake Hub on localhost."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_hub import serve

from recipes import CORPUS

pytestmark = pytest.mark.slow


def publish(root: Path, *, shards: int = 2, copies: int = 0) -> None:
    """Write a dataset of paragraphs in shards, with duplicates and a test split."""
    paragraphs = CORPUS.read_text(encoding="utf-8").split("\n\n")
    folder = root / "datasets" / "USER" / "text"
    (folder / "data").mkdir(parents=True)
    for i in range(shards):
        rows = [{"body": text, "id": n} for n, text in enumerate(paragraphs[i:-20:shards])]
        rows += rows[:copies]
        name = f"train-{i:05}-of-{shards:05}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / name)
    rows = [{"body": text, "id": n} for n, text in enumerate(paragraphs[-20:])]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "test-00000-of-00001.parquet")


@pytest.fixture
def train(
    tmp_path: Path, run_recipe: Callable[..., CompletedProcess[str]]
) -> Callable[..., CompletedProcess[str]]:
    """Return a function that runs a recipe with an empty cache."""
    return partial(run_recipe, HF_HOME=str(tmp_path / "home"))


def provenance(folder: Path) -> dict[str, Any]:
    """Read the provenance of a run."""
    return json.loads((folder / "provenance.json").read_text())


def test_commit_of_a_hub_dataset_is_part_of_the_fingerprint(
    write_recipe: Callable[..., Path],
    train: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    publish(tmp_path / "hub", copies=2)
    recipe = write_recipe(
        data={
            "source": "USER/text",
            "text_column": "body",
            "block_size": 16,
            "validation": {"split": "test"},
        }
    )
    with serve(tmp_path / "hub") as hub:
        done = train(recipe, **hub.environment)
        first = provenance(tmp_path / "run")
        assert first["commits"][0].startswith("USER/text@")
        assert first["duplicates"] == 4
        assert "4 duplicate documents were skipped" in done.stdout
        assert any("train-00001-of-00002.parquet" in request for request in hub.requests)
        readme = tmp_path / "hub" / "datasets" / "USER" / "text" / "README.md"
        readme.write_text("another commit")
        train(recipe, "--fresh", **hub.environment)
    assert provenance(tmp_path / "run-2")["data"] != first["data"]


def test_streaming_run_resumes_exactly_with_a_validation_set(
    resumes_exactly: Callable[..., Path],
    train: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    publish(tmp_path / "hub")
    changes: dict[str, Any] = {
        "data": {
            "source": "USER/text",
            "text_column": "body",
            "block_size": 16,
            "streaming": True,
            "validation": {"holdout": 0.2},
        },
        "training__max_steps": 40,  # The text has 40 steps, so this is more than one epoch.
        "training__save_steps": 20,
        "model__dropout": 0.1,
    }
    with serve(tmp_path / "hub") as hub:
        run = resumes_exactly(partial(train, **hub.environment), 40, **changes)
    assert json.loads((run / "metrics.json").read_text())["tokens"] == 40 * 16


def test_published_model_is_fine_tuned(
    write_recipe: Callable[..., Path],
    train: Callable[..., CompletedProcess[str]],
    tmp_path: Path,
    tiny_run: Path,
) -> None:
    shutil.copytree(tiny_run / "model", tmp_path / "hub" / "models" / "USER" / "model")
    with serve(tmp_path / "hub") as hub:
        train(write_recipe(), "--from", "USER/model", **hub.environment)
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["model"]["pretrained"] == recipe["tokenizer"]["pretrained"] == "USER/model"
