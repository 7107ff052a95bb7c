"""How an export is served: the commands to type for vLLM, SGLang, llama.cpp and Ollama, written beside it as SERVE.md.

In: what was written, and the model that it came from. Out: a file in the language of the messages. Nothing is started.
"""

import shlex
from pathlib import Path

from finetuning.data.prompts.chat_template import read_chat_template
from finetuning.data.prompts.tokenizer import read_tokenizer_settings
from finetuning.formats.stored_model import StoredModel
from finetuning.i18n import t

SERVE_FILE = "SERVE.md"
TEMPLATE_FILE = "chat_template.jinja"
# What vLLM takes as --max-lora-rank (vllm/config/lora.py); without the flag it refuses adapters of a rank above 16.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
VLLM_URL, SGLANG_URL, LLAMA_CPP_URL = (f"http://127.0.0.1:{port}/v1" for port in (8000, 30000, 8080))


def whole_model_commands(folder: Path, name: str, *, has_template: bool) -> dict[str, list[str]]:
    """Server -> the lines to type, for a folder in Hugging Face format."""
    template = ["--chat-template", str(folder / TEMPLATE_FILE)] if has_template else []
    return {
        "vLLM": [_line("vllm", "serve", str(folder), "--served-model-name", name, *template)],
        "SGLang": [
            _line("python", "-m", "sglang.launch_server", "--model-path", str(folder), "--served-model-name", name, *template)
        ],
    }


def adapter_commands(folder: Path, base: str, name: str, rank: int, *, has_template: bool) -> dict[str, list[str]]:
    """The same for an adapter in PEFT format on its base."""
    template = ["--chat-template", str(folder / TEMPLATE_FILE)] if has_template else []
    module, enough = f"{name}={folder}", next((allowed for allowed in VLLM_RANKS if allowed >= rank), rank)
    sglang = ["--model-path", base, "--enable-lora", "--max-lora-rank", str(rank), "--lora-paths", module, *template]
    return {
        "vLLM": [
            _line("vllm", "serve", base, "--enable-lora", "--max-lora-rank", str(enough), "--lora-modules", module, *template)
        ],
        "SGLang": [_line("python", "-m", "sglang.launch_server", *sglang)],
    }


def gguf_commands(file: Path, name: str, *, has_modelfile: bool) -> dict[str, list[str]]:
    """The same for a GGUF file."""
    commands = {"llama.cpp": [_line("llama-server", "--model", str(file), "--alias", name, "--jinja")]}
    if has_modelfile:
        create = _line("ollama", "create", name, "--file", str(file.parent / "Modelfile"))
        commands["Ollama"] = [create, _line("ollama", "run", name)]
    return commands


def gguf_adapter_commands(file: Path, base: str, name: str) -> dict[str, list[str]]:
    """The same for an adapter as a GGUF file, with a file of its base, which is written first."""
    served = ("llama-server", "--model", "base/model-f16.gguf", "--lora", str(file), "--alias", name, "--jinja")
    return {"llama.cpp": [_line("finetune", "export", base, "base", "--to", "gguf", "--quantize", "f16"), _line(*served)]}


def write_serving(folder: Path, model: StoredModel, commands: dict[str, list[str]], proof: str) -> None:
    """
    Args:
        proof: what `finetune prove` is given as the served model.
    """
    lines = [t("# Serving this model"), ""]
    for server, typed in commands.items():
        lines += [f"{server}:", "", "```bash", *typed, "```", ""]
    record = (model.origin or {}).get("prompt") or {}
    if record.get("system_prompt"):
        lines += [t("It was trained with this system message; send it first:"), "", f"    {record['system_prompt']}", ""]
    lines += [
        t("That what answers is what was trained:"),
        "",
        "```bash",
        _line("finetune", "prove", proof, str(model.path)),
        "```",
    ]
    (folder / SERVE_FILE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_template_file(folder: Path, model: StoredModel) -> bool:
    """Puts the chat template beside the model as a file, where it is inside of another; whether there is one."""
    file = folder / TEMPLATE_FILE
    if file.is_file():
        return True
    template = read_chat_template(folder, read_tokenizer_settings(folder))
    if template is None:
        return False
    if model.origin is not None:  # what was only read comes out as it was
        file.write_text(template, encoding="utf-8")
    return model.origin is not None


def _line(*words: str) -> str:
    return shlex.join(words)
