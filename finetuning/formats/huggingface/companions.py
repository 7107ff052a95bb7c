"""What lies beside the weights and goes into every result: configuration, tokenizer, generation settings, license.

A model folder may be somebody else's, and a result may be published. So only files of the folder itself are copied: a link to
somewhere else would carry off what it points to. Links into the hub's cache are how downloads look, and are followed.

Imports no torch.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import msgspec

from finetuning.errors import InputError
from finetuning.files.documents import read_json
from finetuning.i18n import t

ORIGIN_FILE = "finetuning.json"
CONFIG_FILE = "config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    TOKENIZER_CONFIG_FILE,
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
)
# What names code that a result does not hold: `transformers` would look for it, or build another tokenizer than tokenizer.json.
CODE_KEYS = ("auto_map", "custom_pipelines", "tokenizer_class")
PLAIN_TOKENIZER = "PreTrainedTokenizerFast"  # tokenizer.json as it stands, in all versions of transformers
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "USE_POLICY.md")  # are done without where they are links


def copy_companions(base: Path, target: Path, chat_template: str | None, origin: dict[str, Any] | None = None) -> None:
    """Copies tokenizer, generation config and license; `chat_template` replaces the tokenizer's own when given.

    `origin` becomes ORIGIN_FILE: where the model comes from and how it was prompted (finetuning.formats.provenance).

    Raises:
        InputError: a file is a link out of the folder.
    """
    check_companions(base)
    for name in (*TOKENIZER_FILES, *LICENCE_FILES):
        if (base / name).is_file() and not _leads_elsewhere(base / name):
            shutil.copyfile(base / name, target / name)
    _plain_tokenizer(target / TOKENIZER_CONFIG_FILE)
    if chat_template is not None:
        (target / "chat_template.jinja").write_text(chat_template, encoding="utf-8")
    if origin is not None:
        (target / ORIGIN_FILE).write_text(json.dumps(origin, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def check_companions(base: Path) -> None:
    """
    Raises:
        InputError: a file that a result needs is a link out of the folder.
    """
    links = [name for name in (CONFIG_FILE, *TOKENIZER_FILES) if (base / name).is_file() and _leads_elsewhere(base / name)]
    if links:
        raise InputError(
            [
                t(
                    "{file}: is a link to {target}, outside of the model folder, and would be copied from there; give the "
                    "folder that holds the files themselves",
                    file=base / name,
                    target=(base / name).resolve(),
                )
                for name in links
            ]
        )


def copy_config(base: Path, target: Path, dtype: str | None = None, quantization: dict[str, Any] | None = None) -> None:
    """config.json as the base has it, but for a `dtype` or a `quantization_config` that is given, and for what names code."""
    config = read_json(base / CONFIG_FILE, dict[str, Any])
    if dtype is None and quantization is None and not config.keys() & set(CODE_KEYS):
        shutil.copyfile(base / CONFIG_FILE, target / CONFIG_FILE)
        return
    config = {name: value for name, value in config.items() if name not in CODE_KEYS}
    if dtype is not None:
        for name in [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]:
            config[name] = dtype
    if quantization is not None:
        config["quantization_config"] = quantization
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


class _GenerationConfig(msgspec.Struct):
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


class _Token(msgspec.Struct):
    content: str
    id: int | None = None


class _TokenizerConfig(msgspec.Struct):
    bos_token: str | _Token | None = None
    eos_token: str | _Token | None = None


class _Tokenizer(msgspec.Struct):
    added_tokens: list[_Token] = []


def special_token_ids(folder: Path) -> dict[str, Any]:
    """`bos_token_id` and `eos_token_id` for a config.json: of generation_config.json, else the tokenizer's own.

    Raises:
        InputError: a file is damaged.
    """
    names = "generation_config.json", "tokenizer_config.json", "tokenizer.json"
    generation, settings, tokenizer = (folder / name for name in names)
    found = read_json(generation, _GenerationConfig) if generation.is_file() else _GenerationConfig()
    own = read_json(settings, _TokenizerConfig) if settings.is_file() else _TokenizerConfig()
    added = read_json(tokenizer, _Tokenizer).added_tokens if tokenizer.is_file() else []
    ids = {token.content: token.id for token in added}
    bos, eos = (
        ids.get(token.content if isinstance(token, _Token) else token or "") for token in (own.bos_token, own.eos_token)
    )
    return {
        "bos_token_id": bos if found.bos_token_id is None else found.bos_token_id,
        "eos_token_id": eos if found.eos_token_id is None else found.eos_token_id,
    }


def _plain_tokenizer(file: Path) -> None:
    """Lets a result be read as it was trained: tokenizer.json as it stands. For some classes transformers 5 takes its
    vocabulary only, and splits text by a rule of its own; the code that `auto_map` names is not part of a result."""
    settings = read_json(file, dict[str, Any]) if file.is_file() else {}
    plain = {name: value for name, value in settings.items() if name not in CODE_KEYS}
    if "tokenizer_class" in settings:
        plain["tokenizer_class"] = PLAIN_TOKENIZER
    if plain != settings:
        file.write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _leads_elsewhere(file: Path) -> bool:
    target = file.resolve()
    is_in_hub_cache = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    return not target.is_relative_to(file.parent.resolve()) and not is_in_hub_cache
