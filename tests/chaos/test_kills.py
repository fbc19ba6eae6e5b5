"""T3: a run that is killed again and again ends as one that was not."""

import os
from pathlib import Path

import pytest
from harness import campaign

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("HF_LM_KILLS", "40"))
SEED = int(os.environ.get("HF_LM_SEED", "0"))


def test_t3_89_90_a_run_killed_at_random_moments_ends_in_the_same_bits(tmp_path: Path) -> None:
    tally = campaign(KILLS, SEED, tmp_path)
    assert not tally.problems, "\n\n".join(tally.problems)
    assert tally.kills >= KILLS
    assert tally.same == tally.completed > 0
