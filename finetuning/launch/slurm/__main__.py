"""`python -m finetuning.launch.slurm RUN_FILE`: a node's part of a job, once its Python has been found fit for it.

The Python of a container may lack packages: one sentence in the job's log instead of a traceback.
"""

import sys

from finetuning.interpreter import exit_if_unfit

if __name__ == "__main__":
    exit_if_unfit()
    from finetuning.launch.slurm.node import main

    sys.exit(main(sys.argv[1:]))
