"""Conversations in the formats of TRL, ShareGPT, Alpaca and OpenAI become the same messages."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from texts import data_recipe, read, scan_error, scanned, write

from hf_lm.data.text.conversations import conversation_text

INPUTS = Path(__file__).parents[2] / "fixtures" / "inputs"
KEYS: dict[str, Any] = {
    "train_on": "completion",
    "grouping": "best_fit",
    "document_mask": True,
}


def conversations(source: Path) -> list[list[tuple[str, str]]]:
    """Return the role and content of each message."""
    rows = [json.loads(text)["messages"] for text in read(data_recipe(source, **KEYS))]
    return [[(message["role"], message["content"]) for message in row] for row in rows]


@pytest.mark.parametrize(
    ("name", "user", "answer", "note"),
    [
        (
            "alpaca",
            "Summarise the report.\n\nReport 1. The pump",
            "Pump 1: 37 h.",
            'conversations are read from "instruction", "output": Alpaca',
        ),
        (
            "sharegpt",
            "Report 1. The pump",
            "Pump 1: 37 h.",
            'conversations are read from "conversations": ShareGPT',
        ),
        ("content_parts", "Report 1. The pump", "Pump 1.", None),
    ],
)
def test_the_formats_that_people_have_are_recognised_and_told(
    name: str, user: str, answer: str, note: str | None
) -> None:
    source = INPUTS / f"{name}.jsonl"
    found = conversations(source)
    assert len(found) == 24
    assert [role for role, _ in found[1]] == ["user", "assistant"]
    assert found[1][0][1].startswith(user)
    assert found[1][1][1] == answer
    notes = scanned(data_recipe(source, **KEYS)).notes
    assert [line for line in notes if line.startswith("conversations")] == ([note] if note else [])


def test_systems_and_earlier_turns_of_alpaca_are_messages() -> None:
    row = {
        "instruction": "Go on.",
        "input": None,
        "output": "Third.",
        "system": "Count.",
        "history": [["Start.", "First."], ["Next.", "Second."]],
    }
    messages = json.loads(str(conversation_text(row)))["messages"]
    assert [message["content"] for message in messages] == [
        *("Count.", "Start.", "First.", "Next.", "Second.", "Go on.", "Third."),
    ]
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 3]


def test_roles_of_sharegpt_have_the_names_of_templates() -> None:
    turns = [
        {"from": "system", "value": "a"},
        {"from": "human", "value": "b"},
        {"from": "gpt", "value": "c"},
        {"role": "user", "content": "d"},
        {"from": "bard", "value": "e"},
    ]
    messages = json.loads(str(conversation_text({"conversations": turns})))["messages"]
    assert [message["role"] for message in messages] == [
        *("system", "user", "assistant", "user", "assistant"),
    ]


TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": {"city": "string"}}},
    {"type": "function", "function": {"name": "timer", "parameters": {"minutes": "integer"}}},
]


def test_tool_calls_are_the_same_from_tables_and_from_lines(tmp_path: Path) -> None:
    calls = [
        ("weather", {"city": "Rome"}),
        ("timer", {"minutes": 5}),
    ]
    rows = [
        {
            "messages": [
                {"role": "user", "content": "Do it."},
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": name, "arguments": arguments}}],
                },
                {"role": "assistant", "content": "Done."},
            ],
            "tools": TOOLS,
        }
        for name, arguments in calls
    ]
    write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    texts = read(data_recipe(tmp_path / "a.jsonl", **KEYS))
    assert texts == read(data_recipe(tmp_path / "a.parquet", **KEYS))
    assert [json.loads(text)["tools"] for text in texts] == [TOOLS, TOOLS]
    assert "null" not in texts[0]


BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "no answer": ({"instruction": "a", "output": " "}, '"output" is empty'),
    "number": ({"instruction": 5, "output": "b"}, '"instruction" is int, expected text'),
    "history": ({"instruction": "a", "output": "b", "history": [["c"]]}, "a list of pairs"),
    "turns": ({"conversations": "a"}, '"conversations" is str, expected a list'),
    "role": ({"conversations": [{"value": "a"}]}, 'not an object with a "role"'),
    "image": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        'whose "content" is not text',
    ),
    "tools": (
        {"prompt": "a", "completion": "b", "tools": "{"},
        '"tools" is not JSON',
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_conversation_is_one_line(name: str, tmp_path: Path) -> None:
    row, rule = BROKEN[name]
    path = write(tmp_path / "a.jsonl", json.dumps(row))
    error = scan_error(data_recipe(path, **KEYS))
    assert rule in error
    assert error.count("\n") == 0
