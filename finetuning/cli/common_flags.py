"""What the parsers of all verbs share. The language must be set before, as texts are translated when they are given."""

import argparse
from typing import NoReturn

from typing_extensions import override

from finetuning.config.settings import CHOICES, FLAGS
from finetuning.i18n import printable, t, translated


class FlagParser(argparse.ArgumentParser):
    """argparse's, which shows what was given to it in its errors, without escape codes."""

    @override
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def verb_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """The parser of `finetune VERB`, with help and language."""
    parser = FlagParser(prog=f"finetune {verb}", description=description, allow_abbrev=False, add_help=False)
    add_common_flags(parser)
    return parser


def add_columns_flag(parser: argparse.ArgumentParser) -> None:
    """Of verbs that read data."""
    parser.add_argument("--columns", metavar="TEXT", help=translated(FLAGS["columns"].help))


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """To a parser with `add_help=False`; the language itself is set by whoever builds it (`finetuning.cli.main.console`)."""
    parser.add_argument("-h", "--help", action="help", help=t("show this help and stop"))
    parser.add_argument("--lang", choices=CHOICES["lang"], help=t("language of the messages; default: the locale's"))
