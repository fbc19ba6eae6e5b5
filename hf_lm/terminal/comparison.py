"""Show what `hf-lm compare` found."""

from __future__ import annotations

from collections.abc import Iterator

from hf_lm.evaluation.compare import Comparison


def comparison_rows(found: Comparison) -> Iterator[tuple[str, str]]:
    """Yield the rows of the table: a label and a text."""
    yield "text", f"{found.documents:,} documents, {found.bytes:,} bytes"
    first = found.models[0].model
    for number, row in enumerate(found.models):
        yield (
            row.model,
            f"{row.bits_per_byte:.4f} bits per byte, {row.parameters:,} parameters, "
            f"{row.tokens_per_second:,.0f} tokens per second",
        )
        if number:
            error = "" if row.difference_stderr is None else f" ± {row.difference_stderr:.4f}"
            yield "", f"{row.difference:+.4f}{error} beside {first}: {row.verdict}"
