"""The metrics: names, formulas and formats, in one table."""

# Shapes: B blocks, T tokens predicted in a block, V vocabulary.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any


@cache
def metric_class() -> type:
    """The `evaluate.Metric` of language modeling; made late: evaluate takes 5 seconds to import."""
    import evaluate
    from datasets import Features, Value

    class LanguageModeling(evaluate.Metric):
        """Sums over blocks in, averages over tokens out; needs no network."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description="Loss, perplexity, accuracy and bits per byte of a language model.",
                citation="",
                inputs_description="Sums of each block: nll in nats, correct, tokens and bytes.",
                features=Features(
                    nll=Value("float64"),
                    correct=Value("int64"),
                    tokens=Value("int64"),
                    bytes=Value("int64"),
                ),
            )

        def _compute(self, **sums: Any) -> dict[str, float]:
            return averages(**sums)

    return LanguageModeling


def averages(
    *, nll: Sequence[float], correct: Sequence[int], tokens: Sequence[int], bytes: Sequence[int]
) -> dict[str, float]:
    """Averages from the sums of each block.

    The standard error takes blocks, not tokens, as independent: it is that of a ratio of sums over
    clusters (Cochran, 1977, section 6.4). `fsum` makes every figure independent of the order.
    """
    total, count, size = math.fsum(nll), sum(tokens), sum(bytes)
    loss, n = total / count, len(nll)
    spread = math.fsum((s - loss * t) ** 2 for s, t in zip(nll, tokens, strict=True))
    return {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700 else math.inf,
        "accuracy": sum(correct) / count,
        "bits_per_byte": total / math.log(2) / size if size else math.inf,
        "loss_stderr": math.sqrt(spread * n / (n - 1)) / count if n > 1 else math.inf,
        "tokens": count,
        "bytes": size,
    }


def metric_rows(metrics: Mapping[str, float]) -> list[tuple[str, str]]:
    """What was measured, with the uncertainty that the choice of text brings."""
    return [
        ("loss", f"{metrics['loss']:.4f} ± {metrics['loss_stderr']:.4f} nats a token"),
        ("perplexity", f"{metrics['perplexity']:.2f}"),
        ("accuracy", f"{metrics['accuracy']:.1%} of {metrics['tokens']:,} tokens"),
        ("bits per byte", f"{metrics['bits_per_byte']:.4f} on {metrics['bytes']:,} bytes"),
    ]
