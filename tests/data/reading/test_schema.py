"""The schema takes every record that is read, and tells what has another shape."""

import json
import re
from typing import Any

import pytest

from finetuning.cli.data import main
from finetuning.data.reading.records import parse_record
from finetuning.data.reading.schema import record_schema
from tests.data.reading.line_mutator import RECORDS, mutated_lines
from tests.data.report.test_forms import RECORDS as FORM_RECORDS

pytestmark = pytest.mark.unit

SCHEMA = record_schema()
TYPES = {"string": str, "array": list, "object": dict, "null": type(None), "number": (int, float)}


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """JSON Schema, as much of it as ours uses."""
    known = {
        "$ref",
        "anyOf",
        "type",
        "enum",
        "const",
        "required",
        "properties",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "minimum",
        "maximum",
    }
    assert schema.keys() <= known | {"pattern", "title", "$schema", "$defs"}, "a word that this check does not know"
    if "$ref" in schema:
        return is_valid(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2].replace("~1", "/")])
    if not schema:
        return True
    kinds = schema.get("type", list(TYPES))
    if "type" in schema and not any(
        isinstance(value, TYPES[kind]) and (kind != "number" or not isinstance(value, bool))
        for kind in ([kinds] if isinstance(kinds, str) else kinds)
    ):
        return False
    if "anyOf" in schema and not any(is_valid(value, each) for each in schema["anyOf"]):
        return False
    if "enum" in schema and not any(
        value == each and isinstance(value, bool) == isinstance(each, bool) for each in schema["enum"]
    ):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if isinstance(value, int | float):
        return bool(schema.get("minimum", value) <= value <= schema.get("maximum", value))
    if isinstance(value, str):
        return re.search(schema.get("pattern", ""), value) is not None
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        fits = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return fits and all(
            is_valid(entry, first[place] if place < len(first) else schema.get("items", {}))
            for place, entry in enumerate(value)
        )
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        return set(schema.get("required", ())) <= value.keys() and all(
            is_valid(entry, properties.get(name, {})) for name, entry in value.items()
        )
    return True


def value_of(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):
        return None


def test_every_record_that_is_read_is_valid() -> None:
    records = [*RECORDS, *(record for record, _ in FORM_RECORDS.values())]
    records += [value for line in mutated_lines(5, 1500) if (value := value_of(line)) is not None]
    read = [record for record in records if parse_record(record, 1)[0] is not None]
    assert len(read) > 200
    assert [record for record in read if not is_valid(record, SCHEMA)] == []


@pytest.mark.parametrize(
    "record",
    [
        {"input": "a"},
        {"input": "a", "output": " "},
        {"input": "a", "output": "b", "tools": [1]},
        {"input": "a", "output": "b", "history": [["c"]]},
        {"messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "critic", "content": "b"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "weight": 1.5}]},
        {"messages": [{"role": "user", "content": "a", "weight": 1}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        {"conversations": [{"from": "alien", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"text": 3},
        [],
    ],
)
def test_a_record_of_another_shape_is_not(record: Any) -> None:
    assert parse_record(record, 1)[0] is None
    assert not is_valid(record, SCHEMA)


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(SCHEMA))
