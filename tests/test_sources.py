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

from hf_lm.dataset import find_corpus, scan_documents
from hf_lm.dataset.documents import document_rows, fingerprint
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe

TEXT = "A sentence of the test, which is long enough to fill a block. "


def recipe(source: Any, **keys: Any) -> DataRecipe:
    """A data section for files."""
    names = [
        str(s) if isinstance(s, Path) else s
        for s in (source if isinstance(source, list) else [source])
    ]
    tree = {"source": names, "block_size": 8, **keys}
    return DataRecipe.model_validate_json(json.dumps(tree))


def read(data: DataRecipe) -> list[str]:
    """The documents of a recipe's training sources."""
    return [row["text"] for row in document_rows("train", data, find_corpus(data), {})]


def refused(data: DataRecipe) -> str:
    """All the lines with which a recipe's text is refused."""
    with pytest.raises(DataError) as caught:
        scan_documents(data, find_corpus(data))
    return "\n".join(caught.value.problems)


def write(path: Path, content: str | bytes) -> Path:
    """A file with some content."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


BAD_FILES: dict[str, tuple[str, str | bytes, str]] = {
    "42 empty": ("a.txt", "", r"a.txt: is empty"),
    "43 blank": ("a.txt", "\n\n \n", r"no text: every document is empty or white space"),
    "44 utf-8": ("a.txt", b"one\ntwo \xff", r"a.txt: line 2, byte 8: is not UTF-8"),
    "45 utf-16": ("a.txt", ("one two " * 9).encode("utf-16"), r"looks like UTF-16"),
    "45 latin": ("a.txt", "na\xefve caf\xe9 ".encode("latin-1") * 9, r"looks like Latin-1"),
    "47 binary": ("a.txt", bytes(range(32)) * 9, r"control characters; this is no text"),
    "52 gzip": ("a.txt", gzip.compress(TEXT.encode()), r"a.txt: is gzip-compressed; unpack it"),
    "52 zip": ("a.txt", b"PK\x03\x04" + b"x" * 99, r"a.txt: is zip-compressed"),
    "53": ("a.jsonl", '{"text": "x"}\n{"text": \n', r"a.jsonl:2: is no JSON"),
    "54 number": ("a.jsonl", '{"text": 5}', r'a.jsonl:1: "text" is int, expected a string'),
    "54 null": ("a.jsonl", '{"text": null}', r'a.jsonl:1: "text" is NoneType'),
    "54 column": (
        "a.jsonl",
        '{"body": "x"}',
        r'has no "text"; set data.text_column to one of "body"',
    ),
    "54 csv": ("a.csv", "body,x\n1,2\n", r'a.csv:2: has no "text"'),
    "54 surrogate": ("a.jsonl", '{"text": "\\ud800"}', r"a.jsonl:1: holds a lone surrogate"),
    "json": (
        "a.json",
        '{"text": "x"}\n{"text": "y"}',
        r"is no JSON: .*one object a line is .jsonl",
    ),
    "parquet": ("a.parquet", "text", r"a.parquet: is no Parquet file"),
    "56 short": (
        "a.txt",
        "abc",
        r"at most 4 tokens of text, one block needs 9; lower data.block_size",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_named_with_its_line(name: str, tmp_path: Path) -> None:
    file, content, expected = BAD_FILES[name]
    assert re.search(expected, refused(recipe(write(tmp_path / file, content))))


def test_41_what_is_not_there_is_shown_with_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    text = refused(recipe([tmp_path / "no.txt", tmp_path / "*.md", tmp_path / "empty"]))
    assert f"{tmp_path}/no.txt: no such file or folder (current folder: {Path.cwd()})" in text
    assert f"{tmp_path}/*.md: no file matches (current folder" in text
    assert f"{tmp_path}/empty: no data file in this folder" in text


def test_12_a_pipe_is_no_data_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    assert "is no regular file" in refused(recipe(tmp_path / "pipe.txt"))


def test_44_bad_bytes_are_replaced_or_skipped_on_request_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"bad \xff byte")
    write(tmp_path / "b.txt", TEXT)
    for choice, expected in (("replace", ["bad \ufffd byte", TEXT]), ("skip", [TEXT])):
        data = recipe(tmp_path, on_bad_bytes=choice)
        assert read(data) == expected
        assert scan_documents(data, find_corpus(data)).notes == (
            "1 documents that are not UTF-8 were replaced or skipped",
        )


def test_46_to_49_marks_and_line_ends(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\xe2\x80\xa8four\x0c\x00")
    assert read(recipe(tmp_path / "a.txt")) == ["one\ntwo\nthree\u2028four\x0c\x00"]
    data = recipe(tmp_path / "a.txt")
    assert "1 control characters were kept" in scan_documents(data, find_corpus(data)).notes


def test_50_and_51_long_and_unended_lines(tmp_path: Path, monkeypatch: Any) -> None:
    line = "word " * 200_000
    write(tmp_path / "a.txt", f"{line}\nend")
    assert read(recipe(tmp_path / "a.txt", sample_by="line")) == [line, "end"]
    monkeypatch.setattr("hf_lm.dataset.readers.MAX_DOCUMENT", 1000)
    assert "a.txt:1: line of over 1,000 bytes" in refused(
        recipe(tmp_path / "a.txt", sample_by="line")
    )
    assert 'set data.sample_by to "paragraph" or "line"' in refused(recipe(tmp_path / "a.txt"))


def test_55_empty_documents_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [json.dumps({"text": text}) for text in ("", TEXT, " ", "x")]
    write(tmp_path / "a.jsonl", "\n".join(rows))
    data = recipe(tmp_path / "a.jsonl")
    assert read(data) == [TEXT, "x"]
    assert scan_documents(data, find_corpus(data)).notes == ("2 empty documents were left out",)


def test_58_validation_text_that_is_trained_on_is_counted(tmp_path: Path) -> None:
    train, held = write(tmp_path / "a.txt", TEXT), write(tmp_path / "b.txt", TEXT)
    data = recipe(train, validation={"source": str(held)})
    notes = scan_documents(data, find_corpus(data)).notes
    assert notes == ("1 validation documents also stand in the training text",)


def test_60_a_file_listed_twice_counts_twice_and_is_told(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", TEXT)
    data = recipe([file, file])
    assert read(data) == [TEXT, TEXT]
    assert "is listed 2 times" in scan_documents(data, find_corpus(data)).notes[0]


def test_61_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", TEXT)
    data = recipe(file)
    corpus = find_corpus(data)
    write(file, TEXT.upper())
    with pytest.raises(DataError, match=r"a\.txt: changed while it was being read"):
        scan_documents(data, corpus)


def test_63_the_fingerprint_goes_by_content_not_by_name_or_time(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", TEXT)
    before = fingerprint(recipe(file), find_corpus(recipe(file)))
    stat = file.stat()
    write(file, TEXT.swapcase())
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(recipe(file), find_corpus(recipe(file))) != before
    other = write(tmp_path / "b.txt", TEXT)
    assert fingerprint(recipe(other), find_corpus(recipe(other))) == before


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
        assert read(recipe(tmp_path / name, text_column="body")) == texts, name
    for i, text in enumerate(texts):
        write(tmp_path / f"{i}.md", text)
    assert read(recipe(tmp_path / "*.md")) == texts


def test_text_files_are_cut_by_paragraph_or_line_on_request(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "one\ntwo\n\n\nthree\n")
    assert read(recipe(tmp_path / "a.txt")) == ["one\ntwo\n\n\nthree\n"]
    assert read(recipe(tmp_path / "a.txt", sample_by="paragraph")) == ["one\ntwo", "three"]
    assert read(recipe(tmp_path / "a.txt", sample_by="line")) == ["one", "two", "three"]


def test_a_folder_gives_data_files_in_order_and_no_hidden_ones(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.py", ".secret.txt", ".git/x.txt", "image.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, name)
    assert read(recipe(tmp_path)) == ["a/c.py", "b.txt"]


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
