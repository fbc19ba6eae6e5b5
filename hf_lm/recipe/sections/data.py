"""Recipe section `data`."""

from __future__ import annotations

import re
import string
from typing import Annotated, Literal

from pydantic import Field

from hf_lm.recipe.sections.base import Section


def template_fields(template: str) -> tuple[str, ...]:
    """Return the columns that a text template names, each once.

    Raises:
        ValueError: it names no column, or has a format or conversion in its braces.
    """
    parts = [part[1:] for part in string.Formatter().parse(template)]
    fields = [name for name, _, _ in parts if name is not None]
    if not fields or any(spec or conversion for _, spec, conversion in parts):
        raise ValueError("names no column")
    if not all(re.fullmatch(r"[A-Za-z_][\w-]*", name) for name in fields):
        raise ValueError("a column is a plain name in braces")
    return tuple(dict.fromkeys(fields))


class WeightedSource(Section):
    """One source of a mixture."""

    source: str = Field(min_length=1, description="a single source, as in `data.source`")
    weight: float = Field(
        gt=0, description="share of the training tokens, relative to the weights of the others"
    )


class Validation(Section):
    """The validation set: a share of the documents, or a separate source."""

    holdout: float | None = Field(
        None, gt=0, lt=1, description="share of the documents held out, chosen by content hash"
    )
    source: str | tuple[str, ...] | None = Field(
        None, description="a separate source, as in `data.source`, without weights"
    )
    config: str | None = Field(None, description="configuration of a Hub dataset")
    split: str | None = Field(None, description="split of a Hub dataset or a folder")
    revision: str | None = Field(None, description="commit, tag or branch of a Hub dataset")


class DataRecipe(Section):
    """The sources of the text, and how it becomes blocks."""

    source: Annotated[str, Field(min_length=1)] | tuple[str | WeightedSource, ...] = Field(
        "python-stdlib",
        description='"python-stdlib", a Hub dataset id, a file, glob or folder, a folder that '
        "`hf-lm prepare` wrote, or a list of sources: strings, which are read one after the other, "
        'or each {"source": …, "weight": …}, which are mixed',
    )
    config: str | None = Field(None, description="configuration of a Hub dataset")
    split: str = Field(
        "train", min_length=1, description="split to train on, of a Hub dataset or a folder"
    )
    revision: str | None = Field(None, description="commit, tag or branch of a Hub dataset")
    text_column: str = Field(
        "text",
        min_length=1,
        description='column or JSON key that holds the text; "data.text" is a nested one',
    )
    text_template: str | None = Field(
        None, min_length=1, description='text from several columns, such as "{title}\\n\\n{body}"'
    )
    train_on: Literal["text", "completion"] = Field(
        "text",
        description="text: every token is in the loss; completion: only the messages of the "
        "assistant, in conversations from the columns messages, or prompt and completion, rendered "
        "by the chat template",
    )
    sample_by: Literal["document", "paragraph", "line"] = Field(
        "document", description="what one document is in a text file: the file, a paragraph, a line"
    )
    on_bad_bytes: Literal["error", "replace", "skip"] = Field(
        "error", description="what to do with a document that is not valid in its encoding"
    )
    on_missing_text: Literal["skip", "error"] = Field(
        "skip", description="what to do with a row whose text is null or absent"
    )
    encoding: str = Field(
        "utf-8", description='encoding of the files, such as "cp1252" or "utf-16"'
    )
    delimiter: Literal[",", ";", "\t", "|"] | None = Field(
        None,
        description="what separates the columns of a CSV file; null: found from its first rows",
    )
    deduplicate: bool = Field(
        True, description="skip documents whose text was read before; has no effect on a stream"
    )
    near_duplicates: Literal["off", "count", "drop"] = Field(
        "off",
        description="held-out documents that are nearly in the training text: count: the plan says "
        "how many; drop: they are left out of the validation set",
    )
    near_duplicate_threshold: float = Field(
        0.8,
        ge=0.5,
        le=1,
        description="share of the runs of five words that two documents have in common if one is "
        "nearly the other",
    )
    streaming: bool = Field(
        False, description="read the text while training, instead of preparing it first"
    )
    validation: Validation = Field(
        Validation(holdout=0.05), description="the validation set: text held out for evaluation"
    )
    block_size: int = Field(256, gt=0, description="tokens predicted in one training example")
    append_eos: bool = Field(True, description="end each document with the end-of-text token")
    document_mask: bool = Field(
        False, description="a token does not attend to earlier documents of its block"
    )
    grouping: Literal["concat", "best_fit"] = Field(
        "concat",
        description="concat: documents are joined end to end, without padding; best_fit: documents "
        "that fit a block are not cut, and blocks are padded",
    )
    fresh_blocks: bool = Field(
        True,
        description="after the first epoch, the text is cut into new blocks in every epoch, with "
        "its documents in a new order; for data.grouping concat",
    )
    max_documents: int | None = Field(None, gt=0, description="use only the first documents")
    max_bytes: int | None = Field(None, gt=0, description="use only the first bytes of text")
    num_proc: int | None = Field(
        None, gt=0, description="CPU cores for tokenizing; null: all. It does not change results"
    )
