"""What the worker's machinery costs: the rows of a finished run once more, in a plain loop without any of it.

No launcher, no process group, no Lightning, no mesh, no records: one process reads the run's batches, runs the same blocks
forward and backward over their rows and lets torch's AdamW step. Prints both speeds and both last losses. For LoRA on one GPU.

    python benchmarks/plain_loop.py /tmp/bench/experiments/lora-alpaca --out plain.json
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.one_gpu import WARM_UP_STEPS, machine  # noqa: E402
from finetuning.config.llama import LlamaConfig, read_llama_config  # noqa: E402
from finetuning.config.run import Run, read_run  # noqa: E402
from finetuning.data.batches.global_batch import GlobalBatches, StepBatch  # noqa: E402
from finetuning.data.tokens.tokenized import open_split  # noqa: E402
from finetuning.model.blocks.lora_block import LoraBlock  # noqa: E402
from finetuning.model.llama import Block, Llama  # noqa: E402
from finetuning.model.lora import add_lora, initial_adapter, is_adapter  # noqa: E402
from finetuning.training.metrics import read_metrics  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path, help="a finished run: LoRA on one GPU, not resumed")
    parser.add_argument("--out", type=Path, help="where to write the result as JSON")
    arguments = parser.parse_args()
    run, rows = read_run(arguments.experiment / "run.yaml"), read_metrics(arguments.experiment / "metrics.csv")
    llama_config = read_llama_config(Path(run.model_path))
    model = build(run, llama_config)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    config = run.config
    optimizer = torch.optim.AdamW(
        trained,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        fused=run.device == "cuda",
    )
    speeds, losses = [], []
    batches = GlobalBatches(
        open_split(Path(run.tokens_dir) / "training"),
        start_step=0,
        max_steps=len(rows),
        seed=config.seed,
        global_batch_size=config.global_batch_size,
        data_rank=0,
        data_parallel_size=1,
        plan=run.strategy.packs,
    )
    for batch, row in zip(batches, rows, strict=True):
        started = time.perf_counter()
        optimizer.param_groups[0]["lr"] = float(row["learning_rate"])
        losses.append(step(model, batch, torch.device(run.device)))
        nn.utils.clip_grad_norm_(trained, config.clip_grad)
        optimizer.step()
        optimizer.zero_grad()
        speeds.append(batch.tokens / (time.perf_counter() - started))
    result = {
        "machine": machine(),
        "experiment": arguments.experiment.name,
        "tokens_per_second": {
            "worker": round(statistics.median(float(row["tokens_per_second"]) for row in rows[WARM_UP_STEPS:])),
            "plain loop": round(statistics.median(speeds[WARM_UP_STEPS:])),
        },
        "last_loss": {"worker": float(rows[-1]["train_loss"]), "plain loop": losses[-1]},
    }
    print(json.dumps(result))
    if arguments.out:
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def build(run: Run, llama_config: LlamaConfig) -> Llama:
    config, dtype = run.config, torch.bfloat16 if run.device == "cuda" else torch.float32
    with torch.device("meta"):
        model = Llama(llama_config)
        add_lora(model, config.lora_rank, config.standard_alpha, config.lora_targets)
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.float32 if parameter.requires_grad else dtype)
    model.to_empty(device=run.device)
    for name, block in model.model.layers.items():
        assert isinstance(block, Block)
        model.model.layers[name] = LoraBlock(block, fp8=config.fp8)
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for file in sorted(Path(run.model_path).glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (no dictionary)
                    weights[name].copy_(tensors.get_tensor(name))
        for name, weight in weights.items():
            if is_adapter(name):
                weight.copy_(initial_adapter(name, weight.shape, config.seed))
    return model


def step(model: Llama, batch: StepBatch, device: torch.device) -> float:
    """Adds the gradients of a step; returns its loss."""
    total = torch.zeros((), device=device)
    for row in (row.to(device) for row in batch.micro_batches):
        loss = model(row.tokens, row.positions, row.documents, labels_BT=row.labels, num_targets=row.num_targets)
        (loss / batch.answer_tokens).backward()
        total += loss.detach() / batch.answer_tokens
    return total.item()


if __name__ == "__main__":
    main()
