"""Documents in, shifted blocks on disk out, by two `map()` steps: tokenize, then group.

A row holds `block_size + 1` token ids once, as uint16 where the vocabulary allows, and nothing
else: about 2 bytes a token. Text passes through in portions, so memory does not grow with it, and
no step leaves a copy of its own behind.
"""

# Shapes: B blocks, T tokens predicted in a block (`block_size`).

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset, IterableDataset, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from torch.utils.data import Dataset as TorchDataset
from transformers import PreTrainedTokenizerBase

from hf_lm.dataset.ahead import read_ahead
from hf_lm.dataset.cache import build_once, key_of
from hf_lm.dataset.completions import LEARNT, TokenizeCompletions
from hf_lm.dataset.documents import Documents, Progress, lanes
from hf_lm.dataset.grouping import Group, Grouper, make_grouper
from hf_lm.dataset.mixture import MixtureSampler
from hf_lm.dataset.tokens import Tokenize, id_type
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe

COUNTS = "counts.json"
WRITTEN_ROWS = 10_000  # blocks of one Arrow record batch


@dataclass(frozen=True)
class PartCounts:
    """What became of the text of one part."""

    documents: int = 0
    bytes: int = 0
    tokens: int = 0  # end-of-text tokens included
    blocks: int = 0
    unused_tokens: int = 0  # the tail that fills no block
    padded_tokens: int = 0  # ids that fill blocks up
    completion_tokens: int = 0  # of those in blocks, the learnt ones, where not all are

    def scaled(self, factor: float) -> PartCounts:
        """The same for a text `factor` times as long."""
        return self if factor == 1 else PartCounts(*(round(v * factor) for v in astuple(self)))

    def __add__(self, other: PartCounts) -> PartCounts:
        return PartCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Blocks(NamedTuple):
    """What the trainer and the evaluation are given.

    Attributes:
        parts: "train" and "validation", rows of T+1 ids.
        counts: what became of the text of each part, where it is known.
        sampler: the order of a mixture; None is any random order.
    """

    parts: Mapping[str, Any]
    counts: Mapping[str, PartCounts]
    sampler: MixtureSampler | None = None

    def facts(self) -> dict[str, Any]:
        """The counts as a run records them."""
        return {"text": {part: asdict(counts) for part, counts in self.counts.items()}}


