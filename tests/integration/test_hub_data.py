"""Train on Hub datasets, streams and prepared blocks, with a fake Hub on localhost."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
from fake_hub import Repository, serve
from texts import tokenizer_of

from recipes import CORPUS

pytestmark = pytest.mark.slow

Train = Callable[..., CompletedProcess[str]]


def publish(root: Path, name: str, *, words: str = "", shards: int = 3) -> Path:
    """Write a dataset of paragraphs with titles as JSONL shards."""
    paragraphs = CORPUS.read_text(encoding="utf-8").split("\n\n")[::4]
    folder = root / "datasets" / "USER" / name
    folder.mkdir(parents=True)
    for shard in range(shards):
        rows = (
            json.dumps({"title": f"{name} {number}", "body": f"{text}{words}"})
            for number, text in enumerate(paragraphs)
            if number % shards == shard
        )
        (folder / f"train-{shard:05}-of-{shards:05}.jsonl").write_text("\n".join(rows))
    return folder


def provenance(folder: Path) -> dict[str, Any]:
    """Read the provenance of a run."""
    return json.loads((folder / "provenance.json").read_text())


def files_of(folder: Path) -> dict[str, bytes]:
    """Read every file of a folder, by its path in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def options(source: Any, **more: Any) -> dict[str, Any]:
    """Make the data section of a recipe."""
    return {"data": {"source": source, "text_column": "body", "block_size": 16,
                     "validation": {"holdout": 0.2}, **more}}  # fmt: skip


@pytest.mark.promise("7")
def test_the_commit_of_a_revision_is_recorded_in_the_provenance(
    write_recipe: Callable[..., Path], tmp_path: Path, run_recipe: Train
) -> None:
    new = publish(tmp_path / "hub", "text", words=" and more")
    old = publish(tmp_path / "hub", "text@v1")
    home = str(tmp_path / "home")
    with serve(tmp_path / "hub") as hub:
        environment = {**hub.environment, "HF_HOME": home}
        run_recipe(write_recipe(**options("USER/text", revision="v1")), **environment)
        commit = Repository(old).commit
        path = write_recipe(**options("USER/text", revision=commit), output_dir="by-commit")
        run_recipe(path, **environment)
        run_recipe(write_recipe(**options("USER/text"), output_dir="newest"), **environment)
        missing = write_recipe(**options("USER/text", revision="v3"), output_dir="none")
        no_revision = run_recipe(missing, code=2, **environment)
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": home}
    cached = run_recipe(missing, code=2, **offline)
    assert "USER/text: revision v3 is not in the cache" in cached.stderr
    assert "the cached copy is of" in cached.stderr
    first, second, third = (provenance(tmp_path / n) for n in ("run", "by-commit", "newest"))
    assert commit in first["commits"][0]
    assert first["commits"] == second["commits"]
    assert first["data"] == second["data"] != third["data"]
    assert Repository(new).commit in third["commits"][0]
    assert "USER/text" in no_revision.stderr
    assert "Traceback" not in no_revision.stderr


@pytest.mark.promise("7")
def test_streamed_mixtures_of_hub_datasets_resume_exactly(
    resumes_exactly: Callable[..., Path], tmp_path: Path, run_recipe: Train
) -> None:
    publish(tmp_path / "hub", "one")
    publish(tmp_path / "hub", "two", shards=1)
    sources = [{"source": "USER/one", "weight": 0.7}, {"source": "USER/two", "weight": 0.3}]
    changes = {
        **options(sources, streaming=True),
        "training__max_steps": 40,  # more than one pass over both datasets
        "training__save_steps": 20,
        "training__dataloader_num_workers": 2,
        "model__dropout": 0.1,
    }
    with serve(tmp_path / "hub") as hub:
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
        whole = resumes_exactly(partial(run_recipe, **environment), 40, **changes)
    state = json.loads((whole / "checkpoint-40" / "state.json").read_text())["ranks"][0]["stream"]
    assert any(place["number"] > 0 for r in state["readers"] for place in r["places"])
    assert len(provenance(whole)["commits"]) == 2


def test_a_text_template_gives_the_same_text_from_the_hub_and_from_files(
    write_recipe: Callable[..., Path], tmp_path: Path, run_recipe: Train
) -> None:
    publish(tmp_path / "hub", "text")
    folder = tmp_path / "hub" / "datasets" / "USER" / "text"
    local = tmp_path / "local"
    shutil.copytree(folder, local)
    texts = []
    with serve(tmp_path / "hub") as hub:
        for number, source in enumerate(("USER/text", "local")):
            changes = options(source, text_column="text", text_template="# {title}\n\n{body}")
            path = write_recipe(**changes, output_dir=f"run{number}")
            run_recipe(path, **hub.environment, HF_HOME=str(tmp_path / "home"))
            texts.append(provenance(tmp_path / f"run{number}")["text"])
    assert texts[0] == texts[1]
    assert texts[0]["train"]["bytes"] > 0


def test_conversations_from_the_hub_and_from_files_give_the_same_tokens(
    write_recipe: Callable[..., Path], tmp_path: Path, run_recipe: Train
) -> None:
    folder = tmp_path / "hub" / "datasets" / "USER" / "talks"
    folder.mkdir(parents=True)
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"},
                      {"role": "assistant", "content": "so " * (n % 7 + 1)}], "score": n}
        for n in range(200)
    ]  # fmt: skip
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    shutil.copytree(folder, tmp_path / "local")
    tokenizer = tokenizer_of("byte", [])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    changes = {
        "tokenizer": {"pretrained": "tokenizer"},
        "data__train_on": "completion",
        "data__grouping": "best_fit",
        "data__document_mask": True,
        "data__block_size": 64,
    }
    texts = []
    with serve(tmp_path / "hub") as hub:
        environment = {**hub.environment, "HF_HOME": str(tmp_path / "home")}
        for number, source in enumerate(("USER/talks", "local")):
            path = write_recipe(data__source=source, output_dir=f"run{number}", **changes)
            run_recipe(path, **environment)
            texts.append(provenance(tmp_path / f"run{number}")["text"])
        (folder / "train.jsonl").write_text(json.dumps({**rows[0], "messages": []}))
        changes["data__source"] = "USER/talks"
        broken = run_recipe(write_recipe(output_dir="none", **changes), code=2, **environment)
    assert texts[0] == texts[1]
    assert texts[0]["train"]["completion_tokens"] > 1000
    assert "USER/talks: no text" in broken.stderr  # rows without a conversation are skipped


def test_prepared_blocks_can_be_pushed_downloaded_and_trained_on(
    write_recipe: Callable[..., Path], tmp_path: Path, run_recipe: Train
) -> None:
    path = write_recipe()
    with serve(tmp_path / "hub") as hub:
        environment = {**hub.environment, "HF_TOKEN": "hf_fake", "HF_HOME": str(tmp_path / "home")}
        target = ["--output", str(tmp_path / "out"), "--push", "USER/blocks"]
        done = run_recipe("prepare", path, *target, module="hf_lm.cli", **environment)
        assert "dataset" in done.stdout
        assert sum("/commit/main" in request for request in hub.requests) == 1
    pushed = tmp_path / "hub" / "datasets" / "USER" / "blocks"
    assert files_of(pushed) == files_of(tmp_path / "out")
    shutil.move(pushed, tmp_path / "downloaded")
    again = write_recipe(data__source="downloaded", tokenizer={}, output_dir="again")
    run_recipe(again)
    assert provenance(tmp_path / "again")["text"]["train"]["blocks"] > 0
