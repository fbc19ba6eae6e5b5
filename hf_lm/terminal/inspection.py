"""Show what `hf-lm inspect` found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hf_lm.data.inspection import Inspection
from hf_lm.system.text import on_one_line

RARE = 0.01  # scripts and languages of a smaller share are counted together


def inspection_rows(found: Inspection) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table: a label and a text."""
    if found.files:
        kinds = sorted(found.files.items(), key=lambda item: -item[1])
        yield "files", ", ".join(f"{count:,} {kind}" for kind, count in kinds)
    yield "documents", f"{found.documents:,} of {found.shortest:,} to {found.longest:,} bytes"
    mean = found.size // found.documents
    yield "bytes", f"{found.size:,}, {mean:,} in a document on average"
    yield "scripts", shares(found.scripts) or "no letters"
    yield "languages", shares(found.languages)
    sizes = [f"{ratio:.2f} with {size:,}" for size, ratio in found.bytes_per_token.items()]
    yield "bytes per token", f"{', '.join(sizes)} tokens of byte-level BPE"


def shares(found: Mapping[str, float]) -> str:
    """Format shares, the largest first, and the number of those that are rare."""
    common = [f"{name} {share:.0%}" for name, share in found.items() if share >= RARE]
    rare = len(found) - len(common)
    return ", ".join([*common, *([f"{rare} others"] if rare else [])])


def shown_rows(found: Inspection) -> Iterator[tuple[str, str]]:
    """Yield a row for each shown document, and one for the edge of a block in it."""
    for document in found.shown:
        yield f"{document.tokens:,} tokens", on_one_line(document.start)
        if document.edge:
            yield "  block ends", on_one_line(document.edge)
