"""Read PDF, DOCX, EPUB, HTML and notebooks as text, through `markitdown` (extra `[documents]`).

Headings, lists, tables and links become Markdown. Scripts and styles of pages and the outputs of
notebooks are left out.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import posixpath
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from hf_lm.data.text.columns import Columns
from hf_lm.data.text.files.compression import MAX_RATIO, max_unpacked, open_binary, plain_suffix
from hf_lm.data.text.files.encoding import is_utf8, read_utf8
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
NO_TEXT = re.compile(r"(?is)<head\b.*?</head\s*>|</?(html|body)\b[^>]*>")  # around text
# Encodings whose bytes are valid UTF-8, too, as a page names them.
SEVEN_BIT = re.compile(r"(?i)<meta[^>]*charset=[\"']?\s*(iso-2022-[\w-]+|hz-gb-2312|utf-7)")
CID_SHARE = 100  # a text with "(cid:84)" in more than one of so many characters is no text
MAX_KEPT = 2**26  # characters of converted text that a process keeps
KEPT: dict[str, str] = {}

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
    raw = raw_content(path, suffix, data, report)
    if raw is None:
        return
    try:
        text = converted(raw, suffix)
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


def raw_content(path: Path, suffix: str, data: DataRecipe, report: Report) -> bytes | None:
    """Return the bytes to convert, text formats as UTF-8; None if they are not valid."""
    if suffix not in TEXT_BASED:
        with open_binary(path) as file:
            return file.read()
    text = read_utf8(path, data, report)
    if text is None or suffix == ".ipynb":
        return None if text is None else text.encode()
    declared = SEVEN_BIT.search(text[:4096])
    if declared and is_utf8(data):
        name = declared[1].lower()
        report.problem(str(path), f'is in {name}, as it says; set data.encoding to "{name}"')
        return None
    return joined_bodies(text).encode()


def converted(raw: bytes, suffix: str) -> str:
    """Return the text of a file's bytes; the last ones are kept, as a run reads text many times.

    Raises:
        UnreadableError: the bytes are not what the suffix says; converters have other errors, too.
    """
    key = hashlib.sha256(raw).hexdigest() + suffix
    text = KEPT.get(key)
    if text is None:
        check_content(raw, suffix)
        with ThreadPoolExecutor(1) as thread:  # how deep HTML is read depends on the free stack
            text = thread.submit(convert, raw, suffix).result()
        KEPT[key] = text
        while sum(map(len, KEPT.values())) > MAX_KEPT:
            del KEPT[next(iter(KEPT))]
    return text


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
        else:
            check_chapters(archive)


def check_chapters(archive: zipfile.ZipFile) -> None:
    """Check that the converter will find every chapter of an EPUB, and can decode it.

    Raises:
        UnreadableError: there is none, or one is missing or not UTF-8.
    """
    parse: Callable[[bytes], Any] = import_module("defusedxml.minidom").parseString
    container = parse(archive.read("META-INF/container.xml"))
    place = container.getElementsByTagName("rootfile")[0].getAttribute("full-path")
    package = parse(archive.read(place))
    items = package.getElementsByTagName("item")
    paths = {item.getAttribute("id"): unquote(item.getAttribute("href")) for item in items}
    spine = [item.getAttribute("idref") for item in package.getElementsByTagName("itemref")]
    if not spine:
        raise UnreadableError("it has no chapters")
    for name in spine:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), paths.get(name, "")))
        if path not in archive.namelist():
            raise UnreadableError(f'its chapter "{name}" is missing')
        try:
            archive.read(path).decode("utf-8")
        except UnicodeDecodeError:
            raise UnreadableError(f'its chapter "{name}" is not UTF-8') from None


def joined_bodies(page: str) -> str:
    """Return a page whose text the converter reads whole: it takes the first body and no more."""
    _, *bodies = re.split(r"(?i)<body\b", page)
    after = re.split(r"(?i)</body\s*>", page)[-1] if bodies else ""
    has_more = len(bodies) > 1 or re.sub(r"(?s)<!--.*?-->|<[^>]*>", "", after).strip()
    return NO_TEXT.sub("", page) if has_more else page


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
