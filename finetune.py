#!/usr/bin/env python3
"""The specification's command: `python finetune.py --executor local …`; the same as `finetune train …`."""

import sys

from finetuning.cli.main import main

if __name__ == "__main__":
    sys.exit(main(program="python finetune.py"))
