"""Turn a row into its text: one column, a template, or a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from hf_lm.data.text.conversations import MESSAGES, PAIR, conversation_columns, conversation_text
from hf_lm.recipe import DataRecipe, template_fields


class Columns(Protocol):
    """The columns of a row that hold its text."""

    @property
    def accepts_plain_text(self) -> bool:
        """True if files without rows, such as .txt, can be read as well."""
        ...

    def chosen(self, columns: Iterable[str]) -> tuple[str, ...]:
        """Return the columns to read from a table that has all of them."""

    def missing(self, columns: Iterable[str]) -> str | None:
        """Describe what a row with these columns lacks; return None if it lacks nothing."""

    def text(self, row: object) -> str:
        """Return the text of a row.

        Raises:
            KeyError: a column is missing.
            ValueError: a column has an invalid value; the text of the error is the rule.
        """


def columns_of(data: DataRecipe) -> Columns:
    """Return the columns that a recipe names."""
    if data.train_on == "completion":
        return ConversationColumns()
    if data.text_template is None:
        return TextColumns((data.text_column,))
    return TextColumns(template_fields(data.text_template), data.text_template)


class TextColumns(NamedTuple):
    """Columns with text, joined by a template if there are several.

    Attributes:
        names: the columns.
        template: the text with a column name in braces for each column; None for one column.
    """

    names: tuple[str, ...]
    template: str | None = None
    accepts_plain_text = True

    def chosen(self, columns: Iterable[str]) -> tuple[str, ...]:
        """Return all names."""
        return self.names

    def missing(self, columns: Iterable[str]) -> str | None:
        """Describe the first column that is missing."""
        absent = [name for name in self.names if name not in columns]
        if not absent:
            return None
        key = "data.text_column" if self.template is None else "data.text_template"
        known = quoted(columns)
        use = f"set {key} to one of {known}" if self.template is None else f"{key} may use {known}"
        return f'has no "{absent[0]}"; {use}'

    def text(self, row: object) -> str:
        """Return the text of a row; a string in place of a row is its own text."""
        template = self.template if isinstance(row, dict) else None
        values = [row[name] for name in self.names] if isinstance(row, dict) else [row]
        types = (str,) if template is None else (str, int, float)
        invalid = [type(value).__name__ for value in values if not isinstance(value, types)]
        if invalid:
            raise ValueError(f"{quoted(self.names)} is {invalid[0]}, expected a string")
        if template is None:
            return values[0]
        return template.format_map(dict(zip(self.names, values, strict=True)))


class ConversationColumns:
    """The columns of a conversation: `messages`, or `prompt` and `completion`."""

    accepts_plain_text = False

    def chosen(self, columns: Iterable[str]) -> tuple[str, ...]:
        """Return the columns of the format that the table has."""
        return conversation_columns(columns)

    def missing(self, columns: Iterable[str]) -> str | None:
        """Describe a table that has neither format."""
        if conversation_columns(columns):
            return None
        pair = " and ".join(quoted([name]) for name in PAIR)
        return (
            f"has neither {quoted(MESSAGES)} nor {pair}, as data.train_on = "
            f'"completion" requires; it has {quoted(columns)}'
        )

    def text(self, row: object) -> str:
        """Return the conversation of a row as JSON."""
        if not isinstance(row, Mapping):
            raise ValueError(f"is {type(row).__name__}, expected an object with a conversation")
        if not conversation_columns(row):
            raise KeyError
        return conversation_text(row)


def quoted(names: Iterable[str]) -> str:
    """Format the first eight names in quotes for an error."""
    return ", ".join(f'"{name}"' for name in list(names)[:8])
