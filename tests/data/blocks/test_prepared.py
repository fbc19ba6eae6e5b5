"""A prepared folder trains exactly as its text does, and is rejected if it does not match."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from hf_lm.cli import main
from hf_lm.data.load import load_blocks, load_documents
from hf_lm.data.text.sources import find_corpus
from hf_lm.recipe import load_recipe
from hf_lm.run import train
from hf_lm.tokenizer import build_tokenizer


def prepare(path: Path, *options: str) -> Path:
    """Run `hf-lm prepare` on a recipe and return the folder."""
    folder = path.parent / "prepared"
    assert main(["prepare", str(path), "--output", str(folder), *options]) == 0
    return folder


def blocks_of(path: Path) -> Any:
    """Load the blocks of a recipe file."""
    recipe = load_recipe(path)
    corpus = find_corpus(recipe.data)
    text = load_documents(recipe.data, corpus)
    tokenizer = build_tokenizer(recipe.tokenizer, text.documents, default=corpus.tokenizer)
    return load_blocks(recipe.data, text, tokenizer, seed=recipe.seed)


def rows_of(split: Any) -> list[list[int]]:
    """Return the ids of all rows."""
    return [row["input_ids"].tolist() for row in split]


def test_training_on_a_prepared_folder_gives_the_same_weights(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe()
    train(load_recipe(path))
    folder = prepare(path)
    assert "train on it" in capsys.readouterr().out
    train(load_recipe(write_recipe(data__source="prepared", tokenizer={}, output_dir="second")))
    weights = [
        (tmp_path / run / "model" / "model.safetensors").read_bytes() for run in ("run", "second")
    ]
    assert weights[0] == weights[1]
    provenance = json.loads((tmp_path / "second" / "provenance.json").read_text())
    manifest = json.loads((folder / "blocks.json").read_text())
    assert provenance["text"]["train"]["blocks"] > 0
    assert (
        manifest["content"]
        == json.loads((tmp_path / "run" / "provenance.json").read_text())["data"]
    )


def test_load_dataset_reads_a_prepared_folder(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_recipe()
    folder = prepare(path)
    splits = load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    blocks = blocks_of(path)
    for split in ("train", "validation"):
        assert splits[split]["input_ids"][:] == rows_of(blocks.splits[split])


def test_a_prepared_mixture_keeps_its_sources_and_weights(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(20):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number} text\n" * 9)
    sources = [{"source": "a", "weight": 0.8}, {"source": "b", "weight": 0.2}]
    path = write_recipe(data__source=sources)
    from_text = blocks_of(path)
    folder = prepare(path)
    assert {p.name for p in folder.glob("*.arrow")} == {
        "train-0.arrow",
        "train-1.arrow",
        "validation.arrow",
    }
    manifest = json.loads((folder / "blocks.json").read_text())
    assert manifest.pop("train_on") == "text"  # older folders lack this key
    (folder / "blocks.json").write_text(json.dumps(manifest))
    from_folder = blocks_of(write_recipe(data__source="prepared", tokenizer={}))
    assert (from_folder.order.of_epoch(1) == from_text.order.of_epoch(1)).all()
    assert rows_of(from_folder.splits["train"]) == rows_of(from_text.splits["train"])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"data__block_size": 8}, "data.block_size = 8: the blocks in .* were made with 16; use"),
        ({"data__grouping": "best_fit"}, 'data.grouping = "best_fit": .* made with "concat"; use'),
        ({"tokenizer": {"train": {"kind": "byte"}}}, "come with their tokenizer; remove it"),
    ],
)
def test_a_recipe_that_does_not_match_the_blocks_is_rejected(
    change: dict[str, Any],
    line: str,
    write_recipe: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    prepare(write_recipe())
    path = write_recipe(**{"data__source": "prepared", "tokenizer": {}, **change})
    assert main(["run", str(path)]) == 2
    assert re.search(line, capsys.readouterr().err)


@pytest.mark.parametrize("append_eos", [True, False])
def test_the_documents_of_a_prepared_folder_are_found_as_those_of_its_text(
    append_eos: bool, write_recipe: Callable[..., Path]
) -> None:
    """The second pass over a text has its documents in a new order, wherever its blocks are."""
    path = write_recipe(data__append_eos=append_eos)
    from_text = blocks_of(path).splits["train"]
    prepare(path)
    keys = {"data__source": "prepared", "tokenizer": {}, "data__append_eos": append_eos}
    from_folder = blocks_of(write_recipe(**keys)).splits["train"]
    second_pass = range(len(from_text), 2 * len(from_text))
    rows = [
        [row["input_ids"].tolist() for row in blocks.__getitems__(second_pass)]
        for blocks in (from_text, from_folder)
    ]
    assert rows[0] == rows[1]
    assert rows[0] != rows_of(from_text)
    documents = [len(text.document_ends) for text in from_text.texts]
    assert (documents[0] > 1) == append_eos


def test_a_damaged_file_is_named(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = prepare(write_recipe())
    file = folder / "train.arrow"
    raw = bytearray(file.read_bytes())
    raw[-100] ^= 1
    file.write_bytes(raw)
    path = write_recipe(data__source="prepared", tokenizer={})
    assert main(["check", str(path)]) == 2
    assert f"{file}: is missing or damaged; run `hf-lm prepare` again" in capsys.readouterr().err


def test_blocks_made_with_another_tokenizer_are_rejected(
    write_recipe: Callable[..., Path], tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(write_recipe(tokenizer={"train": {"kind": "byte"}}))
    path = write_recipe(data__source="prepared", tokenizer={}, model={})
    assert main(["run", str(path), "--from", str(tiny_run / "model")]) == 2
    assert "was made with another tokenizer than this model's" in capsys.readouterr().err


def test_a_folder_with_other_files_is_not_overwritten(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "mine.txt").write_text("mine")
    path = write_recipe()
    assert main(["prepare", str(path), "--output", str(tmp_path / "prepared")]) == 2
    assert "is not empty and holds no prepared blocks" in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "prepared").iterdir()] == ["mine.txt"]


def test_streams_and_prepared_blocks_cannot_be_prepared(
    write_recipe: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_recipe()
    folder = str(prepare(path).with_name("again"))
    assert main(["prepare", str(path), "--set", "data.streaming=true", "--output", folder]) == 2
    path = write_recipe(data__source="prepared", tokenizer={})
    assert main(["prepare", str(path), "--output", folder]) == 2
    errors = capsys.readouterr().err
    assert "a stream cannot be prepared" in errors
    assert "is prepared already" in errors


def test_prepare_works_after_a_kill_while_it_replaced_a_folder(
    write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepare(write_recipe())

    def killed(path: Path, **_: Any) -> None:
        if (path / "blocks.json").exists():  # half of the folder is removed when the kill arrives
            (path / "blocks.json").unlink()
            raise SystemExit(9)

    path = write_recipe(data__block_size=8)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(SystemExit):
            prepare(path)
    prepare(path)
    assert json.loads((folder / "blocks.json").read_text())["block_size"] == 8
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".prepared")] == []


def test_a_failed_push_is_one_line_and_keeps_the_folder(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "prepared"
    target = ["--output", str(folder), "--push", "USER/blocks"]
    assert main(["prepare", str(write_recipe()), *target]) == 2
    assert "USER/blocks: not uploaded: " in capsys.readouterr().err
    assert (folder / "blocks.json").is_file()


def test_a_folder_with_other_files_is_rejected_before_any_text_is_read(
    write_recipe: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "mine.txt").write_text("mine")
    path = write_recipe(data__source="nowhere")
    assert main(["prepare", str(path), "--output", str(tmp_path / "prepared")]) == 2
    assert "nowhere" not in capsys.readouterr().err
