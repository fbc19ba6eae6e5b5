"""Compare a published model with a new run of its recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hf_lm.errors import RecipeError
from hf_lm.evaluation import metrics as evaluation_metrics
from hf_lm.hub.access import go_offline_if_unreachable
from hf_lm.hub.download import PREFIX, fetch_file, fetch_recipe
from hf_lm.recipe import Recipe, make_recipe
from hf_lm.run_dir.compatibility import CONTENT, NUMERICS_KEYS, flatten
from hf_lm.run_dir.directory import METRICS, PROVENANCE, RECIPE, RunDirectory
from hf_lm.system.files import sha256
from hf_lm.terminal import console

WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
# Fields of provenance.json that may explain another result.
CAUSES = {*CONTENT, *CONTENT.values(), *NUMERICS_KEYS, "commits", "hf_lm"}


class Published(NamedTuple):
    """The results of a published model, as its files say.

    Attributes:
        metrics: its metrics.json.
        provenance: its provenance.json.
        weights: the name of its weights file.
        digest: the SHA-256 of that file.
    """

    metrics: Mapping[str, float]
    provenance: Mapping[str, Any]
    weights: str
    digest: str

    @classmethod
    def fetch(cls, name: str) -> Published:
        """Fetch the results of `hub:USER/MODEL[@REVISION]`.

        Raises:
            RecipeError: there is no such model, or it was published before its training ended.
        """
        if not name.startswith(PREFIX):
            raise RecipeError(f"{name}: is not a published model; name one as hub:USER/MODEL")
        go_offline_if_unreachable(console.show_note)
        metrics, provenance, recipe = (
            json.loads(fetch_file(name, file).read_text(encoding="utf-8"))
            for file in (METRICS, PROVENANCE, RECIPE)
        )
        lora = recipe["model"]["lora"]
        weights = ADAPTER if lora and not lora["merge"] else WEIGHTS
        return cls(metrics, provenance, weights, sha256(fetch_file(name, weights)))


def reproduction_recipe(name: str, overrides: Sequence[str]) -> Recipe:
    """Return the recipe of a published model, with an output directory of its own."""
    raw: dict[str, Any] = fetch_recipe(name)
    raw["output_dir"] = str(Path.cwd() / "runs" / f"{raw['name']}-reproduced")
    if raw["training"].get("max_minutes"):  # on another machine they are other steps
        provenance = json.loads(fetch_file(name, PROVENANCE).read_text(encoding="utf-8"))
        raw["training"].update({"max_minutes": None, "max_steps": provenance["max_steps"]})
    return make_recipe(raw, Path.cwd(), name=name, overrides=overrides)


class Reproduction(NamedTuple):
    """A published model beside the model of a run.

    Attributes:
        metrics: the published result of each metric, and that of the run.
        same_weights: whether both have the same bits.
        notes: differences in data, versions or machine.
    """

    metrics: Mapping[str, tuple[float, float]]
    same_weights: bool
    notes: Sequence[str]

    @property
    def rows(self) -> list[tuple[str, str]]:
        """The name of each metric with both results, and a row about the weights."""
        rows = [(name, compare_metric(*both)) for name, both in self.metrics.items()]
        return [*rows, ("weights", "the same bits" if self.same_weights else "other bits")]

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as values that JSON can hold."""
        metrics = {
            name: dict(zip(("published", "here"), both, strict=True))
            for name, both in self.metrics.items()
        }
        return {"metrics": metrics, "same_weights": self.same_weights, "notes": [*self.notes]}


def compare(published: Published, run: Path) -> Reproduction:
    """Compare a published model with the model of a run."""
    run_dir = RunDirectory(run)
    metrics = run_dir.read(METRICS)
    both = {
        name: (float(published.metrics[name]), float(metrics[name]))
        for name in evaluation_metrics.METRICS
    }
    same_weights = published.digest == sha256(run_dir.model / published.weights)
    old, new = flatten(published.provenance), flatten(run_dir.provenance)
    notes = [
        f"{key} was {old.get(key)}, is {new.get(key)} here"
        for key in sorted({*old, *new})
        if key.split(".")[0] in CAUSES and old.get(key) != new.get(key)
    ]
    return Reproduction(both, same_weights, notes)


def compare_metric(published: float, here: float) -> str:
    """Format two results and the difference between them."""
    difference = "equal" if published == here else f"{abs(here - published):.2g} apart"
    return f"{published:.6g} published, {here:.6g} here: {difference}"
