"""Packages that only some inputs need: imported where they are used, so that an environment without them does the rest."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from finetuning.errors import InputError
from finetuning.i18n import t


@contextmanager
def needed_for(purpose: str) -> Iterator[None]:
    """Around imports of packages whose import name is the name to install them by.

    Raises:
        InputError: one is not installed; with the line that installs it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or str(error)).partition(".")[0]
        raise InputError(
            t(
                "{purpose}: the package {package} is needed, and {python} lacks it: {python} -m pip install {package}",
                purpose=purpose,
                package=package,
                python=sys.executable,
            )
        ) from None
