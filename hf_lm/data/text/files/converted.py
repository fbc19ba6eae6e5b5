"""Read PDF, DOCX, EPUB, HTML and notebooks as text, through `markitdown` (extra `[documents]`).

Headings, lists, tables and links become Markdown; pictures, scripts and styles are left out.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from hf_lm.data.text.columns import Columns
from hf_lm.data.text.files.compression import open_binary, plain_suffix
from hf_lm.data.text.files.encoding import read_utf8
from hf_lm.data.text.files.report import Report
from hf_lm.data.text.files.text_files import Rows, documents_of
from hf_lm.errors import one_line
from hf_lm.recipe import DataRecipe

CONVERTERS = {
    ".pdf": "PdfConverter",
    ".docx": "DocxConverter",
    ".epub": "EpubConverter",
    ".html": "HtmlConverter",
    ".htm": "HtmlConverter",
    ".ipynb": "IpynbConverter",
}
TEXT_BASED = (".html", ".htm", ".ipynb")
INSTALL = "pip install 'hf_lm[documents]'"


def can_convert() -> bool:
    """Return whether the package that converts documents is installed."""
    return find_spec("markitdown") is not None


def converter_version() -> str:
    """Return the version of that package, on which the text depends; empty without it."""
    return version("markitdown") if can_convert() else ""


def read_converted(path: Path, data: DataRecipe, columns: Columns, report: Report) -> Rows:
    """Yield the text of a file as Markdown, in one document unless `sample_by` says otherwise."""
    suffix = plain_suffix(path)
    if not can_convert():
        report.problem(str(path), f"{suffix} is read with markitdown; {INSTALL}")
        return
    if suffix in TEXT_BASED:
        text = read_utf8(path, data, report)
        if text is None:
            return
        raw = text.encode()
    else:
        with open_binary(path) as file:
            raw = file.read()
    try:
        text = convert(raw, suffix)
    except Exception as error:  # each converter has its own errors for a damaged file
        report.unreadable[path] = f"is no readable {suffix}: {one_line(error, limit=100)}"
        return
    yield from documents_of(text, str(path), data)


def convert(raw: bytes, suffix: str) -> str:
    """Return the text of a file's bytes; text formats are in UTF-8."""
    converter = getattr(import_module("markitdown.converters"), CONVERTERS[suffix])()
    info = import_module("markitdown").StreamInfo(extension=suffix, charset="utf-8")
    with quiet():
        return converter.convert(io.BytesIO(raw), info).markdown


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what the packages below say about fonts and deep nesting."""
    log = logging.getLogger("pdfminer")
    level = log.level
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            log.setLevel(level)
