"""A model that has been opened: its weights, an adapter beside them, how it was prompted. Reads headers only.

In: what `recognize` found. Out: what export, merge, evaluate and generate need to know.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetuning.checkpoint.files import run_of
from finetuning.data.prompts.prompt_format import PromptFormat, load_prompt_format
from finetuning.data.prompts.prompt_record import open_prompt_format
from finetuning.errors import InputError
from finetuning.formats.found_model import FoundModel
from finetuning.formats.huggingface import door as huggingface
from finetuning.formats.own import door as own
from finetuning.formats.peft.adapter import Adapter, MergedSource
from finetuning.formats.provenance import make_origin
from finetuning.formats.recognize import recognize
from finetuning.formats.weight_source import WeightSource
from finetuning.i18n import t


@dataclass(frozen=True)
class StoredModel:
    """One model; with an adapter, `base` holds the weights that it goes on."""

    found: FoundModel
    source: WeightSource
    base_folder: Path  # with config.json, and the tokenizer of a checkpoint
    origin: dict[str, Any] | None

    def weights(self, *, rounds: bool = True) -> WeightSource:
        """All weights, with the adapter merged into them; without `rounds` what it changes stays in float32."""
        return self.source if rounds or not isinstance(self.source, MergedSource) else replace(self.source, rounds=False)

    @property
    def path(self) -> Path:
        return self.found.path

    @property
    def adapter(self) -> Adapter | None:
        return self.source.adapter if isinstance(self.source, MergedSource) else None

    @property
    def base(self) -> WeightSource:
        return self.source.base if isinstance(self.source, MergedSource) else self.source

    @property
    def base_is_checked(self) -> bool:
        """Its fingerprint is that of the training; without an adapter there is nothing to check."""
        return not isinstance(self.source, MergedSource) or self.source.base_is_checked

    @property
    def is_checkpoint(self) -> bool:
        return self.found.kind is own

    @property
    def tokenizer_folder(self) -> Path:
        if not self.is_checkpoint and (self.path / "tokenizer.json").is_file():
            return self.path
        lent = self.found.base if self.found.kind is huggingface else None
        return self.base_folder if lent is None else lent.kind.describe(lent)

    def prompt_format(self, prompt_template: str | None = None, system_prompt: str | None = None) -> PromptFormat:
        """How the model was prompted in training; where that is not known, as asked for, or by its chat template.

        Raises:
            InputError: tokenizer or template have changed since training, or another template is asked for.
        """
        record = (self.origin or {}).get("prompt")
        if record is None:
            return load_prompt_format(self.tokenizer_folder, prompt_template, system_prompt)
        for name, given in (("prompt_template", prompt_template), ("system_prompt", system_prompt)):
            if given is not None and given != record[name]:
                raise InputError(
                    t(
                        "--{name} {given!r}: the model was trained with {trained!r}; leave the flag out",
                        name=name,
                        given=given,
                        trained=record[name],
                    )
                )
        return open_prompt_format(self.tokenizer_folder, record)

    def chat_template(self) -> str | None:
        """The chat template for an export, where the tokenizer folder's own does not write the trained prompts."""
        if (self.origin or {}).get("prompt") is None or not self.is_checkpoint:
            return None
        return self.prompt_format().chat_template()


def open_model(path: Path, base: Path | None = None) -> StoredModel:
    """Recognizes and opens what lies at `path`; arguments and errors as of `recognize` and `open_found`."""
    return open_found(recognize(path, base))


def open_found(found: FoundModel) -> StoredModel:
    """
    Raises:
        InputError: it is damaged, or the base is missing or another one.
    """
    source, folder = found.kind.open(found), found.kind.describe(found)
    origin = found.origin
    if origin is None and found.kind is own:
        origin = _origin_of_run(found.path, folder)
    return StoredModel(found, source, folder, origin)


def _origin_of_run(path: Path, folder: Path) -> dict[str, Any] | None:
    """Of checkpoints that an earlier version wrote: what their run.yaml says."""
    run = run_of(path)
    if run is None:
        return None
    texts = run.config.prompt_template, run.config.system_prompt
    prompt = load_prompt_format(folder, *texts, needs_template=run.has_text, day=run.prompt_date)
    return make_origin(run, prompt)
