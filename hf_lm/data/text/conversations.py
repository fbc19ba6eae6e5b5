"""Validate a conversation and store it as one JSON text.

Such a text goes the way of any other: it is read, hashed, held out and shared by the same rules.
completions.py renders it. A row has `messages`, or a `prompt` and its `completion`, both of them
text or both messages: the formats of TRL.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

MESSAGES, PAIR = ("messages",), ("prompt", "completion")


ASSISTANT = "assistant"  # whose words are learnt


class Conversation(NamedTuple):
    """Messages, of which those from the place `first` on are learnt where an assistant speaks."""

    messages: list[dict[str, Any]]
    first: int

    @property
    def in_loss(self) -> Iterator[int]:
        """The places of the messages that are."""
        return (
            n
            for n, message in enumerate(self.messages)
            if n >= self.first and message["role"] == ASSISTANT
        )


def conversation_columns(found: Iterable[str]) -> tuple[str, ...]:
    """The columns that hold a conversation, of those there are; none if there is none."""
    found = set(found)
    return next((names for names in (MESSAGES, PAIR) if found.issuperset(names)), ())


def conversation_text(row: Mapping[str, Any]) -> str:
    """The conversation of a row as JSON.

    Raises:
        ValueError: it is none; the text of the error is the rule it breaks.
    """
    names = conversation_columns(row)
    values = {name: plain(row[name], name) for name in names}
    if len({type(value) for value in values.values()}) > 1:
        raise ValueError('"prompt" and "completion" must both be text, or both be messages')
    if next(conversation(values).in_loss, None) is None:
        raise ValueError(f'"{names[-1]}" has no message of the role "{ASSISTANT}"')
    try:
        return json.dumps(values, ensure_ascii=False, sort_keys=True)
    except TypeError as error:  # times and bytes, which tables have and JSON has not
        raise ValueError(f'"{names[0]}" holds what is no JSON: {error}') from None


def plain(value: Any, name: str) -> str | list[dict[str, Any]]:
    """Text, or messages without what is null in them, as columns of a table are."""
    text = isinstance(value, str) and name != MESSAGES[0]
    if value == [] or (text and not value.strip()):
        raise ValueError(f'"{name}" is empty')
    if text:
        return value
    if not isinstance(value, list):
        raise ValueError(f'"{name}" is {type(value).__name__}, expected a list of messages')
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f'"{name}" has a message that is no object with a "role"')
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise ValueError(f'"{name}" has a message whose "content" is no text')
    return [{key: v for key, v in message.items() if v is not None} for message in value]


def conversation(values: Mapping[str, Any]) -> Conversation:
    """The messages of a row, those made of texts included."""
    if MESSAGES[0] in values:
        return Conversation(values[MESSAGES[0]], 0)
    prompt, completion = (values[name] for name in PAIR)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
        completion = [{"role": ASSISTANT, "content": completion}]
    return Conversation([*prompt, *completion], len(prompt))
