"""`--columns input=question,output=answer.text`: fields of a record that have other names, or lie inside others.

In: the flag's text, once (`parse_columns`), and each record (`rename`). Out: the record with the names that are read here. A
name with dots leads into objects, and with a number into a list, unless the record has a field of exactly this name.
"""

import dataclasses
from typing import Any

from finetuning.data.reading.fields import OF_FORMATS, is_absent
from finetuning.data.reading.findings import Problem, excerpt
from finetuning.data.reading.json_line import short_json
from finetuning.errors import InputError
from finetuning.i18n import t

FIELDS = (*OF_FORMATS, "system", "history", "tools", "text")


@dataclasses.dataclass(frozen=True)
class Column:
    field: str  # as it is read here
    name: str  # as the data have it


Columns = tuple[Column, ...]


def parse_columns(text: str | None) -> Columns:
    """
    Raises:
        InputError: it is no list of FIELD=NAME, or says the same field twice.
    """
    if text is None:
        return ()
    pairs = [entry.partition("=") for entry in text.split(",")]
    columns = tuple(Column(field.strip(), name.strip()) for field, _, name in pairs)
    problems = [
        t(
            "--columns {text}: {entry!r} must be FIELD=NAME, with one of the fields {fields}",
            text=text,
            entry=field + sign + name,
            fields=", ".join(FIELDS),
        )
        for (field, sign, name), column in zip(pairs, columns, strict=True)
        if column.field not in FIELDS or not column.name
    ]
    fields = [column.field for column in columns]
    problems += [
        t("--columns {text}: {field} is given twice", text=text, field=field)
        for field in dict.fromkeys(fields)
        if fields.count(field) > 1 and field
    ]
    if problems:
        raise InputError(problems)
    return columns


def rename(value: dict[str, Any], columns: Columns) -> dict[str, Any] | Problem:
    """The record with each column under the name of its field; what a column is a part of is not read otherwise."""
    found = {column.field: _at(value, column.name) for column in columns}
    taken = {column.name if column.name in value else column.name.partition(".")[0] for column in columns}
    rest = {name: entry for name, entry in value.items() if name not in taken}
    for column in columns:
        if not is_absent(rest.get(column.field)):
            values = {"name": column.field, "column": excerpt(column.name)}
            return Problem("own_field", values, short_json(rest[column.field]))
    renamed = {field: entry for field, entry in found.items() if entry is not None}
    return {name: entry for name, entry in rest.items() if name not in renamed} | renamed


def described(columns: Columns) -> str:
    return ", ".join(f"{column.field} = {column.name}" for column in columns)


def _at(value: Any, name: str) -> Any:
    """What lies under a name; None: nothing."""
    if name in value:
        return value[name]
    for part in name.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value
