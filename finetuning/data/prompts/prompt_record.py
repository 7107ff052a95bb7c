"""A record of how a model was prompted in training, and the check that it still is.

The record travels with every checkpoint and export: the settings of the template, a hash of the text it writes around
questions and answers, and one sample as text and tokens. A tokenizer or chat template that was changed since would give
other answers without any error; here it is refused.
"""

import hashlib
import json
from datetime import date
from pathlib import Path
from typing import Any

from finetuning.data.prompts.chat_template import DATE
from finetuning.data.prompts.prompt_format import PromptFormat, load_prompt_format
from finetuning.data.prompts.sample_pieces import ALL_ANSWERS
from finetuning.data.reading.finding_words import describe
from finetuning.data.reading.records import Sample
from finetuning.errors import InputError
from finetuning.i18n import t

EXAMPLE = Sample(1, "What is 7 × 8?\n用中文回答「五十六」。", "五十六 (56)")


def prompt_record(prompt_format: PromptFormat, prompt_template: str | None, system_prompt: str | None) -> dict[str, Any]:
    """What `open_prompt_format` needs to write the same prompts and to notice when it does not; plain JSON values."""
    return {
        "prompt_template": prompt_template,
        "system_prompt": system_prompt,
        "date": prompt_format.source.day,  # which a chat template is told that asks for it
        "train_on": prompt_format.train_on,  # so that a loss that is measured later is that of training
        "template_hash": template_hash(prompt_format),
        "example": {
            "input": EXAMPLE.input,
            "output": EXAMPLE.output,
            "text": prompt_format.whole_text(EXAMPLE),
            "tokens": prompt_format.encode(EXAMPLE)[0].tolist(),
        },
    }


def template_hash(prompt_format: PromptFormat) -> str:
    """Changes with any control text of the template, the system prompt included."""
    return hashlib.sha256(json.dumps(prompt_format.parts[:-1]).encode()).hexdigest()[:16]


def open_prompt_format(folder: Path, record: dict[str, Any]) -> PromptFormat:
    """The prompt format of a model folder, which must be the recorded one.

    Raises:
        InputError: the folder's tokenizer or chat template writes the example otherwise than in training.
    """
    day = date.fromisoformat(record["date"]) if record.get("date") else DATE  # earlier versions knew one date only
    train_on = record.get("train_on", ALL_ANSWERS)  # which earlier versions knew only
    found = load_prompt_format(folder, record["prompt_template"], record["system_prompt"], day=day, train_on=train_on)
    example = record["example"]
    sample = Sample(1, example["input"], example["output"])
    text, tokens = found.whole_text(sample), found.encode(sample)[0].tolist()
    if text != example["text"] or template_hash(found) != record["template_hash"]:
        raise InputError(
            t(
                "{folder}: the chat template is not the one that the model was trained with (hash {found}, in training "
                "{trained}). In training: {before!r}; now: {now!r}. Put the trained one back",
                folder=folder,
                found=template_hash(found),
                trained=record["template_hash"],
                before=example["text"],
                now=text,
            )
        )
    if tokens != example["tokens"]:
        raise InputError(
            t(
                "{folder}: the tokenizer is not the one that the model was trained with: {text!r} was {before}, is now {now}. "
                "Put the trained one back",
                folder=folder,
                text=text,
                before=example["tokens"],
                now=tokens,
            )
        )
    if (difference := found.differences([sample])[0]) is not None:
        raise InputError(f"{folder}: " + describe(difference.code, difference.values))
    return found
