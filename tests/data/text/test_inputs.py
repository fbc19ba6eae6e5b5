"""Files as people have them are read as what they are, and what is left out is counted."""

import bz2
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import TEXT, data_recipe, read, scan_error, scanned, write, write_jsonl

from hf_lm.data.load import load_documents
from hf_lm.data.text.files.tables import find_delimiter
from hf_lm.data.text.sources import find_corpus

INPUTS = Path(__file__).parents[2] / "fixtures" / "inputs"

REPORTS = [
    json.loads(line)["text"]
    for line in gzip.decompress((INPUTS / "reports.jsonl.gz").read_bytes()).splitlines()
]
ROWS = [{"text": text} for text in REPORTS]

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda raw: pa.Codec("zstd").compress(raw, asbytes=True),
}


def test_the_inputs_that_people_have_give_their_reports() -> None:
    assert len(REPORTS) == 24
    for name, keys in (
        ("tabs.tsv", {}),
        ("semicolon.csv", {}),
        ("nested.jsonl", {"text_column": "data.text"}),
        ("columns.json", {}),
        ("saved_dataset", {}),
    ):
        assert read(data_recipe(INPUTS / name, **keys)) == REPORTS, name
    (text,) = read(data_recipe(INPUTS / "latin.txt", encoding="cp1252"))
    assert "nothing unusual – café happened." in text
    assert "".join(read(data_recipe(INPUTS / "one_line.txt"))).startswith("report 0 the pump")
    assert scanned(data_recipe(INPUTS / "one_line.txt")).cut


def test_what_a_folder_has_beside_text_is_counted() -> None:
    found = scanned(data_recipe(INPUTS / "mixed_folder"))
    first, second = found.notes
    assert first == "mixed_folder/: files that were not read: 1 .xlsx"
    assert second.startswith("1 damaged file was left out: scan.pdf is not a readable .pdf file (")
    assert found.documents == 7


@pytest.mark.parametrize("name", ["nulls.jsonl", "nulls.parquet"])
def test_rows_without_text_are_counted_or_refused_by_every_route(name: str) -> None:
    data = data_recipe(INPUTS / name)
    texts = read(data)
    assert set(texts) < set(REPORTS)
    assert f"{24 - len(texts)} rows without text were left out (data.on_missing_text)" in (
        scanned(data).notes
    )
    error = scan_error(data_recipe(INPUTS / name, on_missing_text="error"))
    assert "its text is null (data.on_missing_text)" in error
    assert error.count("\n") == 0


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.json", "a.md", "a.tsv"])
def test_compressed_files_are_read_as_their_content(name: str, suffix: str, tmp_path: Path) -> None:
    contents = {
        ".jsonl": "\n".join(json.dumps(row) for row in ROWS),
        ".json": json.dumps(ROWS),
        ".csv": "text\n" + "".join(f'"{text}"\n' for text in REPORTS),
        ".tsv": "text\tid\n" + "".join(f"{text}\t1\n" for text in REPORTS),
    }
    raw = contents.get(Path(name).suffix, "\n".join(REPORTS)).encode()
    write(tmp_path / name, raw)
    write(tmp_path / f"{name}{suffix}", COMPRESS[suffix](raw))
    write(tmp_path / f"x-{name}", COMPRESS[suffix](raw))  # its name does not tell
    expected = read(data_recipe(tmp_path / name))
    assert expected == read(data_recipe(tmp_path / f"{name}{suffix}"))
    assert expected == read(data_recipe(tmp_path / f"x-{name}"))


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_file_that_grows_without_end_is_refused(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_lm.data.text.files.compression.ALWAYS_READ", 2**16)
    path = write(tmp_path / f"a.txt{suffix}", COMPRESS[suffix](b"a " * 2**22))
    error = scan_error(data_recipe(path))
    assert "unpacks to over " in error
    assert "more than 300 times its size" in error


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("share", [0.2, 0.9])
def test_a_damaged_compressed_file_is_one_line(suffix: str, share: float, tmp_path: Path) -> None:
    raw = COMPRESS[suffix](os.urandom(2000).hex().encode() * 3)
    path = write(tmp_path / f"a.txt{suffix}", raw[: int(len(raw) * share)])
    assert "a.txt" in scan_error(data_recipe(path))


@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
@pytest.mark.parametrize("quoted", [True, False])
def test_the_delimiter_of_a_table_is_found_or_given(
    mark: str, quoted: bool, tmp_path: Path
) -> None:
    cells = [f"a line of words {i}" for i in range(30)]
    if quoted:
        cells = [f'"{cell}, with; every\t| mark and a ""quote"""' for cell in cells]
    text = f"id{mark}text\n" + "".join(f"{i}{mark}{cell}\n" for i, cell in enumerate(cells))
    path = write(tmp_path / "a.csv", text)
    expected = [cell[1:-1].replace('""', '"') if quoted else cell for cell in cells]
    assert read(data_recipe(path)) == expected
    assert read(data_recipe(path, delimiter=mark)) == expected
    note = "a.csv: its columns are separated by "
    assert any(line.startswith(note) for line in scanned(data_recipe(path)).notes) == (mark != ",")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.text("abc ,;|\t\"'", max_size=8), min_size=2, max_size=2),
        min_size=3,
        max_size=12,
    ),
    mark=st.sampled_from([",", ";", "\t", "|"]),
)
def test_quoted_tables_give_their_delimiter(rows: list[list[str]], mark: str) -> None:
    quoted = [mark.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    assert find_delimiter(f"id{mark}text\n" + "\n".join(quoted)) == mark


def test_a_table_of_one_column_may_contain_any_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text\none; two | three\nfour; five\n")
    assert read(data_recipe(path)) == ["one; two | three", "four; five"]


def parquet_of(names: list[str], columns: list[Any]) -> bytes:
    """Return a Parquet file with those columns."""
    out = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(c) for c in columns], names=names), out)
    return out.getvalue()


