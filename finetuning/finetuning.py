#!/usr/bin/env python3
"""The path that the specification's title names: `python finetuning/finetuning.py …` is `python finetune.py …`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # a script's own folder would hide the package
    from finetuning.interpreter import exit_if_unfit

    exit_if_unfit()
    from finetuning.cli.main import main

    sys.exit(main(program="python finetuning/finetuning.py"))
