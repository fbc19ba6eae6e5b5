"""Draw curves as SVG that follows the colours of the page around it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from typing import NamedTuple

MAX_POINTS = 500  # of a line; more do not fit the width of a page

# Dark enough on white, and light enough on black: a contrast of 3 to 1 on both.
COLOURS = ("#3b82c4", "#d9732e", "#3d9a5b", "#a85fc0", "#c2485b", "#7f8c2f")
INK = "#010203"  # stands for the colour of the text of the page

STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be searched, and read aloud
    "font.family": "sans-serif",
    "font.size": 9,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), INK),
}


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
        label: its name in the legend; empty for none.
        points: pairs of x and y.
        colour: the index of its colour.
        is_measured: whether its points are few and each counts, as those of evaluations.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    is_measured: bool = False


def draw(lines: Sequence[Line], *, name: str, x: str, y: str) -> str:
    """Draw lines as an SVG element without a fixed size.

    Args:
        lines: at least one of them has points.
        name: of the chart, as no other of the page is called.
        x: the label of the horizontal axis.
        y: the label of the vertical axis.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.add_subplot()
        for label, points, colour, is_measured in lines:
            xs, ys = zip(*thinned(points), strict=True) if points else ((), ())
            axes.plot(
                xs,
                ys,
                color=COLOURS[colour % len(COLOURS)],
                marker="o" if is_measured else "",
                markersize=3,
                linewidth=1.6 if is_measured else 0.9,
                label=label or None,
            )
        axes.set(xlabel=x, ylabel=y)
        axes.grid(alpha=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        if any(line.label for line in lines):
            axes.legend(frameon=False)
        text = StringIO()
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    return inline(text.getvalue(), name)


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return at most MAX_POINTS points, each the mean of its neighbours."""
    width = -(-len(points) // MAX_POINTS)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def inline(svg: str, name: str) -> str:
    """Make a file of SVG a part of a page: no header and size, and ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = svg.replace("<svg", '<svg aria-hidden="true"', 1)  # the caption says it in words
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return svg.replace(INK, "currentColor")