def parquet(**columns: Any) -> bytes:
    """Return a Parquet file with a column for each argument."""
    return parquet_of([*columns], [*columns.values()])


def arrow_of(names: list[str], columns: list[Any]) -> bytes:
    """Return an Arrow file with those columns."""
    out = io.BytesIO()
    table = pa.Table.from_arrays([pa.array(c) for c in columns], names=names)
    with pa.ipc.new_stream(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def not_utf8() -> pa.Array:
    """Return a column of text of which the second row is not UTF-8; Arrow does not check it."""
    raw = pa.array([b"one", b"t\xff", b"three"])
    return pa.StringArray.from_buffers(3, *raw.buffers()[1:])


ONE_LINE: dict[str, tuple[str, str | bytes, dict[str, Any], str]] = {
    "more cells than columns": (
        "a.csv",
        "id,text\n1,one, two\n",
        {},
        "a.csv:2: has more cells than the header (2)",
    ),
    "a used column twice": (
        "a.csv",
        "text,text\none,two\n",
        {},
        'a.csv: has several columns "text"; rename all but one',
    ),
    "nested column": (
        "a.jsonl",
        '{"data": {"text": "x"}}\n' * 3,
        {},
        'a.jsonl:1: has no "text"; set data.text_column to one of "data.text" (2 more places',
    ),
    "wrong nested column": (
        "a.jsonl",
        '{"data": {"text": "x"}}',
        {"text_column": "data.body"},
        'has no "data.body"; set data.text_column to one of "data.text"',
    ),
    "column of numbers": (
        "a.jsonl",
        '{"text": 1}\n' * 200_000,
        {},
        'a.jsonl:1: "text" is int, expected a string (199,999 more places like it)',
    ),
    "wrong column of a table": (
        "a.csv",
        "body\n" + "x\n" * 5_000,
        {},
        'has no "text"; set data.text_column to one of "body" (4,999 more places like it)',
    ),
    "wrong encoding": ("a.txt", b"\xff\xff\xff", {"encoding": "ascii"}, "is not ascii (data.enc"),
    "not in cp1252": ("a.txt", b"a \x81", {"encoding": "cp1252"}, "is not cp1252 (data.encoding)"),
    "latin without a key": (
        "a.txt",
        b"caf\xe9 " * 9,
        {},
        'it looks like Latin-1: set data.encoding to "cp1252"',
    ),
    "utf-16 without a key": (
        "a.txt",
        ("ab " * 99).encode("utf-16"),
        {},
        'it looks like UTF-16: set data.encoding to "utf-16"',
    ),
    "split of a file": (
        "a.txt",
        TEXT,
        {"split": "test"},
        'data.split = "test": has no effect, because ',
    ),
    "revision of a file": (
        "a.txt",
        TEXT,
        {"revision": "main"},
        "a.txt has local text only; remove it",
    ),
    "column of text": (
        "a.txt",
        TEXT,
        {"text_column": "body"},
        'data.text_column = "body": has no effect on .txt files, and ',
    ),
    "template of text": (
        "a.md",
        TEXT,
        {"text_template": "{a}"},
        'data.text_template = "{a}": has no effect on .md files, and ',
    ),
    "delimiter of rows": (
        "a.jsonl",
        '{"text": "a"}',
        {"delimiter": "\t"},
        'data.delimiter = "\\t": has no effect on .jsonl files, and ',
    ),
    "lines of a table": (
        "a.csv",
        "text\na",
        {"sample_by": "line"},
        'data.sample_by = "line": has no effect on .csv files, and ',
    ),
    "encoding of Parquet": (
        "a.parquet",
        b"PAR1" + b"\x00" * 99,
        {"encoding": "cp1252"},
        'data.encoding = "cp1252": has no effect on .parquet files, and ',
    ),
    "columns of other lengths": ("a.json", '{"text": ["a", "b"], "id": [1]}', {}, '"text" is list'),
    "zip": ("a.zip", b"PK\x03\x04" + b"x" * 99, {}, "a.zip: is zip-compressed; unpack it first"),
    "binary as text": ("a.parquet", b"PAR1" + b"\x00" * 99, {}, "is not a Parquet file"),
    "arrow": ("a.arrow", b"ARROW1" + b"\x00" * 99, {}, "is not an Arrow file"),
    "packed Parquet": (
        "a.parquet.gz",
        gzip.compress(b"PAR1"),
        {},
        "a.parquet.gz: is gzip-compressed; unpack it first",
    ),
    "utf-16 without a mark": (
        "a.txt",
        ("ab " * 99).encode("utf-16-le"),
        {},
        'is not text; set data.encoding to "utf-16-le" or "utf-16-be" if it is UTF-16',
    ),
    "text without a column after empty lines": ("a.csv", "\n\nid,body\n1,x\n", {}, '"body"'),
    "a name of two lines": ("a\nb.txt", b"\xff", {}, "a\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}b"),
    "a date that Python has not": (
        "a.parquet",
        parquet(text=pa.array([10**15], pa.timestamp("ms"))),
        {},
        "a.parquet: rows 0 to 0: cannot be read: ",
    ),
    "a column of Parquet twice": (
        "a.parquet",
        parquet_of(["text", "text"], [["x"], ["y"]]),
        {},
        'a.parquet: has several columns "text"; rename all but one',
    ),
    "a column of Arrow twice": (
        "a.arrow",
        arrow_of(["text", "text"], [["x"], ["y"]]),
        {},
        'a.arrow: has several columns "text"; rename all but one',
    ),
    "bytes in a text column": (
        "a.parquet",
        parquet(text=not_utf8()),
        {},
        "a.parquet: row 1: line 1, byte 1: is not UTF-8",
    ),
}


@pytest.mark.parametrize("name", ONE_LINE)
def test_what_cannot_be_read_is_one_line_with_its_remedy(name: str, tmp_path: Path) -> None:
    file, content, keys, expected = ONE_LINE[name]
    error = scan_error(data_recipe(write(tmp_path / file, content), **keys))
    assert expected in error
    assert error.count("\n") == 0


@pytest.mark.parametrize("suffix", [*COMPRESS])
def test_bytes_after_compressed_text_are_no_silent_loss(suffix: str, tmp_path: Path) -> None:
    raw = COMPRESS[suffix](b"one line\n" * 9)
    path = write(tmp_path / f"a.txt{suffix}", raw + b"and more that is not packed")
    assert "a.txt" in scan_error(data_recipe(path))
    write(path, raw + raw)  # members follow each other
    assert read(data_recipe(path)) == ["one line\n" * 18]


@pytest.mark.parametrize("suffix", [".bz2", ".xz", ".gz"])
def test_zeros_after_compressed_text_are_padding(suffix: str, tmp_path: Path) -> None:
    raw = COMPRESS[suffix](b"one line\n" * 9)
    path = write(tmp_path / f"a.txt{suffix}", raw + bytes(2**20))
    assert read(data_recipe(path)) == ["one line\n" * 9]
    write(path, raw + bytes(2**20) + raw)  # more than is read at once
    assert read(data_recipe(path)) == ["one line\n" * 18]


@pytest.mark.parametrize(("choice", "expected"), [("replace", "t\ufffd"), ("skip", None)])
@pytest.mark.parametrize("nested", [False, True])
def test_bytes_in_a_text_column_follow_the_key(
    nested: bool, choice: str, expected: str | None, tmp_path: Path
) -> None:
    text, keys = {"text": not_utf8()}, dict[str, Any]()
    if nested:
        keys = {"text_column": "data.text"}
        text = {"data": pa.StructArray.from_arrays([text["text"]], ["text"])}
    path = write(tmp_path / "a.parquet", parquet(**text))
    texts = read(data_recipe(path, on_bad_bytes=choice, **keys))
    assert texts == [text for text in ("one", expected, "three") if text]
    assert "row 1: line 1, byte 1: is not UTF-8" in scan_error(data_recipe(path, **keys))


def test_bytes_in_a_list_of_texts_are_one_line(tmp_path: Path) -> None:
    tags = pa.ListArray.from_arrays([0, 1, 2, 3], not_utf8())
    path = write(tmp_path / "a.parquet", parquet(text=["one", "two", "three"], tags=tags))
    error = scan_error(data_recipe(path, text_template="{text}{tags}", on_bad_bytes="replace"))
    assert '"tags" is list, expected a string (2 more places like it)' in error


def test_empty_and_packed_files_of_a_folder_are_counted(tmp_path: Path) -> None:
    for name, content in (("a.txt", TEXT), ("b.txt", ""), ("c.md", ""), ("d.txt", b"PK\x03\x04")):
        write(tmp_path / name, content)
    for source in (tmp_path, tmp_path / "*"):
        found = scanned(data_recipe(source))
        assert found.documents == 1
        assert f"{source.name}: files that were left out: 2 empty, 1 zip-compressed" in found.notes
    assert scan_error(data_recipe([tmp_path / "a.txt", tmp_path / "b.txt"])).endswith("is empty")


def test_a_saved_dataset_inside_a_folder_is_its_tables(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(tmp_path / "texts" / "saved")
    write(tmp_path / "texts" / "more.txt", "three")
    assert sorted(read(data_recipe(tmp_path / "texts"))) == ["one", "three", "two"]
    write(tmp_path / "state.json", '{"text": "a state of mind"}')
    assert "a state of mind" in read(data_recipe(tmp_path))


READ: dict[str, tuple[str, str | bytes, dict[str, Any], list[str]]] = {
    "json lines named json": ("a.json", '{"text": "x"}\n{"text": "y"}\n', {}, ["x", "y"]),
    "pretty objects": ("a.json", '{\n "text": "x"\n}\n\n{\n "text": "y"\n}', {}, ["x", "y"]),
    "columns": ("a.json", '{"text": ["x", "y"], "id": [1, 2]}', {}, ["x", "y"]),
    "one object": ("a.json", '{"text": "x"}', {}, ["x"]),
    "strings": ("a.json", '["x", "y"]', {}, ["x", "y"]),
    "ndjson": ("a.ndjson", '{"text": "x"}\n', {}, ["x"]),
    "jsonlines": ("a.jsonlines", '{"text": "x"}\n', {}, ["x"]),
    "jsonl by content": ("a.dump", '{"text": "x"}\n{"text": "y"}', {}, ["x", "y"]),
    "unknown text": ("a.corpus", "x\ny", {}, ["x\ny"]),
    "no suffix": ("corpus", "x\ny", {}, ["x\ny"]),
    "upper case": ("A.JSONL", '{"text": "x"}', {}, ["x"]),
    "jsonl with a mark": ("a.jsonl", b'\xef\xbb\xbf{"text": "x"}', {}, ["x"]),
    "jsonl with crlf": ("a.jsonl", '{"text": "x"}\r\n{"text": "y"}\r\n', {}, ["x", "y"]),
    "jsonl with empty lines": ("a.jsonl", '\n{"text": "x"}\n\n', {}, ["x"]),
    "some rows lack it": ("a.jsonl", '{"id": 1}\n{"text": "x"}\n{"text": null}', {}, ["x"]),
    "a dot in a name": ("a.jsonl", '{"a.b": "x"}', {"text_column": "a.b"}, ["x"]),
    "deeply nested": ("a.jsonl", '{"a": {"b": {"c": "x"}}}', {"text_column": "a.b.c"}, ["x"]),
    "nested null": ("a.jsonl", '{"a": null}\n{"a": {"b": "x"}}', {"text_column": "a.b"}, ["x"]),
    "csv with crlf": ("a.csv", 'text\r\n"x\r\ny"\r\nz\r\n', {}, ["x\ny", "z"]),
    "csv with a mark": ("a.csv", b"\xef\xbb\xbftext\nx\n", {}, ["x"]),
    "csv with short rows": ("a.csv", "id,text\n1\n2,x\n", {}, ["x"]),
    "csv with empty lines": ("a.csv", "text\n\nx\n\n", {}, ["x"]),
    "csv with an unused column twice": ("a.csv", "a,a,text\n1,2,x\n", {}, ["x"]),
    "csv in cp1252": ("a.csv", b"text\ncaf\xe9\n", {"encoding": "cp1252"}, ["café"]),
    "jsonl in utf-16": (
        "a.jsonl",
        '{"text": "né"}\n{"text": "y"}'.encode("utf-16"),
        {"encoding": "utf-16"},
        ["né", "y"],
    ),
    "text in utf-16-le": (
        "a.txt",
        "x\r\né".encode("utf-16-le"),
        {"encoding": "utf-16-le"},
        ["x\né"],
    ),
    "text in shift-jis": ("a.txt", "日本".encode("shift-jis"), {"encoding": "shift-jis"}, ["日本"]),
    "text in gb18030": ("a.txt", "中文".encode("gb18030"), {"encoding": "gb18030"}, ["中文"]),
    "replaced in ascii": (
        "a.txt",
        b"a \xff",
        {"encoding": "ascii", "on_bad_bytes": "replace"},
        ["a \ufffd"],
    ),
    "lone surrogate": (
        "a.jsonl",
        '{"text": "a \\ud800 b"}\n{"text": "\\ud83d\\ude00"}',
        {"on_bad_bytes": "replace"},
        ["a \ufffd b", "\U0001f600"],
    ),
    "lone surrogate left out": (
        "a.jsonl",
        '{"text": "a \\ud800 b"}\n{"text": "c"}',
        {"on_bad_bytes": "skip"},
        ["c"],
    ),
    "gzip without its suffix": ("a.txt", gzip.compress(b"x y"), {}, ["x y"]),
    "two gzip members": ("a.txt.gz", gzip.compress(b"x ") + gzip.compress(b"y"), {}, ["x y"]),
}


@pytest.mark.parametrize("name", READ)
def test_what_people_have_is_read_as_it_is_meant(name: str, tmp_path: Path) -> None:
    file, content, keys, expected = READ[name]
    assert read(data_recipe(write(tmp_path / file, content), **keys)) == expected


@pytest.mark.parametrize(
    "column",
    [
        pa.array(REPORTS, pa.binary()),
        pa.array(REPORTS, pa.large_binary()),
        pa.array(REPORTS, pa.large_string()),
        pa.array(REPORTS).dictionary_encode(),
    ],
    ids=["binary", "large binary", "large string", "dictionary"],
)
def test_text_of_every_arrow_type_is_read(column: Any, tmp_path: Path) -> None:
    table = pa.table({"text": column})
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    assert read(data_recipe(tmp_path / "a.parquet")) == REPORTS
    assert read(data_recipe(tmp_path / "a.arrow")) == REPORTS


def test_binary_text_that_is_not_utf8_is_one_line(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([b"good", b"\xff"])}), tmp_path / "a.parquet")
    error = scan_error(data_recipe(tmp_path / "a.parquet"))
    assert error.startswith(f"{tmp_path}/a.parquet: row 1: line 1, byte 0: is not UTF-8")
    skipped = data_recipe(tmp_path / "a.parquet", on_bad_bytes="skip")
    assert read(skipped) == ["good"]


