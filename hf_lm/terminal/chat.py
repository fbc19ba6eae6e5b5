"""Read what a user types, turn by turn, and show the answers of a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from hf_lm.errors import RecipeError
from hf_lm.terminal.streams import SafeStream

PROMPT, MORE = "> ", "... "
QUOTES = '"""'  # around a text of several lines
HELP = f"/reset forgets what was said, /exit ends, {QUOTES} begins and ends a text of several lines"


def hold_chat(say: Callable[[str], str], reset: Callable[[], None]) -> None:
    """Answer what is typed until the input ends.

    Args:
        say: answers a text, and writes its answer meanwhile.
        reset: forgets what was said.
    """
    out = SafeStream("stdout")
    if sys.stdin.isatty():
        out.write(f"{HELP}\n")
    for text in typed_texts():
        if text in ("/exit", "/quit", "/bye"):
            return
        if text == "/reset":
            reset()
        elif text.startswith("/") and " " not in text and "\n" not in text:
            out.write(f"{text}: no such command; {HELP}\n")
        else:
            try:
                say(text)
            except RecipeError as error:  # of this text; the chat goes on
                out.write("\n".join(error.problems))
            out.write("\n")


def typed_texts() -> Iterator[str]:
    """Yield each text that is typed: a line, or the lines between triple quotes."""
    try:
        while True:
            text = input(PROMPT if sys.stdin.isatty() else "")
            if text.startswith(QUOTES):
                text = text.removeprefix(QUOTES)
                while not text.endswith(QUOTES):
                    text += "\n" + input(MORE if sys.stdin.isatty() else "")
                text = text.removesuffix(QUOTES)
            if text.strip():
                yield text
    except EOFError:
        if sys.stdin.isatty():
            SafeStream("stdout").write("\n")
