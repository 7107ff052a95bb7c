"""The prompts on which merge and prove compare two models: their flags, and where they come from."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from finetuning.cli.common_flags import add_columns_flag
from finetuning.cli.model_argument import test_file_of
from finetuning.data.reading.columns import parse_columns
from finetuning.data.reading.records import Sample
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.inference.samples import read_samples

LIMIT, MAX_NEW_TOKENS = 16, 64


def add_comparison_flags(parser: ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help=t("prompts to compare on; default: the run's test split"))
    parser.add_argument("--limit", type=int, default=LIMIT, help=t("prompts to compare on (default: 16)"))
    parser.add_argument(
        "--max_new_tokens", type=int, default=MAX_NEW_TOKENS, help=t("longest compared answer, in tokens (default: 64)")
    )
    add_columns_flag(parser)


def check_comparison_flags(given: Namespace) -> None:
    """
    Raises:
        InputError: one has no effect, or cannot be.
    """
    if given.columns is not None and given.data is None:
        raise InputError(t("--columns has no effect without --data"))
    for name in ("limit", "max_new_tokens"):
        if getattr(given, name) < 1:
            raise InputError(t("--{name} {value}: {rule}", name=name, value=getattr(given, name), rule=t("must be 1 or more")))


def compared_prompts(given: Namespace, trained: Path) -> tuple[Path, list[Sample]]:
    """The file, and its first samples, of `--data` or else of the run that `trained` came from.

    Raises:
        InputError: the run's data are not known.
    """
    file, columns = (given.data, given.columns) if given.data else test_file_of(trained)
    if file is None:
        raise InputError(
            t("{path}: the data that it was trained on are not known; give a .jsonl with prompts as --data", path=trained)
        )
    return file, read_samples(file, given.limit, needs_answer=False, columns=parse_columns(columns))
