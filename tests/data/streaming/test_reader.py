"""A stream gives every token once a pass, and goes on exactly where it stopped."""

import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_lm.data.blocks import grouping
from hf_lm.data.blocks.tokenization import Tokenize
from hf_lm.data.load import load_blocks, load_documents
from hf_lm.data.prefetch import prefetch
from hf_lm.data.streaming import documents as stream
from hf_lm.data.streaming import reader as endless
from hf_lm.data.streaming.blocks import StreamShard, open_pass
from hf_lm.data.streaming.reader import BlockStream
from hf_lm.data.text.sources import find_corpus
from hf_lm.errors import DataError, MismatchError
from hf_lm.recipe import DataRecipe, load_recipe
from hf_lm.tokenizer import PreTrainedTokenizerFast, byte_tokenizer

EOS = "<|endoftext|>"


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of a few documents, portions of one or two, and little read ahead."""
    monkeypatch.setattr(stream, "WINDOW", 7)
    monkeypatch.setattr("hf_lm.data.streaming.blocks.WINDOW", 7)
    monkeypatch.setattr(stream, "BATCH_BYTES", 60)
    monkeypatch.setattr(endless, "BATCH_SIZE", 3)
    monkeypatch.setattr(grouping, "PACKED", 200)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte, so that every token is known."""
    return PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), bos_token=EOS, eos_token=EOS)


