"""Peak memory and speed of `finetune export` on a checkpoint shaped like Llama-3.1-8B, with fewer layers if need be.

    python benchmarks/export_memory.py --layers 8 --folder /tmp/export_memory

Writes a float32 checkpoint (random numbers) and a model folder without weights, exports it to
bfloat16 in a process of its own, and prints that process's peak memory beside the time of a plain copy of the same bytes.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp

from examples.make_tiny_model import make_tiny_model
from finetuning.config.llama import read_llama_config
from finetuning.formats.weight_source import llama_shapes

SHAPE = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "dtype": "bfloat16",
}


# ru_maxrss would count the memory of the process that it was forked from.
COMMAND = """
import atexit, sys
from pathlib import Path
from finetuning.cli.main import console
def tell(): print([line for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line][0], file=sys.stderr)
atexit.register(tell)
console()
"""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    base, checkpoint, out = (given.folder / name for name in ("base", "checkpoint", "out"))
    if not checkpoint.is_dir():
        make_checkpoint(base, checkpoint, given.layers)
    shutil.rmtree(out, ignore_errors=True)
    size = sum(file.stat().st_size for file in checkpoint.iterdir())
    begin = time.perf_counter()
    arguments = ["export", str(checkpoint), str(out), "--base", str(base)]
    found = subprocess.run([sys.executable, "-c", COMMAND, *arguments], check=True, capture_output=True, text=True)
    export_s = time.perf_counter() - begin
    peak_gib = int(found.stderr.split()[-2]) / 2**20
    begin = time.perf_counter()
    subprocess.run(f"cat {checkpoint}/*.distcp > {given.folder}/copy", shell=True, check=True)
    copy_s = time.perf_counter() - begin
    (given.folder / "copy").unlink()
    written = sum(file.stat().st_size for file in out.iterdir())
    print(
        f"{given.layers} layers: {size / 2**30:.1f} GiB in, {written / 2**30:.1f} GiB out, peak {peak_gib:.2f} GiB, "
        f"{export_s:.0f} s; cat of the input to a file {copy_s:.0f} s"
    )


def make_checkpoint(base: Path, checkpoint: Path, layers: int) -> None:
    make_tiny_model(base, vocab_size=512)
    (base / "model.safetensors").unlink()
    config = json.loads((base / "config.json").read_text()) | SHAPE | {"num_hidden_layers": layers}
    (base / "config.json").write_text(json.dumps(config))
    shapes = llama_shapes(read_llama_config(base))
    numbers = torch.randn(max(shape.numel() for shape in shapes.values()))
    state = {f"model.{name}": numbers[: shape.numel()].view(shape) for name, shape in shapes.items()}
    dcp.save(state, checkpoint_id=checkpoint)
    files = {file.name: file.stat().st_size for file in checkpoint.iterdir()}
    info = {"step": 1, "identity": {"peft": "none"}, "origin": {"prompt": None}, "files": files}
    (checkpoint / "checkpoint.json").write_text(json.dumps(info))


if __name__ == "__main__":
    main()
