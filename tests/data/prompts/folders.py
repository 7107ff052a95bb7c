"""Model folders whose tokenizer or template differs from the tiny model's in one thing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HEADERS = "{{ '<|start_header_id|>' ~ m.role ~ '<|end_header_id|>\\n\\n' ~ m.content | trim ~ '<|eot_id|>' }}"
ALWAYS_A_HEADER = (  # an early public form of Llama 3's
    "{{ bos_token }}{% for m in messages %}" + HEADERS + "{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
)
WITH_HEADER_WHERE_ASKED = (
    "{{ bos_token }}PRE{% for m in messages %}" + HEADERS + "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
ASKS_THE_CLOCK = WITH_HEADER_WHERE_ASKED.replace("PRE", "Today is {{ strftime_now('%d %b %Y %H:%M:%S') }}.")
PLAIN = WITH_HEADER_WHERE_ASKED.replace("PRE", "")
DROPS_THOUGHTS = PLAIN.replace("m.content | trim", "m.content.split('</think>')[-1] | trim")


def variant(
    model_path: Path,
    target: Path,
    *,
    template: str | None = None,
    tokenizer: Callable[[dict[str, Any]], object] | None = None,
    **settings: Any,
) -> Path:
    """A copy of a model folder without weights, with another template, tokenizer.json or entries of tokenizer_config.json."""
    folder = Path(shutil.copytree(model_path, target, ignore=shutil.ignore_patterns("*.safetensors")))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    if tokenizer is not None:
        change(folder / "tokenizer.json", tokenizer)
    change(folder / "tokenizer_config.json", lambda config: config.update(settings))
    return folder


def chatml(model_path: Path, target: Path) -> Path:
    """A folder with ChatML, whose begin token opens every turn, as SmolLM2-Instruct's."""

    def rename(value: dict[str, Any]) -> None:
        names = {"<|begin_of_text|>": "<|im_start|>", "<|eot_id|>": "<|im_end|>"}
        for token in value["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        value["post_processor"] = None

    return variant(
        model_path,
        target,
        template=CHATML,
        tokenizer=rename,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
    )


def change(file: Path, by: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file.read_text(encoding="utf-8"))
    by(value)
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
