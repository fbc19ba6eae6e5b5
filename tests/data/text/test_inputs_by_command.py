"""The commands read every input that people have, as a path, a folder, a glob, a mixture, a stream.

The inputs are those of tests/fixtures/inputs, and the same texts in other forms.
"""

import bz2
import gzip
import json
import lzma
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from texts import TEXT, data_recipe, scanned, tokenizer_of, write

from hf_lm.cli import main
from hf_lm.data.load import load_documents
from hf_lm.data.text.sources import find_corpus

INPUTS = Path(__file__).parents[2] / "fixtures" / "inputs"
WAYS = ["path", "folder", "glob", "mixture", "stream"]

REPORTS = [
    json.loads(line)["text"]
    for line in gzip.decompress((INPUTS / "reports.jsonl.gz").read_bytes()).splitlines()
]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in REPORTS)
LINKED = "What stands in a folder that a link leads to."
OTHER = "What stands in another file of a mixture."
CELLS = "".join(f'1,"{text}\r\n",2\r\n' for text in REPORTS)

# The name of each input and what it contains: bytes of a file, or files of a folder.
MADE: dict[str, str | bytes | dict[str, str]] = {
    "reports.jsonl.zst": pa.Codec("zstd").compress(LINES.encode(), asbytes=True),
    "reports.jsonl.xz": lzma.compress(LINES.encode()),
    "reports.jsonl.bz2": bz2.compress(LINES.encode()),
    "reports.csv.gz": gzip.compress(f"id,text,id\r\n{CELLS}".encode()),
    "lines.json": LINES,
    "objects.json": "\n".join(json.dumps({"text": text}, indent=1) for text in REPORTS),
    "reports.ndjson": LINES,
    "reports.jsonlines": LINES,
    "reports.dump": LINES,
    "cells.csv": f"id,text,id\r\n{CELLS}",
    "surrogate.jsonl": LINES + '{"text": "a \\ud800 b"}\n',
    "hub_folder": {
        "README.md": "---\nlicense: mit\n---\n# A card\n",
        "train-00000.jsonl": LINES,
        "test-00000.jsonl": '{"text": "a secret"}\n',
    },
    "splits": {"my.train.txt": 9 * TEXT, "my.test.txt": "a secret", "README.md": "# A card"},
}
KEYS = {
    "nested.jsonl": {"text_column": "data.text"},
    "latin.txt": {"encoding": "cp1252"},
    "surrogate.jsonl": {"on_bad_bytes": "replace"},
}
GLOBS = {"saved_dataset": "*.arrow", "hub_folder": "train*", "splits": "*train.txt"}
FIXTURES = [
    *("tabs.tsv", "semicolon.csv", "columns.json", "reports.jsonl.gz", "nested.jsonl"),
    *("nulls.parquet", "nulls.jsonl", "latin.txt", "one_line.txt", "saved_dataset", "mixed_folder"),
]
NAMES = [*FIXTURES, *MADE, "binary.parquet", "links"]


def make_input(name: str, path: Path) -> None:
    """Write an input to a path."""
    path.parent.mkdir()
    if name in FIXTURES:
        copy = shutil.copytree if (INPUTS / name).is_dir() else shutil.copy
        copy(INPUTS / name, path)
    elif name == "binary.parquet":
        pq.write_table(pa.table({"text": pa.array([text.encode() for text in REPORTS])}), path)
    elif name == "links":
        (path / "inner").mkdir(parents=True)
        write(path / "inner" / "reports.jsonl", LINES)
        elsewhere = path.parent.parent / "elsewhere"
        elsewhere.mkdir()
        write(elsewhere / "linked.txt", LINKED)
        (path / "linked").symlink_to(elsewhere)
        (path / "inner" / "loop").symlink_to(path)
    elif isinstance(content := MADE[name], dict):
        path.mkdir()
        for file, text in content.items():
            write(path / file, text)
    else:
        write(path, content)


def texts_of(name: str) -> list[str]:
    """Return the texts that an input has."""
    raw = (INPUTS / name).read_bytes() if (INPUTS / name).is_file() else b""
    folder = INPUTS / "mixed_folder"
    others = {
        "latin.txt": lambda: [raw.decode("cp1252")],
        "one_line.txt": lambda: [raw.decode()],
        "mixed_folder": lambda: [
            *map(text_of, gzip.decompress((folder / "more.jsonl.gz").read_bytes()).splitlines()),
            (folder / "notes.txt").read_text(),
        ],
        "cells.csv": lambda: [f"{text}\n" for text in REPORTS],
        "reports.csv.gz": lambda: [f"{text}\n" for text in REPORTS],
        "surrogate.jsonl": lambda: [*REPORTS, "a \ufffd b"],
        "splits": lambda: [9 * TEXT],
        "links": lambda: [*REPORTS, LINKED],
    }
    if name.startswith("nulls"):
        lines = (INPUTS / "nulls.jsonl").read_text().splitlines()
        return [text for text in map(text_of, lines) if text is not None]
    return others.get(name, lambda: REPORTS)()


