"""Look at text before training on it, without loading the training libraries."""

from __future__ import annotations

import heapq
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from hf_lm.data.languages import language_shares
from hf_lm.data.text.documents import Document, DocumentReader, HubTexts
from hf_lm.data.text.files.compression import plain_suffix
from hf_lm.data.text.holdout import HASHES
from hf_lm.data.text.scan import scan_notes
from hf_lm.data.text.sources import Corpus, find_corpus
from hf_lm.errors import DataError
from hf_lm.recipe import Recipe, load_recipe, make_recipe
from hf_lm.vocabulary import smaller_bpe, train_bpe

VOCABULARIES = (2_048, 8_192, 32_768)
SAMPLE_BYTES = 2**20  # of text from which the vocabularies are made: 1 s on two cores
SHOWN = 10  # documents
MAX_RECIPE = 2**20  # bytes; a larger file of JSON is text
HEAD = 2_000  # characters of each document whose scripts are counted
EXCERPT = 60  # characters of a document at its start, and on both sides of a block's edge
EDGE = "\N{BOX DRAWINGS HEAVY VERTICAL}"
LEARNT = (
    "\N{LEFT-POINTING DOUBLE ANGLE QUOTATION MARK}",
    "\N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK}",
)
CONVERSATION = 600  # characters of a conversation that are shown


@dataclass(frozen=True)
class ShownDocument:
    """A document as the model will see it.

    Attributes:
        tokens: its tokens, with the vocabulary of 8,192; of a conversation, with its tokenizer.
        start: its first characters; in a conversation, what is in the loss is between « and ».
        edge: the text around the first edge of a block in it; empty if it fits in one.
    """

    tokens: int
    start: str
    edge: str


