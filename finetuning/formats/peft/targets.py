"""Which layers an adapter's settings name, by PEFT's rule (`check_target_module_exists`, 0.21).

PEFT passes over what is stored for any other layer, so such an adapter is refused. A pattern is a regular expression of
somebody else's, which may never end: `python -m finetuning.formats.peft.targets` judges it in a process with limits.
"""

import re
from pathlib import Path
from typing import Any

from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.runtime.limited_process import LimitedProcess, NoAnswer, serve

DEFAULT_TARGETS = ["q_proj", "v_proj"]  # PEFT's for a Llama
ALL_LINEAR, HEAD = "all-linear", "lm_head"
TABLE = "model.embed_tokens"  # has adapters of another kind, with other names
PATTERN_S = 2.0  # CPU time
LAYER_NUMBER = re.compile(r"\.(\d+)\.")

_process = LimitedProcess("finetuning.formats.peft.targets")


def untargeted(settings: dict[str, Any], modules: list[str], file: Path) -> list[str]:
    """Those of `modules` (`model.layers.0.self_attn.q_proj`) that PEFT would give no adapter.

    Args:
        settings: adapter_config.json, whose types have been checked.

    Raises:
        InputError: a pattern is no regular expression, or takes too long.
    """
    targets, excluded = settings.get("target_modules") or DEFAULT_TARGETS, settings.get("exclude_modules") or []
    if isinstance(targets, str) and targets.lower() == ALL_LINEAR:
        wanted = {module for module in modules if module != HEAD}
    else:
        wanted = _named("target_modules", targets, modules, file)
    layers = settings.get("layers_to_transform")
    if layers is not None and layers != []:
        numbers = [layers] if isinstance(layers, int) else layers
        is_of_layers = {module for module in wanted if (found := LAYER_NUMBER.search(module)) and int(found[1]) in numbers}
        wanted = is_of_layers | {module for module in wanted if module in targets}
    return sorted(set(modules) - wanted | _named("exclude_modules", excluded, modules, file) | ({TABLE} & set(modules)))


def _named(setting: str, names: str | list[str], modules: list[str], file: Path) -> set[str]:
    if isinstance(names, list):
        return {module for module in modules if any(module == name or module.endswith(f".{name}") for name in names)}
    problem = t("{file}: {name} {pattern!r} is not understood; name the layers", file=file, name=setting, pattern=names[:80])
    try:
        found = _process.call({"pattern": names, "modules": modules}, PATTERN_S)
    except NoAnswer:
        raise InputError(problem) from None
    if found is None:
        raise InputError(problem)
    return set(found)


def _matching(request: dict[str, Any]) -> list[str] | None:
    """None: it is no regular expression."""
    try:
        pattern = re.compile(request["pattern"])
    except (re.error, RecursionError, OverflowError):
        return None
    return [module for module in request["modules"] if pattern.fullmatch(module)]


if __name__ == "__main__":
    serve(_matching)
