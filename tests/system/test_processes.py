"""Test rank and world size with and without a launcher."""

import pytest

from hf_lm.system.launch import launched
from hf_lm.system.processes import is_main_process, local_world_size, rank, world_size


def test_process_without_a_launcher_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert (rank(), world_size(), local_world_size()) == (0, 1, 1)
    assert is_main_process()
    assert not launched()


def test_launched_process_has_the_rank_of_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert (rank(), world_size(), local_world_size()) == (3, 4, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert local_world_size() == 2
    assert not is_main_process()
    assert launched()
