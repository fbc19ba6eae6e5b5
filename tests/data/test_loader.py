"""Every number of processes trains on the same blocks in the same step, each once an epoch."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import SeedableRandomSampler
from datasets import Dataset

from hf_lm.data.blocks.dataset import NO_BLOCK, BlockDataset, table_of
from hf_lm.data.collator import collate
from hf_lm.data.loader import RandomOrder, ShareSampler, TrainingLoader
from hf_lm.model.loss import IGNORE_INDEX

STEP = 8  # blocks of a step


def steps_of(length: int, *, world_size: int, batch_size: int, epoch: int) -> list[set[int]]:
    """Return the blocks that all processes together train on, step by step."""
    accumulation = STEP // (batch_size * world_size)
    steps: list[set[int]] = []
    for rank in range(world_size):
        sampler = ShareSampler(
            RandomOrder(length, seed=5),
            batch_size=batch_size,
            rank=rank,
            world_size=world_size,
            epoch=epoch,
        )
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for index, batch in enumerate(batches):
            assert len(batch) <= batch_size
            step = index // accumulation
            if step == len(steps):
                steps.append(set())
            own = {block for block in batch if block != NO_BLOCK}
            assert not own & steps[step]
            steps[step] |= own
    return steps


@pytest.mark.parametrize("length", [8, 21, 25, 31])
def test_any_number_of_processes_trains_on_the_same_blocks_in_a_step(length: int) -> None:
    for epoch in range(3):
        order = RandomOrder(length, seed=5).of_epoch(epoch).tolist()
        expected = [set(order[start : start + STEP]) for start in range(0, length, STEP)]
        for world_size, batch_size in ((1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (8, 1)):
            assert (
                steps_of(length, world_size=world_size, batch_size=batch_size, epoch=epoch)
                == expected
            )


def test_the_random_order_is_the_one_of_accelerate() -> None:
    sampler = SeedableRandomSampler(range(50), data_seed=7)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        assert list(sampler) == (RandomOrder(50, seed=7).of_epoch(epoch) - 50 * epoch).tolist()


def mapped_blocks(path: Path, count: int) -> BlockDataset:
    """Write blocks of 9 ids to an Arrow file and open it as a memory map."""
    blocks = np.arange(count * 9, dtype=np.uint32).reshape(count, 9)
    written = Dataset(table_of(blocks))
    written.save_to_disk(path)
    return BlockDataset(Dataset.from_file(str(next(path.glob("*.arrow")))))


def test_a_process_without_a_block_makes_a_batch_that_is_not_in_the_loss(tmp_path: Path) -> None:
    dataset = mapped_blocks(tmp_path / "blocks", 3)
    sampler = ShareSampler(RandomOrder(3, seed=0), batch_size=2, rank=1, world_size=2)
    sampler.order = RandomOrder(1, seed=0)
    loader = TrainingLoader(dataset, sampler, collate_fn=lambda rows: collate(rows, numbered=True))
    (batch,) = loader
    assert batch["numbers"] == []
    assert batch["input_ids"].shape == (1, 8)
    assert (batch["shift_labels"] == IGNORE_INDEX).all()


def test_blocks_are_opened_again_in_another_process_and_not_copied(tmp_path: Path) -> None:
    small, large = mapped_blocks(tmp_path / "a", 10), mapped_blocks(tmp_path / "b", 100_000)
    sizes = [len(pickle.dumps(dataset)) for dataset in (small, large)]
    assert abs(sizes[0] - sizes[1]) < 100
    copy = pickle.loads(pickle.dumps(large))
    assert torch.equal(*(torch.from_numpy(np.array(d[99_999]["input_ids"])) for d in (large, copy)))
