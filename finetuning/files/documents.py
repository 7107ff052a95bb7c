"""JSON and YAML files that somebody else may have written, or damaged: read by a schema, refused in one sentence.

In: a path and a schema, which is a `msgspec.Struct` or any other type that msgspec knows. Out: a value of that type. What the
schema does not name is passed over. Imports no torch.
"""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from typing_extensions import override

from finetuning.errors import InputError
from finetuning.i18n import t

T = TypeVar("T")
MAX_BYTES = 64 * 2**20  # of a file that is read whole; the tokenizers of today have 35 MiB at most
MAX_YAML_VALUES = 1_000_000  # with what its aliases stand for, each of which may be everything before it
MAX_DIGITS = 200  # of a number: what is longer fits no float, and so breaks whatever computes with it
YAML_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
EXPECTED = re.compile(r"Expected `(?P<wanted>.+)`, got `(?P<found>.+)`")
MISSING = re.compile(r"Object missing required field `(?P<name>.+)`")


def read_json(file: Path, schema: type[T], *, max_bytes: int = MAX_BYTES) -> T:
    """The value in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it cannot be read, is no JSON, or does not fit the schema; names the file, the key and the rule.
    """
    return as_schema(parse_json(read_text(file, max_bytes), file), schema, file)


def read_yaml(file: Path, schema: type[T], *, max_bytes: int = MAX_BYTES, may_be_pipe: bool = False) -> T:
    """The value in a YAML file, without any tag that would build something; errors as of `read_json`.

    As in YAML 1.2, `8:00:00` and `2026-01-31` are texts; YAML 1.1 would read seconds and a date.
    """
    return as_schema(parse_yaml(read_text(file, max_bytes, may_be_pipe=may_be_pipe), file), schema, file)


def parse_yaml(text: str, file: Path) -> Any:
    """
    Raises:
        InputError: it is no YAML, nested too deeply, or has aliases that stand for too much.
    """
    loader = None
    try:
        loader = _YamlLoader(text)
        node = loader.get_single_node()
        if _count_values(node, {}) > MAX_YAML_VALUES:
            raise InputError(
                t("{file}: its aliases stand for more than {most} values; write them out", file=file, most=MAX_YAML_VALUES)
            )
        return None if node is None else loader.construct_document(node)
    except RecursionError:
        raise InputError(t("{file}: nested too deeply", file=file)) from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:  # the last of tags that do not fit their value
        raise InputError(t("{file}: not valid YAML: {error}", file=file, error=" ".join(str(error).split()))) from None
    finally:
        if loader is not None:
            loader.dispose()


def read_text(file: Path, max_bytes: int = MAX_BYTES, *, may_be_pipe: bool = False) -> str:
    """The text of a file in UTF-8; errors as of `read_bytes`, and what is not UTF-8."""
    try:
        return read_bytes(file, max_bytes, may_be_pipe=may_be_pipe).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(t("{file}: not UTF-8 (byte {position})", file=file, position=error.start)) from None


def read_bytes(file: Path, max_bytes: int = MAX_BYTES, *, may_be_pipe: bool = False) -> bytes:
    """What a regular file holds, or a pipe that somebody has named on purpose, as in `<(command)`.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: it is no regular file, too large, or cannot be read.
    """
    try:
        with os.fdopen(os.open(file, os.O_RDONLY | (0 if may_be_pipe else os.O_NONBLOCK)), "rb") as stream:
            # Asked of what is open, so that it cannot be exchanged in between: a pipe would block, /dev/zero never end.
            status = os.fstat(stream.fileno())
            if not (stat.S_ISREG(status.st_mode) or (may_be_pipe and stat.S_ISFIFO(status.st_mode))):
                raise InputError(t("{file}: not a regular file", file=file))
            is_larger = status.st_size > max_bytes
            content = b"" if is_larger else stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise InputError(t("{file}: cannot be read: {reason}", file=file, reason=error.strerror or error)) from None
    if is_larger or len(content) > max_bytes:
        raise InputError(t("{file}: larger than {most} MiB", file=file, most=f"{max_bytes / 2**20:g}"))
    return content


