"""What goes wrong between training and serving, done to a folder in Hugging Face format; and the command that must find it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from finetuning.cli import prove

LENGTH = "20"


def proved(served: str | Path, model: Path, data: Path, *flags: str) -> int:
    return prove.main([str(served), str(model), "--data", str(data), "--max_new_tokens", LENGTH, *flags])


def changed(folder: Path, target: Path, name: str, change: Callable[[str], str]) -> Path:
    shutil.copytree(folder, target)
    text = (target / name).read_text(encoding="utf-8")
    assert change(text) != text
    (target / name).write_text(change(text), encoding="utf-8")
    return target


def without_generation_prompt(text: str) -> str:
    return text.replace("{%- if add_generation_prompt -%}", "{%- if false -%}")


def other_split(text: str) -> str:
    return text.replace(r"\\p{N}{1,3}", r"\\p{N}")


def one_end_less(text: str) -> str:
    return json.dumps({"eos_token_id": [json.loads(text)["eos_token_id"][0]]})


def two_begins(text: str) -> str:
    return text.replace("{{- bos_token -}}", "{{- bos_token ~ bos_token -}}")


def no_begin(text: str) -> str:
    return text.replace("{{- bos_token -}}", "")


def other_words(text: str) -> str:
    return text.replace("Cutting Knowledge", "Knowledge")


def without_scaling(text: str) -> str:
    found = json.loads(text)
    found["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}
    return json.dumps(found)


def with_noise(folder: Path) -> Path:
    """The folder with other numbers in every weight."""
    generator = torch.Generator().manual_seed(3)
    weights = load_file(folder / "model.safetensors")
    noisy = {name: w + 0.3 * w.std() * torch.randn(w.shape, generator=generator) for name, w in weights.items()}
    save_file(noisy, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def words_by_merges(text: str) -> str:
    """Llama 3's tokenizer takes whole words that it knows."""
    found = json.loads(text)
    found["model"]["ignore_merges"] = False
    return json.dumps(found)


# Fault -> the file that it changes, how, and what must be said of an export.
FAULTS: dict[str, tuple[str, Callable[[str], str], str]] = {
    "template": ("chat_template.jinja", without_generation_prompt, "without the generation prompt"),
    "split": ("tokenizer.json", other_split, "tokenizer: "),
    "end": ("generation_config.json", one_end_less, "stop token: "),
    "rope": ("config.json", without_scaling, "rope_scaling is None as served and RopeScaling(factor=8.0"),
}
