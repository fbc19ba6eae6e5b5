"""Validate a conversation and store it as one JSON text.

This text is read, hashed, held out and cached as any other; blocks/chat_tokenization.py renders it.
A row has `messages`, or a `prompt` and a `completion` that are both text or both messages: the
formats of TRL.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

MESSAGES, PAIR = ("messages",), ("prompt", "completion")
ASSISTANT = "assistant"  # the role whose messages are in the loss


class Conversation(NamedTuple):
    """A conversation.

    Attributes:
        messages: with "role" and "content".
        first: the index from which messages of the assistant are in the loss.
    """

    messages: list[dict[str, Any]]
    first: int

    @property
    def in_loss(self) -> Iterator[int]:
        """The indices of the messages that are in the loss."""
        return (
            index
            for index, message in enumerate(self.messages)
            if index >= self.first and message["role"] == ASSISTANT
        )


def conversation_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """Return those of the columns that hold a conversation; an empty tuple if none do."""
    columns = set(columns)
    return next((names for names in (MESSAGES, PAIR) if columns.issuperset(names)), ())


def conversation_text(row: Mapping[str, Any]) -> str:
    """Return the conversation of a row as JSON.

    Raises:
        ValueError: the row is not a valid conversation; the text of the error is the rule.
    """
    names = conversation_columns(row)
    values = {name: plain(row[name], name) for name in names}
    if len({type(value) for value in values.values()}) > 1:
        raise ValueError('"prompt" and "completion" must both be text, or both be messages')
    if next(conversation(values).in_loss, None) is None:
        raise ValueError(f'"{names[-1]}" has no message of the role "{ASSISTANT}"')
    try:
        return json.dumps(values, ensure_ascii=False, sort_keys=True)
    except TypeError as error:  # tables can hold times and bytes, JSON cannot
        raise ValueError(f'"{names[0]}" has a value that JSON cannot hold: {error}') from None


def plain(value: Any, name: str) -> str | list[dict[str, Any]]:
    """Validate a text or a list of messages; remove the nulls that tables add to messages.

    Raises:
        ValueError: it is neither, or is empty.
    """
    is_text = isinstance(value, str) and name != MESSAGES[0]
    if value == [] or (is_text and not value.strip()):
        raise ValueError(f'"{name}" is empty')
    if is_text:
        return value
    if not isinstance(value, list):
        raise ValueError(f'"{name}" is {type(value).__name__}, expected a list of messages')
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError(f'"{name}" has a message that is not an object with a "role"')
        if not isinstance(message.get("content"), str) and not message.get("tool_calls"):
            raise ValueError(f'"{name}" has a message whose "content" is not text')
    return [{key: v for key, v in message.items() if v is not None} for message in value]


def conversation(values: Mapping[str, Any]) -> Conversation:
    """Make a conversation from the columns of a row; texts become messages."""
    if MESSAGES[0] in values:
        return Conversation(values[MESSAGES[0]], 0)
    prompt, completion = (values[name] for name in PAIR)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
        completion = [{"role": ASSISTANT, "content": completion}]
    return Conversation([*prompt, *completion], len(prompt))
