"""Datasets, tokenizers and models of the Hub, from a stand-in on loopback."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CORPUS
from hub import serve

pytestmark = pytest.mark.slow


def publish(root: Path, *, shards: int = 2) -> None:
    """A dataset of paragraphs in shards, with a test split."""
    paragraphs = CORPUS.read_text(encoding="utf-8").split("\n\n")
    folder = root / "datasets" / "USER" / "text"
    (folder / "data").mkdir(parents=True)
    for i in range(shards):
        rows = [{"body": text, "id": n} for n, text in enumerate(paragraphs[i:-20:shards])]
        name = f"train-{i:05}-of-{shards:05}.parquet"
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / name)
    rows = [{"body": text, "id": n} for n, text in enumerate(paragraphs[-20:])]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "test-00000-of-00001.parquet")


def train(recipe: Path, environment: dict[str, str], *options: str) -> str:
    """Run a recipe against the stand-in; returns what it printed."""
    run = subprocess.run(
        [sys.executable, "-m", "hf_lm.run", str(recipe), *options],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **environment, "HF_HOME": str(recipe.parent / "home")},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def provenance(folder: Path) -> dict[str, Any]:
    """What a run recorded of its text."""
    return json.loads((folder / "provenance.json").read_text())


def test_a_hub_dataset_is_trained_on_and_its_commit_is_part_of_the_fingerprint(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    publish(tmp_path / "hub")
    recipe = write_recipe(
        data={
            "source": "USER/text",
            "text_column": "body",
            "block_size": 16,
            "validation": {"split": "test"},
        }
    )
    with serve(tmp_path / "hub") as (environment, requests):
        train(recipe, environment)
        first = provenance(tmp_path / "run")["data"]
        assert any("train-00001-of-00002.parquet" in request for request in requests)
        publish_again = tmp_path / "hub" / "datasets" / "USER" / "text" / "README.md"
        publish_again.write_text("another commit")
        train(recipe, environment, "--fresh")
    assert provenance(tmp_path / "run-2")["data"] != first


def test_a_stream_trains_resumes_exactly_and_holds_out_text(
    write_recipe: Callable[..., Path], tmp_path: Path
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
        "training__max_steps": 40,  # more than one pass over the 40 steps that the text has
        "training__save_steps": 20,
        "model__dropout": 0.1,
    }
    with serve(tmp_path / "hub") as (environment, _):
        out = train(write_recipe(**changes, output_dir="whole"), environment)
        assert "text      a stream" in out
        train(write_recipe(**changes, output_dir="broken"), environment)
        shutil.rmtree(tmp_path / "broken" / "checkpoint-40")
        shutil.rmtree(tmp_path / "broken" / "model")
        (tmp_path / "broken" / "status.json").write_text('{"state": "stopped"}')
        train(tmp_path / "recipe.json", environment)
    weights = [
        (tmp_path / n / "model" / "model.safetensors").read_bytes() for n in ("whole", "broken")
    ]
    assert weights[0] == weights[1]
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["tokens"] == 40 * 16


def test_a_published_model_is_fine_tuned(
    write_recipe: Callable[..., Path], tmp_path: Path, tiny_run: Path
) -> None:
    shutil.copytree(tiny_run / "model", tmp_path / "hub" / "models" / "USER" / "model")
    with serve(tmp_path / "hub") as (environment, _):
        train(write_recipe(), environment, "--from", "USER/model")
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert recipe["model"]["pretrained"] == recipe["tokenizer"]["pretrained"] == "USER/model"
