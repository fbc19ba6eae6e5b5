"""Load the documents and the blocks that a recipe describes.

These are the entry points of `data`. Text goes through text/ (files to documents), blocks/
(documents to blocks of token ids) and collator.py (blocks to batches); streaming/ does the same
while the model trains. Heavy modules are imported inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from hf_lm.data.streaming.blocks import StreamShard
from hf_lm.data.text.documents import Documents, fingerprint
from hf_lm.data.text.holdout import Holdout
from hf_lm.data.text.scan import Scan, scan_documents
from hf_lm.data.text.sources import Corpus
from hf_lm.errors import DataError
from hf_lm.recipe import DataRecipe

if TYPE_CHECKING:
    from hf_lm.data.blocks.dataset import Blocks


class LoadedText(NamedTuple):
    """The documents of a corpus and a fingerprint of their content.

    Attributes:
        corpus: the sources of the text.
        documents: "train" and "validation", each rows with a "text" that are read when iterated.
        content: a hash of everything they depend on.
        commits: the commits of the Hub datasets among the sources.
        scan: the result of the scan; None for a stream.
        notes: what the user should know about the text.
    """

    corpus: Corpus
    documents: Any
    content: str
    commits: tuple[str, ...] = ()
    scan: Scan | None = None
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int | None:
        """Bytes of all text; None for a stream."""
        return self.scan.size if self.scan else None

    def provenance(self) -> dict[str, Any]:
        """Return the fields of provenance.json about the text, except for its hash."""
        fields: dict[str, Any] = {"commits": list(self.commits)}
        if self.scan:
            fields |= {"duplicates": self.scan.duplicates, "overlap": self.scan.overlap}
        if self.notes:
            fields |= {"text_notes": list(self.notes)}
        return fields


def load_documents(data: DataRecipe, corpus: Corpus, scan: Scan | None = None) -> LoadedText:
    """Load the documents of both splits.

    Args:
        data: the `data` section.
        corpus: the files and Hub ids, as `find_corpus` returns them.
        scan: the result of a scan of the corpus; None scans it now.

    Raises:
        DataError: the text cannot be used.
    """
    if corpus.prepared:
        from hf_lm.data.blocks.prepared import prepared_content

        return LoadedText(corpus, {}, prepared_content(corpus.prepared))
    if data.streaming:
        from hf_lm.data.streaming.documents import StreamedDocuments

        streams = StreamedDocuments(data, corpus.without(scan.left_out if scan else ()))
        content = fingerprint(data, corpus, streams.commits)
        notes = scan.notes if scan else corpus.notes
        return LoadedText(corpus, streams, content, streams.commits, notes=notes)
    from hf_lm.data.text.hub_datasets import hub_texts

    texts, commits = hub_texts(data, corpus)
    if scan is None or texts:
        scan = scan_documents(data, corpus, texts, commits=commits, keep=True)
    content = fingerprint(data, corpus, commits)
    documents = Documents(data, corpus.without(scan.left_out), texts, scan.holdout)
    return LoadedText(corpus, documents, content, commits, scan, scan.notes)


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
    """Load the blocks of both splits, their counts, and the sampler of a mixture.

    Args:
        data: the `data` section.
        text: as `load_documents` returns it.
        tokenizer: the tokenizer of the text.
        seed: the seed of the order of a stream or a mixture.
        num_validation_blocks: the size of the validation set of a stream.
        shard: the share of a stream that this process reads; None is all.
        report: called with the documents and bytes of each batch that is tokenized.

    Raises:
        DataError: a split is shorter than one block.
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
    from hf_lm.data.blocks.open import open_blocks

    folder = build_blocks(text.documents, tokenizer, data, content=text.content, report=report)
    eos = tokenizer.eos_token_id
    return open_blocks(folder, text.corpus.weights, data, eos=eos, seed=seed)


def write_blocks(
    data: DataRecipe,
    text: LoadedText,
    tokenizer: Any,
    folder: Path,
    *,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Write the blocks of both splits and their tokenizer to a directory.

    Args:
        data: the `data` section.
        text: as `load_documents` returns it.
        tokenizer: the tokenizer of the text.
        folder: the directory; prepared blocks that are there are replaced.
        report: called with the documents and bytes of each batch that is tokenized.

    Raises:
        DataError: a split is shorter than one block, or the directory holds other files.
    """
    from hf_lm.data.blocks.build import build_blocks
    from hf_lm.data.blocks.open import open_blocks
    from hf_lm.data.blocks.prepared import write_prepared

    blocks = build_blocks(text.documents, tokenizer, data, content=text.content, report=report)
    open_blocks(blocks, text.corpus.weights, data, eos=None, seed=0)  # checks them
    provenance = {"content": text.content, **text.provenance()}
    weights = text.corpus.weights
    write_prepared(folder, blocks, tokenizer, data, weights=weights, provenance=provenance)


def text_blocks(data: DataRecipe, corpus: Corpus, tokenizer: Any) -> Any:
    """Return all text of a corpus as blocks in memory, with nothing held out, for evaluation.

    Raises:
        DataError: the text is shorter than one block.
    """
    from hf_lm.data.blocks.build import blocks_in_memory
    from hf_lm.data.blocks.open import require_blocks
    from hf_lm.data.text.hub_datasets import hub_texts

    grouping = "concat" if data.train_on == "text" else data.grouping
    data = data.model_copy(update={"deduplicate": False, "grouping": grouping})
    texts, _ = hub_texts(data, corpus)
    splits, counts = blocks_in_memory(Documents(data, corpus, texts, Holdout(0)), tokenizer, data)
    require_blocks({"train": counts["train"]}, data)
    return splits["train"]


def whole_texts(data: DataRecipe, corpus: Corpus) -> list[str]:
    """Return the documents of a corpus, with nothing held out.

    Raises:
        DataError: a file has become unreadable since it was scanned.
    """
    from hf_lm.data.text.hub_datasets import hub_texts

    texts, _ = hub_texts(data, corpus)
    return [document.text for document in Documents(data, corpus, texts, Holdout(0)).all()]


def text_tokens(data: DataRecipe, corpus: Corpus, tokenizer: Any, *, limit: int) -> int:
    """Count the tokens of a corpus up to a limit.

    Raises:
        DataError: there are fewer than two, so that none is predicted.
    """
    from hf_lm.data.blocks.build import make_tokenize
    from hf_lm.data.text.hub_datasets import hub_texts

    texts, _ = hub_texts(data, corpus)
    documents = Documents(data, corpus, texts, Holdout(0))
    tokenize, tokens = make_tokenize(tokenizer, data), 0
    for batch in documents.batches():
        tokens += len(tokenize(cast("Any", batch))["input_ids"])
        if tokens >= limit:
            break
    if tokens < 2:
        raise DataError("the text has fewer than two tokens, so none can be predicted; add text")
    return tokens
