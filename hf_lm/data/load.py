"""Load the documents and the blocks that a recipe describes.

Reading order, which is the way of the text:
  sources.py    data.source -> local files with their hashes, or Hub ids
  readers.py    a file -> its documents
  columns.py    a row -> its text
  conversations.py  a row -> its conversation, as text
  documents.py  a corpus -> documents with content hashes
  scan.py       all that is wrong with their text, and what is held out of it
  hub.py        a Hub id -> its text column
  tokens.py     the first map() step: portions of documents -> token ids
  completions.py  the same for conversations, with marks
  grouping.py   the second: token ids -> rows of block_size + 1
  mixture.py    which source the next block comes from
  blocks.py     both steps -> blocks on disk
  collate.py    blocks -> a batch
  prepared.py   blocks and their tokenizer as a folder to share
  stream.py     text that is read while training -> token ids
  endless.py    the same blocks from them, each with its place
  ahead.py      an iterator read ahead of its user
  cache.py      a key -> a prepared folder, built once

Those before hub.py import nothing heavy; nor does this file, whose functions import late.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hf_lm.data.streaming.blocks import StreamShard
from hf_lm.data.text.documents import Documents, fingerprint
from hf_lm.data.text.holdout import Holdout
from hf_lm.data.text.scan import Scan, scan_documents
from hf_lm.data.text.sources import Corpus
from hf_lm.recipe import DataRecipe

if TYPE_CHECKING:
    from hf_lm.data.blocks.dataset import Blocks


class LoadedText(NamedTuple):
    """The documents of a corpus, and what stands for their content.

    Attributes:
        corpus: where they come from.
        documents: "train" and "validation", each rows with a "text"; read anew when iterated.
        content: a hash of all they depend on.
        commits: of the Hub datasets among the sources.
        scan: what was found in them; nothing in a stream.
    """

    corpus: Corpus
    documents: Any
    content: str
    commits: tuple[str, ...] = ()
    scan: Scan | None = None

    @property
    def size(self) -> int | None:
        """Bytes of all text, where they are known."""
        return self.scan.size if self.scan else None

    def provenance(self) -> dict[str, Any]:
        """What a run records of its text besides the hash."""
        found = {"commits": list(self.commits)}
        if self.scan:
            found |= {"duplicates": self.scan.duplicates, "overlap": self.scan.overlap}
        return found


def load_documents(data: DataRecipe, corpus: Corpus, scan: Scan | None = None) -> LoadedText:
    """The documents of both parts, and a fingerprint of their content.

    Args:
        data: how the text is read and how much is held out.
        corpus: the files and Hub ids.
        scan: what a scan of that corpus found, if it was scanned.
    """
    if corpus.prepared:
        from hf_lm.data.blocks.prepared import prepared_content

        return LoadedText(corpus, {}, prepared_content(corpus.prepared))
    if data.streaming:
        from hf_lm.data.streaming.documents import StreamedDocuments

        streams = StreamedDocuments(data, corpus)
        return LoadedText(
            corpus, streams, fingerprint(data, corpus, streams.commits), streams.commits
        )
    from hf_lm.data.text.hub_datasets import hub_texts

    texts, commits = hub_texts(data, corpus)
    if scan is None or texts:
        scan = scan_documents(data, corpus, texts)
    content = fingerprint(data, corpus, commits)
    return LoadedText(corpus, Documents(data, corpus, texts, scan.split), content, commits, scan)


def load_blocks(
    data: DataRecipe,
    text: LoadedText,
    tokenizer: Any,
    *,
    seed: int,
    num_validation_blocks: int | None = None,
    shard: StreamShard | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Blocks:
    """The blocks of both parts, what became of their text, and the order of a mixture.

    Args:
        data: how the text is cut.
        text: as `load_documents` returns it.
        tokenizer: text to ids.
        seed: of the order of a stream or a mixture.
        num_validation_blocks: blocks to hold out of a stream.
        shard: what this process reads of a stream; None is all.
        report: told the documents and bytes of each portion that is prepared.

    Raises:
        DataError: a part is shorter than one block.
    """
    if text.corpus.prepared:
        from hf_lm.data.blocks.prepared import open_prepared

        return open_prepared(text.corpus.prepared, data, tokenizer, seed=seed)
    if data.streaming:
        from hf_lm.data.streaming.blocks import stream_blocks

        assert num_validation_blocks is not None, "checked with the recipe"
        return stream_blocks(
            text.documents,
            tokenizer,
            data,
            num_validation_blocks=num_validation_blocks,
            seed=seed,
            shard=shard or StreamShard(),
        )
    from hf_lm.data.blocks.build import build_blocks
    from hf_lm.data.blocks.dataset import open_blocks

    folder = build_blocks(text.documents, tokenizer, data, content=text.content, report=report)
    return open_blocks(folder, text.corpus.weights, data, seed=seed)


def write_blocks(
    data: DataRecipe,
    text: LoadedText,
    tokenizer: Any,
    folder: Path,
    *,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Write the blocks of both parts and their tokenizer into a folder to share.

    Args:
        data: how the text is cut.
        text: as `load_documents` returns it.
        tokenizer: text to ids.
        folder: to write; what an earlier try left there is replaced.
        report: told the documents and bytes of each portion that is prepared.

    Raises:
        DataError: a part is shorter than one block, or the folder is somebody else's.
    """
    from hf_lm.data.blocks.build import build_blocks
    from hf_lm.data.blocks.dataset import open_blocks
    from hf_lm.data.blocks.prepared import write_prepared

    blocks = build_blocks(text.documents, tokenizer, data, content=text.content, report=report)
    open_blocks(blocks, text.corpus.weights, data, seed=0)
    facts = {"content": text.content, **text.provenance()}
    weights = text.corpus.weights
    write_prepared(folder, blocks, tokenizer, data, weights=weights, facts=facts)


def text_blocks(data: DataRecipe, corpus: Corpus, tokenizer: Any) -> Any:
    """All text of a corpus as blocks, in memory and nothing held out, to evaluate a model on."""
    from hf_lm.data.blocks.build import blocks_in_memory
    from hf_lm.data.blocks.dataset import require_blocks
    from hf_lm.data.text.hub_datasets import hub_texts

    grouping = "concat" if data.train_on == "text" else data.grouping
    whole = data.model_copy(update={"deduplicate": False, "grouping": grouping})
    texts, _ = hub_texts(whole, corpus)
    splits, counts = blocks_in_memory(Documents(whole, corpus, texts, Holdout(0)), tokenizer, whole)
    require_blocks({"train": counts["train"]}, whole)
    return splits["train"]
