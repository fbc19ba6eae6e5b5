"""The metrics: names, formats and formulas, in one table.

Log lines, plans, results and model cards all take the names and formats from here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple


class Metric(NamedTuple):
    """The label and format of a metric.

    Attributes:
        label: its name in text, in lower case.
        template: the format of its value.
    """

    label: str
    template: str

    def format(self, value: float) -> str:
        """Format a value."""
        return self.template.format(value)


METRICS = {  # keys of metrics.json; in log.jsonl they have the prefix "eval_"
    "loss": Metric("loss", "{:.4f}"),  # nats per token
    "perplexity": Metric("perplexity", "{:.2f}"),
    "accuracy": Metric("accuracy", "{:.1%}"),  # of the next token
    "bits_per_byte": Metric("bits per byte", "{:.4f}"),  # comparable between tokenizers
}


@cache
def metric_class() -> type:
    """Return the `evaluate.Metric` class; made late, as importing evaluate takes 5 seconds."""
    import evaluate
    from datasets import Features, Value

    class LanguageModeling(evaluate.Metric):
        """Averages over tokens, computed from the sums of blocks, without the network."""

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
    """Compute the metrics from the sums of each block.

    The standard error treats blocks, not tokens, as independent: it is the one of a ratio of sums
    over clusters (Cochran, 1977, section 6.4). `fsum` makes the result independent of the order.

    Args:
        nll: the negative log-likelihood of each block, in nats.
        correct: tokens of each block whose likeliest prediction was right.
        tokens: predicted tokens of each block.
        bytes: bytes of text of these tokens.
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
    """Return a label and a text for each metric, with the standard error of the loss."""
    additions = {
        "loss": f" ± {METRICS['loss'].format(metrics['loss_stderr'])} nats per token",
        "accuracy": f" of {metrics['tokens']:,} tokens",
        "bits_per_byte": f" on {metrics['bytes']:,} bytes",
    }
    return [
        (metric.label, metric.format(metrics[name]) + additions.get(name, ""))
        for name, metric in METRICS.items()
    ]
