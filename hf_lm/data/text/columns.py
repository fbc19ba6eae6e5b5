"""Turn a row into its text: one column, a template, or a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from hf_lm.data.text.conversations import MESSAGES, PAIR, conversation_columns, conversation_text
from hf_lm.recipe import DataRecipe, template_fields


class Columns(Protocol):
    """Which columns of a row are its text, and how they become it.

    Attributes:
        plain: whether text without rows will do, too.
    """

    @property
    def plain(self) -> bool:
        """As above."""
        ...

    def chosen(self, found: Iterable[str]) -> tuple[str, ...]:
        """Those to read, of a table that misses none."""

    def missing(self, found: Iterable[str]) -> str | None:
        """Why a row with other columns has no text, if it has none."""

    def text(self, row: Any) -> str:
        """The text of a row.

        Raises:
            KeyError: a column is missing.
            ValueError: a column holds what it must not; the text of the error is the rule.
        """


def columns_of(data: DataRecipe) -> Columns:
    """The columns that a recipe names."""
    if data.train_on == "completion":
        return ConversationColumns()
    if data.text_template is None:
        return TextColumns((data.text_column,))
    return TextColumns(template_fields(data.text_template), data.text_template)


class TextColumns(NamedTuple):
    """Columns with text, joined by a template if there are several."""

    names: tuple[str, ...]
    template: str | None = None
    plain = True

    def chosen(self, found: Iterable[str]) -> tuple[str, ...]:
        """All of them."""
        return self.names

    def missing(self, found: Iterable[str]) -> str | None:
        """That a name is not there."""
        absent = [name for name in self.names if name not in found]
        if not absent:
            return None
        key = "data.text_column" if self.template is None else "data.text_template"
        known = shown(found)
        use = f"set {key} to one of {known}" if self.template is None else f"{key} may use {known}"
        return f'has no "{absent[0]}"; {use}'

    def text(self, row: Any) -> str:
        """The text of a row; a row that is text itself is that."""
        template = self.template if isinstance(row, dict) else None
        values = [row[name] for name in self.names] if isinstance(row, dict) else [row]
        kinds = (str,) if template is None else (str, int, float)
        odd = [type(value).__name__ for value in values if not isinstance(value, kinds)]
        if odd:
            raise ValueError(f"{shown(self.names)} is {odd[0]}, expected a string")
        if template is None:
            return values[0]
        return template.format_map(dict(zip(self.names, values, strict=True)))


class ConversationColumns:
    """`messages`, or `prompt` and `completion`."""

    plain = False

    def chosen(self, found: Iterable[str]) -> tuple[str, ...]:
        """Either of the two."""
        return conversation_columns(found)

    def missing(self, found: Iterable[str]) -> str | None:
        """That neither is there."""
        if conversation_columns(found):
            return None
        either = " and ".join(shown([name]) for name in PAIR)
        return (
            f"has neither {shown(MESSAGES)} nor {either}, which data.train_on = "
            f'"completion" reads; it has {shown(found)}'
        )

    def text(self, row: Any) -> str:
        """The conversation of a row as JSON."""
        if not isinstance(row, Mapping):
            raise ValueError(f"is {type(row).__name__}, expected an object with a conversation")
        if not conversation_columns(row):
            raise KeyError
        return conversation_text(row)


def shown(names: Iterable[str]) -> str:
    """The first columns, as an error names them."""
    return ", ".join(f'"{name}"' for name in list(names)[:8])
