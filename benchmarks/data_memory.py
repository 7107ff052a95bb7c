"""Peak memory and time of `finetune data check` on a large file.

    python benchmarks/data_memory.py [--model MODEL] [--gigabytes 1] [--forms input_output openai tools]

Writes lines of about 2.5 kB (a question, an answer of some paragraphs, all different), checks them, and prints the peak
resident memory of the largest process, the wall time and the CPU time of all processes. With --model, tokens are counted too.
Of several forms, all hold the same texts: `openai` as messages with a weight and a name, `tools` with a tool that every fourth
sample calls, which the chat template then writes sample by sample.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from data_tokenize import ROOT, TRAINING_FILE

FORMS = ("input_output", "openai", "tools")
COMMAND = "import sys; from finetuning.cli.data import main; sys.exit(main(sys.argv[1:]))"


def as_form(form: str, count: int, question: str, answer: str) -> dict[str, Any]:
    if form == "input_output":
        return {"input": question, "output": answer}
    messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
    if form == "openai":
        return {"messages": [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}], "weight": 1}]}
    if count % 4:
        return {"messages": [*messages, {"role": "assistant", "content": answer}], "parallel_tool_calls": False}
    call = {"id": f"c{count}", "type": "function", "function": {"name": "look_up", "arguments": json.dumps({"number": count})}}
    messages += [{"role": "assistant", "content": None, "tool_calls": [call]}]
    messages += [{"role": "tool", "tool_call_id": f"c{count}", "content": "{}"}, {"role": "assistant", "content": answer}]
    parameters = {"type": "object", "properties": {"number": {"type": "integer"}}}
    return {"messages": messages, "tools": [{"type": "function", "function": {"name": "look_up", "parameters": parameters}}]}


def write_lines(path: Path, size: int, form: str) -> int:
    """Writes until the texts as input and output would have `size` bytes; returns the number of lines."""
    text = TRAINING_FILE.read_text(encoding="utf-8").replace("\\", "").replace('"', "").replace("\n", "")
    written = count = 0
    with path.open("wb") as file:
        while written < size:
            start = count * 7919 % (len(text) - 900)
            question, answer = f"第 {count} 題 {text[start : start + 30]}", f"{count * 31} {text[start : start + 800]}"
            written += len(f'{{"input": "{question}", "output": "{answer}"}}\n'.encode())
            file.write(json.dumps(as_form(form, count, question, answer), ensure_ascii=False).encode() + b"\n")
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="local model folder, for its tokenizer")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=["input_output"])
    given = parser.parse_args()
    for form in given.forms:
        measure(form, given)


def measure(form: str, given: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "training.jsonl"
        lines = write_lines(file, int(given.gigabytes * 1e9), form)
        flags = ["--hf_model_id", str(Path(given.model).resolve())] if given.model else []
        started = time.monotonic()
        command = [sys.executable, "-c", COMMAND, "check", str(file), *flags]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
            _, status, used = os.wait4(process.pid, 0)  # of this process and its children, not of those of other forms
            process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - started
    print(
        f"{form}: {lines} lines, {given.gigabytes} GB: exit code {process.returncode}, "
        f"largest process {used.ru_maxrss / 2**10:.0f} MiB, wall {wall:.0f} s, CPU {used.ru_utime + used.ru_stime:.0f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
