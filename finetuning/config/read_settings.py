"""Settings from flags and files: names and types are checked, all mistakes at once; what they mean together is for `rules`."""

import dataclasses
import reprlib
import types
import typing
from pathlib import Path
from typing import Any

from finetuning.config.mixture import as_text as mixture_as_text
from finetuning.config.settings import CHOICES, CHOSEN_LATER, DEGREES, FLAGS, RunConfig, field_types
from finetuning.errors import InputError
from finetuning.files.documents import read_yaml
from finetuning.i18n import t

MAX_CONFIG_BYTES = 2**18  # a few seconds to read, at worst
NUMBER_OR_TEXT = ("time", "mem")  # minutes and megabytes, without quotes in YAML


def config_from_dict(values: dict[str, Any], source: str, *, needs_data: bool = True) -> RunConfig:
    """Builds a `RunConfig`; unknown names, missing required ones and wrong types are all reported at once.

    Args:
        needs_data: False: there may be no data set.
    """
    hints = field_types()
    problems = [
        t("{source}: unknown setting '{name}'; known settings: {known}", source=source, name=name, known=", ".join(hints))
        for name in values
        if name not in hints
    ]
    required = [f.name for f in dataclasses.fields(RunConfig) if f.default is dataclasses.MISSING]
    converted: dict[str, Any] = {}
    if values.get("nemo_model"):
        required.remove("hf_model_id")  # the checkpoint may have all that is needed
        converted["hf_model_id"] = ""
    if not needs_data and not values.get("dataset_path"):
        required.remove("dataset_path")
        converted["dataset_path"] = ""
    problems += [t("--{name} is required", name=name) for name in required if not values.get(name)]
    for name, value in values.items():
        if name in hints:
            if value == "auto" and FLAGS[name].auto:
                value = CHOSEN_LATER if name in DEGREES else None
            elif name in DEGREES and value == CHOSEN_LATER:
                problems.append(t("--{name} {value}: {rule}", name=name, value=value, rule=FLAGS[name].rule))
                continue
            if name == "dataset_path" and isinstance(value, list):
                value = mixture_as_text(value)
            try:
                converted[name] = _convert(str(value) if name in NUMBER_OR_TEXT and type(value) is int else value, hints[name])
            except (TypeError, ValueError, OverflowError):
                problems.append(
                    t(
                        "{source}: {name} is {value}, but must be {type}",
                        source=source,
                        name=name,
                        value=_shown(value),
                        type=_type_name(hints[name]),
                    )
                )
            else:
                if name in CHOICES and converted[name] not in CHOICES[name]:
                    problems.append(
                        t(
                            "{source}: {name} is {value}, but must be one of {choices}",
                            source=source,
                            name=name,
                            value=_shown(value),
                            choices=", ".join(CHOICES[name]),
                        )
                    )
    if problems:
        raise InputError(problems)
    return RunConfig(**converted)


def read_config_file(path: Path) -> dict[str, Any]:
    """The settings of a `--config` YAML file, flat, with the flags' names as keys."""
    try:
        values = read_yaml(path, object, max_bytes=MAX_CONFIG_BYTES, may_be_pipe=True)
    except FileNotFoundError:
        raise InputError(t("--config {path}: there is no such file", path=path)) from None
    except InputError as error:
        raise InputError([f"--config {problem}" for problem in error.problems]) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise InputError(t("--config {path}: must hold 'name: value' lines named like the flags", path=path))
    return values


def _convert(value: Any, hint: Any) -> Any:
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    if typing.get_origin(hint) is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
            raise TypeError
        return tuple(item.strip() for item in items)
    if hint is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if hint is int and isinstance(value, float | bool):
        raise TypeError
    if hint is str and not isinstance(value, str):
        raise TypeError
    return hint(value)


def _shown(value: Any) -> str:
    """A wrong value, shortened; with aliases of YAML, a short file may hold one that is long without end."""
    shortened = reprlib.Repr()
    shortened.maxlevel, shortened.maxstring, shortened.maxother = 1, 80, 80
    return shortened.repr(value)


def _type_name(hint: Any) -> str:
    if isinstance(hint, types.UnionType):
        hint = next(arm for arm in typing.get_args(hint) if arm is not type(None))
    names = {int: t("a whole number"), float: t("a number"), bool: t("true or false"), str: t("text")}
    return names.get(hint, t("a list of names"))