def write_texts(folder: Path, texts: list[str], *, files: int = 1) -> str:
    """Documents as lines of some files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        rows = (json.dumps({"text": text}) + "\n" for text in texts[number::files])
        (folder / f"{number}.jsonl").write_text("".join(rows))
    return str(folder)


def opened(data: DataRecipe, tokenizer: Any, shard: StreamShard, *, seed: int = 0) -> BlockStream:
    """The training stream of one process."""
    text = load_documents(data, find_corpus(data))
    blocks = load_blocks(data, text, tokenizer, seed=seed, num_validation_blocks=2, shard=shard)
    return blocks.splits["train"]


def taken(blocks: BlockStream, count: int) -> list[list[int]]:
    """The next blocks of a stream."""
    rows = iter(blocks)
    found = [next(rows)["input_ids"].tolist() for _ in range(count)]
    rows.close()
    return found


def random_texts(count: int, *, seed: int = 0) -> list[str]:
    """Documents of 1 to 60 letters that are all different."""
    chance = random.Random(seed)
    return [
        f"{number}:" + "".join(chance.choices("abcdef", k=chance.randint(1, 60)))
        for number in range(count)
    ]


def sources_in(tmp_path: Path, mixed: bool) -> Any:
    """One source of three files, or two of them mixed."""
    first = write_texts(tmp_path / "a", random_texts(40), files=3)
    if not mixed:
        return first
    second = write_texts(tmp_path / "b", random_texts(25, seed=1))
    return ({"source": first, "weight": 0.7}, {"source": second, "weight": 0.3})


def recipe_of(source: Any, **changes: Any) -> DataRecipe:
    """A data section that streams."""
    tree = {"source": source, "streaming": True, "validation": {"holdout": 0.1}, "block_size": 9}
    return DataRecipe.model_validate_json(json.dumps({**tree, **changes}))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("grouping", ["concat", "best_fit"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stopped_stream_resumes_with_the_next_block(
    world_size: int, threads: int, grouping: str, mixed: bool, tmp_path: Path, tokenizer: Any
) -> None:
    data = recipe_of(sources_in(tmp_path, mixed), grouping=grouping)
    for rank in range(world_size):
        shard = StreamShard(rank, world_size, threads)
        whole = taken(opened(data, tokenizer, shard), 700)  # the text fills about 150 blocks a pass
        for stop in (1, 37, 150, 399, 660):
            first = opened(data, tokenizer, shard)
            assert taken(first, stop) == whole[:stop]
            state = json.loads(json.dumps(first.state_dict()))
            again = opened(data, tokenizer, shard)
            again.load_state_dict(state)
            assert taken(again, 11) == whole[stop : stop + 11]
            state = json.loads(json.dumps(again.state_dict()))  # stopped a second time
            last = opened(data, tokenizer, shard)
            last.load_state_dict(state)
            assert taken(last, 20) == whole[stop + 11 : stop + 31]


def test_a_stream_can_resume_after_any_block(tmp_path: Path, tokenizer: Any) -> None:
    data = recipe_of(sources_in(tmp_path, mixed=True))
    whole = taken(opened(data, tokenizer, StreamShard()), 330)
    first = opened(data, tokenizer, StreamShard())
    rows = iter(first)
    for stop in range(1, 160):
        next(rows)
        again = opened(data, tokenizer, StreamShard())
        again.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert taken(again, 2) == whole[stop : stop + 2]
    rows.close()


def trained_texts(data: DataRecipe) -> list[str]:
    """The documents that are not held out."""
    return [row["text"] for row in load_documents(data, find_corpus(data)).documents["train"]]


def pass_of(blocks: list[list[int]], tokenizer: Any, tokens: int) -> list[int]:
    """What the first blocks predict, up to a number of tokens."""
    predicted = [token for block in blocks for token in block[1:]]
    return [blocks[0][0], *predicted][:tokens]


@pytest.mark.parametrize("readers", [1, 2, 3])
def test_a_pass_has_every_token_once_whatever_the_number_of_readers(
    readers: int, tmp_path: Path, tokenizer: Any
) -> None:
    data = recipe_of(write_texts(tmp_path / "a", random_texts(60), files=2))
    texts = trained_texts(data)
    found: list[str] = []
    for rank in range(readers):
        blocks = taken(opened(data, tokenizer, StreamShard(rank, readers)), 400)
        stream_ids = [blocks[0][0], *(token for block in blocks for token in block[1:])]
        pieces = tokenizer.decode(stream_ids).split(EOS)[:-1]
        own = pieces[: len(pieces) // 2]
        first_pass = own[: own.index(own[0], 1)] if own[0] in own[1:] else own
        found += list(dict.fromkeys([*first_pass, *own]))
    assert Counter(found) == Counter(texts)


@pytest.mark.parametrize(("files", "readers"), [(14, 8), (8, 8), (16, 4), (6, 4), (3, 8)])
def test_readers_see_the_same_number_of_documents_whatever_the_number_of_files(
    files: int, readers: int, tmp_path: Path, tokenizer: Any
) -> None:
    """A reader with fewer files would be in its second pass when others are in their first."""
    texts = [f"{number:04}" for number in range(files * readers * 2)]
    write_texts(tmp_path / "a", texts, files=files)
    data = recipe_of(str(tmp_path / "a"), validation={"source": str(tmp_path / "a")})
    (source,) = stream.StreamedDocuments(data, find_corpus(data)).train
    tokenize = Tokenize(tokenizer, append_eos=True, cores=1)
    shares = []
    for number in range(readers):
        rows = open_pass(
            0, source=source, tokenize=tokenize, shuffle=(0, 0), number=number, readers=readers
        )
        ids = [token for row in rows for token in row["input_ids"]]
        shares.append(tokenizer.decode(ids).split(EOS)[:-1])
    assert Counter(text for share in shares for text in share) == Counter(texts)
    assert {len(share) for share in shares} == {len(texts) // readers}


@settings(max_examples=25, deadline=None)
@given(
    texts=st.lists(st.text("abc\n é", min_size=1, max_size=40), min_size=4, max_size=30),
    size=st.integers(2, 12),
    seed=st.integers(0, 99),
)
def test_two_passes_predict_every_token_twice(
    texts: list[str], size: int, seed: int, tmp_path_factory: Any, tokenizer: Any
) -> None:
    texts = [f"{number} {text}" for number, text in enumerate(texts)]
    source = write_texts(tmp_path_factory.mktemp("texts"), texts)
    own = write_texts(tmp_path_factory.mktemp("held"), ["held out text " * 5])
    data = recipe_of(source, block_size=size, validation={"source": own})
    tokens = sum(len(text.encode()) + 1 for text in texts)
    blocks = taken(opened(data, tokenizer, StreamShard(), seed=seed), (2 * tokens - 1) // size + 1)
    ids = pass_of(blocks, tokenizer, 2 * tokens)
    for half in (ids[:tokens], ids[tokens : 2 * tokens]):
        pieces = tokenizer.decode(half).split(EOS)[:-1]
        assert sorted(pieces) == sorted(texts)


def test_best_fit_does_not_cut_documents_that_fit(tmp_path: Path, tokenizer: Any) -> None:
    texts = random_texts(50)
    data = recipe_of(write_texts(tmp_path / "a", texts), grouping="best_fit", block_size=70)
    rows = [
        tokenizer.decode(row).split(EOS)
        for row in taken(opened(data, tokenizer, StreamShard()), 30)
    ]
    trained = set(trained_texts(data))
    pieces = [piece for row in rows for piece in row if piece]
    assert set(pieces) <= trained
    assert len(set(pieces)) == len(trained)


def test_passes_and_windows_are_shuffled_and_the_seed_decides(
    tmp_path: Path, tokenizer: Any
) -> None:
    data = recipe_of(write_texts(tmp_path / "a", random_texts(60)))
    first, other = (taken(opened(data, tokenizer, StreamShard(), seed=s), 100) for s in (1, 2))
    again = taken(opened(data, tokenizer, StreamShard(), seed=1), 100)
    assert first == again != other


def test_held_out_documents_are_never_streamed(tmp_path: Path, tokenizer: Any) -> None:
    data = recipe_of(write_texts(tmp_path / "a", random_texts(80)), validation={"holdout": 0.3})
    text = load_documents(data, find_corpus(data))
    num_validation_blocks = {row["text"] for row in text.documents["validation"]}
    assert 8 < len(num_validation_blocks) < 45
    ids = itertools.chain(*taken(opened(data, tokenizer, StreamShard()), 500))
    streamed = tokenizer.decode(list(ids))
    assert not any(f"{EOS}{text}{EOS}" in streamed for text in num_validation_blocks)


def test_a_stream_shorter_than_a_block_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    source = write_texts(tmp_path / "a", ["ab", "cd", "ef"])
    own = write_texts(tmp_path / "b", ["held out text " * 20])
    data = recipe_of(source, block_size=100, validation={"source": own})
    with pytest.raises(DataError, match=r"fills no block; lower data\.block_size"):
        taken(opened(data, tokenizer, StreamShard()), 1)


def test_a_list_without_weights_is_read_one_after_the_other(tmp_path: Path, tokenizer: Any) -> None:
    sources = [
        write_texts(tmp_path / name, [f"{name}{number}" for number in range(40)]) for name in "ab"
    ]
    own = write_texts(tmp_path / "own", ["held out text " * 5])
    data = recipe_of(sources, validation={"source": own})
    streamed = itertools.chain(
        *(row[1:] for row in taken(opened(data, tokenizer, StreamShard()), 60))
    )
    names = [text[0] for text in tokenizer.decode(list(streamed)).split(EOS) if text]
    assert set(names[1:35]) == {"a"}  # then a window of both
    assert set(names[43:70]) == {"b"}


def test_another_number_of_threads_is_refused_by_name(tmp_path: Path, tokenizer: Any) -> None:
    data = recipe_of(write_texts(tmp_path / "a", random_texts(40)))
    state = opened(data, tokenizer, StreamShard(threads=2)).state_dict()
    with pytest.raises(
        MismatchError, match=r"dataloader_num_workers: .* by 2 threads, is now .* 1"
    ):
        opened(data, tokenizer, StreamShard()).load_state_dict(state)


def test_an_error_while_prefetching_is_raised_to_the_reader() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise DataError("gone")

    seen = []
    with pytest.raises(DataError, match="gone"):
        seen.extend(prefetch(items(), batch_size=2, depth=2))
    assert seen == [0, 1, 2, 3]


def test_prefetching_ends_with_its_reader() -> None:
    read = []
    numbers = (read.append(n) or n for n in itertools.count())
    rows = prefetch(numbers, batch_size=3, depth=4)
    assert [next(rows) for _ in range(4)] == [0, 1, 2, 3]
    rows.close()
    count = len(read)
    time.sleep(0.1)
    assert len(read) == count <= 3 * (2 + 4)


def test_a_run_on_a_local_stream_resumes_with_the_same_weights(
    resumes_exactly: Callable[..., Path],
) -> None:
    from hf_lm.run import train

    workers = {"data__streaming": True, "training__dataloader_num_workers": 2}
    resumes_exactly(lambda path: train(load_recipe(path)), 8, **workers, model__dropout=0.1)


def test_the_second_pass_has_another_order(tmp_path: Path, tokenizer: Any) -> None:
    texts = random_texts(60)
    own = write_texts(tmp_path / "own", ["held out text " * 5])
    data = recipe_of(write_texts(tmp_path / "a", texts), validation={"source": own})
    streamed = itertools.chain(
        *(row[1:] for row in taken(opened(data, tokenizer, StreamShard()), 500))
    )
    numbers = [t.split(":")[0] for t in tokenizer.decode(list(streamed)).split(EOS)[1:-1]]
    first, second = numbers[:59], numbers[59:119]
    assert set(first) <= set(second) == {str(number) for number in range(60)}
    assert first != second[1:]
    assert [n for n in second if n in first] != first


def test_the_collator_accepts_rows_of_a_stream(tmp_path: Path, tokenizer: Any) -> None:
    data = recipe_of(write_texts(tmp_path / "a", random_texts(40)))
    row = next(iter(opened(data, tokenizer, StreamShard())))
    assert row["input_ids"].dtype == np.uint16
    assert row["input_ids"].shape == (10,)
