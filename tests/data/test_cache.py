"""Prepared text is used again while nothing it depends on has changed, and shared by processes."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import slow_build
from texts import data_recipe, tokenizer_of

from hf_lm.cli import main
from hf_lm.data.blocks.build import build_blocks
from hf_lm.data.cache import build_once, cache_root, entries, prune
from hf_lm.data.load import load_blocks, load_documents
from hf_lm.data.text.documents import Documents, fingerprint
from hf_lm.data.text.holdout import Holdout
from hf_lm.data.text.scan import scan_documents
from hf_lm.data.text.sources import find_corpus
from hf_lm.recipe import load_recipe
from hf_lm.tokenizer import build_tokenizer, tokenizer_hash, train_backend
from hf_lm.workflows.stages import load_text, read_corpus


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of its own for each test."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def prepared(path: Path) -> list[list[int]]:
    """The training rows of a recipe file."""
    recipe = load_recipe(path)
    text = load_documents(recipe.data, find_corpus(recipe.data))
    tokenizer = build_tokenizer(recipe.tokenizer, text.documents)
    blocks = load_blocks(recipe.data, text, tokenizer, seed=0)
    return [row["input_ids"].tolist() for row in blocks.splits["train"]]


def builds() -> set[str]:
    """The keys of all prepared blocks."""
    return {entry.key for entry in entries() if entry.kind == "blocks"}


def rebuilt(path: Path) -> bool:
    """Whether preparing a recipe again builds anything."""
    before = builds()
    prepared(path)
    return builds() != before


@pytest.mark.promise("5")
def test_a_changed_byte_rebuilds_and_a_changed_time_does_not(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_recipe()
    rows = prepared(path)
    file = tmp_path / "corpus" / "000.txt"
    os.utime(file, (1, 1))
    assert not rebuilt(path)
    assert prepared(path) == rows
    text = file.read_bytes()
    file.write_bytes(bytes([text[0] ^ 1]) + text[1:])
    os.utime(file, (1, 1))
    assert rebuilt(path)
    assert prepared(path) != rows


@pytest.mark.promise("5")
def test_the_names_of_files_and_folders_do_not_matter(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    rows = prepared(write_recipe())
    (tmp_path / "corpus").rename(tmp_path / "renamed")
    path = write_recipe(data__source="renamed")
    assert not rebuilt(path)
    assert prepared(path) == rows


@pytest.mark.promise("5")
@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer": {"train": {"kind": "bpe", "vocab_size": 321}}},
        {"tokenizer": {"train": {"kind": "byte"}}},
        {"data__block_size": 32},
        {"data__append_eos": False},
        {"data__grouping": "best_fit"},
        {"data__validation": {"holdout": 0.3}},
        {"data__max_documents": 15},
        {"data__max_bytes": 4_000},
        {"data__deduplicate": False},
        {"data__sample_by": "line"},
    ],
)
def test_another_tokenizer_or_parameter_rebuilds(
    change: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    prepared(write_recipe())
    assert rebuilt(write_recipe(**change))


class HubRows(list[str]):
    """The texts of a Hub dataset, which count how often they are read."""

    reads = 0

    def __iter__(self) -> Any:
        HubRows.reads += 1
        return super().__iter__()


def test_a_hub_dataset_is_scanned_once_for_each_commit_and_selection() -> None:
    HubRows.reads = 0
    texts = HubRows(f"document {n} of a dataset" for n in range(50))
    scans = []
    for commit, keys in (("a", {}), ("a", {}), ("b", {}), ("b", {"split": "train[:9]"})):
        data = data_recipe("USER/text", **keys)
        hub = {("train", "USER/text"): texts}
        commits = (f"USER/text@{commit}",)
        corpus = find_corpus(data)
        scans.append(scan_documents(data, corpus, hub, commits=commits, keep=True))
    assert scans[0] == scans[1]
    assert scans[0].documents == 50
    assert HubRows.reads == 3


def test_another_split_of_the_same_commit_has_blocks_of_its_own() -> None:
    blocks = []
    tokenizer = tokenizer_of("byte", [])
    for split, text in (("train[:50%]", "first half "), ("train[50%:]", "other half ")):
        data = data_recipe("USER/text", split=split, deduplicate=False)
        corpus = find_corpus(data)
        hub = {("train", "USER/text"): [text * 3] * 9}
        content = fingerprint(data, corpus, ("USER/text@a",))
        documents = Documents(data, corpus, hub, Holdout(0))
        blocks.append(build_blocks(documents, tokenizer, data, content=content))
    assert blocks[0] != blocks[1]


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_a_tokenizer_is_trained_once_for_the_same_text(
    kind: str, write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()

    def counted(*args: Any) -> Any:
        calls.append("trained")
        return train_backend(*args)

    monkeypatch.setattr("hf_lm.tokenizer.train_backend", counted)
    made = []
    for changes in ({}, {"training__learning_rate": 0.5}, {"data__max_documents": 15}):
        recipe = load_recipe(write_recipe(tokenizer={"train": {"kind": kind}}, **changes))
        corpus, scan = read_corpus(recipe.data)
        text, tokenizer = load_text(recipe, corpus, scan)
        made.append(tokenizer)
        trained = build_tokenizer(recipe.tokenizer, text.documents)
        calls.pop()
        assert tokenizer_hash(tokenizer) == tokenizer_hash(trained)
        assert tokenizer.eos_token_id == trained.eos_token_id
        assert type(tokenizer) is type(trained)
    assert len(calls) == 2
    assert tokenizer_hash(made[0]) == tokenizer_hash(made[1])


def test_other_mixture_weights_reuse_the_blocks(
    write_recipe: Callable[..., Path],
) -> None:
    def weighted(first: int) -> Path:
        globs = {"corpus/00*.txt": first, "corpus/01*.txt": 1}
        sources = [{"source": name, "weight": weight} for name, weight in globs.items()]
        return write_recipe(data__source=sources)

    prepared(weighted(2))
    assert not rebuilt(weighted(3))


@pytest.mark.promise("5")
@pytest.mark.parametrize("num_proc", [1, 2, 5])
def test_num_proc_does_not_change_the_blocks(
    num_proc: int, write_recipe: Callable[..., Path], monkeypatch: Any, tmp_path: Path
) -> None:
    from hf_lm.data.blocks import tokenization as tokens

    monkeypatch.setattr(tokens, "PIECE", 300)  # so that cores have pieces to share
    rows = prepared(write_recipe())
    assert not rebuilt(write_recipe(data__num_proc=num_proc))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "another"))
    assert prepared(write_recipe(data__num_proc=num_proc)) == rows


@pytest.mark.promise("5")
def test_of_two_processes_one_prepares_and_both_succeed(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        folders = pool.map(slow_build, [str(tmp_path / "calls")] * 2)
    assert folders[0] == folders[1]
    assert (tmp_path / "calls").read_text() == "built\n"


@pytest.mark.promise("64")
def test_a_failed_or_killed_build_does_not_block_the_next() -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        build_once("test", "key", fail)
    left = cache_root() / "test" / ".key.99999"  # as a kill leaves it
    left.mkdir()
    folder = build_once("test", "key", lambda folder: (folder / "made").write_text("x"))
    assert sorted(p.name for p in folder.iterdir()) == ["files.json", "made"]
    assert not left.exists()


@pytest.mark.promise("64")
def test_truncated_data_is_built_again(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe()
    rows = prepared(path)
    file = next((cache_root() / "blocks").rglob("train.arrow"))
    file.write_bytes(file.read_bytes()[:100])
    assert prepared(path) == rows


def test_the_cache_is_shown_and_pruned_by_last_use(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    prepared(write_recipe())
    old = build_once("test", "old", lambda folder: (folder / "made").write_text("x" * 10**6))
    week_ago = time.time() - 7 * 86_400
    os.utime(old / "files.json", (week_ago, week_ago))
    assert main(["cache"]) == 0
    shown = capsys.readouterr().out
    assert "1.0 MB, used 7.0 days ago" in shown
    assert str(cache_root()) in shown
    assert main(["cache", "--prune", "3"]) == 0
    assert "1.0 MB removed" in capsys.readouterr().out
    assert not old.exists()
    assert builds()
    build_once("test", "old", lambda folder: (folder / "made").write_text("x"))
    prune(0)
    assert entries() == []


def test_reusing_data_updates_its_last_use(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe()
    prepared(path)
    for entry in entries():
        os.utime(entry.folder / "files.json", (1, 1))
    prepared(path)
    assert min(entry.age for entry in entries() if entry.kind == "blocks") < 1


def test_a_scan_is_cached_for_the_next_run(write_recipe: Callable[..., Path]) -> None:
    from hf_lm.data.text.scan import scan_documents

    recipe = load_recipe(write_recipe())
    corpus = find_corpus(recipe.data)
    first = scan_documents(recipe.data, corpus, keep=True)
    reported: list[int] = []
    again = scan_documents(
        recipe.data,
        corpus,
        keep=True,
        report=lambda documents, _: reported.append(documents),
    )
    assert again == first == scan_documents(recipe.data, corpus)
    assert reported == []
    assert json.loads(next(cache_root().rglob("scan.json")).read_text())["documents"] > 9
