"""All text is read once before anything heavy; no document is on both sides of the split."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from texts import TEXT, data_recipe, read, scanned, write, write_jsonl

from hf_lm.data.cache import cache_root
from hf_lm.data.load import load_documents
from hf_lm.data.text.documents import fingerprint
from hf_lm.data.text.holdout import HASHES, Holdout, content_hash
from hf_lm.data.text.scan import scan_documents
from hf_lm.data.text.sources import find_corpus
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe


def splits(data: DataRecipe) -> dict[str, list[str]]:
    """The documents of both parts, as a run gets them."""
    text = load_documents(data, find_corpus(data))
    return {split: [row["text"] for row in rows] for split, rows in text.documents.items()}


@pytest.mark.promise("58")
def test_validation_documents_in_the_training_text_are_counted(tmp_path: Path) -> None:
    train, held = write(tmp_path / "a.txt", TEXT), write(tmp_path / "b.txt", TEXT)
    data = data_recipe(train, validation={"source": str(held)})
    found = scanned(data)
    assert found.overlap == 1
    assert found.notes == ("1 validation documents are in the training text, too",)
    assert splits(data) == {"train": [TEXT], "validation": [TEXT]}


@pytest.mark.promise("60")
def test_a_file_listed_twice_is_noted_and_counts_once_unless_deduplication_is_off(
    tmp_path: Path,
) -> None:
    file = write(tmp_path / "a.txt", f"{TEXT}\n{TEXT}")
    data = data_recipe([file, file])
    assert read(data) == [f"{TEXT}\n{TEXT}"]
    assert "is listed 2 times and counts once" in scanned(data).notes[0]
    data = data_recipe([file, file], deduplicate=False)
    assert read(data) == [f"{TEXT}\n{TEXT}"] * 2
    assert scanned(data).notes == (f"{file.name} is listed 2 times and counts 2 times",)


def test_duplicate_documents_are_skipped_and_counted(tmp_path: Path) -> None:
    texts = [f"{TEXT}{number}" for number in (1, 2, 1, 3, 2, 1)]
    first, second = (write_jsonl(tmp_path / f"{n}.jsonl", texts) for n in "ab")
    data = data_recipe([first, second])
    found = scanned(data)
    assert read(data) == [texts[0], texts[1], texts[3]]
    assert (found.documents, found.duplicates) == (3, 9)
    assert found.size == sum(len(text) for text in read(data))
    assert "9 duplicate documents were skipped (data.deduplicate)" in found.notes
    assert load_documents(data, find_corpus(data)).provenance()["duplicates"] == 9
    kept = data_recipe([first, second], deduplicate=False)
    assert read(kept) == [*texts, *texts]
    assert (scanned(kept).documents, scanned(kept).duplicates) == (12, 0)


def test_a_stream_does_not_deduplicate(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [TEXT, TEXT, f"{TEXT}2"])
    assert scanned(data_recipe(file, streaming=True)).notes == ()


@pytest.mark.promise("61")
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", f"{TEXT}\n{TEXT}")
    data = data_recipe(file)
    corpus = find_corpus(data)
    text = load_documents(data, corpus)
    write(file, TEXT.upper())
    with pytest.raises(DataError, match=r"a\.txt: changed while it was being read"):
        scan_documents(data, corpus)
    with pytest.raises(DataError, match=r"a\.txt: changed while it was being read"):
        list(text.documents["train"])


@pytest.mark.promise("63")
def test_the_fingerprint_depends_on_content_not_name_or_time(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", TEXT)
    before = fingerprint(data_recipe(file), find_corpus(data_recipe(file)))
    stat = file.stat()
    write(file, TEXT.swapcase())
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fingerprint(data_recipe(file), find_corpus(data_recipe(file))) != before
    other = write(tmp_path / "b.txt", TEXT)
    assert fingerprint(data_recipe(other), find_corpus(data_recipe(other))) == before


@pytest.mark.parametrize(
    "change",
    [
        {"deduplicate": False},
        {"max_bytes": 9},
        {"max_documents": 1},
        {"text_template": "{text}."},
        {"sample_by": "line"},
        {"validation": {"holdout": 0.5}},
    ],
    ids="-".join,
)
def test_the_fingerprint_depends_on_every_key_that_selects_documents(
    change: dict[str, Any], tmp_path: Path
) -> None:
    files = [write_jsonl(tmp_path / "a.jsonl", [TEXT]), write(tmp_path / "b.txt", TEXT * 2)]
    data = data_recipe(files)
    other = data_recipe(files, **change)
    assert fingerprint(data, find_corpus(data)) != fingerprint(other, find_corpus(other))


def test_a_cached_scan_is_reused_only_if_nothing_changed(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file = write_jsonl(tmp_path / "a.jsonl", [TEXT, TEXT, f"{TEXT}2"])
    read_now: list[int] = []
    options: dict[str, Any] = {"keep": True, "report": lambda _, size: read_now.append(size)}
    data = data_recipe(file)
    first = scanned(data, **options)
    assert read_now == [len(TEXT), len(TEXT) + 1]
    assert first == scanned(data, **options) == scanned(data)
    assert len(read_now) == 2
    write_jsonl(file, [TEXT, f"{TEXT}3"])
    assert scanned(data, **options).duplicates == 0
    assert len(read_now) == 4


def test_a_check_does_not_cache_its_scan(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    scanned(data_recipe(write_jsonl(tmp_path / "a.jsonl", [TEXT, f"{TEXT}2"])))
    assert not cache_root().exists()


def test_the_split_depends_on_content(tmp_path: Path) -> None:
    texts = [f"document {i}" for i in range(500)]
    data = data_recipe(write_jsonl(tmp_path / "a.jsonl", texts), validation={"holdout": 0.1})
    held = set(splits(data)["validation"])
    assert held == {text for text in texts if content_hash(text.encode()) < 0.1 * HASHES}
    assert splits(data)["train"] == [text for text in texts if text not in held]
    assert 20 < len(held) < 90
    for deduplicate in (True, False):
        again = splits(
            data_recipe(
                [
                    write_jsonl(tmp_path / "b.jsonl", texts[::-1]),
                    write_jsonl(tmp_path / "c.jsonl", texts[:50]),
                ],
                validation={"holdout": 0.1},
                deduplicate=deduplicate,
            )
        )
        assert set(again["validation"]) == held
        assert held.isdisjoint(again["train"])
        assert len(again["train"]) + len(again["validation"]) == (500 if deduplicate else 550)


def test_few_documents_leave_one_in_each_split(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [f"{TEXT}{name}" for name in "abc"])
    for holdout in (1e-9, 1 - 1e-9):
        found = splits(data_recipe(file, validation={"holdout": holdout}))
        assert sorted(len(texts) for texts in found.values()) == [1, 2]


@pytest.mark.parametrize("copies", [1, 3])
def test_a_single_document_is_cut_at_the_nearest_line_end(copies: int, tmp_path: Path) -> None:
    text = "".join(f"line {i}\n" for i in range(100))
    file = write_jsonl(tmp_path / "a.jsonl", [text] * copies)
    found = splits(data_recipe(file, validation={"holdout": 0.1}))
    (train,), (held,) = found["train"], found["validation"]
    assert train + held == text
    assert train.endswith("\n")
    assert abs(len(held) - 0.1 * len(text)) < 8


@pytest.mark.parametrize(
    ("text", "held_out"),
    [
        ("one two three four five six seven eight nine ten", "ten"),
        ("a single line", "line"),
        ("没有空格的文字也能被切开", "开"),
        ("ab", "b"),
    ],
)
def test_a_text_of_one_line_is_cut_at_a_space_or_else_between_characters(
    text: str, held_out: str, tmp_path: Path
) -> None:
    file = write(tmp_path / "a.txt", text)
    found = splits(data_recipe(file, block_size=1, validation={"holdout": 0.1}))
    assert found["validation"] == [held_out]
    assert found["train"] == [text.removesuffix(held_out)]


def test_a_held_out_share_far_from_what_was_asked_is_told(tmp_path: Path) -> None:
    for name, size in (("a", 10), ("b", 10), ("c", 900)):
        write(tmp_path / f"{name}.txt", f"{name} " * size)
    notes = scanned(data_recipe(tmp_path, validation={"holdout": 0.1})).notes
    assert len(notes) == 1
    assert re.match(r"\d+% of the text is held out, data.validation.holdout asks for 10%", notes[0])


def test_nothing_is_held_out_if_there_is_a_validation_source(tmp_path: Path) -> None:
    train, held = write(tmp_path / "a.txt", TEXT), write(tmp_path / "b.txt", f"{TEXT}2")
    data = data_recipe(train, validation={"source": str(held)})
    assert splits(data) == {"train": [TEXT], "validation": [f"{TEXT}2"]}
    assert scanned(data).holdout == Holdout(0)


def test_one_local_line_with_a_hub_dataset_is_accepted(tmp_path: Path) -> None:
    assert scanned(data_recipe([write(tmp_path / "a.txt", TEXT), "USER/text"])).documents == 1


@pytest.mark.parametrize(
    ("limit", "count"),
    [({"max_documents": 4}, 4), ({"max_bytes": 30}, 3), ({"max_bytes": 31}, 4)],
    ids=str,
)
def test_only_the_first_documents_or_bytes_are_used_on_request(
    limit: dict[str, int], count: int, tmp_path: Path
) -> None:
    texts = [f"{number:09}\n" for number in range(9)]
    held = write_jsonl(tmp_path / "b.jsonl", [f"held out {number}" for number in range(9)])
    file = write_jsonl(tmp_path / "a.jsonl", [texts[0], *texts])
    found = splits(data_recipe(file, validation={"source": str(held)}, **limit))
    assert found["train"] == texts[:count]  # the duplicate does not count
    assert len(found["validation"]) == 9
