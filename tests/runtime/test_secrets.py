"""Secrets of the environment stay with the process that needs them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from finetuning.runtime.secrets import without_secrets

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent.parent
# Starts the pool that tokenizes, as for a large file, and looks at what each process below this one was started with.
SCRIPT = """
import os
import time
from pathlib import Path
from finetuning.data.reading import scan
from tests.commands import arguments, descendants

if __name__ == "__main__":
    scan.MIN_BYTES_FOR_PROCESSES = 1
    pool = scan.make_pool([Path(__file__)], scan.ScanSettings(None, 0))
    for _ in range(4):
        pool.submit(time.sleep, 0.2)
    below = descendants(os.getpid())
    while not all("multiprocessing" in " ".join(arguments(pid)) for pid in below):  # until then it is this one, forked
        time.sleep(0.01)
    found = [Path(f"/proc/{pid}/environ").read_text() for pid in below]
    pool.shutdown()
    print(len(found))
    print(" ".join(name for text in found for name in ("HF_TOKEN", "WANDB_API_KEY") if name + "=" in text) or "none")
    print(all("PATH=" in text for text in found))
"""


@pytest.mark.dist  # starts processes
@pytest.mark.skipif(sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="needs /proc and a pool")
def test_processes_that_tokenize_are_started_without_tokens_and_keys(tmp_path: Path) -> None:
    script = tmp_path / "pool.py"
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": "hf_secret", "WANDB_API_KEY": "secret"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=True)
    count, secrets, others = done.stdout.split()
    assert int(count) >= 3, "two processes of the pool, and multiprocessing's own"
    assert secrets == "none"
    assert others == "True", "everything else is passed on"


def test_secrets_come_back_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "secret")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")

    def fail() -> None:
        with without_secrets():
            assert "MY_API_KEY" not in os.environ
            assert os.environ["TOKENIZERS_PARALLELISM"] == "false", "no secret, though it has TOKEN in its name"
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert os.environ["MY_API_KEY"] == "secret"
