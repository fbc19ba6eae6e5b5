"""Read PDF, DOCX, EPUB, HTML and notebooks as text, through `markitdown` (extra `[documents]`).

Headings, lists, tables and links become Markdown. Scripts and styles of pages and the outputs of
notebooks are left out.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from hf_lm.data.text.columns import Columns
from hf_lm.data.text.files.compression import MAX_RATIO, max_unpacked, open_binary, plain_suffix
from hf_lm.data.text.files.encoding import read_utf8
from hf_lm.data.text.files.report import Report
from hf_lm.data.text.files.text_files import Rows, documents_of
from hf_lm.recipe import DataRecipe

CONVERTERS = {
    ".pdf": "PdfConverter",
    ".docx": "DocxConverter",
    ".epub": "EpubConverter",
    ".html": "HtmlConverter",
    ".htm": "HtmlConverter",
    ".ipynb": "IpynbConverter",
}
TEXT_BASED, ZIP_BASED = (".html", ".htm", ".ipynb"), (".docx", ".epub")
PACKAGES = (
    *("markitdown", "pdfminer.six", "pdfplumber", "mammoth"),
    *("markdownify", "beautifulsoup4", "lxml"),
)
CID_SHARE = 100  # a text with "(cid:84)" in more than one of so many characters is no text
INSTALL = "pip install 'hf_lm[documents]'"


class UnreadableError(ValueError):
    """A file that is not what its name says."""


def can_convert() -> bool:
    """Return whether the packages that convert documents are installed."""
    return all(find_spec(name) for name in ("markitdown", "pdfplumber", "mammoth"))


def converter_versions() -> list[str]:
    """Return the versions of these packages, on which the text depends; empty without them."""
    return [f"{name} {version(name)}" for name in PACKAGES] if can_convert() else []


def read_converted(path: Path, data: DataRecipe, columns: Columns, report: Report) -> Rows:
    """Yield the text of a file as Markdown, in one document unless `sample_by` says otherwise."""
    suffix = plain_suffix(path)
    if suffix not in CONVERTERS:
        suffix = ".pdf"  # its first bytes say so
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
        check_content(raw, suffix)
        with ThreadPoolExecutor(1) as thread:  # how deep HTML is read depends on the free stack
            text = thread.submit(convert, raw, suffix).result()
    except (MemoryError, ImportError):
        raise
    except Exception as error:  # each converter has its own errors for a damaged file
        rule = str(error) if isinstance(error, UnreadableError) else type(error).__name__
        report.unreadable[path] = f"is not a readable {suffix} file ({rule})"
        return
    if text.count("(cid:") * CID_SHARE > len(text):
        report.unreadable[path] = f"is not a readable {suffix} file (its fonts have no characters)"
        return
    yield from documents_of(text, str(path), data)


def check_content(raw: bytes, suffix: str) -> None:
    """Check what the converters accept in silence, and would lose text of.

    Raises:
        UnreadableError: no notebook, or an archive that grows without end, is locked or damaged.
    """
    if suffix == ".ipynb" and not isinstance(json.loads(raw).get("cells"), list):
        raise UnreadableError("no cells of notebook format 4")
    if suffix not in ZIP_BASED:
        return
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        if sum(item.file_size for item in archive.infolist()) > max_unpacked(len(raw)):
            raise UnreadableError(f"it unpacks to more than {MAX_RATIO} times its size")
        if "META-INF/encryption.xml" in archive.namelist():
            raise UnreadableError("it is locked")
        if suffix == ".docx":  # the converter stops at the first error, without a word
            import_module("defusedxml.ElementTree").fromstring(archive.read("word/document.xml"))


def convert(raw: bytes, suffix: str) -> str:
    """Return the text of a file's bytes; text formats are in UTF-8."""
    converter = getattr(import_module("markitdown.converters"), CONVERTERS[suffix])()
    info = import_module("markitdown").StreamInfo(extension=suffix, charset="utf-8")
    with silenced():
        return converter.convert(io.BytesIO(raw), info).markdown


@contextmanager
def silenced() -> Iterator[None]:
    """Silence what pdfminer and BeautifulSoup say about fonts, encodings and deep nesting."""
    logs = [logging.getLogger(name) for name in ("pdfminer", "bs4")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for log, level in zip(logs, levels, strict=True):
                log.setLevel(level)
