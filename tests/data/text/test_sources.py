"""Whatever is wrong with a data file is named before anything heavy is loaded."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from texts import TEXT, data_recipe, read, scan_error, scanned, write

from hf_lm.data.text.sources import find_corpus
from hf_lm.recipe import DataRecipe

BAD_FILES: dict[str, tuple[str, str | bytes, str]] = {
    "42 empty": ("a.txt", "", r"a.txt: is empty"),
    "43 blank": ("a.txt", "\n\n \n", r"no text: every document is empty or has only white space"),
    "44 utf-8": ("a.txt", b"one\ntwo \xff", r"a.txt: line 2, byte 8: is not UTF-8"),
    "45 utf-16": ("a.txt", ("one two " * 9).encode("utf-16"), r"looks like UTF-16"),
    "45 latin": ("a.txt", "na\xefve caf\xe9 ".encode("latin-1") * 9, r"looks like Latin-1"),
    "47 binary": ("a.txt", bytes(range(32)) * 9, r"control characters; this is not text"),
    "52 gzip": ("a.txt", gzip.compress(TEXT.encode())[:40], r"a.txt: is damaged and cannot be"),
    "52 zip": ("a.txt", b"PK\x03\x04" + b"x" * 99, r"a.txt: is zip-compressed"),
    "53": ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a.jsonl:2: is not JSON"),
    "54 number": ("a.jsonl", '{"text": 5}', r'a.jsonl:1: "text" is int, expected a string'),
    "54 null": ("a.jsonl", '{"text": null}', r"a.jsonl: no text: every document is empty"),
    "54 column": (
        "a.jsonl",
        '{"body": "x"}',
        r'has no "text"; set data.text_column to one of "body"',
    ),
    "54 csv": ("a.csv", "body,x\n1,2\n", r'a.csv:2: has no "text"'),
    "54 surrogate": ("a.jsonl", '{"text": "\\ud800"}', r"a.jsonl:1: contains a lone surrogate"),
    "json": ("a.json", '{"text": "x"}, {"text": "y"}', r"a.json: is not JSON: Expecting value"),
    "parquet": ("a.parquet", "text", r"a.parquet: is not a Parquet file"),
    "56 short": (
        "a.txt",
        "abc",
        r"at most 4 tokens of text, one block needs 9; lower data.block_size",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_an_invalid_file_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    file, content, expected = BAD_FILES[name]
    assert re.search(expected, scan_error(data_recipe(write(tmp_path / file, content))))


@pytest.mark.promise("41")
def test_a_missing_file_is_shown_with_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = scan_error(data_recipe([tmp_path / "no.txt", tmp_path / "*.md", tmp_path / "empty"]))
    assert f"{tmp_path}/no.txt: no such file or folder (current folder: {Path.cwd()})" in text
    assert f"{tmp_path}/*.md: no file matches (current folder" in text
    assert f"{tmp_path}/empty: no data file in this folder" in text


@pytest.mark.promise("12")
def test_a_pipe_is_not_a_data_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "is not a regular file" in scan_error(data_recipe(tmp_path / "pipe.txt"))


@pytest.mark.promise("44")
def test_bad_bytes_are_replaced_or_skipped_on_request_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"bad \xff byte")
    lines = f"{TEXT}\n{TEXT}"
    write(tmp_path / "b.txt", lines)
    for choice, expected in (("replace", ["bad \ufffd byte", lines]), ("skip", [lines])):
        data = data_recipe(tmp_path, on_bad_bytes=choice)
        assert read(data) == expected
        assert scanned(data).notes[0] == "1 documents with invalid bytes were replaced or skipped"


@pytest.mark.promise("46")
def test_byte_order_marks_are_removed_and_line_ends_normalised(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\xe2\x80\xa8four\x0c\x00")
    assert read(data_recipe(tmp_path / "a.txt")) == ["one\ntwo\nthree\u2028four\x0c\x00"]
    data = data_recipe(tmp_path / "a.txt")
    assert "1 control characters were kept" in scanned(data).notes


@pytest.mark.promise("50")
def test_long_lines_and_lines_without_an_end_are_read(tmp_path: Path, monkeypatch: Any) -> None:
    line = "word " * 200_000
    write(tmp_path / "a.txt", f"{line}\nend")
    assert read(data_recipe(tmp_path / "a.txt", sample_by="line")) == [line, "end"]
    for module in ("formats", "files.encoding"):
        monkeypatch.setattr(f"hf_lm.data.text.{module}.MAX_DOCUMENT", 1000)
    assert "a.txt:1: line of over 1,000 bytes" in scan_error(
        data_recipe(tmp_path / "a.txt", sample_by="line")
    )
    assert 'set data.sample_by to "paragraph" or "line"' in scan_error(
        data_recipe(tmp_path / "a.txt")
    )


@pytest.mark.promise("55")
def test_empty_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    rows = [json.dumps({"text": text}) for text in ("", TEXT, " ", "x")]
    write(tmp_path / "a.jsonl", "\n".join(rows))
    data = data_recipe(tmp_path / "a.jsonl")
    assert read(data) == [TEXT, "x"]
    assert scanned(data).notes[0] == "2 empty documents were skipped"


def test_every_format_gives_its_documents(tmp_path: Path) -> None:
    texts = ["one\nline", 'quoted "two", and\tmore', "d\xe9j\xe0 \U0001d518"]
    rows = [{"body": text, "id": i} for i, text in enumerate(texts)]
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    write(tmp_path / "a.json", json.dumps(rows))
    write(tmp_path / "b.json", json.dumps({"data": texts}))
    cells = [text.replace('"', '""') for text in texts]
    write(tmp_path / "a.csv", "id,body\n" + "\n".join(f'{i},"{c}"' for i, c in enumerate(cells)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "b.json", "a.csv", "a.parquet"):
        assert read(data_recipe(tmp_path / name, text_column="body")) == texts, name
    for i, text in enumerate(texts):
        write(tmp_path / f"{i}.md", text)
    assert read(data_recipe(tmp_path / "*.md")) == texts


def test_a_template_joins_columns_of_every_format(tmp_path: Path) -> None:
    rows = [{"title": "T{1}", "n": 7, "text": "one"}, {"title": "", "n": 8, "text": "{n}"}]
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    write(tmp_path / "a.json", json.dumps({"data": rows}))
    write(tmp_path / "a.csv", 'title,n,text\n"T{1}",7,one\n"",8,{n}\n')
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.json", "a.csv", "a.parquet"):
        data = data_recipe(tmp_path / name, text_template="{title}: {text}, {n}; {n}{{}}")
        assert read(data) == ["T{1}: one, 7; 7{}", ": {n}, 8; 8{}"], name
        assert 'has no "body"; data.text_template may use "title", "n"' in scan_error(
            data_recipe(tmp_path / name, text_template="{body}")
        )
    null = write(tmp_path / "null.jsonl", '{"title": "T", "n": null}')
    for policy, rule in (("error", ":1: its text is null"), ("skip", ": no text: ")):
        data = data_recipe(null, text_template="{title} {n}", on_missing_text=policy)
        assert f"null.jsonl{rule}" in scan_error(data)


def test_text_files_are_cut_by_paragraph_or_line_on_request(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one\ntwo\n\n\nthree\n")
    assert read(data_recipe(tmp_path / "a.txt")) == ["one\ntwo\n\n\nthree\n"]
    assert read(data_recipe(tmp_path / "a.txt", sample_by="paragraph")) == ["one\ntwo", "three"]
    assert read(data_recipe(tmp_path / "a.txt", sample_by="line")) == ["one", "two", "three"]


def test_a_folder_gives_its_data_files_in_order_without_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.py", ".secret.txt", ".git/x.txt", "image.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, name)
    assert read(data_recipe(tmp_path)) == ["a/c.py", "b.txt"]
    notes = find_corpus(data_recipe(tmp_path)).notes
    assert notes == (
        f"{tmp_path.name}/: files that were not read: 1 .png",
        f"{tmp_path.name}/: hidden files that were not read: 2",
    )


def test_the_embedded_source_is_source_code_without_tests() -> None:
    corpus = find_corpus(DataRecipe())
    names = {file.path.name for file in corpus.train[0].files}
    assert {"argparse.py", "json", "decoder.py"} & names == {"argparse.py", "decoder.py"}
    assert not any("test" in file.path.parts for file in corpus.train[0].files)
    assert corpus.size > 8_000_000


def test_bad_text_is_refused_within_three_seconds_and_leaves_nothing(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_recipe(data__source="bad.txt")
    write(tmp_path / "bad.txt", b"\xff" * 100)
    before = sorted(tmp_path.rglob("*"))
    run = subprocess.run(
        [sys.executable, "-m", "hf_lm.run", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HF_HOME": str(tmp_path / "home")},
        check=False,
    )
    assert run.returncode == 2
    assert run.stderr.startswith(f"{tmp_path}/bad.txt: line 1, byte 0: is not UTF-8")
    assert run.stderr.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
