"""Validate a conversation and store it as one JSON text.

This text is read, hashed, held out and cached as any other; blocks/chat_tokenization.py renders it.
A row has `messages`, or a `prompt` and a `completion` that are both text or both messages (TRL);
`conversations` with `from` and `value` (ShareGPT); or `instruction` and `output`, with `input`,
`system` and `history` if they are there (Alpaca, LLaMA-Factory). The last two become `messages`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

MESSAGES, PAIR = ("messages",), ("prompt", "completion")
SHAREGPT, ALPACA = ("conversations",), ("instruction", "output")
FORMATS: dict[tuple[str, ...], str] = {
    MESSAGES: "",
    PAIR: "",
    SHAREGPT: "ShareGPT",
    ALPACA: "Alpaca",
}  # with their other names
OPTIONAL: dict[tuple[str, ...], tuple[str, ...]] = {
    ALPACA: ("input", "system", "history"),
    SHAREGPT: ("system",),
}
TOOLS = "tools"  # the column with the functions that an assistant may call

ASSISTANT = "assistant"  # the role whose messages are in the loss
ROLES = {
    "human": "user",
    "gpt": ASSISTANT,
    "chatgpt": ASSISTANT,
    "bing": ASSISTANT,
    "bard": ASSISTANT,
}


class Conversation(NamedTuple):
    """A conversation.

    Attributes:
        messages: with "role" and "content".
        first: the index from which messages of the assistant are in the loss.
        tools: the functions that the assistant may call.
    """

    messages: list[dict[str, Any]]
    first: int
    tools: list[dict[str, Any]] | None = None

    @property
    def in_loss(self) -> Iterator[int]:
        """The indices of the messages that are in the loss."""
        return (
            index
            for index, message in enumerate(self.messages)
            if index >= self.first and message["role"] == ASSISTANT
        )


def conversation_format(columns: Iterable[str]) -> tuple[str, ...]:
    """Return the columns that make up a conversation; an empty tuple if no format is there."""
    columns = set(columns)
    return next((names for names in FORMATS if columns.issuperset(names)), ())


def conversation_columns(columns: Iterable[str]) -> tuple[str, ...]:
    """Return all columns that belong to the conversation of a row."""
    columns = list(columns)
    names = conversation_format(columns)
    others = (*OPTIONAL.get(names, ()), TOOLS) if names else ()
    return (*names, *(name for name in others if name in columns))


def conversation_text(row: Mapping[str, Any]) -> str | None:
    """Return the conversation of a row as JSON; None if its columns are null.

    Raises:
        ValueError: the row is not a valid conversation; the text of the error is the rule.
    """
    names = conversation_format(row)
    if all(row[name] is None for name in names):
        return None
    if names == SHAREGPT:
        row = {**row, MESSAGES[0]: sharegpt_messages(row)}
    elif names == ALPACA:
        row = {**row, MESSAGES[0]: alpaca_messages(row)}
    stored = names if names in (MESSAGES, PAIR) else MESSAGES
    values = {name: plain(row[name], name) for name in stored}
    if len({type(value) for value in values.values()}) > 1:
        raise ValueError('"prompt" and "completion" must both be text, or both be messages')
    if next(conversation(values).in_loss, None) is None:
        raise ValueError(f'"{names[-1]}" has no message of the role "{ASSISTANT}"')
    if row.get(TOOLS):
        values[TOOLS] = tools_of(row[TOOLS])
    try:
        return json.dumps(values, ensure_ascii=False, sort_keys=True)
    except TypeError as error:  # tables can hold times and bytes, JSON cannot
        raise ValueError(f'"{names[0]}" has a value that JSON cannot hold: {error}') from None


def sharegpt_messages(row: Mapping[str, Any]) -> Any:
    """Return the messages of a row of ShareGPT, whose roles have other names.

    Raises:
        ValueError: a message has neither "from" and "value", nor "role" and "content".
    """
    messages, name = row[SHAREGPT[0]], SHAREGPT[0]
    if not isinstance(messages, list):
        raise ValueError(f'"{name}" is {type(messages).__name__}, expected a list of messages')
    renamed = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for message in messages:
        if not isinstance(message, Mapping):
            raise ValueError(f'"{name}" has a message that is not an object')
        role = message.get("from", message.get("role"))
        content = message.get("value", message.get("content"))
        rest = {k: v for k, v in message.items() if k not in ("from", "value", "role", "content")}
        renamed.append({**rest, "role": ROLES.get(str(role), role), "content": content})
    return renamed


def alpaca_messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of a row of Alpaca; the input follows the instruction.

    Raises:
        ValueError: a column is not text, or "history" is not a list of pairs.
    """
    for name in (*ALPACA, "input", "system"):
        if not isinstance(row.get(name) or "", str):
            raise ValueError(f'"{name}" is {type(row[name]).__name__}, expected text')
        if name in ALPACA and not (row[name] or "").strip():
            raise ValueError(f'"{name}" is empty')
    messages = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for pair in row.get("history") or []:
        if not isinstance(pair, Sequence) or [type(text) for text in pair] != [str, str]:
            raise ValueError('"history" must be a list of pairs of texts')
        messages += [
            {"role": "user", "content": pair[0]},
            {"role": ASSISTANT, "content": pair[1]},
        ]
    question = "\n\n".join(text for text in (row["instruction"], row.get("input")) if text)
    return [
        *messages,
        {"role": "user", "content": question},
        {"role": ASSISTANT, "content": row["output"]},
    ]


def tools_of(value: Any) -> Any:
    """Return the tools of a row; JSON in a text is read.

    Raises:
        ValueError: they are no list of objects.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise ValueError(f'"{TOOLS}" is not JSON: {error}') from None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise ValueError(f'"{TOOLS}" must be a list of objects')
    return without_nulls(value)


def plain(value: Any, name: str) -> str | list[dict[str, Any]]:
    """Validate a text or a list of messages; join parts of text, remove the nulls of tables.

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
    messages = [{**message, "content": joined_parts(message.get("content"))} for message in value]
    if any(not isinstance(m["content"], str) and not m.get("tool_calls") for m in messages):
        raise ValueError(f'"{name}" has a message whose "content" is not text')
    return without_nulls(messages)


def joined_parts(content: Any) -> Any:
    """Return content that is a list of parts as one text; parts of other kinds are left alone."""
    if not isinstance(content, list) or not content:
        return content
    parts = [part if isinstance(part, dict) else {"text": part} for part in content]
    texts = [part.get("text") for part in parts if part.get("type", "text") == "text"]
    known = [text for text in texts if isinstance(text, str)]
    return "".join(known) if len(known) == len(parts) else content


def without_nulls(value: Any) -> Any:
    """Remove the fields that are null, at any depth: tables give every row the fields of all."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def conversation(values: Mapping[str, Any]) -> Conversation:
    """Make a conversation from the columns of a row; texts become messages."""
    if MESSAGES[0] in values:
        return Conversation(values[MESSAGES[0]], 0, values.get(TOOLS))
    prompt, completion = (values[name] for name in PAIR)
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
        completion = [{"role": ASSISTANT, "content": completion}]
    return Conversation([*prompt, *completion], len(prompt), values.get(TOOLS))
