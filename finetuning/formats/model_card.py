"""The model card of a result that is published: what it was made from and how, how it is loaded; in English and Chinese.

In: the experiment's `run.yaml` and `metrics.csv` where they are, and the origin that travels with every export. Files are
told by name and hash, never by a path of this machine.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetuning.checkpoint.files import run_of
from finetuning.config.run import Run, read_run
from finetuning.formats.serving import adapter_commands
from finetuning.formats.stored_model import StoredModel
from finetuning.i18n import language, set_language, t

LANGUAGES = ("en", "zh-TW")
ADAPTER, WHOLE, GGUF = "adapter", "model", "gguf"
LIBRARIES = {ADAPTER: "peft", WHOLE: "transformers", GGUF: "gguf"}
SHOWN_SETTINGS = ("peft", "lora_rank", "lora_alpha", "lora_targets", "lr", "global_batch_size", "seq_length", "max_steps")


@dataclass(frozen=True)
class Card:
    """What a card tells; None or empty: not known."""

    repository: str
    kind: str
    base: str | None
    rank: int | None  # of an adapter
    fingerprint: str | None
    data: dict[str, tuple[str, str]]  # split -> name of the file, SHA-256
    settings: dict[str, Any]
    losses: dict[str, tuple[float, float]]  # kind of loss -> first, last
    system_prompt: str | None


def gather_card(repository: str, kind: str, model: StoredModel, metrics: list[dict[str, str]]) -> Card:
    """
    Args:
        metrics: rows of the experiment's metrics.csv; none: it is not there.
    """
    origin, run = model.origin or {}, run_of_result(model.path)
    base = origin.get("base_model")
    return Card(
        repository,
        kind,
        Path(base).name if base and Path(base).is_absolute() else base,
        max((len(update.a) for update in model.adapter.updates.values()), default=None) if model.adapter is not None else None,
        origin.get("base_fingerprint"),
        {
            f"{split} {source}".strip(): (Path(file).name, _hash(Path(file)))
            for split in (run.sources if run else {})
            for source, (file, _) in (run.files_of(split) if run else {}).items()
            if Path(file).is_file()
        },
        {name: value for name in SHOWN_SETTINGS if run is not None and (value := getattr(run.config, name)) is not None},
        {name: found for name in ("train_loss", "val_loss") if (found := _first_and_last(metrics, name)) is not None},
        (origin.get("prompt") or {}).get("system_prompt"),
    )


def run_of_result(path: Path) -> Run | None:
    """The run that a checkpoint or the export of an experiment belongs to."""
    if (run := run_of(path)) is not None:
        return run
    file = path.resolve().parent / "run.yaml"
    return read_run(file) if file.is_file() else None


def write_card(card: Card) -> str:
    """Markdown with a header for the hub."""
    header = ["---", f"library_name: {LIBRARIES[card.kind]}", "pipeline_tag: text-generation"]
    if card.base is not None:
        header.append(f"base_model: {json.dumps(card.base, ensure_ascii=False)}")
    asked = language()
    try:
        sections = []
        for one in LANGUAGES:
            set_language(one)
            sections += ["", *_section(card)]
    finally:
        set_language(asked)
    return "\n".join([*header, "---", "", f"# {card.repository.partition('/')[2]}", *sections]) + "\n"


def _section(card: Card) -> list[str]:
    kinds = {
        ADAPTER: t("An adapter (LoRA, PEFT format)"),
        WHOLE: t("A whole model (Hugging Face format)"),
        GGUF: t("A model for llama.cpp, Ollama and LM Studio (GGUF)"),
    }
    base = card.base or t("not known")
    lines = [t("## {kind}, fine-tuned from {base}", kind=kinds[card.kind], base=base), ""]
    if card.fingerprint is not None:
        lines += [t("Fingerprint of the base's weights: `{fingerprint}`.", fingerprint=card.fingerprint)]
    lines += [t("The license of the base model holds for it as well."), ""]
    if card.data:
        lines += [
            t("Data:"),
            "",
            *(f"- {split}: `{name}`, SHA-256 `{digest}`" for split, (name, digest) in card.data.items()),
            "",
        ]
    if card.settings:
        lines += [t("Settings:"), "", *(f"- {name}: {_plain(value)}" for name, value in card.settings.items()), ""]
    if card.losses:
        lines += [
            t("Losses, first and last:"),
            "",
            *(f"- {name}: {a:.4f} → {b:.4f}" for name, (a, b) in card.losses.items()),
            "",
        ]
    if card.system_prompt:
        lines += [t("It was trained with this system message; send it first:"), "", f"    {card.system_prompt}", ""]
    return [*lines, t("How to load and serve it:"), "", "```bash", *_commands(card), "```"]


def _commands(card: Card) -> list[str]:
    if card.kind == GGUF:
        return [f"hf download {card.repository} --local-dir model", "ollama create model --file model/Modelfile"]
    if card.kind == ADAPTER:
        return adapter_commands(Path(card.repository), card.base or "BASE", "model", card.rank or 64, has_template=False)[
            "vLLM"
        ]
    return [f"vllm serve {card.repository}"]


def _plain(value: Any) -> str:
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _first_and_last(metrics: list[dict[str, str]], name: str) -> tuple[float, float] | None:
    found = [float(row[name]) for row in metrics if row.get(name)]
    return (found[0], found[-1]) if found else None


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
