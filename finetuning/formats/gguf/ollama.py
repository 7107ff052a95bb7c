"""Ollama's Modelfile for a GGUF file: its template in Go's template language, which writes the prompts of the training.

Ollama does not read the chat template of a GGUF file (Jinja) but one of its own, from the Modelfile. It is put together from
the parts that the chat template was taken apart into (finetuning.data.prompts.template_parts), so it holds for every template
that can be trained with. Ollama puts the begin token before a prompt itself where the file says so.
"""

import json
from pathlib import Path

import msgspec

from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.prompts.template_parts import TemplateParts
from finetuning.errors import InputError
from finetuning.files.documents import read_json
from finetuning.formats.gguf.write import GgufExport
from finetuning.i18n import t

MODELFILE = "Modelfile"
QUOTES = '"""'  # around a text of several lines, which may hold anything but these


class _Sampling(msgspec.Struct):
    do_sample: bool = False
    temperature: float | None = None
    top_p: float | None = None


def modelfile(export: GgufExport, prompt_format: PromptFormat, tokenizer_folder: Path) -> str:
    """
    Raises:
        InputError: the template holds what a Modelfile cannot.
    """
    begin = export.vocabulary.tokens[export.vocabulary.begin] if export.vocabulary.begin is not None else ""
    lines = [f"FROM ./{export.file.name}"]
    if prompt_format.parts.trims:
        lines.insert(
            0, "# In training, white space at both ends of a message was taken away. Ollama cannot: send texts without it."
        )
    template = go_template(prompt_format.parts, begin if export.vocabulary.adds_begin else "")
    lines.append(f"TEMPLATE {QUOTES}{_writable(template)}{QUOTES}")
    if prompt_format.source.system_prompt:
        lines.append(f"SYSTEM {QUOTES}{_writable(prompt_format.source.system_prompt)}{QUOTES}")
    lines += [f"PARAMETER stop {json.dumps(end, ensure_ascii=False)}" for end in prompt_format.source.ends]
    lines.append("PARAMETER repeat_penalty 1")  # which Ollama has at 1.1: another model than the trained one
    file = tokenizer_folder / "generation_config.json"
    sampling = read_json(file, _Sampling) if file.is_file() else _Sampling()
    if sampling.do_sample:
        values = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        lines += [f"PARAMETER {name} {value:g}" for name, value in values.items() if value is not None]
    return "\n".join(lines) + "\n"


def go_template(parts: TemplateParts, begin: str) -> str:
    """
    Args:
        begin: what Ollama writes before the prompt by itself, if anything.

    Raises:
        InputError: a part holds braces of Go's templates.
    """
    before = _text(parts.before.removeprefix(begin))
    if parts.own_system is not None:
        head, tail = (_text(part) for part in parts.own_system)
        before = f"{{{{ if .System }}}}{head.removeprefix(begin)}{{{{ .System }}}}{tail}{{{{ else }}}}{before}{{{{ end }}}}"
    between, after, again = _text(parts.between), _text(parts.after), _text(parts.again or "")
    return (
        f"{before}{{{{ $first := true }}}}{{{{ range .Messages }}}}"
        f'{{{{ if eq .Role "user" }}}}{{{{ if $first }}}}{{{{ $first = false }}}}{{{{ else }}}}{again}{{{{ end }}}}'
        f"{{{{ .Content }}}}{between}"
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{after}{{{{ end }}}}{{{{ end }}}}'
    )


def _text(part: str) -> str:
    if "{{" in part or "}}" in part:
        raise InputError(t("the chat template writes {text!r}, which Ollama would take for its own language", text=part[:60]))
    return part


def _writable(text: str) -> str:
    """
    Raises:
        InputError: three quotation marks in it, or one at an end, would end it elsewhere.
    """
    at = text.find(QUOTES)
    if at >= 0 or text.startswith('"') or text.endswith('"'):
        shown = text[max(0, at - 20) : max(0, at) + 40]
        raise InputError(t("a Modelfile cannot hold {text!r}, as it quotes texts by three quotation marks", text=shown))
    return text
