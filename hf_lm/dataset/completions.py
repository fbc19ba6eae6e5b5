"""The first map step for conversations: their JSON in, token ids with marks out.

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

from hf_lm.dataset.conversations import ASSISTANT, PAIR, Conversation, conversation
from hf_lm.errors import DataError

LEARNT, BEGINS = 1 << 29, 1 << 30
IDS = LEARNT - 1  # the bits of the id itself
HIDDEN = 0x10F000  # private characters, which stand for special tokens that a person wrote
SPELLED = re.compile(f"([{chr(HIDDEN)}-{chr(0x10FFFD)}])")
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
        self.eos = tokenizer.eos_token_id
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        backend["post_processor"] = None  # GPT-2's takes the spaces out of where a token is
        self.backend = Tokenizer.from_str(json.dumps(backend))
        self.backend.no_truncation()
        self.backend.no_padding()
        added = tokenizer.added_tokens_decoder.values()
        special = (token.content for token in added if token.special)
        self.hidden = {
            text: chr(HIDDEN + n) for n, text in enumerate(sorted(special, key=len, reverse=True))
        }
        self.shown = {character: text for text, character in self.hidden.items()}

    def __call__(self, portion: dict[str, Any]) -> dict[str, Any]:
        """Add the ids [N] of a portion, and the place behind each conversation's last.

        Args:
            portion: a row with "text", a list of conversations as JSON.

        Returns:
            "input_ids" [N], int32 with marks, and "ends" [conversations].
        """
        rendered = [self.rendered(text) for text in portion["text"]]
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
        spelled = text
        for token, character in self.hidden.items():
            spelled = spelled.replace(token, character)
        values = json.loads(spelled)
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
            reason = " ".join(str(error).split())[:LONGEST]
            raise refused(text, f"the chat template refuses it: {reason}") from None

    def templated(self, found: Conversation) -> tuple[str, Spans]:
        """A conversation rendered by the template, and where in it is what is learnt."""
        if MARKED.search(self.template):
            text, spans = self.render(found.messages, return_assistant_tokens_mask=True)
            earlier = sum(m["role"] == ASSISTANT for m in found.messages[: found.first])
            if len(spans) <= earlier:
                raise DataError("the chat template marks nothing of it as generated")
            return text, spans[earlier:]
        text, _ = self.render(found.messages)
        spans = []
        for n in found.learnt:
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

        A special token's text stays text where a person wrote it: it is encoded by itself then.
        """
        self.backend.encode_special_tokens = False
        whole = [text for text in texts if not SPELLED.search(text)]
        encodings = iter(self.backend.encode_batch(whole, add_special_tokens=False))
        for text in texts:
            self.backend.encode_special_tokens = False
            if not SPELLED.search(text):
                encoding = next(encodings)
                yield np.array(encoding.ids, self.type), np.array(encoding.offsets).reshape(-1, 2)
                continue
            parts, place = [], 0
            for piece in SPELLED.split(text):
                self.backend.encode_special_tokens = piece in self.shown
                found = self.backend.encode(self.shown.get(piece, piece), add_special_tokens=False)
                spans = np.array(found.offsets, np.int64).reshape(-1, 2)
                if piece in self.shown:  # one character stands for all of it
                    spans[:] = (0, 1)
                spans += place
                parts.append((np.array(found.ids, self.type), spans))
                place += len(piece)
            ids, spans = zip(*parts, strict=True)
            yield np.concatenate(ids), np.concatenate(spans)

    def marked(self, ids: np.ndarray, places: np.ndarray, spans: Spans) -> np.ndarray:
        """The ids [N] of a conversation with their marks; a token across the edge is learnt.

        What comes behind the last turn that is learnt is of no use, and left out. End-of-text is
        added where that turn does not hold it, for the model to stop.
        """
        (starts, ends), (first, last) = places.T, spans[-1]
        learnt = np.zeros(len(ids), bool)
        for start, end in spans:
            learnt |= (ends > start) & (starts < end)
        ended = self.eos in ids[(ends > first) & (starts < last)]
        ids, learnt = ids[starts < last], learnt[starts < last]
        if not ended:
            ids, learnt = np.append(ids, self.type(self.eos)), np.append(learnt, True)
        ids[learnt] |= LEARNT
        ids[0] |= BEGINS
        return ids


def template_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The chat template of a tokenizer, if it has one.

    Raises:
        DataError: it has several, and none is for everything.
    """
    try:
        return tokenizer.get_chat_template() if tokenizer.chat_template else None
    except ValueError as error:
        reason = " ".join(str(error).split())[:LONGEST]
        raise DataError(f"set tokenizer.chat_template: {reason}") from None


def refused(text: str, rule: str) -> DataError:
    """What is wrong with a conversation."""
    return DataError(f"conversation {text[:SHOWN]}{'…' if len(text) > SHOWN else ''}: {rule}")