def test_nested_columns_of_tables_are_proposed_and_read(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{"data": row} for row in ROWS]), tmp_path / "a.parquet")
    assert 'to one of "data", "data.text"' in scan_error(data_recipe(tmp_path / "a.parquet"))
    assert read(data_recipe(tmp_path / "a.parquet", text_column="data.text")) == REPORTS


def test_a_folder_like_those_of_the_hub_gives_one_split(tmp_path: Path) -> None:
    write(tmp_path / "README.md", "---\nlicense: mit\n---\n# A card")
    for split, count in (("train", 10), ("test", 4), ("validation", 3)):
        write_jsonl(tmp_path / f"{split}-00000.jsonl", [f"{split} {n}" for n in range(count)])
    corpus = find_corpus(data_recipe(tmp_path))
    assert [file.path.name for file in corpus.train[0].files] == ["train-00000.jsonl"]
    assert corpus.notes == (
        f"{tmp_path.name}/: README.md is about its data and was not read",
        f"{tmp_path.name}/: split train; files of others: 1 test, 1 validation",
    )
    data = data_recipe(tmp_path, split="test", validation={"split": "validation"})
    assert read(data)[0] == "test 0"
    assert read(data, part="validation") == [f"validation {n}" for n in range(3)]
    error = scan_error(data_recipe(tmp_path, split="dev"))
    assert error == f'{tmp_path}: has no split "dev"; it has "test", "train", "validation"'


