"""What lies at a path, as a value, and what every format does with what it finds.

`recognize` makes a `FoundModel`. The module `door` of each format's folder is a `Format`: these functions, nothing else, and
none imports torch before weights are opened. A new format is a folder and a line in `recognize`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from finetuning.errors import InputError
from finetuning.formats.inspection import Inspection
from finetuning.i18n import t

if TYPE_CHECKING:
    from finetuning.formats.weight_source import WeightSource


@dataclass(frozen=True)
class FoundModel:
    """One model as it lies on disk; nothing of it has been read but what tells its kind, its base and its origin."""

    kind: "Format"
    path: Path  # of the model itself: of an experiment, its newest checkpoint or its export
    base: "FoundModel | None"  # what an adapter or checkpoint goes on; of a whole model, who has its config.json and tokenizer
    origin: dict[str, Any] | None  # what finetuning.json or checkpoint.json says of its training; None: they say nothing

    def required_base(self) -> "FoundModel":
        """
        Raises:
            InputError: it is not known, or not here.
        """
        if self.base is None:
            named = self.kind.named_base(self.path) or t("none is named")
            raise InputError(
                t(
                    "{path}: the model that it was trained from is not here ({named}); give it as --base",
                    path=self.path,
                    named=named,
                )
            )
        return self.base


class Format(Protocol):
    """The doors of a format. Those that write it have `write` beside, as what is written differs."""

    NEEDS_BASE: bool  # holds no whole model

    def is_here(self, path: Path) -> bool:
        """Whether this path looks like it; opening may still refuse it."""

    def named_base(self, path: Path) -> str | None:
        """The model, folder or hub name, that it names as the one it goes on; None: none, or it is whole."""

    def open(self, found: FoundModel) -> "WeightSource":
        """All weights, an adapter merged into its base's.

        Raises:
            InputError: it is damaged, no Llama, or does not fit its base.
        """

    def describe(self, found: FoundModel) -> Path:
        """A folder with the model's config.json and tokenizer.

        Raises:
            InputError: it has none.
        """

    def fingerprint(self, found: FoundModel) -> str:
        """Identifies the weights, those of the base where there is one, without reading them all."""

    def inspect(self, found: FoundModel) -> Inspection:
        """What headers and tables of contents say."""


def describe_base(found: FoundModel) -> Path:
    """`Format.describe` of what has no config.json and tokenizer of its own."""
    base = found.required_base()
    return base.kind.describe(base)


def fingerprint_base(found: FoundModel) -> str:
    """`Format.fingerprint` of what goes on a base."""
    base = found.required_base()
    return base.kind.fingerprint(base)


def cache_folder() -> Path:
    """Where tools other than training keep what had to be decompressed or described."""
    given = os.environ.get("XDG_CACHE_HOME")
    return (Path(given) if given else Path.home() / ".cache") / "llama-finetuning"
