"""T3: a run that is killed again and again ends with the weights of an uninterrupted run."""

import os
from pathlib import Path

import pytest
from harness import Snapshot, campaign, find_problems, run_of

from hf_lm.checkpoints.manifest import REQUIRED
from hf_lm.checkpoints.store import CheckpointStore

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("HF_LM_KILLS", "40"))
SEED = int(os.environ.get("HF_LM_SEED", "0"))


@pytest.mark.promise("T3", "89", "90")
def test_a_run_killed_at_random_moments_ends_bit_for_bit_equal(tmp_path: Path) -> None:
    tally = campaign(KILLS, SEED, tmp_path)
    assert not tally.problems, "\n\n".join(tally.problems)
    assert tally.kills >= KILLS
    assert tally.identical == tally.completed > 0


@pytest.mark.parametrize("has_trained", [False, True])
def test_a_stopped_start_is_only_blamed_for_steps_it_trained(
    has_trained: bool, tmp_path: Path
) -> None:
    """Steps that an earlier kill lost stay in the log until the next start trains."""
    run = run_of(tmp_path, "run", "prepared", tmp_path)
    CheckpointStore(run.folder).write(1, dict.fromkeys(REQUIRED, Path.touch))
    (run.folder / "status.json").write_text('{"state": "stopped", "reason": ""}')
    log = run.folder / "log.jsonl"
    log.write_text("".join(f'{{"step": {step}, "seconds": 0.5}}\n' for step in (1, 2, 3)))
    before = Snapshot.of(run.folder)
    if has_trained:
        log.write_text(log.read_text().replace('3, "seconds": 0.5', '3, "seconds": 0.7'))
    problems = find_problems(run, "SIGTERM", False, 143, before)
    lost = ["2 steps are lost although SIGTERM stopped the run in order"]
    assert problems == (lost if has_trained else [])
