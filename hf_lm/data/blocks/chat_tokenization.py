"""Tokenize conversations and mark the tokens that are in the loss.

A conversation is rendered by the chat template of the tokenizer, as it will be when the model is
used, and what an assistant says in it is learnt: from where the template would have the model
speak to the end of its turn. Where the template itself says so, between {% generation %} and
{% endgeneration %}, that is taken. Without a template a prompt and its completion follow each
other as they stand.

An id has two marks in its highest bits, so that it is cut, packed and kept as any other:
LEARNT, whether it is predicted, and BEGINS, whether a conversation begins with it. End-of-text
cannot say the latter, because it ends every turn of most templates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from hf_lm.data.blocks.dataset import LOSS_BIT, START_BIT
from hf_lm.data.text.conversations import ASSISTANT, PAIR, Conversation, conversation
from hf_lm.errors import DataError, one_line

PRIVATE = 0x100000  # characters from here on stand for special tokens that a person wrote


SPELLED = re.compile(f"([{chr(PRIVATE)}-{chr(0x10FFFD)}])")


MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")


SHOWN, LONGEST = 80, 200  # characters of a conversation in an error, and of a template's own


Spans = list[tuple[int, int]]


class TokenizeCompletions:
    """Token ids of conversations, end to end, and which of them are learnt.

    Args:
        tokenizer: text to ids; its chat template, if it has one, renders messages.

    Raises:
        DataError: it cannot say where in a text its tokens are.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.is_fast:
            raise DataError(
                'data.train_on = "completion": the tokenizer does not tell where in a text its '
                "tokens are; use one with a tokenizer.json"
            )
        self.tokenizer, self.type = tokenizer, np.int32
        self.template = template_of(tokenizer)
        self.says = bool(self.template and MARKED.search(self.template))
        self.eos = tokenizer.eos_token_id
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        backend["post_processor"] = None  # GPT-2's takes the spaces out of where a token is
        self.backend = Tokenizer.from_str(json.dumps(backend))
        self.backend.no_truncation()
        self.backend.no_padding()
        added = tokenizer.added_tokens_decoder.values()
        special = sorted((t.content for t in added if t.special), key=len, reverse=True)
        self.private = {text: chr(PRIVATE + n) for n, text in enumerate(special)}
        self.backend.encode_special_tokens = True
        self.spelled = {
            character: np.array(self.backend.encode(text, add_special_tokens=False).ids, self.type)
            for text, character in self.private.items()
        }
        self.backend.encode_special_tokens = False

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the ids [N] of a portion, and the place behind each conversation's last.

        Args:
            batch: a row with "text", a list of conversations as JSON.

        Returns:
            "input_ids" [N], int32 with marks, and "ends" [conversations].
        """
        rendered = [self.rendered(text) for text in batch["text"]]
        rows = [
            self.marked(*encoded, spans)
            for encoded, (_, spans) in zip(
                self.encode([text for text, _ in rendered]), rendered, strict=True
            )
        ]
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        ids = np.concatenate(rows) if rows else np.empty(0, self.type)
        return {"input_ids": ids, "ends": ends}

    def rendered(self, text: str) -> tuple[str, Spans]:
        """A conversation as the model reads it, and where in it is what is learnt.

        Raises:
            DataError: it cannot be rendered, or not so that this can be told.
        """
        if SPELLED.search(text):
            raise refused(text, "holds a character that stands for a special token here")
        written = text
        for token, character in self.private.items():
            written = written.replace(token, character)
        values = json.loads(written)
        found = conversation(values)
        if self.template is None:
            if not isinstance(values.get(PAIR[0]), str):
                raise refused(
                    text,
                    "the tokenizer has no chat template for messages; set tokenizer.chat_template, "
                    'or give "prompt" and "completion" as text',
                )
            prompt, completion = (values[name] for name in PAIR)
            return prompt + completion, [(len(prompt), len(prompt + completion))]
        try:
            return self.templated(found)
        except DataError as error:
            raise refused(text, str(error)) from None
        except Exception as error:  # a template raises what it likes
            reason = one_line(error, limit=LONGEST)
            raise refused(text, f"the chat template refuses it: {reason}") from None

    def templated(self, found: Conversation) -> tuple[str, Spans]:
        """A conversation rendered by the template, and where in it is what is learnt."""
        if self.says:
            text, spans = self.render(found.messages, return_assistant_tokens_mask=True)
            earlier = sum(m["role"] == ASSISTANT for m in found.messages[: found.first])
            if len(spans) <= earlier:
                raise DataError("the chat template marks nothing of it as generated")
            return text, spans[earlier:]
        text, _ = self.render(found.messages)
        spans = []
        for n in found.in_loss:
            before, _ = self.render(found.messages[:n], add_generation_prompt=True)
            after, _ = self.render(found.messages[: n + 1])
            if not (after.startswith(before) and text.startswith(after)):
                raise DataError(
                    f"the chat template renders its message {n + 1} otherwise where it is the "
                    "last, so that it is not plain what is learnt; give the last turn alone as "
                    '"completion", or a template with {% generation %}'
                )
            spans.append((len(before), len(after)))
        return text, spans

    def render(self, messages: list[dict[str, Any]], **options: Any) -> tuple[str, Spans]:
        """Messages as text, in the sandbox of transformers."""
        tokens: dict[str, Any] = self.tokenizer.special_tokens_map
        found: Any = render_jinja_template(
            [messages], chat_template=self.template, **options, **tokens
        )
        texts, places = found
        return texts[0], places[0] if places else []

    def encode(self, texts: Sequence[str]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The ids [N] of each text, and where in it each begins and ends [N, 2].

        A special token's text stays text where a person wrote it, and stands at one character.
        """
        rows = [SPELLED.split(text) for text in texts]  # every other piece is such a character
        pieces = [piece for row in rows for piece in row[::2]]
        encodings = iter(self.backend.encode_batch(pieces, add_special_tokens=False))
        for row in rows:
            ids, places, start = [], [], 0
            for number, piece in enumerate(row):
                if number % 2:
                    found, inside = self.spelled[piece], [(0, 1)] * len(self.spelled[piece])
                else:
                    encoding = next(encodings)
                    found, inside = np.array(encoding.ids, self.type), encoding.offsets
                ids.append(found)
                places.append(np.array(inside, np.int64).reshape(-1, 2) + start)
                start += len(piece)
            yield np.concatenate(ids), np.concatenate(places)

    def marked(self, ids: np.ndarray, places: np.ndarray, spans: Spans) -> np.ndarray:
        """The ids [N] of a conversation with their marks; a token across the edge is learnt.

        What comes behind the last turn that is learnt is of no use, and left out. End-of-text is
        added where that turn does not hold it, for the model to stop.
        """
        (starts, ends), (first, last) = places.T, spans[-1]
        in_loss = np.zeros(len(ids), bool)
        for start, end in spans:
            in_loss |= (ends > start) & (starts < end)
        ended = self.eos in ids[(ends > first) & (starts < last)]
        ids, in_loss = ids[starts < last], in_loss[starts < last]
        if not ended:
            ids, in_loss = np.append(ids, self.type(self.eos)), np.append(in_loss, True)
        ids[in_loss] |= LOSS_BIT
        ids[0] |= START_BIT
        return ids


def template_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The chat template of a tokenizer, if it has one.

    Raises:
        DataError: it has several, and none is for everything.
    """
    try:
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    except ValueError as error:
        reason = one_line(error, limit=LONGEST)
        raise DataError(f"set tokenizer.chat_template: {reason}") from None


def refused(text: str, rule: str) -> DataError:
    """What is wrong with a conversation."""
    return DataError(f"conversation {text[:SHOWN]}{'…' if len(text) > SHOWN else ''}: {rule}")
