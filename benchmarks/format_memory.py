"""Peak memory of every format in and out, on models shaped like Llama-3.1-8B with fewer layers if need be.

    python benchmarks/format_memory.py --layers 4 --folder /tmp/format_memory

Each command runs in a process of its own, one after the other, on what an earlier one wrote: a float32 checkpoint of this
command to Hugging Face, that to float16, to NeMo and back, an adapter merged, and GGUF (Q8_0, the same block everywhere).
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.export_memory import COMMAND, make_checkpoint
from finetuning.config.llama import read_llama_config
from finetuning.formats.gguf.weights import gguf_name, rope_divisors
from finetuning.formats.stored_model import open_model

RANK = 16


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    folder: Path = given.folder
    base, checkpoint = folder / "base", folder / "checkpoint"
    if not checkpoint.is_dir():
        make_checkpoint(base, checkpoint, given.layers)
    print("| from | to | in | out | peak memory | seconds |\n| --- | --- | --- | --- | --- | --- |")
    hugging_face = measure("checkpoint, float32", "Hugging Face, bfloat16", checkpoint, folder / "hf", "--base", base)
    measure("Hugging Face", "Hugging Face, float16", hugging_face, folder / "fp16", "--dtype", "float16", keep=False)
    nemo = measure("Hugging Face", "NeMo 2", hugging_face, folder / "nemo", "--to", "nemo")
    measure("NeMo 2", "Hugging Face", nemo, folder / "back", keep=False)
    shutil.rmtree(nemo)
    adapter = make_adapter(hugging_face, folder / "adapter")
    measure(
        "base and adapter", "Hugging Face, merged", adapter, folder / "merged", "--merge", "--base", hugging_face, keep=False
    )
    file = make_gguf(hugging_face, folder / "model.gguf")
    measure("GGUF, Q8_0", "Hugging Face, bfloat16", file, folder / "gguf", "--base", hugging_face, keep=False)


def measure(source: str, target: str, given: Path, out: Path, *more: object, keep: bool = True) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    begin = time.perf_counter()
    arguments = ["export", str(given), str(out), *map(str, more)]
    found = subprocess.run([sys.executable, "-c", COMMAND, *arguments], check=False, capture_output=True, text=True)
    seconds = time.perf_counter() - begin
    assert found.returncode == 0, found.stderr
    peak_gib = int(found.stderr.split()[-2]) / 2**20
    print(
        f"| {source} | {target} | {size(given):.2f} GiB | {size(out):.2f} GiB | {peak_gib:.2f} GiB | {seconds:.0f} |",
        flush=True,
    )
    if not keep:
        shutil.rmtree(out)
    return out


def size(path: Path) -> float:
    """GiB of a file, or of all files in a folder."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) / 2**30


def make_adapter(base: Path, target: Path) -> Path:
    target.mkdir(exist_ok=True)
    tensors = {}
    for name, shape in open_model(base).weights().shapes().items():
        if "_proj" in name:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.randn(RANK, shape[1]) * 0.01
            tensors[f"{module}.lora_B.weight"] = torch.randn(shape[0], RANK) * 0.01
    save_file(tensors, target / "adapter_model.safetensors")
    settings = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 32,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base),
    }
    (target / "adapter_config.json").write_text(json.dumps(settings))
    return target


def make_gguf(base: Path, file: Path) -> Path:
    config = read_llama_config(base)
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    tensors = {gguf_name(name): tuple(shape) for name, shape in open_model(base).weights().shapes().items()}
    block = gguf.quantize(np.random.default_rng(0).normal(0, 0.02, (1, 32)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    data = {}
    for name, shape in tensors.items():
        if len(shape) == 1:
            data[name] = np.ones(shape, np.float32)
            writer.add_tensor_info(name, shape, data[name].dtype, data[name].nbytes)
        else:
            data[name] = np.broadcast_to(block, (shape[0], shape[1] // 32, block.shape[1]))
            stored = (shape[0], shape[1] // 32 * block.shape[1])
            writer.add_tensor_info(
                name, stored, np.dtype(np.uint8), data[name].nbytes, raw_dtype=gguf.GGMLQuantizationType.Q8_0
            )
    assert config.rope_scaling is not None
    data["rope_freqs.weight"] = rope_divisors(config.rope_scaling, config.head_dim, config.rope_theta).numpy()
    writer.add_tensor_info("rope_freqs.weight", data["rope_freqs.weight"].shape, np.dtype(np.float32), config.head_dim * 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for values in data.values():
        writer.write_tensor_data(values.reshape(len(values), -1) if values.ndim == 3 else values)
    writer.close()
    return file


if __name__ == "__main__":
    main()