@dataclass(frozen=True)
class Inspection:
    """The result of a look at text.

    Attributes:
        files: the number of files by suffix; empty for a Hub dataset.
        documents: how many there are, without empty and duplicate ones.
        size: bytes of UTF-8 in them.
        shortest: bytes of the shortest one.
        longest: bytes of the longest one.
        duplicates: documents that were left out because their text was there before.
        scripts: the share of the letters that each script has.
        languages: the share of a sample of the text that each language has, by its ISO 639-1 code.
        bytes_per_token: by vocabulary size, of this sample.
        notes: how files were read and what was left out.
        shown: some documents, chosen by the hash of their content.
    """

    files: dict[str, int]
    documents: int
    size: int
    shortest: int
    longest: int
    duplicates: int
    scripts: dict[str, float]
    languages: dict[str, float]
    bytes_per_token: dict[int, float]
    notes: list[str]
    shown: list[ShownDocument]

    def as_json(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold."""
        return asdict(self)


def inspect_source(source: str, overrides: Sequence[str] = ()) -> Inspection:
    """Describe a source of text, or the text of a recipe.

    Args:
        source: as `data.source` of a recipe, or the path of a recipe.
        overrides: keys of the data section, such as "data.text_column=body".

    Raises:
        DataError: the text cannot be used; one line per problem.
        RecipeError: the recipe or an override is not valid.

    Example:
        >>> inspect_source("my_texts/").bytes_per_token[8192]
    """
    if is_recipe(Path(source)):
        recipe = load_recipe(source, overrides=overrides)
    else:
        raw: dict[str, Any] = {"data": {"source": source}, "training": {"max_steps": 1}}
        recipe = make_recipe(raw, Path.cwd(), name=source, overrides=overrides)
    data = recipe.data
    corpus = find_corpus(data)
    hub: HubTexts = {}
    if not corpus.local:
        from hf_lm.data.text.hub_datasets import hub_texts

        hub, _ = hub_texts(data, corpus)
    return inspect_text(recipe, corpus, hub)


def is_recipe(path: Path) -> bool:
    """Return whether a file is a recipe, and not text in JSON."""
    if path.suffix != ".json" or not path.is_file() or path.stat().st_size > MAX_RECIPE:
        return False
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return False
    return isinstance(raw, dict) and isinstance(raw.get("training"), dict)


def inspect_text(recipe: Recipe, corpus: Corpus, hub: HubTexts) -> Inspection:
    """Read all text once and describe it.

    Args:
        recipe: says how the text is read.
        corpus: the files and Hub ids.
        hub: the text columns of these Hub ids.

    Raises:
        DataError: the text cannot be used; one line per problem.
    """
    reader = DocumentReader(recipe.data, corpus, hub)
    sizes, letters, sample, shown = [], Counter[str](), list[str](), list[Any]()
    share, sampled = min(1.0, SAMPLE_BYTES / max(corpus.size, 1)), 0
    for document in reader:
        sizes.append(document.size)
        letters.update(document.text[:HEAD])
        # The size of a Hub dataset is not known, so its first documents are the sample.
        is_sampled = document.hash < share * HASHES if corpus.local else sampled < SAMPLE_BYTES
        if is_sampled or not sample:
            sample.append(document.text[:SAMPLE_BYTES])
            sampled += document.size
        keep_lowest(shown, document)
    if problems := reader.problems:
        raise DataError(problems)
    if not sizes:
        raise DataError("no text: every document is empty or has only white space")
    largest = train_bpe(sample, vocab_size=max(VOCABULARIES))
    tokenizers = {size: smaller_bpe(largest, size) for size in VOCABULARIES}
    paths = [file.path for source in corpus.train for file in source.files]
    return Inspection(
        files=dict(Counter(plain_suffix(path) or "no suffix" for path in paths)),
        documents=len(sizes),
        size=sum(sizes),
        shortest=min(sizes),
        longest=max(sizes),
        duplicates=reader.duplicates,
        scripts=script_shares(letters),
        languages=language_shares(sample),
        bytes_per_token={n: bytes_per_token(tokenizers[n], sample) for n in VOCABULARIES},
        notes=[*corpus.notes, *scan_notes(reader)],
        shown=show_documents(
            recipe, [text for _, text in sorted(shown, reverse=True)], tokenizers[VOCABULARIES[1]]
        ),
    )


def keep_lowest(shown: list[Any], document: Document) -> None:
    """Keep the SHOWN documents with the lowest hashes in a heap: a choice that does not change."""
    entry = (-document.hash, document.text)
    if len(shown) < SHOWN:
        heapq.heappush(shown, entry)
    else:
        heapq.heappushpop(shown, entry)


def script_shares(characters: Counter[str]) -> dict[str, float]:
    """Return the share of the letters that each script has, largest first.

    A script is the first word of a letter's name in Unicode, such as "latin" or "cjk".
    """
    scripts: Counter[str] = Counter()
    for character, count in characters.items():
        if character.isalpha():
            scripts[unicodedata.name(character, "unknown").split()[0].lower()] += count
    total = scripts.total() or 1
    return {script: count / total for script, count in scripts.most_common()}


def bytes_per_token(tokenizer: Tokenizer, texts: list[str]) -> float:
    """Return the bytes of a token in texts."""
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return sum(len(text.encode()) for text in texts) / sum(len(row.ids) for row in encoded)


def show_documents(recipe: Recipe, texts: list[str], tokenizer: Tokenizer) -> list[ShownDocument]:
    """Show documents, or conversations if the recipe trains on them."""
    if recipe.data.train_on == "completion":
        return show_conversations(recipe, texts)
    return [show(text, tokenizer, recipe.data.block_size) for text in texts]


def show_conversations(recipe: Recipe, texts: list[str]) -> list[ShownDocument]:
    """Show conversations as the chat template renders them, and mark what is in the loss."""
    from hf_lm.data.blocks.chat_tokenization import TokenizeCompletions
    from hf_lm.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(recipe.tokenizer, {}, default=recipe.model.pretrained)
    tokenize, shown = TokenizeCompletions(tokenizer), []
    for text in texts:
        rendered, spans = tokenize.render_conversation(text)
        for start, end in reversed(spans):
            learnt = rendered[start:end].join(LEARNT)
            rendered = f"{rendered[:start]}{learnt}{rendered[end:]}"
        for token, placeholder in tokenize.placeholders.items():
            rendered = rendered.replace(placeholder, token)
        ids = tokenize({"text": [text]})["input_ids"]
        shown.append(ShownDocument(len(ids), rendered[:CONVERSATION], ""))
    return shown


def show(text: str, tokenizer: Tokenizer, block_size: int) -> ShownDocument:
    """Show the start of a document, and the text around the first edge of a block in it."""
    encoded = tokenizer.encode(text, add_special_tokens=False)
    edge = ""
    if len(encoded.ids) > block_size:
        place = encoded.offsets[block_size][0]
        edge = f"{text[max(0, place - EXCERPT) : place]}{EDGE}{text[place : place + EXCERPT]}"
    return ShownDocument(len(encoded.ids), text[:EXCERPT], edge)