@pytest.mark.parametrize(
    ("names", "read_names", "note"),
    [
        (["my.train.txt", "my.valid.txt", "my.test.txt", "README.md"], ["my.train.txt"], "1 test"),
        (["en/a_train_0.txt", "en/a_test_0.txt"], ["en/a_train_0.txt"], "split train"),
        (["en/train/test 1.txt", "en/dev/train 1.txt"], ["en/train/test 1.txt"], "1 validation"),
        (["train.txt", "test.txt", "dataset_infos.json"], ["train.txt"], "dataset_infos.json is"),
        (["trains.txt", "tests.txt"], ["tests.txt", "trains.txt"], None),
        (["train.txt", "train-test.txt"], ["train-test.txt", "train.txt"], None),
        (["train.txt", "README.md"], ["README.md", "train.txt"], None),
        (["train.py", "test.py"], ["test.py", "train.py"], None),
        (["test.txt", "dev.txt"], ["dev.txt", "test.txt"], None),
    ],
)
def test_splits_are_told_by_the_names_of_files_and_folders(
    names: list[str], read_names: list[str], note: str | None, tmp_path: Path
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, name)
    assert read(data_recipe(tmp_path)) == read_names
    notes = find_corpus(data_recipe(tmp_path)).notes
    assert any(note in line for line in notes) if note else not notes