def parse_json(text: str, file: Path) -> Any:
    """
    Raises:
        InputError: it is no JSON, nested too deeply, or has a number that is too long or half a character.
    """
    try:
        value = json.loads(text, parse_int=_whole_number)
        if SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # two that belong together have become one character
        return value
    except UnicodeEncodeError:
        raise InputError(t("{file}: holds half of a character (a lone surrogate)", file=file)) from None
    except RecursionError:
        raise InputError(t("{file}: nested too deeply", file=file)) from None
    except ValueError as error:  # JSONDecodeError, and a number of too many digits
        raise InputError(t("{file}: not valid JSON: {error}", file=file, error=error)) from None


def as_schema(value: Any, schema: type[T], file: Path) -> T:
    """
    Raises:
        InputError: the value does not fit; names the file and, for every key that is wrong, the rule.
    """
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError as error:
        first = _sentence(file, *_problem_and_key(error))
        raise InputError(_field_problems(value, schema, file) or first) from None
    except RecursionError:
        raise InputError(t("{file}: nested too deeply", file=file)) from None


def _field_problems(value: Any, schema: Any, file: Path) -> list[str]:
    """A sentence for every field of a struct; msgspec itself stops at the first."""
    if not isinstance(value, dict) or not (isinstance(schema, type) and issubclass(schema, msgspec.Struct)):
        return []
    problems = []
    for field in msgspec.structs.fields(schema):
        if field.encode_name not in value:
            if field.required:
                problems.append(t("{file}: {key} is missing", file=file, key=field.encode_name))
            continue
        try:
            msgspec.convert(value[field.encode_name], field.type)
        except msgspec.ValidationError as error:
            problem, key = _problem_and_key(error)
            inner = f".{key}" if key and not key.startswith("[") else key
            problems.append(_sentence(file, problem, field.encode_name + inner))
    return problems


def _problem_and_key(error: msgspec.ValidationError) -> tuple[str, str]:
    problem, _, key = str(error).partition(" - at `")
    return problem, key.rstrip("`").removeprefix("$").removeprefix(".")


class _YamlLoader(yaml.SafeLoader):
    """YAML 1.1, but numbers of base 60 and dates stay texts."""

    @override
    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        if tag in YAML_NUMBERS and len(value) > MAX_DIGITS:
            raise yaml.YAMLError(_too_long(value))
        is_text = tag == "tag:yaml.org,2002:timestamp" or (tag in YAML_NUMBERS and ":" in value)
        return "tag:yaml.org,2002:str" if is_text else tag


def _whole_number(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(_too_long(text))
    return int(text)


def _too_long(number: str) -> str:
    return t("a number of {count} digits; {most} are the most", count=len(number), most=MAX_DIGITS)


def _count_values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """Values below a node, written out; counts every node once. An alias within what it stands for is without end."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_YAML_VALUES + 1
        below = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 + sum(_count_values(part, known) for part in below)
    return known[id(node)]


def _sentence(file: Path, problem: str, key: str) -> str:
    if missing := MISSING.fullmatch(problem):
        return t("{file}: {key} is missing", file=file, key=".".join(filter(None, (key, missing["name"]))))
    types = EXPECTED.fullmatch(problem)
    if types is None:
        return t("{file}: {key}: {problem}", file=file, key=key or t("the whole"), problem=problem)
    found, wanted = _in_words(types["found"]), _in_words(types["wanted"])
    if not key:
        return t("{file}: holds {found}, but must hold {wanted}", file=file, found=found, wanted=wanted)
    return t("{file}: {key} is {found}, but must be {wanted}", file=file, key=key, found=found, wanted=wanted)


def _in_words(types: str) -> str:
    """`int | null` as a reader would say it."""
    words = {
        "int": t("a whole number"),
        "float": t("a number"),
        "str": t("text"),
        "bool": t("true or false"),
        "array": t("a list"),
        "object": t("a mapping"),
    }
    return t(" or ").join(words.get(name, name) for name in types.split(" | "))
