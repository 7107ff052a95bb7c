"""From a JSONL file to token arrays: `finetune data` beside `datasets.map` with transformers, on the same file.

    nice -n -15 python benchmarks/data_tokenize.py MODEL --samples 200000 --rounds 3 --peer_python OTHER_VENV/bin/python

Ours checks the data as well (every finding, duplicates, leakage, script), writes memory-mapped arrays, and starts from them
again. The peer loads the file with `datasets.load_dataset("json")`, renders the chat template, tokenizes and masks the
prompt in a batched `map` on all cores, which is how SFT trainers do it, and starts again from its cache. OTHER_VENV needs
`datasets`, `transformers` and `jinja2`, which is no dependency of this project. Wall seconds and CPU seconds (children
included) of each phase, imports included. The two take turns, each time anew, and the medians are compared: on a machine with
other work, give both the same priority, and trust the CPU seconds more than the wall's.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
TRAINING_FILE = ROOT / "examples" / "data" / "alpaca" / "training.jsonl"

PEER = """
import json, os, resource, sys, time
started = time.monotonic()
os.environ["HF_HUB_OFFLINE"] = "1"
import datasets
from transformers import AutoTokenizer
datasets.disable_progress_bars()
file, model, cache, cores = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
tokenizer = AutoTokenizer.from_pretrained(model)

def tokenize(batch):
    prompts, wholes = [], []
    for question, answer in zip(batch["input"], batch["output"]):
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        prompts.append(tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True))
        wholes.append(tokenizer.apply_chat_template(messages, tokenize=False))
    lengths = [len(ids) for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    ids = tokenizer(wholes, add_special_tokens=False)["input_ids"]
    labels = [[-100] * length + tokens[length:] for length, tokens in zip(lengths, ids)]
    return {"input_ids": ids, "labels": labels}

data = datasets.load_dataset("json", data_files=file, cache_dir=cache, split="train")
data = data.map(tokenize, batched=True, num_proc=cores, remove_columns=data.column_names)
own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
print(json.dumps({"wall_s": time.monotonic() - started, "cpu_s": cpu, "samples": len(data),
                  "first": data[0]["input_ids"]}))
"""

OURS = """
import json, resource, sys, time
started = time.monotonic()
from pathlib import Path
from finetuning.data.tokens.configure import build_once, configure_dataset
if __name__ == "__main__":
    dataset = configure_dataset(sys.argv[1], sys.argv[2], sys.argv[3], seq_length=8192)
    split = dataset.splits["training"]
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    first = split.pieces(0)[0][0].tolist()
    print(json.dumps({"wall_s": time.monotonic() - started, "cpu_s": cpu, "samples": len(split), "first": first,
                      "tokens": split.num_tokens, "findings": dataset.report.findings.by_code()}))
"""


def write_samples(path: Path, count: int) -> None:
    """Pairs put together from the sentences of the example; log-normal lengths, no two alike."""
    lines = [json.loads(line) for line in TRAINING_FILE.read_text(encoding="utf-8").splitlines()]
    sentences = [part + "。" for line in lines for part in line["output"].split("。") if part.strip()]
    generator = np.random.default_rng(0)
    with path.open("w", encoding="utf-8") as file:
        for index, size in enumerate(np.clip(generator.lognormal(np.log(4), 0.8, count), 1, 60).astype(int)):
            question = f"第 {index} 題：" + lines[index % len(lines)]["input"]
            answer = "".join(sentences[i] for i in generator.integers(0, len(sentences), size))
            file.write(json.dumps({"input": question, "output": answer}, ensure_ascii=False) + "\n")


def run(python: str, script: Path, *arguments: str) -> dict:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([python, str(script), *arguments], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="local model folder, for its tokenizer")
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer_python", help="interpreter with datasets, transformers and jinja2; default: only ours")
    given = parser.parse_args()
    model, cores = str(Path(given.model).resolve()), str(len(os.sched_getaffinity(0)))
    results: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "data").mkdir()
        file = folder / "data" / "training.jsonl"
        write_samples(file, given.samples)
        print(f"{given.samples} samples, {file.stat().st_size / 2**20:.0f} MiB, {cores} cores, load {os.getloadavg()[0]:.1f}")
        for name, text in (("ours.py", OURS), ("peer.py", PEER)):
            (folder / name).write_text(text, encoding="utf-8")
        for turn in range(given.rounds):
            caches = [str(folder / f"{name}{turn}") for name in ("tokens", "cache")]
            for start in ("first start", "second start"):
                result = run(sys.executable, folder / "ours.py", str(file.parent), model, caches[0])
                results.setdefault(f"ours, {start}", []).append(result)
                if given.peer_python:
                    result = run(given.peer_python, folder / "peer.py", str(file), model, caches[1], cores)
                    results.setdefault(f"peer, {start}", []).append(result)
            for cache in caches:
                shutil.rmtree(cache, ignore_errors=True)
    for name, found in sorted(results.items()):
        walls, cpus = ([result[unit] for result in found] for unit in ("wall_s", "cpu_s"))
        print(
            f"{name:<20} wall {statistics.median(walls):7.1f} s ({min(walls):.1f} to {max(walls):.1f})   "
            f"CPU {statistics.median(cpus):7.1f} s ({min(cpus):.1f} to {max(cpus):.1f})"
        )
    ours = results["ours, first start"][0]
    print(f"{ours['samples']} samples, {ours['tokens']:,} tokens, findings {ours['findings']}")
    if given.peer_python:
        assert ours["first"] == results["peer, first start"][0]["first"], "not the same tokens"
        for start in ("first start", "second start"):
            for unit in ("wall_s", "cpu_s"):
                peer, own = (statistics.median(r[unit] for r in results[f"{who}, {start}"]) for who in ("peer", "ours"))
                print(f"{start}: the peer takes {peer / own:.2f} times our {unit.removesuffix('_s')} time")
    print(f"peak memory of a child process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
