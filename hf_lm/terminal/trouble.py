"""Say so while a run trains if it does not go as it should, and what to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

Rows = Sequence[Mapping[str, Any]]

LOOKS = 100  # in a run, beside those after evaluations
WINDOW = 0.1  # of the run: two of them, one after the other, are compared
FEWEST_ROWS = 10  # of a window; the mean of fewer says little
FLAT = 0.001  # relative; the network of small.json, 600 steps: each tenth falls by 8 % or more
GROWTH = 3  # times the gradient norm; there it grows by 16 % at most from tenth to tenth
RISE = 0.02  # nats


class TroubleNotes(TrainerCallback):
    """Shows a note for each kind of trouble, once.

    Args:
        notify: shows a note.
        pretrained: whether training starts from weights whose loss may hardly fall.
    """

    def __init__(self, notify: Callable[[str], None], *, pretrained: bool) -> None:
        self.notify, self.pretrained = notify, pretrained
        self.told: set[str] = set()
        self.looks = 0

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: object,
    ) -> None:
        """Look at the log so far, a hundred times in a run and after each evaluation."""
        if not state.is_world_process_zero:
            return
        looks = LOOKS * state.global_step // state.max_steps
        if looks == self.looks and "eval_loss" not in state.log_history[-1]:
            return
        self.looks = looks
        for kind, text in find_trouble(state.log_history, state.max_steps):
            if kind not in self.told and not (kind == "flat" and self.pretrained):
                self.told.add(kind)
                self.notify(text)


def find_trouble(history: Rows, max_steps: int) -> Iterator[tuple[str, str]]:
    """Yield the kind of each trouble and a text about it.

    Args:
        history: the rows of the log so far: of training with "loss", and of evaluations.
        max_steps: optimizer steps of the run.
    """
    training = [row for row in history if "loss" in row]
    evaluations = [row for row in history if "eval_loss" in row]
    if evaluations and history[-1] is evaluations[-1]:
        yield from find_rise(training, evaluations)
    elif training:
        step = training[-1]["step"]
        size = sum(row["step"] > step - WINDOW * max_steps for row in training)
        before, last = training[-2 * size : -size], training[-size:]
        if min(len(before), len(last)) >= FEWEST_ROWS:
            yield from find_flat(before, last, max_steps)
            yield from find_growth(before, last)


def find_rise(training: Rows, evaluations: Rows) -> Iterator[tuple[str, str]]:
    """Yield a text if the validation loss rises while the training loss falls."""
    best = min(evaluations, key=lambda row: row["eval_loss"])
    last = evaluations[-1]
    is_later = best not in evaluations[-2:]
    has_risen = last["eval_loss"] > best["eval_loss"] + RISE
    span = last["step"] - best["step"]
    recent = [row["loss"] for row in training if row["step"] > last["step"] - span / 2]
    earlier = [row["loss"] for row in training if 0 < row["step"] - best["step"] <= span / 2]
    if is_later and has_risen and recent and earlier and fmean(recent) < fmean(earlier):
        yield (
            "rise",
            f"the validation loss has risen from {best['eval_loss']:.3f} at step {best['step']:,} "
            f"to {last['eval_loss']:.3f}, and the training loss falls: the model learns the text "
            "by heart. More text, fewer steps, model.dropout or training.load_best_model_at_end "
            "help",
        )


def find_flat(before: Rows, last: Rows, max_steps: int) -> Iterator[tuple[str, str]]:
    """Yield a text if the loss does not fall in the first half of a run."""
    losses = [fmean(row["loss"] for row in rows) for rows in (before, last)]
    if last[-1]["step"] <= max_steps / 2 and losses[1] > (1 - FLAT) * losses[0]:
        yield (
            "flat",
            f"the loss is as before since step {before[0]['step']:,} ({losses[0]:.3f}, now "
            f"{losses[1]:.3f}). Another training.learning_rate or a larger model may help",
        )


def find_growth(before: Rows, last: Rows) -> Iterator[tuple[str, str]]:
    """Yield a text if the gradient norm grows."""
    norms = [median(row.get("grad_norm", 0) for row in rows) for rows in (before, last)]
    if norms[1] > GROWTH * norms[0] > 0:
        yield (
            "growth",
            f"the gradient norm has grown from {norms[0]:.2g} to {norms[1]:.2g} since step "
            f"{before[0]['step']:,}: the run may diverge. A lower training.learning_rate, longer "
            "training.warmup_steps or training.skip_loss_spikes help",
        )
