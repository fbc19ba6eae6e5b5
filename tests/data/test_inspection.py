"""What `hf-lm inspect` says about a text is what the text is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from texts import write, write_jsonl

from hf_lm.cli import main
from hf_lm.data.inspection import EDGE, inspect_source, inspect_text, script_shares
from hf_lm.data.text.sources import find_corpus
from hf_lm.recipe import make_recipe
from hf_lm.vocabulary import smaller_bpe, train_bpe

INPUTS = Path(__file__).parents[1] / "fixtures" / "inputs"


def inspected(source: Path, *overrides: str) -> Any:
    """Inspect a source."""
    return inspect_source(str(source), overrides)


def test_files_documents_bytes_and_what_is_left_out_are_counted(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ["one", "two three", "one", " "])
    write(tmp_path / "b.txt", "four\n")
    write(tmp_path / "c.xlsx", "%PDF")
    found = inspected(tmp_path)
    assert found.files == {".jsonl": 1, ".txt": 1}
    assert (found.documents, found.duplicates) == (3, 1)
    assert (found.size, found.shortest, found.longest) == (17, 3, 9)
    assert found.notes == [
        f"{tmp_path.name}/: files that were not read: 1 .xlsx",
        "1 empty documents were skipped",
        "1 duplicate documents were skipped (data.deduplicate)",
    ]


def test_scripts_are_those_of_the_letters(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "abcd эю 中 1234 !?")
    shares = inspected(tmp_path / "a.txt").scripts
    assert shares == pytest.approx({"latin": 4 / 7, "cyrillic": 2 / 7, "cjk": 1 / 7})
    assert sum(script_shares({"a": 3}).values()) == 1  # type: ignore[arg-type]


def test_languages_are_those_of_the_text(tmp_path: Path) -> None:
    german = "Der Hund läuft durch den Wald und freut sich über das schöne Wetter. " * 10
    english = "The dog runs through the wood and is happy about the fine weather. " * 10
    japanese = "犬は森を走り回り、良い天気を喜んでいます。" * 10
    write_jsonl(tmp_path / "a.jsonl", [german, english, japanese, "1 2 3 4 5 6"])
    total = len(german) + len(english) + len(japanese) + 11
    shares = inspected(tmp_path / "a.jsonl").languages
    assert shares == pytest.approx(
        {
            "de": len(german) / total,
            "en": len(english) / total,
            "ja": len(japanese) / total,
            "unknown": 11 / total,
        }
    )


def test_a_smaller_vocabulary_is_the_one_that_training_gives() -> None:
    texts = [(INPUTS / "one_line.txt").read_text(), "the quick brown fox " * 20]
    for size in (260, 280, 300):
        smaller, trained = (
            smaller_bpe(train_bpe(texts, vocab_size=340), size),
            train_bpe(texts, vocab_size=size),
        )
        assert smaller.get_vocab() == trained.get_vocab()
        assert smaller.encode(texts[0]).ids == trained.encode(texts[0]).ids


def test_bytes_per_token_are_those_of_an_encoding(tmp_path: Path) -> None:
    text = "naïve words, naïve words. " * 300
    write(tmp_path / "a.txt", text)
    found = inspected(tmp_path / "a.txt")
    ids = train_bpe([text], vocab_size=2_048).encode(text).ids
    assert found.bytes_per_token[2_048] == pytest.approx(len(text.encode()) / len(ids))


def test_documents_are_shown_with_the_edge_of_their_first_block(tmp_path: Path) -> None:
    words = " ".join(f"word{n}" for n in range(500))
    write(tmp_path / "a.txt", words)
    (shown,) = inspected(tmp_path / "a.txt", "data.block_size=64").shown
    before, after = shown.edge.split(EDGE)
    ids = train_bpe([words], vocab_size=8_192).encode(words)
    place = words.index(before + after) + len(before)
    assert place == ids.offsets[64][0]
    assert shown.tokens == len(ids.ids)
    assert words.startswith(shown.start)


def test_the_command_prints_a_table_or_one_object(tmp_path: Path, capsys: Any) -> None:
    source = str(INPUTS / "semicolon.csv")
    assert main(["inspect", source]) == 0
    out = capsys.readouterr().out
    assert "documents        24 of 97 to 100 bytes\n" in out
    assert "note: semicolon.csv: its columns are separated by semicolons" in out
    assert main(["inspect", source, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["documents"] == 24
    assert len(values["shown"]) == 10
    assert main(["inspect", str(tmp_path / "none.txt")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_no_character_of_a_text_reaches_the_terminal_as_a_command(
    tmp_path: Path, capsys: Any
) -> None:
    write(tmp_path / "a.txt", "red \x1b[31m title \x1b]0;x\x07 \u202eback and a line\n" * 9)
    assert main(["inspect", str(tmp_path / "a.txt")]) == 0
    out = capsys.readouterr().out
    assert "red \ufffd[31m title \ufffd]0;x\ufffd \ufffdback and a line\u21b5" in out
    assert not set("\x1b\x07\u202e") & set(out)


def test_the_sample_of_a_hub_dataset_is_its_first_documents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hf_lm.data.inspection.SAMPLE_BYTES", 1000)
    texts = [f"{'common words of many documents ' * 9}{n}" for n in range(99)]
    raw = {"data": {"source": "USER/text"}, "training": {"max_steps": 1}}
    recipe = make_recipe(raw, Path.cwd(), name="hub")
    found = inspect_text(recipe, find_corpus(recipe.data), {("train", "USER/text"): texts})
    assert found.documents == 99
    sample = texts[:3]  # the first 1,000 bytes
    ids = [len(train_bpe(sample, vocab_size=32_768).encode(text).ids) for text in sample]
    expected = sum(len(text) for text in sample) / sum(ids)
    assert found.bytes_per_token[32_768] == pytest.approx(expected)


def test_a_recipe_names_its_text(write_recipe: Any, capsys: Any) -> None:
    path = write_recipe(data__source=str(INPUTS / "nested.jsonl"), data__text_column="data.text")
    assert main(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["documents"] == 24


def test_no_training_library_is_loaded() -> None:
    code = (
        "import sys; from hf_lm.cli import main; "
        f"main(['inspect', {str(INPUTS / 'tabs.tsv')!r}, '--json']); "
        "sys.exit(bool({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True)
