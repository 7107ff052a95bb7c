"""What a refusal costs, for each verb: CPU time and peak memory of the command; other work on the machine hardly changes them.

    python benchmarks/refusals.py

Makes a tiny model and damaged copies of it in a temporary folder and prints a table.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # In a process of its own: what this one has in memory would count as that of each command.
        code = (
            "from pathlib import Path; from examples.make_tiny_model import make_tiny_model; "
            f"make_tiny_model(Path({scratch!r}, 'tiny'), hidden_size=64, num_hidden_layers=2, "
            "num_attention_heads=4, vocab_size=512)"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
        for name, file, content in (
            ("config", "config.json", '{"model_type": "llama", "hidden_size": "x"}'),
            ("tokenizer", "tokenizer.json", '{"a": ['),
            ("weights", "model.safetensors", "x" * 100),
        ):
            shutil.copytree(folder / "tiny", folder / name)
            (folder / name / file).write_text(content)
        (folder / "bad.jsonl").write_text('{"input": 3}\n[]\n')
        (folder / "good.jsonl").write_text('{"input": "a", "output": "b"}\n')
        print("| verb | what is wrong | CPU s | peak MB |\n| --- | --- | --- | --- |")
        for wrong in ("missing", "config", "tokenizer", "weights", "data"):
            model, data = ("tiny", "bad.jsonl") if wrong == "data" else (wrong, "good.jsonl")
            for verb, arguments in commands(folder, model, data).items():
                code, seconds, megabytes = cost_of(folder, arguments)
                if code == 2:
                    print(f"| {verb} | {wrong} | {seconds:.1f} | {megabytes:.0f} |", flush=True)


def commands(folder: Path, model: str, data: str) -> dict[str, list[str]]:
    path, out = f"{folder}/{model}", f"{folder}/out"
    (folder / "data").mkdir(exist_ok=True)
    shutil.copyfile(folder / data, folder / "data" / "training.jsonl")
    train = ["--hf_model_id", path, "--dataset_path", f"{folder}/data", "--num_gpus", "1"]
    return {
        "inspect": ["inspect", path],
        "data check": ["data", "check", f"{folder}/data", "--hf_model_id", path],
        "train --dryrun": ["train", *train, "--dryrun"],
        "train": ["train", *train],
        "evaluate": ["evaluate", path, f"{folder}/{data}"],
        "generate": ["generate", path, "--file", f"{folder}/{data}"],
        "chat": ["chat", path],
        "merge": ["merge", path, out, "--data", f"{folder}/{data}"],
        "export": ["export", path, out],
    }


def cost_of(folder: Path, arguments: list[str]) -> tuple[int, float, float]:
    """Exit code, seconds of CPU time and megabytes of the largest process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "finetuning", *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
    )
    _, status, usage = os.wait4(process.pid, 0)
    shutil.rmtree(folder / "out", ignore_errors=True)
    return os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


if __name__ == "__main__":
    main()
