"""From a JSONL file to token arrays: `finetune data` beside `datasets.map` with transformers, on the same file.

    python benchmarks/data_tokenise.py MODEL --samples 200000 --peer_python OTHER_VENV/bin/python

Ours checks the data as well (every finding, duplicates, leakage, script), writes memory-mapped arrays, and starts from them
again. The peer loads the file with `datasets.load_dataset("json")`, renders the chat template, tokenises and masks the
prompt in a batched `map` on all cores, which is how SFT trainers do it, and starts again from its cache. OTHER_VENV needs
`datasets` and `transformers`, which is no dependency of this project. Wall seconds and CPU seconds (children included) of
each phase; the machine should have nothing else to do.
"""

import argparse
import json
import os
import resource
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

def tokenise(batch):
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
data = data.map(tokenise, batched=True, num_proc=cores, remove_columns=data.column_names)
own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
print(json.dumps({"wall_s": time.monotonic() - started, "cpu_s": cpu, "samples": len(data),
                  "first": data[0]["input_ids"]}))
"""

OURS = """
import json, resource, sys, time
started = time.monotonic()
from pathlib import Path
from finetuning.data.configure import build_once, configure_dataset
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
    parser.add_argument("--peer_python", help="interpreter with datasets and transformers; left out: only ours")
    given = parser.parse_args()
    model, cores = str(Path(given.model).resolve()), str(len(os.sched_getaffinity(0)))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "data").mkdir()
        file = folder / "data" / "training.jsonl"
        write_samples(file, given.samples)
        print(f"{given.samples} samples, {file.stat().st_size / 2**20:.0f} MiB, {cores} cores")
        for name, text in (("ours.py", OURS), ("peer.py", PEER)):
            (folder / name).write_text(text, encoding="utf-8")
        results = {}
        for name in ("ours", "ours, second start"):
            results[name] = run(sys.executable, folder / "ours.py", str(file.parent), model, str(folder / "tokens"))
        for name in ("peer", "peer, second start") if given.peer_python else ():
            results[name] = run(given.peer_python, folder / "peer.py", str(file), model, str(folder / "cache"), cores)
        for name, result in results.items():
            print(f"{name:<20} wall {result['wall_s']:7.1f} s   CPU {result['cpu_s']:7.1f} s   {result['samples']} samples")
        print(f"ours: {results['ours']['tokens']:,} tokens, findings {results['ours']['findings']}")
        if given.peer_python:
            assert results["ours"]["first"] == results["peer"]["first"], "not the same tokens"
            for start in ("", ", second start"):
                ratio = results["peer" + start]["wall_s"] / results["ours" + start]["wall_s"]
                print(f"peer / ours{start}: {ratio:.2f} of wall time")
    print(f"peak memory of a child process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
