"""Tokenize conversations and mark the tokens that are in the loss.

The chat template of the tokenizer renders a conversation as it will when the model is used. The
loss covers what an assistant says: from where the template lets the model speak to the end of the
turn. A template that marks this itself, with {% generation %} and {% endgeneration %}, is
followed. Without a template, a prompt and its completion are joined as they are.

Each id carries two flags in its highest bits, so that it is cut, packed and stored as any other:
LOSS_BIT for a token in the loss, START_BIT for the first token of a conversation. End-of-text
cannot mark the start, because most templates end every turn with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from hf_lm.data.blocks.dataset import LOSS_BIT, START_BIT
from hf_lm.data.text.conversations import ASSISTANT, PAIR, Conversation, conversation
from hf_lm.errors import DataError, one_line

# Characters of Unicode's last private-use plane replace special tokens that a person wrote, until
# the template has added its own.
PRIVATE = 0x100000
PLACEHOLDER = re.compile(f"([{chr(PRIVATE)}-{chr(0x10FFFD)}])")
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
MAX_SHOWN, MAX_REASON = 80, 200  # characters of a conversation, and of a template's own message

Spans = list[tuple[int, int]]  # start and end of ranges of characters


class TokenizeCompletions:
    """The first map step for conversations: turn them into token ids with flags, end to end.

    Args:
        tokenizer: turns text into ids; its chat template, if any, renders messages.

    Raises:
        DataError: the tokenizer does not report the offsets of its tokens in a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise DataError(
                'data.train_on = "completion": the tokenizer does not report where its tokens are '
                "in a text; use one with a tokenizer.json"
            )
        self.tokenizer, self.dtype = tokenizer, np.int32
        self.template = find_template(tokenizer)
        self.marks_generation = bool(self.template and GENERATION_TAG.search(self.template))
        self.eos = tokenizer.eos_token_id
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        backend["post_processor"] = None  # GPT-2's excludes spaces from the offsets of tokens
        self.backend = Tokenizer.from_str(json.dumps(backend))
        self.backend.no_truncation()
        self.backend.no_padding()
        added = tokenizer.added_tokens_decoder.values()
        special = sorted((t.content for t in added if t.special), key=len, reverse=True)
        self.placeholders = {text: chr(PRIVATE + n) for n, text in enumerate(special)}
        self.backend.encode_special_tokens = True
        self.placeholder_ids = {
            character: np.array(self.backend.encode(text, add_special_tokens=False).ids, self.dtype)
            for text, character in self.placeholders.items()
        }
        self.backend.encode_special_tokens = False

    def __call__(self, batch: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        """Tokenize the conversations of a batch.

        Args:
            batch: has "text", a list of conversations as JSON.

        Returns:
            "input_ids" [N], int32 with flags, and "ends" [conversations], the end of each
            conversation in them.
        """
        rendered = [self.render_conversation(text) for text in batch["text"]]
        rows = [
            self.add_flags(ids, offsets, spans)
            for (ids, offsets), (_, spans) in zip(
                self.encode([text for text, _ in rendered]), rendered, strict=True
            )
        ]
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        ids = np.concatenate(rows) if rows else np.empty(0, self.dtype)
        return {"input_ids": ids, "ends": ends}

    def render_conversation(self, text: str) -> tuple[str, Spans]:
        """Render a conversation as the model reads it.

        Args:
            text: the conversation as JSON.

        Returns:
            The rendered text, with placeholders, and the spans of it that are in the loss.

        Raises:
            DataError: the conversation cannot be rendered, or its spans in the loss are unclear.
        """
        if PLACEHOLDER.search(text):
            raise conversation_error(
                text, "has a private-use character that is reserved for special tokens; remove it"
            )
        with_placeholders = text
        for token, character in self.placeholders.items():
            with_placeholders = with_placeholders.replace(token, character)
        values = json.loads(with_placeholders)
        parsed = conversation(values)
        if self.template is None:
            if not isinstance(values.get(PAIR[0]), str):
                raise conversation_error(
                    text,
                    "the tokenizer has no chat template for messages; set tokenizer.chat_template, "
                    'or give "prompt" and "completion" as text',
                )
            if parsed.tools:
                raise conversation_error(text, 'has "tools", which need a chat template')
            prompt, completion = (values[name] for name in PAIR)
            return prompt + completion, [(len(prompt), len(prompt + completion))]
        try:
            return self.apply_template(parsed)
        except DataError as error:
            raise conversation_error(text, str(error)) from None
        except Exception as error:  # a template may raise any exception
            reason = one_line(error, limit=MAX_REASON)
            raise conversation_error(text, f"the chat template refuses it: {reason}") from None

    def apply_template(self, parsed: Conversation) -> tuple[str, Spans]:
        """Render a conversation with the chat template.

        Returns:
            The rendered text and the spans of it that are in the loss.

        Raises:
            DataError: the template marks no span as generated, or it renders the beginning of the
                conversation differently when more messages follow.
        """
        if self.marks_generation:
            text, spans = self.render(
                parsed.messages, parsed.tools, return_assistant_tokens_mask=True
            )
            num_earlier = sum(m["role"] == ASSISTANT for m in parsed.messages[: parsed.first])
            if len(spans) <= num_earlier:
                raise DataError("the chat template marks nothing of it as generated")
            return text, spans[num_earlier:]
        text, _ = self.render(parsed.messages, parsed.tools)
        spans = []
        for n in parsed.in_loss:
            before, _ = self.render(parsed.messages[:n], parsed.tools, add_generation_prompt=True)
            after, _ = self.render(parsed.messages[: n + 1], parsed.tools)
            if not (after.startswith(before) and text.startswith(after)):
                raise DataError(
                    f"the chat template renders its message {n + 1} differently if it is the last, "
                    'so the loss is unclear; give only the last turn, as "completion", or use a '
                    "template with {% generation %}"
                )
            spans.append((len(before), len(after)))
        return text, spans

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[Any] | None = None,
        **options: bool,
    ) -> tuple[str, Spans]:
        """Render messages with the chat template, in the sandbox of transformers.

        Raises:
            DataError: there are tools, and the template does not use them.
        """
        if tools and "tools" not in str(self.template):
            raise DataError('the chat template has no place for its "tools"; remove that column')
        variables: dict[str, Any] = {**options, **self.tokenizer.special_tokens_map}
        rendered: Any = render_jinja_template(
            [messages], tools=tools, chat_template=self.template, **variables
        )
        texts, spans = rendered
        return texts[0], spans[0] if spans else []

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the ids [N] of each text, and the start and end of each id in it [N, 2].

        A special token that a person wrote is encoded as ordinary text. All of its ids have the
        offsets of the one character that replaces it.
        """
        rows = [PLACEHOLDER.split(text) for text in texts]  # every other piece is a placeholder
        pieces = [piece for row in rows for piece in row[::2]]
        encodings = iter(self.backend.encode_batch(pieces, add_special_tokens=False))
        for row in rows:
            ids, offsets, start = [], [], 0
            for number, piece in enumerate(row):
                if number % 2:
                    piece_ids = self.placeholder_ids[piece]
                    piece_offsets = [(0, 1)] * len(piece_ids)
                else:
                    encoding = next(encodings)
                    piece_ids = np.array(encoding.ids, self.dtype)
                    piece_offsets = encoding.offsets
                ids.append(piece_ids)
                offsets.append(np.array(piece_offsets, np.int64).reshape(-1, 2) + start)
                start += len(piece)
            yield np.concatenate(ids), np.concatenate(offsets)

    def add_flags(self, ids: np.ndarray, offsets: np.ndarray, spans: Spans) -> np.ndarray:
        """Set LOSS_BIT and START_BIT in the ids of a conversation.

        A token that crosses the edge of a span is in the loss. Text after the last span is
        dropped, because no loss depends on it. End-of-text is appended if the last span does not
        contain it, so that the model learns to stop.

        Args:
            ids: the ids [N] of the conversation.
            offsets: start and end [N, 2] of each id in the text.
            spans: the ranges of characters that are in the loss.

        Returns:
            The ids with flags, at most [N + 1].
        """
        (starts, ends), (last_start, last_end) = offsets.T, spans[-1]
        in_loss = np.zeros(len(ids), bool)
        for start, end in spans:
            in_loss |= (ends > start) & (starts < end)
        has_eos = self.eos in ids[(ends > last_start) & (starts < last_end)]
        ids, in_loss = ids[starts < last_end], in_loss[starts < last_end]
        if not has_eos:
            ids, in_loss = np.append(ids, self.dtype(self.eos)), np.append(in_loss, True)
        ids[in_loss] |= LOSS_BIT
        ids[0] |= START_BIT
        return ids


def find_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template of a tokenizer, or None if it has none.

    Raises:
        DataError: it has several templates, and none is the default.
    """
    try:
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    except ValueError as error:
        reason = one_line(error, limit=MAX_REASON)
        raise DataError(f"set tokenizer.chat_template: {reason}") from None


def conversation_error(text: str, reason: str) -> DataError:
    """Create the error of a conversation, which quotes its beginning."""
    ellipsis = "…" if len(text) > MAX_SHOWN else ""
    return DataError(f"conversation {text[:MAX_SHOWN]}{ellipsis}: {reason}")
