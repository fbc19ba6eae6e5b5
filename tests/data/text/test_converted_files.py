"""Documents of office and web formats are read as their text, or counted and named."""

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from matplotlib import rc_context
from matplotlib.figure import Figure
from texts import data_recipe, read, scan_error, scanned, write

from hf_lm.data.load import load_documents
from hf_lm.data.text.documents import fingerprint
from hf_lm.data.text.files import converted
from hf_lm.data.text.sources import find_corpus
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe
from hf_lm.recipe.paths import DATA_SUFFIXES

HTML = """<html><head><title>Pump</title><style>p {color: red}</style></head><body>
<h1>Pump log</h1><script>alert(1)</script><p>The pump was <b>checked</b> – café.</p>
<ul><li>oil</li><li>belt</li></ul></body></html>"""
MARKDOWN = "# Pump log\n\nThe pump was **checked** – café.\n\n* oil\n* belt"
NOTEBOOK = {
    "cells": [
        {"cell_type": "markdown", "metadata": {}, "source": ["# Pump log\n", "one line"]},
        {"cell_type": "code", "metadata": {}, "outputs": [], "source": ["print(1)\n", "2"]},
    ],
    "metadata": {},
    "nbformat": 4,
    "nbformat_minor": 5,
}
OFFICE = "application/vnd.openxmlformats"
WORD = f"{OFFICE}-officedocument.wordprocessingml"
SCHEMAS = "http://schemas.openxmlformats.org"
DOCX = {
    "[Content_Types].xml": f'<Types xmlns="{SCHEMAS}/package/2006/content-types">'
    f'<Default Extension="rels" ContentType="{OFFICE}-package.relationships+xml"/>'
    f'<Override PartName="/word/document.xml" ContentType="{WORD}.document.main+xml"/></Types>',
    "_rels/.rels": f'<Relationships xmlns="{SCHEMAS}/package/2006/relationships"><Relationship '
    f'Id="r1" Type="{SCHEMAS}/officeDocument/2006/relationships/officeDocument" '
    'Target="word/document.xml"/></Relationships>',
    "word/document.xml": f'<w:document xmlns:w="{SCHEMAS}/wordprocessingml/2006/main"><w:body>'
    "<w:p><w:r><w:t>The pump was checked – café.</w:t></w:r></w:p>"
    "<w:p><w:r><w:t>Second one.</w:t></w:r></w:p></w:body></w:document>",
}
EPUB = {
    "META-INF/container.xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container">'
    '<rootfiles><rootfile full-path="book.opf"/></rootfiles></container>',
    "book.opf": '<package xmlns="http://www.idpf.org/2007/opf" '
    'xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>Pumps</dc:title></metadata>'
    '<manifest><item id="one" href="one.xhtml"/></manifest><spine><itemref idref="one"/></spine>'
    "</package>",
    "one.xhtml": "<html><body><p>The pump was checked – café.</p></body></html>",
}


def epub_with(name: str, old: str, new: str) -> dict[str, str]:
    """Return the files of an EPUB with another text in one of them."""
    assert old in EPUB[name]
    return {**EPUB, name: EPUB[name].replace(old, new)}


