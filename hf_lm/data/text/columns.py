"""Turn a row into its text: one column, a template, or a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from hf_lm.data.text.conversations import (
    FORMATS,
    conversation_columns,
    conversation_format,
    conversation_text,
)
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

    def note(self, row: object) -> str | None:
        """Say how a row is read, if that does not follow from the recipe."""

    def text(self, row: object) -> str | None:
        """Return the text of a row; None if it is null.

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
        names: the columns; "data.text" is the field "text" of the column "data".
        template: the text with a column name in braces for each column; None for one column.
    """

    names: tuple[str, ...]
    template: str | None = None
    accepts_plain_text = True

    def chosen(self, columns: Iterable[str]) -> tuple[str, ...]:
        """Return the column of each name."""
        columns = list(columns)
        return tuple(dict.fromkeys(n if n in columns else n.partition(".")[0] for n in self.names))

    def missing(self, columns: Iterable[str]) -> str | None:
        """Describe the first column that is missing."""
        known = field_names(columns) if isinstance(columns, Mapping) else list(columns)
        absent = [name for name in self.names if name not in known]
        if not absent:
            return None
        key = "data.text_column" if self.template is None else "data.text_template"
        shown = quoted(known)
        use = f"set {key} to one of {shown}" if self.template is None else f"{key} may use {shown}"
        return f'has no "{absent[0]}"; {use}'

    def note(self, row: object) -> str | None:
        """Return None: the recipe names the columns."""
        return None

    def text(self, row: object) -> str | None:
        """Return the text of a row; a string in place of a row is its own text."""
        template = self.template if isinstance(row, dict) else None
        values = [value_of(row, n) for n in self.names] if isinstance(row, dict) else [row]
        if None in values:
            return None
        types = (str,) if template is None else (str, int, float)
        invalid = [type(value).__name__ for value in values if not isinstance(value, types)]
        if invalid:
            raise ValueError(f"{quoted(self.names)} is {invalid[0]}, expected a string")
        if template is None:
            return values[0]
        return template.format_map(dict(zip(self.names, values, strict=True)))


def value_of(row: Mapping[str, Any], name: str) -> Any:
    """Return a field of a row; a name with dots may lead into nested objects.

    Raises:
        KeyError: there is no such field.
    """
    if name in row:
        return row[name]
    outer, _, inner = name.partition(".")
    if not inner or not isinstance(row[outer], Mapping):
        if outer in row and row[outer] is None:
            return None
        raise KeyError(name)
    return value_of(row[outer], inner)


def field_names(row: Mapping[str, Any]) -> list[str]:
    """Return the names of the fields of a row; "data.text" is one in a nested object."""
    names: list[str] = []
    for name, value in row.items():
        inner = field_names(value) if isinstance(value, Mapping) else []
        names += [f"{name}.{field}" for field in inner] or [str(name)]
    return names


class ConversationColumns:
    """The columns of a conversation; see `conversations` for the formats."""

    accepts_plain_text = False

    def chosen(self, columns: Iterable[str]) -> tuple[str, ...]:
        """Return the columns of the format that the table has."""
        return conversation_columns(columns)

    def missing(self, columns: Iterable[str]) -> str | None:
        """Describe a table that has no format of conversations."""
        columns = list(columns)
        if conversation_format(columns):
            return None
        formats = "; ".join(" and ".join(quoted([name]) for name in names) for names in FORMATS)
        return (
            f'has no conversation, as data.train_on = "completion" requires ({formats}); it has '
            f"{quoted(columns)}"
        )

    def note(self, row: object) -> str | None:
        """Name the format of a row that is not TRL's."""
        names = conversation_format(row) if isinstance(row, Mapping) else ()
        title = FORMATS.get(names)
        return f"conversations are read from {quoted(names)}: {title}" if title else None

    def text(self, row: object) -> str | None:
        """Return the conversation of a row as JSON."""
        if not isinstance(row, Mapping):
            raise ValueError(f"is {type(row).__name__}, expected an object with a conversation")
        if not conversation_format(row):
            raise KeyError
        return conversation_text(row)


def quoted(names: Iterable[str]) -> str:
    """Format the first eight names in quotes for an error."""
    return ", ".join(f'"{name}"' for name in list(names)[:8])
