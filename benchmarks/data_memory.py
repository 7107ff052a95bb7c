"""Peak memory and time of `finetune data check` on a large file.

    python benchmarks/data_memory.py [--model MODEL] [--gigabytes 1]

Writes lines of about 2.5 kB (a question, an answer of some paragraphs, all different), checks them, and prints the peak
resident memory of the largest process, the wall time and the CPU time of all processes. With --model, tokens are counted too.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from data_tokenize import ROOT, TRAINING_FILE

COMMAND = "import sys; from finetuning.cli.data import main; sys.exit(main(sys.argv[1:]))"


def write_lines(path: Path, size: int) -> int:
    """Writes until the file has `size` bytes; returns the number of lines."""
    text = TRAINING_FILE.read_text(encoding="utf-8").replace("\\", "").replace('"', "").replace("\n", "")
    written = count = 0
    with path.open("wb") as file:
        while written < size:
            start = count * 7919 % (len(text) - 900)
            question, answer = f"第 {count} 題 {text[start : start + 30]}", f"{count * 31} {text[start : start + 800]}"
            written += file.write(f'{{"input": "{question}", "output": "{answer}"}}\n'.encode())
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="local model folder, for its tokenizer")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "training.jsonl"
        lines = write_lines(file, int(given.gigabytes * 1e9))
        flags = ["--hf_model_id", str(Path(given.model).resolve())] if given.model else []
        started = time.monotonic()
        command = [sys.executable, "-c", COMMAND, "check", str(file), *flags]
        code = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode
        wall = time.monotonic() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"{lines} lines, {given.gigabytes} GB: exit code {code}, largest process {used.ru_maxrss / 2**10:.0f} MiB, "
        f"wall {wall:.0f} s, CPU {used.ru_utime + used.ru_stime:.0f} s"
    )


if __name__ == "__main__":
    main()