def zipped(files: Mapping[str, str | bytes]) -> bytes:
    """Return a ZIP file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in files.items():
            file.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)  # without the time
    return out.getvalue()


def pdf(text: str) -> bytes:
    """Return a PDF file of one page."""
    out = io.BytesIO()
    with rc_context({"pdf.fonttype": 42}):  # with the characters of its glyphs
        figure = Figure(figsize=(4, 1))
        figure.text(0.1, 0.5, text)
        figure.savefig(out, format="pdf")
    return out.getvalue()


FILES: dict[str, tuple[Any, str]] = {
    "a.html": (HTML, MARKDOWN),
    "b.htm": (HTML, MARKDOWN),
    "c.ipynb": (json.dumps(NOTEBOOK), "# Pump log\none line\n\n```python\nprint(1)\n2\n```"),
    "d.docx": (zipped(DOCX), "The pump was checked – café.\n\nSecond one."),
    "e.epub": (zipped(EPUB), "**Title:** Pumps\n\nThe pump was checked – café."),
    "f.pdf": (pdf("The pump was checked."), "The pump was checked."),
}


@pytest.mark.parametrize("name", FILES)
def test_a_document_is_read_as_its_text(name: str, tmp_path: Path) -> None:
    content, expected = FILES[name]
    path = write(tmp_path / name, content)
    assert [text.strip() for text in read(data_recipe(path))] == [expected]
    for source in (tmp_path, tmp_path / "*"):
        assert [text.strip() for text in read(data_recipe(source))] == [expected]


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_document_is_one_line(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, b"\x00\xff" * 100)
    line = scan_error(data_recipe(path))
    assert line.startswith(str(path))
    assert "\n" not in line
    write(tmp_path / "text.txt", "some text\nof two lines\n")
    if path.suffix in (".pdf", ".docx", ".epub"):  # and one of many is left out
        found = scanned(data_recipe(tmp_path, block_size=1))
        named = line.removeprefix(f"{tmp_path}/").replace(": ", " ", 1)
        assert f"1 damaged file was left out: {named}" in found.notes
        assert found.documents == 1


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("a.ipynb", '{"worksheets": [], "nbformat": 3}', "no cells of notebook format 4"),
        ("a.docx", zipped({**DOCX, "word/document.xml": "<w:document><w:p>"}), "ParseError"),
        ("a.epub", zipped({**EPUB, "META-INF/encryption.xml": "<x/>"}), "it is locked"),
        ("a.epub", zipped({**EPUB, "big.xhtml": "a" * 2**26}), "it unpacks to more than 300"),
        ("paper", "%PDF-1.4\nno page", "PDFSyntaxError"),
        ("a.epub", zipped(epub_with("book.opf", "<itemref", "<opf:itemref")), "ExpatError"),
        ("a.epub", zipped(epub_with("book.opf", '<itemref idref="one"/>', "")), "no chapters"),
        ("a.epub", zipped(epub_with("book.opf", '"one"/>', '"two"/>')), 'chapter "two" is missing'),
        ("a.epub", zipped({**EPUB, "one.xhtml": b"<p>caf\xe9</p>"}), 'chapter "one" is not UTF-8'),
    ],
)
def test_what_a_converter_would_accept_in_silence_is_left_out(
    name: str, content: Any, rule: str, tmp_path: Path
) -> None:
    line = scan_error(data_recipe(write(tmp_path / name, content)))
    assert line.startswith(f"{tmp_path / name}: is not a readable .")
    assert rule in line


def test_text_does_not_depend_on_the_depth_of_the_stack(tmp_path: Path) -> None:
    for depth in range(100, 340, 8):  # one of them is where recursion ends
        page = "<div>" * depth + "<h1>Title</h1><b>deep</b>" + "</div>" * depth
        write(tmp_path / f"{depth}.html", page)
    data = data_recipe(tmp_path, deduplicate=False)

    def read_deeper(depth: int) -> list[str]:
        return read_deeper(depth - 1) if depth else read(data)

    assert read_deeper(60) == read(data)


def test_a_pdf_whose_fonts_have_no_characters_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pdf", pdf("(cid:84)(cid:104)(cid:101)"))
    assert scan_error(data_recipe(path)).endswith("(its fonts have no characters)")


def test_a_broken_link_does_not_ask_for_a_package_that_is_installed(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "text")
    (tmp_path / "b.pdf").symlink_to(tmp_path / "gone.pdf")
    (note,) = find_corpus(data_recipe(tmp_path)).notes
    assert note == f"{tmp_path.name}/: files that were not read: 1 .pdf"


def test_a_folder_of_documents_alone_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted, "find_spec", lambda name: None)
    write(tmp_path / "a.pdf", FILES["f.pdf"][0])
    assert "pip install 'hf_lm[documents]' reads .pdf" in scan_error(data_recipe(tmp_path))


def test_pages_named_by_splits_are_splits(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write(tmp_path / f"{split}.html", f"<p>{split}</p>")
    assert [text.strip() for text in read(data_recipe(tmp_path))] == ["train"]


def test_text_depends_on_the_version_of_the_converter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.html", HTML)
    write(tmp_path / "b.txt", "text")
    for name, is_other in (("a.html", True), ("b.txt", False)):
        data = data_recipe(tmp_path / name)
        before = fingerprint(data, find_corpus(data))
        with monkeypatch.context() as patch:
            patch.setattr(converted, "version", lambda name: "99" if name == "lxml" else "1")
            assert (fingerprint(data, find_corpus(data)) != before) == is_other


def test_a_document_is_divided_as_text_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.html", HTML)
    assert read(data_recipe(path, sample_by="paragraph")) == MARKDOWN.split("\n\n")
    lines = [line for line in MARKDOWN.split("\n") if line]
    assert read(data_recipe(path, sample_by="line")) == lines


def test_pages_in_another_encoding_are_read_by_their_key(tmp_path: Path) -> None:
    path = write(tmp_path / "a.html", HTML.encode("cp1252"))
    assert 'data.encoding to "cp1252"' in scan_error(data_recipe(path))
    (text,) = read(data_recipe(path, encoding="cp1252"))
    assert text.strip() == MARKDOWN


@pytest.mark.parametrize(
    "page",
    [
        "<html><body><p>one</p></body></html>\n<html><head><title>x</title></head><body>two</body>",
        "<html><body><p>one</p></body></html><p>two</p>",
        "<BODY><p>one</p></BODY><!-- a note --> two",
    ],
)
def test_a_page_is_read_to_its_end(page: str, tmp_path: Path) -> None:
    (text,) = read(data_recipe(write(tmp_path / "a.html", page)))
    assert text.split() == ["one", "two"]


def test_a_comment_after_a_page_is_no_text(tmp_path: Path) -> None:
    page = "<head><title>x</title></head><body>one</body> <!-- saved -->\n</html>"
    assert read(data_recipe(write(tmp_path / "a.html", page))) == ["one"]


def test_a_page_in_an_encoding_of_seven_bits_names_the_key(tmp_path: Path) -> None:
    page = '<meta content="text/html; charset=ISO-2022-JP"><p>\u65e5\u672c</p>'
    path = write(tmp_path / "a.html", page.encode("iso-2022-jp"))
    assert scan_error(data_recipe(path)).endswith('set data.encoding to "iso-2022-jp"')
    assert read(data_recipe(path, encoding="iso-2022-jp")) == ["\u65e5\u672c"]


def test_a_file_that_fails_after_the_scan_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.txt", "some text\nof two lines\n")
    write(tmp_path / "b.pdf", pdf("The pump"))
    write(tmp_path / "c.pdf", b"\x00\xff" * 100)
    data = data_recipe(tmp_path, block_size=1, validation={"holdout": 0.5})
    corpus = find_corpus(data)
    scan = scanned(data)
    text = load_documents(data, corpus, scan)
    assert len([*text.documents.all()]) == 2  # c.pdf is left out, as the scan has said
    monkeypatch.setattr(converted, "converted", broken)
    with pytest.raises(DataError, match=r"b\.pdf: is not a readable \.pdf file \(RuntimeError\)"):
        [*text.documents.all()]
    streams = load_documents(data.model_copy(update={"streaming": True}), corpus, scan)
    with pytest.raises(DataError, match=r"b\.pdf: is not a readable"):
        [*streams.documents["train"]]


def broken(raw: bytes, suffix: str) -> str:
    """Stand in for a converter that fails."""
    raise RuntimeError("no thread can be started")


@pytest.mark.parametrize("key", ["list", "mixture", "validation"])
def test_a_source_that_cannot_be_read_at_all_is_an_error(key: str, tmp_path: Path) -> None:
    text = str(write(tmp_path / "a.txt", "some text\nof two lines\n" * 9))
    damaged = str(write(tmp_path / "b.pdf", b"\x00\xff" * 100))
    keys: dict[str, Any] = {
        "list": {"source": [text, damaged]},
        "mixture": {"source": [{"source": name, "weight": 1} for name in (text, damaged)]},
        "validation": {"source": text, "validation": {"source": damaged}},
    }[key]
    data = DataRecipe.model_validate_json(json.dumps({"block_size": 8, **keys}))
    assert scan_error(data).startswith(f"{damaged}: is not a readable .pdf file")


def test_a_document_is_converted_once_in_a_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[str]()
    convert = converted.convert

    def counted(raw: bytes, suffix: str) -> str:
        """Convert, and note the suffix."""
        calls.append(suffix)
        return convert(raw, suffix)

    monkeypatch.setattr(converted, "convert", counted)
    monkeypatch.setattr(converted, "KEPT", {})
    path = write(tmp_path / "a.pdf", pdf("The pump"))
    assert read(data_recipe(path)) == read(data_recipe(path))
    assert calls == [".pdf"]
    monkeypatch.setattr(converted, "MAX_KEPT", 3)
    converted.KEPT.clear()
    assert read(data_recipe(path)) == read(data_recipe(path))
    assert calls == [".pdf"] * 3


def test_a_page_nested_beyond_reason_gives_its_text(tmp_path: Path, recwarn: Any) -> None:
    path = write(tmp_path / "a.html", "<div>" * 3000 + "deep inside" + "</div>" * 3000)
    (text,) = read(data_recipe(path))
    assert text.strip() == "deep inside"
    assert not recwarn.list


def test_a_document_without_text_is_counted_as_empty(tmp_path: Path) -> None:
    write(tmp_path / "scan.pdf", pdf(""))
    write(tmp_path / "a.txt", "some text\nof two lines\n")
    assert any("1 empty" in note for note in scanned(data_recipe(tmp_path, block_size=1)).notes)


def test_without_the_extra_documents_are_counted_and_the_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converted, "find_spec", lambda name: None)
    for name, (content, _) in FILES.items():
        write(tmp_path / name, content)
    write(tmp_path / "text.txt", "some text")
    assert find_corpus(data_recipe(tmp_path)).notes == (
        f"{tmp_path.name}/: files that were not read: 1 .docx, 1 .epub, 1 .htm, 1 .html, 1 .ipynb, "
        "1 .pdf (pip install 'hf_lm[documents]' reads .docx, .epub, .htm, .html, .ipynb, .pdf)",
    )
    for name in FILES:
        line = scan_error(data_recipe(tmp_path / name))
        assert line.endswith("is read with markitdown; pip install 'hf_lm[documents]'"), line


def test_keys_of_tables_are_refused_beside_documents(tmp_path: Path) -> None:
    write(tmp_path / "f.pdf", FILES["f.pdf"][0])
    for key, value in (("text_column", "body"), ("encoding", "cp1252")):
        line = scan_error(data_recipe(tmp_path, **{key: value}))
        assert f"data.{key}" in line
        assert "no effect on .pdf files" in line


def test_a_name_of_a_document_is_a_path_and_no_hub_id() -> None:
    assert set(converted.CONVERTERS) <= set(DATA_SUFFIXES)