def test_files_beside_the_tables_of_splits_are_counted(tmp_path: Path) -> None:
    for name in ("train.jsonl", "test.jsonl"):
        write_jsonl(tmp_path / name, [name])
    for name in ("LICENSE.txt", "notes.md", "README.md"):
        write(tmp_path / name, name)
    assert read(data_recipe(tmp_path)) == ["train.jsonl"]
    note = f"{tmp_path.name}/: split train; files of others: 2 no split, 1 test"
    assert note in find_corpus(data_recipe(tmp_path)).notes


def test_a_glob_reads_what_it_names_and_tells_of_splits(tmp_path: Path) -> None:
    for name in ("train-0.txt", "train-1.txt", "test.txt"):
        write(tmp_path / name, name)
    data = data_recipe(tmp_path / "*.txt")
    assert read(data) == ["test.txt", "train-0.txt", "train-1.txt"]
    (note,) = find_corpus(data).notes
    assert note == "*.txt: all files that match are read, of each split: 1 test, 2 train"
    assert not find_corpus(data_recipe(tmp_path / "train*")).notes


def test_folders_of_splits_and_plain_folders_are_told_apart(tmp_path: Path) -> None:
    for name in ("data/train/a.txt", "data/test/b.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        write(tmp_path / name, name)
    assert read(data_recipe(tmp_path)) == ["data/train/a.txt"]
    write(tmp_path / "notes.txt", "notes")
    assert read(data_recipe(tmp_path)) == ["data/test/b.txt", "data/train/a.txt", "notes"]


def test_datasets_that_were_saved_are_read_with_their_splits(tmp_path: Path) -> None:
    DatasetDict(
        train=Dataset.from_list(ROWS[:20]).shuffle(seed=1), test=Dataset.from_list(ROWS[20:])
    ).save_to_disk(str(tmp_path / "both"))
    assert sorted(read(data_recipe(tmp_path / "both"))) == sorted(REPORTS[:20])
    data = data_recipe(tmp_path / "both", validation={"split": "test"})
    assert read(data, part="validation") == REPORTS[20:]
    assert 'has no split "dev"' in scan_error(data_recipe(tmp_path / "both", split="dev"))


def test_linked_folders_are_read_once_and_loops_end(tmp_path: Path) -> None:
    for name in ("texts/a.txt", "elsewhere/b.txt"):
        (tmp_path / name).parent.mkdir()
        write(tmp_path / name, name)
    (tmp_path / "texts" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "texts" / "loop").symlink_to(tmp_path / "texts")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "texts")
    for source in (tmp_path / "texts", tmp_path / "texts" / "**" / "*.txt"):
        assert read(data_recipe(source)) == ["texts/a.txt", "elsewhere/b.txt"], source