class BlockRows(TorchDataset):
    """Rows of T+1 ids, read from Arrow without copying or converting more than is asked for.

    A `datasets.Dataset` formats every batch, at 8 to 10 M tokens a second for rows of 256; this
    gives 60. Whoever wants one takes `dataset`.

    Args:
        dataset: with the fixed-size list column "input_ids".
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        chunks = dataset.data.column("input_ids").chunks
        self.chunks = [c.flatten().to_numpy().reshape(-1, c.type.list_size) for c in chunks]
        self.starts = [0, *accumulate(len(chunk) for chunk in self.chunks)]

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        """The rows at some places; what a DataLoader asks for."""
        starts, chunks = self.starts, self.chunks
        found = ((place, bisect_right(starts, place) - 1) for place in places)
        return [
            {"input_ids": chunks[chunk][place - starts[chunk]], "number": place}
            for place, chunk in found
        ]


def make_groupers(
    lanes: Sequence[str], tokenizer: PreTrainedTokenizerBase, data: DataRecipe
) -> dict[str, Grouper]:
    """A grouper for each lane; held-out text is one stream, whatever is trained on.

    A conversation is never cut: an answer is nothing to learn without its question.
    """
    eos, learns_all = tokenizer.eos_token_id, data.train_on == "text"
    return {
        lane: make_grouper(
            "concat" if lane == "validation" and learns_all else data.grouping,
            block_size=data.block_size,
            eos=eos if isinstance(eos, int) else 0,
            kind=id_type(len(tokenizer)) if learns_all else np.int32,
            whole=not learns_all,
        )
        for lane in lanes
    }


def make_tokenize(
    tokenizer: PreTrainedTokenizerBase, data: DataRecipe
) -> Tokenize | TokenizeCompletions:
    """The first map step that the recipe asks for."""
    if data.train_on == "completion":
        return TokenizeCompletions(tokenizer)
    return Tokenize(tokenizer, append_eos=data.append_eos, cores=data.num_proc)


def block_rows(
    documents: Documents,
    tokenize: Callable[[dict[str, Any]], dict[str, Any]],
    groupers: dict[str, Grouper],
) -> IterableDataset:
    """The two map steps; each row has the "blocks" [B, T+1] of one portion."""
    portions = IterableDataset.from_generator(partial(portions_ahead, documents))
    tokens = portions.map(tokenize, remove_columns=["text"])
    return tokens.map(Group(groupers))


def portions_ahead(documents: Documents) -> Iterator[dict[str, Any]]:
    """The portions of documents, the next one read while one is tokenized."""
    return read_ahead(documents.portions(), taken=1, ahead=1)


class Tally:
    """Counts of each lane while its blocks go by."""

    def __init__(
        self, groupers: dict[str, Grouper], report: Progress | None, *, marked: bool
    ) -> None:
        self.groupers, self.report, self.marked = groupers, report, marked
        self.counts = dict.fromkeys(groupers, PartCounts())

    def passing(self, rows: IterableDataset) -> Iterator[tuple[str, np.ndarray]]:
        """The lane and blocks of each portion."""
        for row in rows:
            lane, blocks = row["lane"], row["blocks"]
            documents, tokens = len(row["ends"]), len(row["input_ids"])
            learnt = int(np.count_nonzero(blocks[:, 1:] & LEARNT)) if self.marked else 0
            self.counts[lane] += PartCounts(
                documents, row["size"], tokens, len(blocks), completion_tokens=learnt
            )
            if self.report:
                self.report(documents, row["size"])
            yield lane, blocks

    def parts(self) -> dict[str, PartCounts]:
        """The counts of both parts, when all text has gone by."""
        found = {part: PartCounts() for part in ("train", "validation")}
        for lane, counts in self.counts.items():
            grouper = self.groupers[lane]
            rest = PartCounts(unused_tokens=grouper.unused, padded_tokens=grouper.padded)
            found[lane.split("-")[0]] += counts + rest
        return found


def blocks_in_memory(
    documents: Documents, tokenizer: PreTrainedTokenizerBase, data: DataRecipe
) -> tuple[dict[str, BlockRows], dict[str, PartCounts]]:
    """The blocks of both parts, with nothing written."""
    groupers = make_groupers(lanes(documents.corpus), tokenizer, data)
    tokenize = make_tokenize(tokenizer, data)
    tally = Tally(groupers, None, marked=data.train_on == "completion")
    found: dict[str, list[np.ndarray]] = {"train": [], "validation": []}
    rows = block_rows(documents, tokenize, groupers)
    for lane, blocks in tally.passing(rows):
        found[lane.split("-")[0]].append(blocks)
    parts = {
        part: BlockRows(Dataset(table_of(np.concatenate(blocks)))) for part, blocks in found.items()
    }
    return parts, tally.parts()


def table_of(blocks: np.ndarray) -> pa.Table:
    """Blocks [B, T+1] as an Arrow table with fixed-size lists."""
    values = pa.array(np.ascontiguousarray(blocks).reshape(-1))
    return pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(values, blocks.shape[1])})


def build_blocks(
    documents: Documents,
    tokenizer: PreTrainedTokenizerBase,
    data: DataRecipe,
    *,
    content: str,
    report: Progress | None = None,
) -> Path:
    """The folder with the blocks of all lanes, prepared once.

    Args:
        documents: the text of both parts.
        tokenizer: text to ids.
        data: how the ids are cut.
        content: the fingerprint of those documents.
        report: told the documents and bytes of each portion that is done.
    """
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else repr(tokenizer)
    cutting: list[Any] = [data.block_size, data.append_eos, data.grouping, lanes(documents.corpus)]
    if data.train_on == "completion":
        cutting.append(str(tokenizer.chat_template))
    key = key_of("blocks", content, vocabulary, tokenizer.eos_token_id, *cutting)

    def build(folder: Path) -> None:
        """Write one Arrow file a lane, and the counts."""
        groupers = make_groupers(lanes(documents.corpus), tokenizer, data)
        tokenize = make_tokenize(tokenizer, data)
        tally = Tally(groupers, report, marked=data.train_on == "completion")
        rows = block_rows(documents, tokenize, groupers)
        with ExitStack() as stack:
            schema = table_of(np.empty((0, data.block_size + 1), tokenize.type)).schema
            writers = {
                lane: stack.enter_context(
                    ArrowWriter(path=str(folder / f"{lane}.arrow"), schema=schema)
                )
                for lane in groupers
            }
            for lane, blocks in tally.passing(rows):
                for start in range(0, len(blocks), WRITTEN_ROWS):
                    writers[lane].write_table(table_of(blocks[start : start + WRITTEN_ROWS]))
            for writer in writers.values():
                writer.finalize()
        counts = {part: asdict(counts) for part, counts in tally.parts().items()}
        (folder / COUNTS).write_text(json.dumps(counts))

    return build_once("blocks", key, build)


def open_blocks(folder: Path, weights: Sequence[float], data: DataRecipe, *, seed: int) -> Blocks:
    """The blocks of a prepared folder, memory-mapped.

    Args:
        folder: as `build_blocks` fills it.
        weights: the share of the training tokens that each source has.
        data: for the remedy of what is too short.
        seed: of the order of a mixture.

    Raises:
        DataError: a part is shorter than one block.
    """
    written = json.loads((folder / COUNTS).read_text())
    counts = {part: PartCounts(**row) for part, row in written.items()}
    require_blocks(counts, data)
    mixed = len(weights) > 1
    names = [f"train-{n}" for n in range(len(weights))] if mixed else ["train"]
    sources = [Dataset.from_file(str(folder / f"{name}.arrow")) for name in names]
    sampler = None
    short = [n for n, source in enumerate(sources) if not len(source)]
    if short:
        raise DataError(
            f"data.source.{short[0]}: fills no block of its own; add text or remove all weights"
        )
    if mixed:
        sampler = MixtureSampler([len(source) for source in sources], weights, seed=seed)
    parts = {
        "train": BlockRows(concatenate_datasets(sources)),
        "validation": BlockRows(Dataset.from_file(str(folder / "validation.arrow"))),
    }
    return Blocks(parts, counts, sampler)


def require_blocks(counts: Mapping[str, PartCounts], data: DataRecipe) -> None:
    """Refuse a part that fills no block."""
    problems = [too_short(part, row, data) for part, row in counts.items() if not row.blocks]
    if problems:
        raise DataError(problems)


def too_short(part: str, row: PartCounts, data: DataRecipe) -> str:
    """Why a part fills no block, and what to do."""
    if data.train_on == "completion":
        return (
            f"{part} text: none of {row.documents:,} conversations fits a block of "
            f"{data.block_size:,} tokens; raise data.block_size"
        )
    more = ", raise data.validation.holdout" if part == "validation" else ""
    return (
        f"{part} text: {row.tokens:,} tokens, one block needs {data.block_size + 1:,}; add text"
        f"{more} or lower data.block_size"
    )
