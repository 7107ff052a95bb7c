"""Processes that start without the secrets of this one's environment."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess

from typing_extensions import override

from finetuning.config.secrets import is_secret


@contextmanager
def without_secrets() -> Iterator[None]:
    """Processes that are started meanwhile do not get them; removed later, they could still be read in /proc."""
    secrets = {name: value for name, value in os.environ.items() if is_secret(name, value)}
    for name in secrets:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(secrets)


class _Process(SpawnProcess):
    @override
    def start(self) -> None:
        with without_secrets():
            super().start()


class ContextWithoutSecrets(SpawnContext):
    """multiprocessing's spawn context, for processes that need no secrets."""

    Process = _Process
