"""Where a model comes from: what travels with every checkpoint (`checkpoint.json`) and export (`finetuning.json`).

The base model with the fingerprint of its weights, so that an adapter is not put on another one, and the record of how the
model was prompted (finetuning.data.prompts.prompt_record).
"""

import datetime
from pathlib import Path
from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from finetuning.checkpoint.files import INFO_FILE
from finetuning.config.run import Run
from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.prompts.prompt_record import prompt_record
from finetuning.errors import InputError
from finetuning.files.documents import as_schema, read_json
from finetuning.formats.found_model import FoundModel
from finetuning.formats.huggingface.companions import ORIGIN_FILE
from finetuning.i18n import t


def make_origin(run: Run, prompt_format: PromptFormat) -> dict[str, Any]:
    """Plain JSON values; without a prompt where the data were tokens already."""
    config = run.config
    has_text = run.has_text and prompt_format.has_template
    return {
        "base_model": config.hf_model_id or str(config.nemo_model),
        "base_path": run.nemo_model if run.nemo_model and config.peft == "lora" else run.model_path,
        "base_fingerprint": run.identity.get("base_model"),
        "trained": config.peft if config.peft == "lora" else "all weights",
        "prompt": prompt_record(prompt_format, config.prompt_template, config.system_prompt) if has_text else None,
    }


def read_origin(folder: Path) -> dict[str, Any] | None:
    """The origin of an export or a checkpoint; None: it has none (others made it, or an earlier version did).

    Raises:
        InputError: the file is damaged.
    """
    for file in (folder / INFO_FILE, folder / ORIGIN_FILE):
        if file.is_file():
            found = read_json(file, dict[str, Any])
            if file.name == INFO_FILE:
                as_schema(found, _Info, file)
                return found.get("origin")
            as_schema(found, _Origin, file)
            return found
    return None


class _Example(msgspec.Struct):
    input: str
    output: str
    text: str
    tokens: list[int]


class _Prompt(msgspec.Struct):
    prompt_template: str | None
    system_prompt: str | None
    template_hash: str
    example: _Example
    date: datetime.date | None = None
    train_on: Literal["all_answers", "last_answer"] = "all_answers"


class _Origin(msgspec.Struct):
    """What `make_origin` writes; earlier versions wrote less."""

    base_model: str | None = None
    base_path: str | UnsetType = UNSET
    base_fingerprint: str | None = None
    prompt: _Prompt | None = None


class _Info(msgspec.Struct):
    origin: _Origin | None = None


def check_base(found: FoundModel, expected: str | None) -> bool:
    """Whether it is known that the base is the one that the adapter was trained on, by its fingerprint.

    Raises:
        InputError: it is another one.
    """
    if expected is None:
        return False
    actual = found.kind.fingerprint(found)
    if actual != expected:
        raise InputError(
            t(
                "{path}: was trained on {name} with fingerprint {expected}; {base} has {found}. On other weights an adapter "
                "gives wrong answers; give the right one as --base",
                path=found.path,
                name=(found.origin or {}).get("base_model") or found.kind.named_base(found.path),
                expected=expected,
                base=found.required_base().path,
                found=actual,
            )
        )
    return True
