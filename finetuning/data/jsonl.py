"""Reads `{"input": …, "output": …}` lines and reports every bad one with file and line number."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.i18n import t

EXCERPT_LENGTH = 40


@dataclass(frozen=True)
class Sample:
    """One training pair and the line of its file it came from (from 1)."""

    line: int
    input: str
    output: str


def read_samples(path: Path) -> tuple[list[Sample], list[str]]:
    """All good samples of a JSONL file, and one message for each bad line. Blank lines are skipped."""
    samples, problems = [], []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if not raw.strip():
                continue
            outcome = parse_line(raw, number)
            if isinstance(outcome, Sample):
                samples.append(outcome)
            else:
                problems.append(f"{path.name}:{number}: {outcome}")
    return samples, problems


def parse_line(raw: bytes, number: int) -> Sample | str:
    """The sample of one line, or what is wrong with it."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return t("not UTF-8 (byte {position}); save the file as UTF-8", position=error.start + 1)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        return t("not valid JSON ({message} at column {column}): {excerpt}", message=error.msg, column=error.colno,
                 excerpt=excerpt(text))  # fmt: skip
    if not isinstance(value, dict):
        return t("must be a JSON object with 'input' and 'output': {excerpt}", excerpt=excerpt(text))
    wrong = _wrong_fields(value)
    if wrong:
        return wrong
    return Sample(number, value["input"], value["output"])


def _wrong_fields(value: dict[str, Any]) -> str | None:
    for name in ("input", "output"):
        if name not in value:
            found = ", ".join(map(repr, value)) or t("nothing")
            return t("field '{name}' is missing; found {found}", name=name, found=found)
        if not isinstance(value[name], str):
            return t("field '{name}' must be text, but is {value}", name=name, value=excerpt(json.dumps(value[name])))
    if not value["output"].strip():
        return t("the answer ('output') is empty")
    return None


def excerpt(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= EXCERPT_LENGTH else text[:EXCERPT_LENGTH] + "…"
