"""The metrics of a model in, lines for a person out."""

from __future__ import annotations

from collections.abc import Mapping


def metric_rows(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """What was measured, with the uncertainty that the choice of text brings."""
    return [
        ("loss", f"{metrics['loss']:.4f} ± {metrics['loss_stderr']:.4f} nats a token"),
        ("perplexity", f"{metrics['perplexity']:.2f}"),
        ("accuracy", f"{metrics['accuracy']:.1%} of {metrics['tokens']:,} tokens"),
        ("bits per byte", f"{metrics['bits_per_byte']:.4f} on {metrics['bytes']:,} bytes"),
    ]
