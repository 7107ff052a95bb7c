"""Ours and the peers on the same work, one after the other on one GPU: speed, memory, clocks and power, as a dated table.

The same random 8B shape, lengths, order of samples and packed rows for all; LoRA r = 16 on all seven linears, AdamW. Ours runs
through the ordinary command (one_gpu.py); each peer is a process of its own with the packages of its site (peers_sites.py).
Only real tokens count. Peers pack into rows of --row_length, ours chooses. A peer that fails does not stop the others: the end
of its output is its result.

    python benchmarks/peers.py --work /tmp/bench --sites /tmp/sites --cases ours-8192 automodel-8192 --out results

Results gather in --work, so that several calls fill one table. Cases whose ratio is to be quoted belong in one call with ours.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import one_gpu
import torch

from benchmarks.gpu import GpuSampler, driver
from finetuning.config.llama import LlamaConfig, read_llama_config
from finetuning.config.strategy import PackPlan
from finetuning.data.batches.order import samples_of_step
from finetuning.data.batches.packing import plan_rows
from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.reading.records import Sample

HERE = Path(__file__).parent
PEER_STEPS = 6  # peer_loop: two to warm up, four timed
SEED = 1234  # of our command, which decides the order of the samples
SAMPLES_PER_STEP = {"alpaca": 128, "8192": 4}
OURS_STEPS = {"alpaca": 20, "8192": 12}
PEER_TIMEOUT_S = 240


@dataclass(frozen=True)
class Case:
    """One run of one program; `sites` are folders of --sites that it finds its packages in."""

    lengths: str  # alpaca | 8192
    program: str  # ours, or the name in peer_NAME.py
    options: tuple[str, ...] = ()
    sites: tuple[str, ...] = ()


def _transformers(lengths: str, *options: str, fa4: bool = False) -> Case:
    return Case(lengths, "transformers", options, ("transformers", "fa4") if fa4 else ("transformers",))


def _automodel(lengths: str, *options: str, fa4: bool = False) -> Case:
    return Case(lengths, "automodel", options, ("automodel", "fa4") if fa4 else ("automodel",))


def _unsloth(lengths: str, *options: str, more: tuple[str, ...] = ()) -> Case:
    return Case(lengths, "unsloth", options, ("unsloth", *more))


FA2, FA4 = ("--attention", "flash_attention_2"), ("--attention", "flash_attention_4")
RECOMPUTE, KEEP = ("--checkpointing", "on"), ("--checkpointing", "off")
CASES = {
    "ours-8192": Case("8192", "ours"),
    "automodel-8192": _automodel("8192"),
    "automodel-8192-fa4": _automodel("8192", *FA4, fa4=True),
    "unsloth-8192": _unsloth("8192"),
    "unsloth-8192-keep": _unsloth("8192", *KEEP),
    "unsloth-8192-keep-fa2": _unsloth("8192", *KEEP, *FA2),
    "transformers-8192-recompute": _transformers("8192", *RECOMPUTE),
    "transformers-8192": _transformers("8192"),
    "transformers-8192-fa4": _transformers("8192", *FA4, fa4=True),
    "ours-8192-fp8": Case("8192", "ours", ("--fp8",)),
    "ours-alpaca": Case("alpaca", "ours"),
    "automodel-alpaca-packed-fa4": _automodel("alpaca", *FA4, fa4=True),
    "automodel-alpaca-packed-fa2": _automodel("alpaca", *FA2),
    "unsloth-alpaca-packed": _unsloth("alpaca"),
    "unsloth-alpaca-packed-keep": _unsloth("alpaca", *KEEP),
    "unsloth-alpaca-packed-keep-fa2": _unsloth("alpaca", *KEEP, *FA2),
    "transformers-alpaca-padded-recompute": _transformers("alpaca", "--layout", "padded", *RECOMPUTE),
    "transformers-alpaca-padded": _transformers("alpaca", "--layout", "padded"),
    "transformers-alpaca-packed-fa4": _transformers("alpaca", *FA4, fa4=True),
    "transformers-alpaca-packed-fa2": _transformers("alpaca", *FA2),
    "ours-alpaca-fp8": Case("alpaca", "ours", ("--fp8",)),
    # Less likely to be the best: named only.
    "automodel-8192-own": _automodel("8192", "--model_code", "own"),
    "automodel-8192-liger-loss": _automodel("8192", "--loss", "liger"),
    "automodel-alpaca-padded": _automodel("alpaca", "--layout", "padded"),
    "unsloth-8192-keep-xformers": _unsloth("8192", *KEEP, more=("xformers",)),
    "unsloth-alpaca-packed-keep-xformers": _unsloth("alpaca", *KEEP, more=("xformers",)),
    "unsloth-alpaca-padded-keep": _unsloth("alpaca", "--layout", "padded", *KEEP),
}
DEFAULT_CASES = [
    name for name in CASES if not name.endswith(("-own", "-liger-loss", "-xformers", "automodel-alpaca-padded", "padded-keep"))
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for model, data, experiments and logs: 40 GB")
    parser.add_argument("--sites", type=Path, required=True, help="folder with the peers' packages, see peers_sites.py")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=DEFAULT_CASES)
    parser.add_argument("--layers", type=int, default=one_gpu.SHAPE_8B["num_hidden_layers"], help="fewer, to try the script")
    parser.add_argument("--flags", default="", help="more flags for ours, separated by spaces")
    parser.add_argument("--row_length", type=int, default=8192, help="tokens of a peer's packed row at most")
    parser.add_argument("--budget_s", type=float, default=float("inf"), help="start no further case after this many seconds")
    parser.add_argument("--out", type=Path, help="folder for DATE-peers.json and DATE-peers.md")
    arguments = parser.parse_args()
    fixed = [name for name in arguments.cases if CASES[name].program == "unsloth" or "padded" in CASES[name].options]
    if arguments.row_length != 8192 and fixed:
        parser.error(f"--row_length {arguments.row_length}: {', '.join(fixed)} would go on with 8192; choose others by --cases")
    started = time.monotonic()
    arguments.work.mkdir(parents=True, exist_ok=True)
    model = arguments.work / f"llama-8b-{arguments.layers}"
    if not model.is_dir():
        one_gpu.make_model(model, arguments.layers)
    bench = Bench(model, arguments.work, arguments.sites, arguments.flags.split(), arguments.row_length)
    for name in arguments.cases:
        if time.monotonic() - started > arguments.budget_s:
            print(f"{name}: not started, the budget of {arguments.budget_s:.0f} s is spent", flush=True)
            continue
        print(json.dumps(bench.run(name, CASES[name])), flush=True)
        bench.store(arguments.out)


class Bench:
    """The results so far, and what all cases need."""

    def __init__(self, model: Path, work: Path, sites: Path, flags: list[str], row_length: int):
        self.model, self.work, self.sites, self.flags, self.row_length = model, work, sites, flags, row_length
        self.config = read_llama_config(model)
        self.file = work / "peers.json"
        self.results: dict[str, dict[str, object]] = {}
        if self.file.is_file():
            self.results = json.loads(self.file.read_text(encoding="utf-8"))["results"]

    def run(self, name: str, case: Case) -> dict[str, object]:
        """Runs a case and returns its facts; with `error`, the end of its output, when it failed."""
        data = self.work / f"data-{case.lengths}"
        if not data.is_dir():
            one_gpu.make_data(data, self.model, case.lengths)
        workload = self.work / f"workload-{case.lengths}-{self.row_length}.pt"
        if not workload.is_file():
            write_workload(workload, data, self.model, self.config, SAMPLES_PER_STEP[case.lengths], self.row_length)
        with GpuSampler() as sampler:
            found = self._ours(name, case) if case.program == "ours" else self._peer(name, case, workload)
        if case.program != "ours" and self.row_length != 8192:
            name = f"{name}, rows of {self.row_length}"
        result = {"case": name, "lengths": case.lengths, "at": time.strftime("%Y-%m-%d %H:%M:%S")} | found
        if "tokens_per_second" in found:
            flop = flop_per_token(self.config, torch.load(workload)["document_tokens"])
            result |= {"tflops": round(float(str(found["tokens_per_second"])) * flop / 1e12)} | sampler.means(*found["window"])  # type: ignore[misc]
        self.results[name] = result
        return result

    def _ours(self, name: str, case: Case) -> dict[str, object]:
        shutil.rmtree(
            self.work / "experiments" / f"{name}-lora", ignore_errors=True
        )  # or the command would find nothing left to do
        ordinary = one_gpu.Case(case.lengths, OURS_STEPS[case.lengths], one_gpu.LORA, SAMPLES_PER_STEP[case.lengths])
        flags = [*case.options, *self.flags]
        found = one_gpu.run_case(f"{name}-lora", ordinary, self.model, self.config, self.work, flags)
        log = (self.work / f"{name}-lora.log").read_text(encoding="utf-8")
        if "tokens_per_second" not in found:
            return found | {"error": log[-1500:]}
        return found | {"flags": flags}

    def _peer(self, name: str, case: Case, workload: Path) -> dict[str, object]:
        folders = [self.sites / site for site in case.sites]
        # flash-attn-4's compiler names this folder in a .pth file, which Python reads in site-packages only.
        folders += [self.sites / site / "nvidia_cutlass_dsl" / "dsl_packages" for site in case.sites if site == "fa4"]
        missing = [str(folder) for folder in folders if not folder.is_dir()]
        if missing:
            return {"error": f"no such folder: {', '.join(missing)}"}
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(map(str, folders)),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        command = [
            sys.executable,
            str(HERE / f"peer_{case.program}.py"),
            "--workload",
            str(workload),
            "--model",
            str(self.model),
            *case.options,
        ]
        started = time.monotonic()
        log = self.work / f"{name}.log"
        with log.open("w", encoding="utf-8") as output:
            try:
                code = subprocess.run(
                    command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=environment,
                    cwd=self.work,
                    timeout=PEER_TIMEOUT_S,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = -1
        facts: dict[str, object] = {
            "exit_code": code,
            "wall_s": round(time.monotonic() - started, 1),
            "options": list(case.options),
        }
        text = log.read_text(encoding="utf-8", errors="replace")
        found = [line.removeprefix("RESULT ") for line in text.splitlines() if line.startswith("RESULT ")]
        if not found:
            return facts | {"error": f"stopped after {PEER_TIMEOUT_S} s\n" * (code == -1) + text[-1500:]}
        return facts | json.loads(found[-1])

    def store(self, out: Path | None) -> None:
        document = {"machine": one_gpu.machine() | driver(), "flop_formula": FLOP_FORMULA, "results": self.results}
        text = json.dumps(document, indent=1) + "\n"
        self.file.write_text(text, encoding="utf-8")
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            date = time.strftime("%Y-%m-%d")
            (out / f"{date}-peers.json").write_text(text, encoding="utf-8")
            (out / f"{date}-peers.md").write_text(table(document), encoding="utf-8")


def write_workload(file: Path, data: Path, model: Path, config: LlamaConfig, samples_per_step: int, row_length: int) -> None:
    """The samples of the first steps, as our command orders and packs them; a document of n tokens counts n - 1, as with us."""
    prompt_format = load_prompt_format(model, None, None)
    lines = (data / "training.jsonl").read_text(encoding="utf-8").splitlines()
    raw = [json.loads(line) for line in lines]
    encoded = prompt_format.encode_all([Sample(number + 1, r["input"], r["output"]) for number, r in enumerate(raw)])
    plan = PackPlan(row_length, 128, config.attention_cost)
    tokens, labels, steps = [], [], []
    for step in range(PEER_STEPS):
        members = samples_of_step(step, samples_per_step, len(encoded), SEED)
        lengths = np.array([len(encoded[index][0]) - 1 for index in members])
        first = len(tokens)
        for index in members:
            ids, trained = encoded[index]
            tokens.append(torch.from_numpy(ids[:-1]))
            labels.append(torch.from_numpy(np.where(trained, ids, -100)[:-1]))
        steps.append([[first + place for place in row] for row in plan_rows(lengths, 1, plan)[0]])
    torch.save({"tokens": tokens, "labels": labels, "steps": steps, "document_tokens": [len(ids) for ids in tokens]}, file)


FLOP_FORMULA = (
    "per token 4 N (forward and gradient of the input; no weight gradients of frozen layers, adapters not counted, nothing "
    "counted twice for recomputation) with N the weights of linear layers and head, and 7 D L layers for causal attention "
    "(2 products forward, 5 backward, half of each masked), D hidden size, L the mean document length weighted by tokens"
)


def flop_per_token(config: LlamaConfig, document_tokens: list[int]) -> float:
    length = sum(count**2 for count in document_tokens) / sum(document_tokens)
    attention = 7 * config.num_attention_heads * config.head_dim * config.num_hidden_layers * length
    return one_gpu.flop_per_token(config, lora=True) + attention


def table(document: dict) -> str:  # type: ignore[type-arg]
    """The results as Markdown, the fastest first; the ratios are ours in bf16, and ours with --fp8, to a peer's row."""
    lines = [
        f"# Ours and the peers, {document['machine']['date']}",
        "",
        ", ".join(f"{k} {v}" for k, v in document["machine"].items()),
        "",
    ]
    lines += [f"FLOP: {document['flop_formula']}.", ""]
    for lengths, title in (("8192", "One 8192-token document per row"), ("alpaca", "Alpaca-like lengths, 128 samples a step")):
        rows = [row for row in document["results"].values() if row["lengths"] == lengths]
        if not rows:
            continue
        ours = [document["results"].get(f"ours-{lengths}{way}", {}).get("tokens_per_second") for way in ("", "-fp8")]
        lines += [
            f"## {title}",
            "",
            "| case | tok/s | ours, bf16 / fp8, is faster by | TFLOP/s | peak GiB | fill | SM MHz | W |",
            "| --- " * 8 + "|",
        ]
        for row in sorted(rows, key=lambda row: -row.get("tokens_per_second", 0)):
            rate = row.get("tokens_per_second")
            if rate is None:
                last = [line for line in row.get("error", "").splitlines() if line.strip()][-1:] or [""]
                lines.append(f"| {row['case']} | failed: {last[0][:150].replace('|', '/')} | | | | | | |")
                continue
            ratio = "" if row["case"].startswith("ours") else " / ".join(f"{own / rate:.2f}×" if own else "–" for own in ours)
            cells = [
                row["case"],
                rate,
                ratio,
                row["tflops"],
                row["memory_gib"],
                row["fill"],
                row.get("sm_mhz", ""),
                row.get("power_w", ""),
            ]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
