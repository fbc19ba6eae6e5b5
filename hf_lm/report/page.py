"""Write report.html: one run, or several beside each other, on one page that needs no network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

from hf_lm.errors import DataError
from hf_lm.evaluation.metrics import METRICS
from hf_lm.report.plots import Line, draw
from hf_lm.run_dir.directory import METRICS as METRICS_FILE
from hf_lm.run_dir.directory import RECIPE, STATUS, RunDirectory
from hf_lm.system.files import write_atomically
from hf_lm.system.text import printable

MILLION = 1e6
RELOAD = 10  # seconds


class Run(NamedTuple):
    """The content of the files of a run.

    Attributes:
        name: the name of its recipe, with the folder if there are several runs.
        state: of status.json.
        recipe: the whole recipe.
        provenance: the fields of provenance.json.
        rows: the rows of the log.
        metrics: of the finished model; empty before.
    """

    name: str
    state: str
    recipe: dict[str, Any]
    provenance: dict[str, Any]
    rows: list[dict[str, Any]]
    metrics: dict[str, Any]

    def series(self, column: str, *, over: str, unit: float) -> list[tuple[float, float]]:
        """Return the finite values of a column of the log over another one."""
        return [
            (row[over] / unit, row[column])
            for row in self.rows
            if is_finite(row.get(column)) and is_finite(row.get(over))
        ]

    @property
    def notes(self) -> list[str]:
        """Notes about the text, such as the number of files that were left out."""
        return self.provenance.get("text_notes", [])

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The rows that have samples, the newest first."""
        return [row for row in reversed(self.rows) if row.get("samples")]

    @property
    def results(self) -> dict[str, str]:
        """The metrics of the finished model, or of the newest evaluation, as text."""
        values = self.metrics or newest_evaluation(self.rows)
        return {
            metric.label: metric.format(values[name])
            for name, metric in METRICS.items()
            if isinstance(values.get(name), (int, float))
        }


def is_finite(value: object) -> bool:
    """Return whether a value of the log is a finite number; others are stored as text."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def write_report(folders: Sequence[Path], path: Path, *, reload: bool = False) -> None:
    """Write the report of one run or several.

    Args:
        folders: the output directories of the runs.
        path: the file to write, atomically.
        reload: whether a browser loads the page again every RELOAD seconds.

    Raises:
        DataError: a directory holds no run.
    """
    runs = [read_run(folder, is_alone=len(folders) == 1) for folder in folders]
    environment = Environment(
        loader=PackageLoader("hf_lm.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if hasattr(value, "__html__") else printable(value),
    )
    page = environment.get_template("report.html.jinja").render(
        runs=runs,
        reload=RELOAD if reload else None,
        charts=[*charts(runs)],
        rows=[*result_rows(runs)],
        to_json=lambda value: json.dumps(value, indent=2, ensure_ascii=False),
    )
    write_atomically(path, page)


def read_run(folder: Path, *, is_alone: bool = True) -> Run:
    """Read the files of a run.

    Raises:
        DataError: the directory holds no run.
    """
    run_dir = RunDirectory(folder.absolute())
    if not run_dir.is_started:
        raise DataError(f"{folder}: holds no run of hf_lm (current folder: {Path.cwd()})")
    recipe = run_dir.read(RECIPE)
    has_metrics = (run_dir.path / METRICS_FILE).is_file()
    return Run(
        name=recipe["name"] if is_alone else f"{recipe['name']} ({folder})",
        state=run_dir.read(STATUS)["state"],
        recipe=recipe,
        provenance=run_dir.provenance,
        rows=[*run_dir.log.rows()],
        metrics=run_dir.read(METRICS_FILE) if has_metrics else {},
    )


def newest_evaluation(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the metrics of the last row that has some."""
    for row in reversed(rows):
        if "eval_loss" in row:
            return {name: row.get(f"eval_{name}") for name in METRICS}
    return {}


def result_rows(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of the table of results: a label, and a text for each run."""
    labels = dict.fromkeys(label for run in runs for label in run.results)
    for label in labels:
        yield label, [run.results.get(label, "") for run in runs]
    columns: dict[str, list[str]] = {}
    for run in runs:
        last = run.rows[-1] if run.rows else {}
        values = {
            "parameters": f"{run.metrics['parameters']:,}" if run.metrics else "",
            "steps": f"{last.get('step', 0):,} of {run.provenance.get('max_steps', 0):,}",
            "tokens": f"{last.get('tokens', 0):,}",
            "minutes of training": f"{last.get('seconds', 0) / 60:.1f}",
            "machine": f"{run.provenance.get('world_size', 1)} × {run.provenance.get('device')}, "
            f"{run.provenance.get('precision')}",
        }
        for label, text in values.items():
            columns.setdefault(label, []).append(text)
    yield from columns.items()


def charts(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    """Yield the charts that have points: their title, a sentence for all readers, and the SVG."""
    tokens = {"over": "tokens", "unit": MILLION, "x": "million tokens"}
    minutes = {"over": "seconds", "unit": 60, "x": "minutes of training"}
    plans: tuple[tuple[str, dict[str, bool], dict[str, Any], str], ...] = (
        ("Loss", {"loss": False, "eval_loss": True}, tokens, "nats per token"),
        ("Bits per byte", {"eval_bits_per_byte": True}, tokens, "bits per byte"),
        ("Bits per byte over time", {"eval_bits_per_byte": True}, minutes, "bits per byte"),
        ("Learning rate", {"learning_rate": False}, tokens, "learning rate"),
        ("Gradient norm", {"grad_norm": False}, tokens, "norm before clipping"),
        ("Speed", {"tokens_per_second": False}, minutes, "tokens per second"),
    )
    for number, (title, columns, axis, unit) in enumerate(plans):
        lines = [*lines_of(runs, columns, over=axis["over"], unit=axis["unit"])]
        if any(line.points for line in lines):
            svg = draw(lines, name=f"chart{number}", x=axis["x"], y=unit)
            yield {"title": title, "text": "; ".join(described(lines)), "svg": svg}


def lines_of(
    runs: Sequence[Run], columns: Mapping[str, bool], *, over: str, unit: float
) -> Iterator[Line]:
    """Yield a line for each run and column; several runs have a colour each."""
    names = {"loss": "training", "eval_loss": "validation"}
    for index, run in enumerate(runs):
        for column, is_measured in columns.items():
            label = run.name if len(runs) > 1 else names.get(column, "")
            if len(runs) > 1 and len(columns) > 1:
                label = f"{run.name}, {names[column]}"
            colour = index if len(runs) > 1 else int(column == "eval_loss")
            points = run.series(column, over=over, unit=unit)
            yield Line(printable(label), points, colour, is_measured)


def described(lines: Sequence[Line]) -> Iterator[str]:
    """Yield a text for each line: its first and last value, and its lowest one."""
    for line in lines:
        if line.points:
            values = [value for _, value in line.points]
            start = f"{line.label}: " if line.label else ""
            yield f"{start}{values[0]:.4g} to {values[-1]:.4g}, lowest {min(values):.4g}"
