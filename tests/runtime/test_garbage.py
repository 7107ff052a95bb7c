"""Garbage is not looked for while a worker imports, nor among what it has imported."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetuning.runtime.process_lifetime import LAUNCHER_PID

PROGRAM = """
import gc
from finetuning.runtime.garbage import end_imports
from finetuning.runtime.process_lifetime import begin_worker
begin_worker()
during = gc.isenabled(), gc.get_freeze_count()
end_imports()
print(during, gc.isenabled(), gc.get_freeze_count() > 0)
"""


@pytest.mark.unit
def test_no_garbage_is_looked_for_among_imports_and_afterwards_again() -> None:
    environment = {name: value for name, value in os.environ.items() if name != LAUNCHER_PID}
    environment["PYTHONPATH"] = str(Path(__file__).parent.parent.parent)
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "(False, 0) True True\n"
