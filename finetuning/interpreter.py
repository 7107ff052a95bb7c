"""Whether this Python can run the package; asked before anything else of it is imported.

So any Python from 3.8 on must be able to read this file, `errors`, `i18n` and the translations, and nothing here imports what
may be missing.
"""

import importlib.util
import re
import sys

from finetuning.errors import EXIT_BAD_INPUT
from finetuning.i18n import language_of_environment, set_language, t

OLDEST_PYTHON = (3, 11)
OLDEST_TORCH = (2, 11)
# Import name -> name of the package, for all that pyproject.toml asks for but what only some inputs need (see `on_demand`).
PACKAGES = {
    "torch": "torch",
    "lightning": "lightning",
    "transformers": "transformers",
    "jinja2": "Jinja2",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "huggingface_hub": "huggingface_hub",
    "numpy": "numpy",
    "yaml": "PyYAML",
    "msgspec": "msgspec",
    "rich": "rich",
    "tensorboard": "tensorboard",
    "typing_extensions": "typing_extensions",
}


def exit_if_unfit() -> None:
    """Ends the program with one sentence where this Python is too old, lacks packages or has a torch that is too old."""
    set_language(language_of_environment())
    problem = find_problem()
    if problem:
        print(problem, file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)


def find_problem() -> str:
    """What keeps this Python from running the package, and the two ways out; empty: nothing."""
    if sys.version_info < OLDEST_PYTHON:
        return t(
            "Python {oldest} or newer is needed, and {python} is {version}: run `make venv PYTHON=python3.12` and use "
            ".venv/bin/python, or `python3.12 -m pip install .`",
            oldest=_dotted(OLDEST_PYTHON),
            python=sys.executable,
            version=_dotted(sys.version_info[:2]),
        )
    missing = [package for name, package in PACKAGES.items() if importlib.util.find_spec(name) is None]
    if missing:
        return t(
            "{python} lacks {packages}: run `make venv` and use .venv/bin/python, or install what is needed with "
            "`{python} -m pip install .`",
            python=sys.executable,
            packages=", ".join(missing),
        )
    found = _torch_version()
    if found < OLDEST_TORCH:
        return t(
            "torch {oldest} or newer is needed, and {python} has {version}: run `make venv` and use .venv/bin/python, or "
            "upgrade it with `{python} -m pip install .`",
            oldest=_dotted(OLDEST_TORCH),
            python=sys.executable,
            version=_dotted(found),
        )
    return ""


def _torch_version() -> "tuple[int, ...]":
    """Without importing torch, which takes seconds; a torch that does not say its version is taken as it is."""
    from importlib import metadata

    try:
        text = metadata.version("torch")
    except metadata.PackageNotFoundError:  # built in place
        return OLDEST_TORCH
    numbers = re.match(r"(\d+)\.(\d+)", text)
    return tuple(int(number) for number in numbers.groups()) if numbers else OLDEST_TORCH


def _dotted(version: "tuple[int, ...]") -> str:
    return ".".join(str(number) for number in version)
