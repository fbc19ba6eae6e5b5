"""T3: a run that is killed again and again ends as one that was not."""

import os
from pathlib import Path

import pytest
from harness import Left, campaign, problems, run_of

from hf_lm.checkpoints.manifest import REQUIRED
from hf_lm.checkpoints.store import CheckpointStore

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("HF_LM_KILLS", "40"))
SEED = int(os.environ.get("HF_LM_SEED", "0"))


@pytest.mark.promise("T3", "89", "90")
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(tmp_path: Path) -> None:
    tally = campaign(KILLS, SEED, tmp_path)
    assert not tally.problems, "\n\n".join(tally.problems)
    assert tally.kills >= KILLS
    assert tally.same == tally.completed > 0


@pytest.mark.parametrize("again", [False, True])
def test_a_signal_answers_for_the_steps_of_its_own_start_alone(again: bool, tmp_path: Path) -> None:
    """Of what an earlier kill has cost, nothing is taken back before a start trains."""
    run = run_of(tmp_path, "run", "prepared", tmp_path)
    CheckpointStore(run.folder).write(1, dict.fromkeys(REQUIRED, Path.touch))
    (run.folder / "status.json").write_text('{"state": "stopped", "reason": ""}')
    log = run.folder / "log.jsonl"
    log.write_text("".join(f'{{"step": {step}, "seconds": 0.5}}\n' for step in (1, 2, 3)))
    before = Left.by(run.folder)
    if again:
        log.write_text(log.read_text().replace('3, "seconds": 0.5', '3, "seconds": 0.7'))
    found = problems(run, "SIGTERM", False, 143, before)
    assert found == (["2 steps are lost by a signal that is heeded"] if again else [])
