"""The report of a run shows what its files say, as text and as curves, without the network."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from hf_lm.cli import main
from hf_lm.errors import DataError
from hf_lm.report.page import write_report
from hf_lm.report.plots import MAX_POINTS, Line, draw, thinned

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """The elements of a page; every one that is opened has to be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [values["id"] or ""] if "id" in values else []
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def copied(tiny_run: Path, folder: Path) -> Path:
    """Copy a finished run."""
    return Path(shutil.copytree(tiny_run, folder))


def test_a_run_has_a_page_with_its_numbers_and_nothing_from_elsewhere(
    tiny_run: Path, tmp_path: Path
) -> None:
    run = copied(tiny_run, tmp_path / "run")
    assert main(["report", str(run)]) == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert len(text) < 10**6
    assert all(link.startswith("#") for link in page.links)
    assert len(set(page.ids)) == len(page.ids)
    metrics = json.loads((tiny_run / "metrics.json").read_text())
    for value in (f"{metrics['loss']:.4f}", f"{metrics['bits_per_byte']:.4f}", "8 of 8", "done"):
        assert value in page.texts
    titles = {"Loss", "Bits per byte", "Learning rate", "Gradient norm", "Speed"}
    assert titles <= set(page.texts)
    rows = [json.loads(line) for line in (tiny_run / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert any(f"training: {losses[0]:.4g} to {losses[-1]:.4g}" in text for text in page.texts)
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)


def test_several_runs_are_on_one_page(tiny_run: Path, tmp_path: Path, capsys: Any) -> None:
    first, second = copied(tiny_run, tmp_path / "a"), copied(tiny_run, tmp_path / "b")
    log = (second / "log.jsonl").read_text()
    (second / "log.jsonl").write_text(log.replace('"loss": ', '"loss": 1'))
    output = tmp_path / "both.html"
    assert main(["report", str(first), str(second), "--output", str(output)]) == 0
    assert "both.html" in capsys.readouterr().out
    page = Page(output.read_text())
    heads = [text for text in page.texts if text.endswith((f"{first})", f"{second})"))]
    assert len(heads) > 4
    assert any(str(first) in text and ", training: " in text for text in page.texts)
    with pytest.raises(DataError, match="holds no run of hf_lm"):
        write_report([tmp_path], output)


def test_what_was_left_out_and_a_leak_are_shown(write_recipe: Any, tmp_path: Path) -> None:
    recipe = write_recipe(data__near_duplicates="count", data__sample_by="paragraph")
    corpus, words = tmp_path / "corpus", [f"word{number}" for number in range(50)]
    (corpus / "table.xlsx").write_bytes(b"PK")
    (corpus / "scan.pdf").write_bytes(b"%PDF-1.4")
    copies = [" ".join([*words, str(number)]) for number in range(40)]
    (corpus / "copies.txt").write_text("\n\n".join(copies))
    shorter = ("max_steps=2", "eval_steps=2", "save_steps=2", "warmup_steps=1")
    sets = [part for key in shorter for part in ("--set", f"training.{key}")]
    assert main(["run", str(recipe), *sets]) == 0
    assert main(["report", str(tmp_path / "run")]) == 0
    texts = Page((tmp_path / "run" / "report.html").read_text()).texts
    assert "corpus/: files that were not read: 1 .xlsx" in texts
    (leak,) = (text for text in texts if text.endswith("leaves them out"))
    assert int(leak.split()[0]) >= 4  # a fifth of 40 is held out
    (unread,) = (text for text in texts if text.startswith("1 damaged file was left out: "))
    provenance = (tmp_path / "run" / "provenance.json").read_text()
    assert {leak, unread} <= set(json.loads(provenance)["text_notes"])
    assert str(tmp_path) not in provenance  # it is published


def test_text_of_people_and_models_is_never_markup(tiny_run: Path, tmp_path: Path) -> None:
    run = copied(tiny_run, tmp_path / "run")
    evil = "<script>alert(1)</script>&lt;{{ 7 * 7 }}\x1b[31m"
    row = {"step": 9, "tokens": 9, "seconds": 1.0, "samples": [{"prompt": evil, "text": evil}]}
    with (run / "log.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    write_report([run], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert "<script" not in text
    assert "\x1b" not in text
    assert any(
        shown == "<script>alert(1)</script>&lt;{{ 7 * 7 }}\ufffd[31m" for shown in Page(text).texts
    )


def test_values_that_are_no_numbers_and_an_empty_log_are_left_out(
    tiny_run: Path, tmp_path: Path
) -> None:
    run = copied(tiny_run, tmp_path / "run")
    (run / "metrics.json").unlink()
    rows = [{"step": 1, "tokens": 5, "seconds": 1.0, "loss": "NaN"}]
    (run / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report([run], tmp_path / "report.html")
    assert (
        "No row of the log has a value yet." in Page((tmp_path / "report.html").read_text()).texts
    )


def test_long_curves_are_means_of_neighbours() -> None:
    points = [(float(n), float(n % 2)) for n in range(10 * MAX_POINTS)]
    short = thinned(points)
    assert len(short) == MAX_POINTS
    assert short[0] == (9.0, 0.5)
    assert thinned(points[:3]) == points[:3]
    size = len(draw([Line("", points)], name="a", x="x", y="y"))
    assert size < 100_000


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium: CI needs only Python, gcc, git")
def test_a_browser_shows_the_page_without_an_error(tiny_run: Path, tmp_path: Path) -> None:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path}"]
    write_report([tiny_run], tmp_path / "report.html")
    done = subprocess.run(
        [*command, (tmp_path / "report.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("</svg>") == 6