def text_of(line: str | bytes) -> str:
    """Return the text of a line of JSON."""
    return json.loads(line)["text"]


def source_of(path: Path, way: str) -> Any:
    """Return the value of `data.source` that names an input in some way."""
    if way == "mixture":
        other = write(path.parent.parent / "other.txt", OTHER)
        return [{"source": str(part), "weight": 1} for part in (path, other)]
    if path.is_dir():  # its parent would be a folder of folders
        files = GLOBS.get(path.name, "**")
        return {"folder": f"{path}/", "glob": f"{path}/{files}"}.get(way, str(path))
    return {"folder": f"{path.parent}/", "glob": f"{path.parent}/*"}.get(way, str(path))


def options(**keys: Any) -> list[str]:
    """Return command-line options that set keys of the data section."""
    sets = [f"data.{key}={json.dumps(value)}" for key, value in keys.items()]
    sets += ["tokenizer.train.kind=byte", "tokenizer.train.vocab_size=null"]
    return [part for value in sets for part in ("--set", value)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_every_input_gives_its_texts_in_every_way(
    name: str, way: str, write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    path, expected = tmp_path / "inputs" / name, texts_of(name)
    make_input(name, path)
    source = source_of(path, way)
    if way == "mixture":
        expected = [*expected, OTHER]
    keys = {**KEYS.get(name, {}), "source": source, "block_size": 8, "streaming": way == "stream"}
    recipe = str(write_recipe())

    if (name, way) == ("reports.dump", "folder"):  # files of unknown kinds are counted in folders
        assert main(["inspect", recipe, *options(**keys)]) == 2
        assert "files that were not read: 1 .dump" in capsys.readouterr().err
        return
    assert main(["inspect", recipe, "--json", *options(**keys)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["documents"] == len(expected)
    assert found["size"] == sum(len(text.encode()) for text in expected)
    assert {shown["start"] for shown in found["shown"]} <= {text[:60] for text in expected}

    assert main(["check", recipe, "--json", *options(**keys)]) == 0
    splits = json.loads(capsys.readouterr().out)["text"].values()
    is_cut = len(expected) == 1  # a single document is cut in two
    assert sum(split["documents"] for split in splits) == (2 if is_cut else len(expected))
    assert sum(split["bytes"] for split in splits) == pytest.approx(found["size"], abs=2)

    # what is trained on, which the two commands do not open
    data = data_recipe(source, **{k: v for k, v in keys.items() if k != "source"})
    text = load_documents(data, find_corpus(data), scanned(data))
    loaded = [row["text"] for split in text.documents for row in text.documents[split]]
    if is_cut and way != "stream":
        assert "".join(loaded) == expected[0]
    else:
        assert sorted(loaded) == sorted(expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["alpaca.jsonl", "sharegpt.jsonl", "content_parts.jsonl"])
def test_every_form_of_conversations_is_counted_in_every_way(
    name: str, way: str, write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "inputs" / name
    path.parent.mkdir()
    shutil.copy(INPUTS / name, path)
    tokenizer = tokenizer_of("byte", [])
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    tokenizer.save_pretrained(str(tmp_path / "tokenizer"))
    source = source_of(path, way)
    if way == "mixture":
        shutil.copy(INPUTS / "content_parts.jsonl", other := tmp_path / "other.jsonl")
        source = [{"source": str(part), "weight": 1} for part in (path, other)]
    keys = {
        "data__source": source,
        "data__block_size": 512,
        "data__train_on": "completion",
        "data__grouping": "best_fit",
        "data__document_mask": True,
        "data__streaming": way == "stream",
        "tokenizer": {"pretrained": "tokenizer"},
        "training__tokens_per_step": 512,
    }
    code = main(["check", str(write_recipe(**keys)), "--json"])
    shown = capsys.readouterr()
    if way == "stream":
        assert code == 2
        (line,) = shown.err.splitlines()
        assert 'data.streaming = true: with data.train_on = "completion" it must be false' in line
        return
    assert code == 0
    splits = json.loads(shown.out)["text"].values()
    is_twice = way == "mixture" and name != "content_parts.jsonl"  # the same is counted once
    assert sum(split["documents"] for split in splits) == (48 if is_twice else 24)
    assert all(0 < split["completion_tokens"] < split["tokens"] for split in splits)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["tabs.tsv", "semicolon.csv", "nulls.parquet", "columns.json"])
def test_a_wrong_column_is_one_line_in_every_way(
    name: str, way: str, write_recipe: Callable[..., Path], tmp_path: Path, capsys: Any
) -> None:
    path = tmp_path / "inputs" / name
    make_input(name, path)
    keys = {"source": source_of(path, way), "streaming": way == "stream", "text_column": "body"}
    for command in ("inspect", "check"):
        assert main([command, str(write_recipe()), *options(**keys)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert 'has no "body"; set data.text_column to one of ' in line
        assert ("more places like it" in line) == (name in ("tabs.tsv", "semicolon.csv"))
