#!/usr/bin/env python3
"""The specification's command: `python finetune.py --executor local …`; the same as `finetune train …`."""

import sys

from finetuning.interpreter import exit_if_unfit

if __name__ == "__main__":
    exit_if_unfit()
    from finetuning.cli.main import main

    sys.exit(main(program="python finetune.py"))
