"""What is said of a setting, once: beside its field in `RunConfig`, from where help, checks and docs/flags.md take it."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from finetuning.i18n import t

# Groups of flags, in the order of the help; the first six are the specification's.
BASIC, SLURM, HARDWARE, MODEL_AND_DATA = "Basic execution", "Slurm", "Hardware", "Model and data"
TRAINING, PARALLELISM, SAMPLES, TRAINABLE = "Training", "Model parallelism", "Samples", "What is trained"
OPTIMIZER, MEMORY_AND_SPEED, RECORDS = "Optimizer", "Memory and speed", "Evaluation, checkpoints and logs"


@dataclass(frozen=True)
class Flag:
    """What the command line, its help, the checks and docs/flags.md say of a setting. Texts are translated when shown."""

    group: str
    help: str
    short: str | None = None
    default_means: str | None = None  # what no value means, where it means something
    choices: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    at_most: float | None = None  # beyond it is a slip of the keyboard
    needs: str | None = None  # the setting has no effect without this
    details: str | None = None  # of docs/flags.md, instead of the help
    auto: bool = False  # a number that may also be left to the command, by this word

    @property
    def rule(self) -> str | None:
        """What a number must be; None: there is no rule."""
        if self.at_least is not None and self.below is not None:
            return t("must be at least {least:g} and less than {limit:g}", least=self.at_least, limit=self.below)
        if self.at_least is not None:
            return t("must be {least:g} or more", least=self.at_least)
        return t("must be greater than {limit:g}", limit=self.above) if self.above is not None else None

    def holds(self, value: float) -> bool:
        """Whether the rule does; `at_most` apart."""
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def setting(
    group: str,
    text: str,
    *,
    default: Any = dataclasses.MISSING,
    short: str | None = None,
    default_means: str | None = None,
    choices: tuple[str, ...] = (),
    at_least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    needs: str | None = None,
    details: str | None = None,
    auto: bool = False,
) -> Any:
    """A field of `RunConfig` with its `Flag`."""
    flag = Flag(group, text, short, default_means, choices, at_least, above, below, at_most, needs, details, auto)
    return dataclasses.field(default=default, metadata={"flag": flag})
