"""Held-out documents that are nearly in the training text are found, counted and left out."""

import random
from pathlib import Path
from typing import Any

import pytest
from texts import data_recipe, read, scan_error, scanned, write_jsonl

from hf_lm.data.text.documents import fingerprint
from hf_lm.data.text.near_duplicates import signature
from hf_lm.data.text.sources import find_corpus
from hf_lm.recipe import load_recipe
from hf_lm.run import main

WORDS = [f"{a}{b}{c}" for a in "bcdfg" for b in "aeiou" for c in "lmnpr"]


def page(seed: int, count: int = 200) -> str:
    """Some words."""
    choose = random.Random(seed)
    return " ".join(choose.choice(WORDS) for _ in range(count))


def edited(text: str, changes: int, seed: int) -> str:
    """A copy with other words in some places, other line ends and capitals."""
    choose, words = random.Random(seed), text.split()
    for place in choose.sample(range(len(words)), changes):
        words[place] = f"new{place}"
    return "\n".join(" ".join(words[n : n + 12]).capitalize() for n in range(0, len(words), 12))


def similarity(a: str, b: str) -> float:
    """The share of the runs of five words that two texts have in common, counted."""
    first, second = (
        {*zip(*(words[n:] for n in range(5)), strict=False)}
        for words in (
            a.lower().split(),
            b.lower().split(),
        )
    )
    return len(first & second) / len(first | second)


@pytest.fixture
def leaked(tmp_path: Path) -> tuple[Path, Path, list[str]]:
    """400 edited copies of training documents among 800 held-out ones."""
    train = [page(seed) for seed in range(1000)]
    copies = [edited(train[n], 1 + n % 3, n) for n in range(400)]  # 0.86 to 0.95 alike
    others = [page(10_000 + n) for n in range(200)]
    # 40 changes leave less than 0.3 in common: related, and not the same
    related = [edited(train[n], 40, n) for n in range(200)]
    return (
        write_jsonl(tmp_path / "train.jsonl", train),
        write_jsonl(tmp_path / "held_out.jsonl", [*copies, *others, *related]),
        [*others, *related],
    )


def test_edited_copies_are_found_and_nothing_else(leaked: tuple[Path, Path, list[str]]) -> None:
    train, held_out, own = leaked
    keys: dict[str, Any] = {"validation": {"source": str(held_out)}}
    assert not any("nearly" in note for note in scanned(data_recipe(train, **keys)).notes)
    found = scanned(data_recipe(train, near_duplicates="count", **keys))
    assert not found.dropped
    (note,) = (note for note in found.notes if "nearly" in note)
    assert note.startswith("400 of 800 held-out documents, 48.7% of ")  # recall and precision of 1
    assert note.endswith('data.near_duplicates = "drop" leaves them out')
    data = data_recipe(train, near_duplicates="drop", **keys)
    dropped = scanned(data)
    assert len(dropped.dropped) == 400
    assert read(data, dropped.holdout, "validation") == own
    assert len(read(data, dropped.holdout)) == 1000
    assert scanned(data) == dropped


def test_similarity_is_estimated_from_the_runs_of_five_words() -> None:
    for changes in (0, 1, 2, 4, 8, 16, 32):
        text = page(changes)
        copy = edited(text, changes, 1)
        expected = similarity(text, copy)
        assert signature(text).jaccard(signature(copy)) == pytest.approx(expected, abs=0.13)


@pytest.mark.parametrize("alphabet", ["一二三四五六七八九十百千万", "กขคงจฉชซ", "가나다라마바사"])
def test_languages_without_spaces_are_compared_by_character(alphabet: str) -> None:
    choose = random.Random(1)
    text = "".join(choose.choice(alphabet) for _ in range(400))
    copy = f"{text[:200]}x{text[200:]}"
    assert signature(text).jaccard(signature(copy)) > 0.9
    other = "".join(choose.choice(alphabet) for _ in range(400))
    assert signature(text).jaccard(signature(other)) < 0.3


def test_a_holdout_of_the_same_text_is_compared_with_the_rest(tmp_path: Path) -> None:
    pages = [page(seed) for seed in range(300)]
    path = write_jsonl(tmp_path / "a.jsonl", [*pages, *(edited(text, 1, 0) for text in pages)])
    data = data_recipe(path, validation={"holdout": 0.2}, near_duplicates="drop")
    found = scanned(data)
    held_out, train = read(data, found.holdout, "validation"), read(data, found.holdout)
    assert len(held_out) + len(found.dropped) + len(train) == 600
    assert 60 < len(found.dropped) < 140  # of 120, those whose copy is trained on
    originals = {text.lower() for text in train}
    assert not any(similarity(text, other) > 0.9 for text in held_out for other in originals)


def test_a_held_out_set_with_nothing_of_its_own_is_refused(tmp_path: Path) -> None:
    pages = [page(seed) for seed in range(30)]
    train = write_jsonl(tmp_path / "a.jsonl", pages)
    held_out = write_jsonl(tmp_path / "b.jsonl", [edited(text, 1, 0) for text in pages])
    error = scan_error(
        data_recipe(train, validation={"source": str(held_out)}, near_duplicates="drop")
    )
    assert error.startswith('data.near_duplicates = "drop": every held-out document is nearly in')


def test_only_what_changes_the_text_is_in_its_hash(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [page(1), page(2)])
    off, count, drop, lower = (
        fingerprint(data, find_corpus(data))
        for data in (
            data_recipe(path),
            data_recipe(path, near_duplicates="count"),
            data_recipe(path, near_duplicates="drop"),
            data_recipe(path, near_duplicates="drop", near_duplicate_threshold=0.7),
        )
    )
    assert off == count
    assert len({off, drop, lower}) == 3


def test_the_plan_says_it_without_the_package_too(
    write_recipe: Any, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = [page(seed) for seed in range(60)]
    source = write_jsonl(tmp_path / "a.jsonl", pages)
    held_out = write_jsonl(
        tmp_path / "b.jsonl", [edited(pages[0], 1, 0), *map(page, range(90, 99))]
    )
    path = write_recipe(
        data__source=str(source),
        data__validation={"source": str(held_out)},
        data__near_duplicates="drop",
    )
    assert main([str(path), "--check"]) == 0
    out = capsys.readouterr().out
    assert "note: 1 of 10 held-out documents, " in out
    assert "(at least 80% alike); they were left out" in out
    monkeypatch.setattr("hf_lm.data.text.near_duplicates.find_spec", lambda name: None)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "other"))
    assert main([str(path), "--check"]) == 2
    line = "data.near_duplicates needs rensa; pip install 'hf_lm[dedup]'\n"
    assert capsys.readouterr().err.endswith(line)
    assert load_recipe(path).data.near_duplicate_threshold == 0.8
