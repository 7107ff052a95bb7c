"""What a small model learns with which learning rate, rank, batch, number of steps and scaling: the ground under `--lr auto`.

Trains SmolLM2-135M-Instruct on the data sets of benchmarks/learning_data.py, in one process on one GPU. The runs of a group
differ in learning rate, scaling and seed only, so they are computed side by side: tokens have a leading dimension of runs, the
frozen weights are shared, and a product with adapters is a batch of products. AdamW, clipping, warm-up, schedule, order of
samples and start of the adapters are the command's, per run. Validation loss of answer tokens, its standard error over samples,
and exact match: the share of answers that greedy decoding gives token for token (an answer is, where at each of its positions
the label is the likeliest token).

    python benchmarks/learning.py SmolLM2-135M-Instruct.Q4_1.gguf --out learning.json --seconds 290

The model may come in several files that are one when put together. Groups that matter most come first; results are on disk
after each. Needs torch, numpy and tokenizers, and no network.

Shape letters: K runs, B samples, T positions, S trained positions (padded), D hidden size, N heads, H head size, V vocabulary.
"""

import argparse
import json
import math
import platform
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.learning_data import Pair, data_sets  # noqa: E402
from finetuning.data.batches.order import samples_of_step  # noqa: E402
from finetuning.formats.gguf.header import GgufHeader, read_gguf_header  # noqa: E402

LINEARS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
BETAS, EPS, CLIP = (0.9, 0.98), 1e-8, 1.0
LORA_RATES = tuple(5e-5 * 2**power for power in range(9))
ALL_RATES = tuple(2.5e-6 * 2**power for power in range(10))
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
IGNORED = -100


@dataclass(frozen=True)
class Case:
    """One run."""

    data: str
    method: str = "lora"  # or all
    rank: int = 16
    scale: float = 2.0  # of the low-rank delta
    batch: int = 8
    steps: int = 100
    lr: float = 1e-4
    seed: int = 1
    schedule: str = "cosine"  # cosine, linear, constant or wsd
    warmup: float = 0.1  # share of the steps, at most 50 of them
    weight_decay: float = 0.1


def groups() -> list[list[Case]]:
    """Runs that are computed side by side; what matters most comes first."""

    def lora(data: str, scales: tuple[float, ...] = (2.0,), rates: tuple[float, ...] = LORA_RATES, **rest: int) -> list[Case]:
        base = Case(data, **rest)
        return [replace(base, scale=scale, lr=lr, seed=seed) for scale in scales for lr in rates for seed in (1, 2, 3)]

    def whole(data: str, **rest: int) -> list[Case]:
        return [replace(Case(data, method="all", **rest), lr=lr, seed=seed) for lr in ALL_RATES for seed in (1, 2)]

    def variants(data: str) -> list[Case]:
        base = [replace(Case(data), lr=lr, seed=seed) for lr in (6e-4, 1.2e-3, 2.4e-3) for seed in (1, 2)]
        changes = [{"schedule": name} for name in ("linear", "constant", "wsd")]
        return [
            replace(case, **change)
            for change in (*changes, {"warmup": 0.0}, {"warmup": 0.03}, {"weight_decay": 0.0})
            for case in base
        ]

    names = list(data_sets())
    found = [lora(name, steps=30) for name in names] + [lora(name, steps=100) for name in names]
    found += [whole(name, steps=100) for name in names]
    found += [lora(name, steps=300) for name in names] + [lora(name, steps=10) for name in names]
    found += [lora(name, steps=30, batch=32) for name in names] + [lora(name, steps=100, batch=32) for name in names]
    # Scales of --lora_alpha 32 divided by the rank, of alpha = 2 x rank, of alpha 8 divided by the root of the rank.
    found += [lora(name, (0.5, 2.0, 1.0), rank=64) for name in names] + [lora(name, (8.0, 2.0, 4.0), rank=4) for name in names]
    found += [variants(name) for name in names]
    found += [whole(name, steps=30) for name in names] + [lora(name, steps=100, batch=2) for name in names]
    found += [lora(name, steps=30, batch=128) for name in names] + [whole(name, steps=100, batch=32) for name in names]
    return found


def rate_at(case: Case, step: int) -> float:
    """The command's (finetuning.training.schedule), without its package."""
    warmup = min(50, int(case.warmup * case.steps))
    if step < warmup:
        return case.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, case.steps - warmup)
    shapes = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
        "wsd": min(1.0, 5 * (1 - progress)),  # the last fifth falls
    }
    return case.lr * shapes[case.schedule]


