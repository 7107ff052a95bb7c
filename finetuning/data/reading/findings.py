"""What a check of data finds: one finding a place, with file, line and an excerpt. Its words are in `finding_words`.

A finding holds a code and values, not a sentence, so that it can be counted, cached and shown in either language.
Errors stop a training, warnings do not.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from finetuning.data.reading.finding_words import Values, describe
from finetuning.i18n import printable

EXCERPT_LENGTH = 40
KEPT_PER_CODE = 100  # findings of one kind in one file that stay in memory; all of them are counted, and written to the list

ERROR, WARNING = "error", "warning"
ERRORS = (
    "unreadable",
    "inflates",
    "utf_16",
    "json_array",
    "line_too_large",
    "no_records",
    "not_utf8",
    "bad_json",
    "not_an_object",
    "missing_field",
    "wrong_type",
    "wrong_role",
    "wrong_turns",
    "unknown_call",
    "wrong_weight",
    "several_weights",
    "nothing_trained",
    "unsupported_field",
    "several_formats",
    "own_field",
    "two_systems",
    "lone_surrogate",
    "empty_answer",
    "empty_question",
    "no_question",
    "no_chat_template",
    "system_has_no_place",
    "turns_have_no_place",
    "conversation_has_no_place",
    "no_place_in_form",
    "template_differs",
    "tokenizer_fails",
    "wrong_begin",
    "no_end_token",
    "token_beyond_table",
    "too_long",
)
WARNINGS = (
    "byte_order_mark",
    "duplicate_key",
    "not_a_number",
    "unknown_field",
    "replacement_character",
    "pasted_template",
    "special_token",
    "exact_duplicate",
    "near_duplicate",
    "leakage",
    "simplified_chinese",
    "traditional_chinese",
    "input_cut",
    "dropped_too_long",
)
# After these the rest of the file is not read: no choice of the user's drops what nobody has seen.
FILE_ERRORS = ("unreadable", "inflates", "utf_16", "json_array", "line_too_large")


class Problem(NamedTuple):
    """What is wrong with one record, before it is known where it stands."""

    code: str
    values: Values
    excerpt: str = ""

    def at(self, file: str, line: int) -> "Finding":
        return Finding(self.code, file, line, self.values, self.excerpt)


@dataclass(frozen=True)
class Finding:
    """One thing found in the data. `line` counts from 1 (a row, in Parquet); 0: the file as a whole."""

    code: str
    file: str
    line: int
    values: Values
    excerpt: str = ""

    @property
    def severity(self) -> str:
        return ERROR if self.code in ERRORS else WARNING

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def message(self) -> str:
        return describe(self.code, self.values)

    def __str__(self) -> str:
        return f"{self.place}: {self.message}" + (f": {self.excerpt}" if self.excerpt else "")

    def as_json(self) -> dict[str, Any]:
        values = {name: printable(value) if isinstance(value, str) else value for name, value in self.values.items()}
        return {
            "severity": self.severity,
            "code": self.code,
            "file": printable(self.file),
            "line": self.line,
            "values": values,
            "message": self.message,
            "excerpt": self.excerpt,
        }


def finding_from_json(value: dict[str, Any]) -> Finding:
    return Finding(value["code"], value["file"], value["line"], value["values"], value["excerpt"])


@dataclass
class Findings:
    """Collects findings in bounded memory: all are counted, the first of each kind and file are kept.

    `complete_list` gets every finding as a JSON line.
    """

    complete_list: TextIO | None = None
    kept: list[Finding] = field(default_factory=list)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (file, code)

    def add(self, finding: Finding) -> None:
        key = (finding.file, finding.code)
        self.counts[key] += 1
        if self.counts[key] <= KEPT_PER_CODE:
            self.kept.append(finding)
        if self.complete_list is not None:
            self.complete_list.write(json.dumps(finding.as_json(), ensure_ascii=False) + "\n")

    def extend(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.add(finding)

    def count(self, severity: str) -> int:
        codes = ERRORS if severity == ERROR else WARNINGS
        return sum(number for (_, code), number in self.counts.items() if code in codes)

    def by_code(self) -> dict[str, int]:
        """Code -> number, errors first, in the order of ERRORS and WARNINGS."""
        totals: Counter[str] = Counter()
        for (_, code), number in self.counts.items():
            totals[code] += number
        return {code: totals[code] for code in (*ERRORS, *WARNINGS) if totals[code]}

    def sorted(self) -> list[Finding]:
        """What was kept, by file and line; errors before warnings of the same line."""
        return sorted(self.kept, key=lambda finding: (finding.file, finding.line, finding.severity))

    def as_json(self) -> dict[str, Any]:
        return {
            "findings": [finding.as_json() for finding in self.sorted()],
            "counts": [[printable(file), code, number] for (file, code), number in self.counts.items()],
        }


def findings_from_json(value: dict[str, Any]) -> Findings:
    counts: Counter[tuple[str, str]] = Counter({(file, code): number for file, code, number in value["counts"]})
    return Findings(None, [finding_from_json(item) for item in value["findings"]], counts)


def write_findings(findings: Findings, path: Path) -> None:
    path.write_text(json.dumps(findings.as_json(), ensure_ascii=False), encoding="utf-8")


def excerpt(text: str) -> str:
    """The beginning of a text on one line, safe to print anywhere."""
    text = printable(" ".join(text[: 4 * EXCERPT_LENGTH].split()))
    return text if len(text) <= EXCERPT_LENGTH else text[:EXCERPT_LENGTH] + "…"