@pytest.mark.parametrize("name", ["run-[x]", "a*b", "what?", "narrow\u202fspace", "zwnj\u200cname"])
def test_any_name_of_a_folder_may_be_used(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    write(tmp_path / name / "a.txt", "x")
    assert read(data_recipe(tmp_path / name)) == ["x"]
    assert read(data_recipe(tmp_path / name / "*.txt")) == ["x"]


def test_streams_record_what_is_not_read() -> None:
    data = data_recipe(INPUTS / "mixed_folder", streaming=True)
    notes = load_documents(data, find_corpus(data)).provenance()["text_notes"]
    assert notes == ["mixed_folder/: files that were not read: 1 .xlsx"]


def test_globs_and_folders_leave_out_the_same_hidden_files(tmp_path: Path) -> None:
    for name in (".git", "shown"):
        (tmp_path / name).mkdir()
        write(tmp_path / name / "a.txt", name)
    for pattern in ("", "**/*.txt"):
        assert read(data_recipe(tmp_path / pattern)) == ["shown"]
    assert read(data_recipe(tmp_path / "**" / ".git" / "*.txt")) == [".git"]


def test_an_encoding_that_gives_lone_surrogates_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "abc +2AA- def")
    line = scan_error(data_recipe(path, encoding="utf-7"))
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