class Texts:
    """Samples as tokens: SmolLM2's chat template, and its tokenizer from the model's file."""

    def __init__(self, header: GgufHeader):
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

        tokens, kinds = (header.settings[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
        merges = [tuple(merge.split(" ")) for merge in header.settings["tokenizer.ggml.merges"]]
        self.tokenizer = Tokenizer(models.BPE(vocab={token: place for place, token in enumerate(tokens)}, merges=merges))
        digits = pre_tokenizers.Digits(individual_digits=True)
        self.tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        self.tokenizer.decoder = decoders.ByteLevel()
        special = [token for token, kind in zip(tokens, kinds, strict=True) if kind != 1]
        self.tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])

    def encode(self, pairs: list[Pair]) -> tuple[Tensor, Tensor]:
        """Tokens [samples, T] and labels: the token that follows, where it belongs to the answer."""
        rows = []
        for question, answer in pairs:
            head = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
            prompt, target = (self.tokenizer.encode(text).ids for text in (head, f"{answer}<|im_end|>"))
            rows.append((prompt, target))
        length = -(-max(len(prompt) + len(target) for prompt, target in rows) // 8) * 8
        tokens = torch.zeros(len(rows), length, dtype=torch.long)
        labels = torch.full((len(rows), length), IGNORED)
        for row, (prompt, target) in enumerate(rows):
            whole = torch.tensor(prompt + target)
            tokens[row, : len(whole)] = whole
            labels[row, len(prompt) - 1 : len(whole) - 1] = whole[len(prompt) :]
        return tokens, labels


def read_weights(file: Path, header: GgufHeader, device: torch.device) -> dict[str, Tensor]:
    """float32, of types F32, F16, Q8_0 (32 numbers: scale, int8) and Q4_1 (scale, smallest, 4 bits: low halves, then high)."""
    raw = torch.from_numpy(np.fromfile(file, dtype=np.uint8))
    weights = {}
    for name, tensor in header.tensors.items():
        count = math.prod(tensor.shape)
        size = {0: 4 * count, 1: 2 * count, 8: count // 32 * 34, 3: count // 32 * 20}[tensor.kind]
        part = raw[tensor.offset : tensor.offset + size].to(device)
        if tensor.kind < 2:
            numbers = part.view(torch.float16 if tensor.kind else torch.float32).float()
        elif tensor.kind == 8:
            blocks = part.view(-1, 34)
            numbers = (
                blocks[:, :2].contiguous().view(torch.float16).float() * blocks[:, 2:].contiguous().view(torch.int8).float()
            )
        else:
            blocks = part.view(-1, 20)
            scale, smallest = blocks[:, :4].contiguous().view(torch.float16).float().split(1, 1)
            numbers = torch.cat((blocks[:, 4:] & 15, blocks[:, 4:] >> 4), 1).float() * scale + smallest
        weights[name] = numbers.view(tensor.shape)
    return weights


class Runs:
    """K runs side by side: one model, or K of them where all weights are trained."""

    def __init__(
        self, cases: list[Case], base: dict[str, Tensor], header: GgufHeader, device: torch.device, dtype: torch.dtype
    ):
        settings = {name.removeprefix("llama."): value for name, value in header.settings.items()}
        self.cases, self.device, self.dtype = cases, device, dtype
        self.layers, self.heads = settings["block_count"], settings["attention.head_count"]
        self.kv_heads, self.eps = settings["attention.head_count_kv"], settings["attention.layer_norm_rms_epsilon"]
        self.theta = settings["rope.freq_base"]
        first, runs = cases[0], len(cases)
        self.lora = first.method == "lora"
        self.frozen = {name: weight.to(dtype) for name, weight in base.items()} if self.lora else {}
        self.shapes: dict[str, torch.Size] = {}
        if self.lora:
            for layer in range(self.layers):
                for linear in LINEARS:
                    outputs, inputs = base[f"blk.{layer}.{linear}.weight"].shape
                    self.shapes[f"blk.{layer}.{linear}.a"] = torch.Size((first.rank, inputs))
                    self.shapes[f"blk.{layer}.{linear}.b"] = torch.Size((outputs, first.rank))
        else:
            self.shapes = {name: weight.shape for name, weight in base.items()}
        sizes = [shape.numel() for shape in self.shapes.values()]
        self.trained = torch.zeros(runs, sum(sizes), device=device)
        for row, case in enumerate(cases):
            for name, part in zip(self.shapes, self.trained[row].split(sizes), strict=True):
                if not self.lora:
                    part.copy_(base[name].flatten())
                elif name.endswith(".a"):
                    bound = 1 / math.sqrt(self.shapes[name][1])
                    seed = hash((case.seed, int(name.split(".")[1]), LINEARS.index(name.split(".")[2]))) % 2**31
                    part.uniform_(-bound, bound, generator=torch.Generator(device).manual_seed(seed))
        self.decays = torch.cat(
            [torch.full((size,), float(len(shape) > 1)) for shape, size in zip(self.shapes.values(), sizes, strict=False)]
        )
        self.decays = self.decays.to(device)
        self.scale = torch.tensor([case.scale for case in cases], device=device, dtype=dtype)[:, None, None]
        self.decay_of_run = torch.tensor([case.weight_decay for case in cases], device=device)[:, None]
        self.mean, self.square = torch.zeros_like(self.trained), torch.zeros_like(self.trained)

    def weights(self, trained: Tensor) -> dict[str, Tensor]:
        sizes = [shape.numel() for shape in self.shapes.values()]
        parts = trained.to(self.dtype).split(sizes, 1)
        return {name: part.view(-1, *shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def hidden(self, weights: dict[str, Tensor], tokens_KBT: Tensor) -> Tensor:
        """Hidden states [K, B * T, D] in front of the head."""
        runs, batch, length = tokens_KBT.shape
        if self.lora:
            x = F.embedding(tokens_KBT.flatten(1), self.frozen["token_embd.weight"])
        else:
            table = weights["token_embd.weight"]
            offsets = torch.arange(runs, device=self.device)[:, None] * table.shape[1]
            x = F.embedding(tokens_KBT.flatten(1) + offsets, table.flatten(0, 1))
        cos, sin = self.rope(length)

        def linear(name: str, x_KTD: Tensor) -> Tensor:
            if not self.lora:
                return torch.bmm(x_KTD, weights[f"{name}.weight"].mT)
            low = torch.bmm(x_KTD, weights[f"{name}.a"].mT) * self.scale
            return torch.baddbmm(F.linear(x_KTD, self.frozen[f"{name}.weight"]), low, weights[f"{name}.b"].mT)

        def norm(name: str, x_KTD: Tensor) -> Tensor:
            gain = self.frozen[name] if self.lora else weights[name][:, None]
            return F.rms_norm(x_KTD, x_KTD.shape[-1:], None, self.eps) * gain

        def heads(x_KTD: Tensor, count: int) -> Tensor:
            return x_KTD.view(runs * batch, length, count, -1).transpose(1, 2)

        for layer in range(self.layers):
            at = f"blk.{layer}."
            h = norm(f"{at}attn_norm.weight", x)
            q, k, v = (linear(f"{at}attn_{part}", h) for part in "qkv")
            q, k = (rotate(heads(part, n), cos, sin) for part, n in ((q, self.heads), (k, self.kv_heads)))
            out = F.scaled_dot_product_attention(q, k, heads(v, self.kv_heads), is_causal=True, enable_gqa=True)
            x = x + linear(f"{at}attn_output", out.transpose(1, 2).reshape(runs, batch * length, -1))
            h = norm(f"{at}ffn_norm.weight", x)
            x = x + linear(f"{at}ffn_down", F.silu(linear(f"{at}ffn_gate", h)) * linear(f"{at}ffn_up", h))
        return norm("output_norm.weight", x)

    def rope(self, length: int) -> tuple[Tensor, Tensor]:
        size = next(iter(self.frozen.values())).shape[-1] if self.lora else self.shapes["output_norm.weight"][0]
        half = size // self.heads // 2
        angles = torch.arange(length, device=self.device)[:, None] / self.theta ** (
            torch.arange(half, device=self.device) / half
        )
        return angles.cos().to(self.dtype), angles.sin().to(self.dtype)

    def losses(self, weights: dict[str, Tensor], tokens_KBT: Tensor, labels_KBT: Tensor, places: int) -> tuple[Tensor, Tensor]:
        """Cross-entropies [K, B, S] of trained positions (0 where there is none), and whether the label was the likeliest."""
        hidden = self.hidden(weights, tokens_KBT).unflatten(1, tokens_KBT.shape[1:])
        at = (labels_KBT == IGNORED).to(torch.int8).argsort(dim=-1, stable=True)[..., :places]  # the trained ones come first
        labels_KBS = labels_KBT.gather(-1, at)
        chosen = hidden.gather(2, at[..., None].expand(*at.shape, hidden.shape[-1])).flatten(1, 2)
        head = self.frozen["token_embd.weight"] if self.lora else weights["token_embd.weight"].mT
        logits = F.linear(chosen, head) if self.lora else torch.bmm(chosen, head)
        logits = logits.flatten(0, 1).float()
        losses = F.cross_entropy(logits, labels_KBS.flatten(), ignore_index=IGNORED, reduction="none")
        right = (logits.argmax(-1) == labels_KBS.flatten()) | (labels_KBS.flatten() == IGNORED)
        return losses.view(labels_KBS.shape), right.view(labels_KBS.shape)

    def step(
        self, places: int, micro: int, tokens_KBT: Tensor, labels_KBT: Tensor, rate_K: Tensor, correction: Tensor
    ) -> Tensor:
        """One optimizer step; loss [K] before it. `correction`: 1 - beta ** step of both betas."""
        leaf = self.trained.detach().requires_grad_()
        counts = (labels_KBT != IGNORED).flatten(1).sum(1)
        total, gradient = torch.zeros_like(rate_K), torch.zeros_like(leaf)
        for tokens, labels in zip(tokens_KBT.split(micro, 1), labels_KBT.split(micro, 1), strict=True):
            losses = self.losses(self.weights(leaf), tokens, labels, places)[0].flatten(1).sum(1) / counts
            gradient += torch.autograd.grad(losses.sum(), leaf)[0]
            total += losses.detach()
        gradient *= (CLIP / (gradient.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1.0)
        self.mean.lerp_(gradient, 1 - BETAS[0])
        self.square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        rate = rate_K[:, None]
        self.trained.mul_(1 - rate * self.decay_of_run * self.decays)
        self.trained.sub_(rate * (self.mean / correction[0]) / ((self.square / correction[1]).sqrt_() + EPS))
        return total


def rotate(x: Tensor, cos_TH: Tensor, sin_TH: Tensor) -> Tensor:
    """Neighbors are a pair, as llama.cpp keeps them."""
    first, second = x[..., 0::2], x[..., 1::2]
    return torch.stack((first * cos_TH - second * sin_TH, second * cos_TH + first * sin_TH), -1).flatten(-2)


class Graphed:
    """Steps of the runs, from the third on as one CUDA graph: 5000 small kernels are launched at once."""

    def __init__(self, runs: Runs, places: int, micro: int):
        self.step, self.graph, self.taken = partial(runs.step, places, micro), torch.cuda.CUDAGraph(), 0
        self.inputs: tuple[Tensor, ...] = ()
        self.stream = torch.cuda.Stream()

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.taken += 1
        if self.taken < 3:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                loss = self.step(*inputs)
            torch.cuda.current_stream().wait_stream(self.stream)
            return loss
        if self.taken == 3:
            self.inputs = tuple(tensor.clone() for tensor in inputs)
            with torch.cuda.graph(self.graph):  # records, and computes nothing
                self.loss = self.step(*self.inputs)
        for mine, given in zip(self.inputs, inputs, strict=True):
            mine.copy_(given)
        self.graph.replay()
        return self.loss.clone()


class Trainer:
    def __init__(self, file: Path, device: torch.device, tokens_at_once: int, *, graphs: bool = False):
        self.header, self.device, self.tokens_at_once = read_gguf_header(file), device, tokens_at_once
        self.graphs = graphs
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.base = read_weights(file, self.header, device)
        texts = Texts(self.header)
        self.data = {name: tuple(map(texts.encode, splits)) for name, splits in data_sets().items()}
        self.before: dict[str, float] = {}
        self.deadline = math.inf

    def train(self, cases: list[Case]) -> list[dict[str, object]]:
        first, began = cases[0], time.monotonic()
        (tokens, labels), validation = self.data[first.data]
        runs = Runs(cases, self.base, self.header, self.device, self.dtype)
        places = int((labels != IGNORED).sum(1).max())
        micro = max(1, self.tokens_at_once // (len(cases) * tokens.shape[1]))
        if first.data not in self.before:
            self.before[first.data] = float(self.evaluate(runs, *validation)[0][0].mean())
        tail = []
        take_step = (
            Graphed(runs, places, micro) if self.graphs and first.method == "lora" else partial(runs.step, places, micro)
        )
        for step in range(first.steps):
            if time.monotonic() > self.deadline:
                raise TimeoutError
            of_seed = {case.seed: samples_of_step(step, first.batch, len(tokens), case.seed) for case in cases}
            chosen = torch.from_numpy(np.stack([of_seed[case.seed] for case in cases]))
            rates = torch.tensor([rate_at(case, step) for case in cases]).to(self.device)
            correction = torch.tensor([1 - beta ** (step + 1) for beta in BETAS]).to(self.device)
            batch = (part[chosen].to(self.device, non_blocking=True) for part in (tokens, labels))
            loss = take_step(*batch, rates, correction)
            if step >= first.steps - 10:
                tail.append(loss)
        losses, exact = self.evaluate(runs, *validation)
        training = torch.stack(tail).mean(0).tolist()
        seconds = (time.monotonic() - began) / len(cases)
        found = []
        for row, case in enumerate(cases):
            loss, error = losses[row].mean().item(), losses[row].std().item() / math.sqrt(losses.shape[1])
            numbers = {"train_loss": training[row], "val_loss": loss, "val_error": error, "exact": exact[row].mean().item()}
            found.append({**asdict(case), "before": self.before[first.data], **numbers, "seconds": seconds})
        return found

    @torch.no_grad()
    def evaluate(self, runs: Runs, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """For each run and sample [K, samples]: loss, weighted so that the mean is that of all tokens, and exact match."""
        places, count = int((labels != IGNORED).sum(1).max()), len(runs.cases)
        micro = max(1, 4 * self.tokens_at_once // (count * tokens.shape[1]))
        weights = runs.weights(runs.trained)
        sums, exact = [], []
        for part, its_labels in zip(tokens.split(micro), labels.split(micro), strict=True):
            both = (x.to(self.device).expand(count, -1, -1) for x in (part, its_labels))
            losses, right = runs.losses(weights, *both, places)
            sums.append(losses.double().sum(-1))
            exact.append(right.all(-1).double())
        per_sample = (labels != IGNORED).sum().item() / len(labels)
        return torch.cat(sums, 1).cpu() / per_sample, torch.cat(exact, 1).cpu()


def join(parts: list[Path]) -> Path:
    if len(parts) == 1:
        return parts[0]
    whole = parts[0].with_name("joined.gguf")
    with whole.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="+", help="GGUF file, or its parts in order")
    parser.add_argument("--out", type=Path, default=Path("learning.json"))
    parser.add_argument("--seconds", type=float, default=math.inf, help="end then, with what there is")
    parser.add_argument("--tokens_at_once", type=int, default=24576, help="positions of a forward pass")
    parser.add_argument("--graphs", action="store_true", help="steps with adapters as CUDA graphs")
    parser.add_argument("--groups", type=int, nargs="*", help="these only, by number")
    parser.add_argument("--rates", type=float, nargs="*", help="these learning rates only")
    parser.add_argument("--seeds", type=int, nargs="*", help="these seeds only")
    arguments = parser.parse_args()
    began = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = Trainer(join(arguments.model), device, arguments.tokens_at_once, graphs=arguments.graphs)
    machine = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor()
    print(f"{machine}, torch {torch.__version__}: model and data read in {time.monotonic() - began:.1f} s", flush=True)
    trainer.deadline = began + arguments.seconds
    results: list[dict[str, object]] = []
    for number, group in enumerate(groups()):
        wanted = [
            case
            for case in group
            if (not arguments.rates or any(math.isclose(case.lr, rate) for rate in arguments.rates))
            and (not arguments.seeds or case.seed in arguments.seeds)
        ]
        if not wanted or (arguments.groups and number not in arguments.groups):
            continue
        start = time.monotonic()
        try:
            found = trainer.train(wanted)
        except torch.OutOfMemoryError as error:
            print(f"group {number}: {error}", flush=True)
            torch.cuda.empty_cache()
            continue
        except TimeoutError:
            print(f"group {number}: no time left", flush=True)
            break
        results += found
        text = json.dumps({"machine": machine, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d"), "runs": results})
        arguments.out.write_text(text)
        seconds = time.monotonic() - start
        print(
            f"group {number}: {summary(found)} · {seconds:.1f} s, {1e3 * seconds / wanted[0].steps:.0f} ms a step", flush=True
        )
    print(f"{len(results)} runs in {time.monotonic() - began:.0f} s", flush=True)


def summary(found: list[dict[str, object]]) -> str:
    best = min(found, key=lambda run: float(str(run["val_loss"])))
    return (
        "{} runs of {data} {method} rank {rank} batch {batch} steps {steps}: {before:.3f} -> {val_loss:.4f} ± {val_error:.4f}, "
        "exact {exact:.2f} with {lr:.1e} and scale {scale:g}".format(len(found), **best)
    )


if __name__ == "__main__":
    main()
