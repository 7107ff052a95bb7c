"""How fast a torch_dist checkpoint shaped like Llama-3.1-8B is read, beside `cat` of the same files, and in which memory.

    python benchmarks/nemo_import.py --layers 8 --folder /tmp/nemo_import

Writes random bfloat16 weights, then, alternately and several times, each in a process of its own and with the files'
pages dropped from the cache: `cat` of all files to /dev/null, and every weight read as training reads it, a few MiB at a time.
With --resident the weights are kept, as when a model is filled with them.
"""

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch

from finetuning.config.llama import LlamaConfig
from finetuning.config.rope import RopeScaling
from finetuning.formats.load_sharded import BYTES_AT_ONCE
from finetuning.formats.nemo.checkpoint import nemo_source, open_nemo
from finetuning.formats.nemo.write import PREFIX, TorchDistWriter, megatron_pieces
from finetuning.formats.weight_source import llama_shapes

LLAMA_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=128,
    rms_norm_eps=1e-5,
    rope_theta=500000.0,
    rope_scaling=RopeScaling(8.0, 1.0, 4.0, 8192),
    max_position_embeddings=131072,
    tie_word_embeddings=False,
    dtype="bfloat16",
)


class RandomSource:
    """Weights of the right shapes; the same random numbers in all of them."""

    def __init__(self, config: LlamaConfig):
        self.config = config
        self.numbers = torch.randn(2**26, dtype=torch.float32).bfloat16()

    def shapes(self) -> dict[str, torch.Size]:
        return llama_shapes(self.config)

    def dtype(self, name: str) -> torch.dtype:
        return torch.bfloat16

    def read(self, name: str, start: int = 0, stop: int | None = None) -> torch.Tensor:
        shape = self.shapes()[name]
        rows = (shape[0] if stop is None else stop) - start
        count = rows * shape[1:].numel()
        whole = self.numbers if count <= len(self.numbers) else self.numbers.repeat(-(-count // len(self.numbers)))
        return whole[:count].view(rows, *shape[1:])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--resident", action="store_true")
    parser.add_argument("--read", action="store_true", help="only read once, and print seconds and peak memory")
    given = parser.parse_args()
    config = dataclasses.replace(LLAMA_8B, num_hidden_layers=given.layers)
    if given.read:
        print(json.dumps(read(given.folder, config, resident=given.resident)))
        return
    if not given.folder.exists():
        given.folder.mkdir(parents=True)
        source = RandomSource(config)
        with TorchDistWriter(given.folder, 0) as writer:
            for key, size, offsets, piece in megatron_pieces(source, source.dtype):
                writer.add(PREFIX + key, size, offsets, piece)
    files = sorted(given.folder.glob("*.distcp"))
    gigabytes = sum(file.stat().st_size for file in files) / 1e9
    print(f"{given.layers} layers, {gigabytes:.2f} GB in {len(files)} files")
    for _ in range(given.repeats):
        drop(files)
        begin = time.perf_counter()
        subprocess.run("cat " + " ".join(map(str, files)) + " > /dev/null", shell=True, check=True)
        cat_s = time.perf_counter() - begin
        drop(files)
        command = [sys.executable, __file__, "--read", "--layers", str(given.layers), "--folder", str(given.folder)]
        command += ["--resident"] if given.resident else []
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(
            f"cat {cat_s:.2f} s ({gigabytes / cat_s:.2f} GB/s), read {found['seconds']:.2f} s "
            f"({gigabytes / found['seconds']:.2f} GB/s), ratio {cat_s / found['seconds']:.2f}; "
            f"memory before {found['before_gib']:.2f} GiB, peak {found['peak_gib']:.2f} GiB"
        )


def read(folder: Path, config: LlamaConfig, *, resident: bool) -> dict[str, float]:
    kept = []
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    begin = time.perf_counter()
    source = nemo_source(open_nemo(folder, folder), config)
    for name, shape in source.shapes().items():
        at_once = max(1, BYTES_AT_ONCE // (2 * shape[1:].numel()))
        target = torch.empty(shape, dtype=torch.bfloat16) if resident else None
        for start in range(0, shape[0], at_once):
            rows = source.read(name, start, start + at_once)
            if target is not None:
                target[start : start + at_once] = rows
        kept.append(target)
    seconds = time.perf_counter() - begin
    return {"seconds": seconds, "before_gib": before, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def drop(files: list[Path]) -> None:
    """Takes the files' pages out of the cache."""
    for file in files:
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


if __name__ == "__main__":
    main()
