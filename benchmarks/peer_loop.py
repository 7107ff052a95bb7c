"""What the peers of peers.py share: their batches, their timed loop, their attention within documents.

A workload is a file that peers.py writes: the samples of some optimizer steps in the order in which our command trains them,
and which of them share a packed row. Knows nothing of `finetuning`, so that it runs beside any version of any package.

Shape letters: B rows, T tokens of a row, N query heads, K key/value heads, H head dimension.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

WARM_UP_STEPS, TIMED_STEPS = 2, 4
ROW_TOKENS = 8192  # of a micro-batch, padding included
IGNORED_LABEL = -100


@dataclass(frozen=True)
class MicroBatch:
    """Inputs on the GPU; labels as transformers wants them: the label of a token is the token itself."""

    tokens_BT: Tensor
    labels_BT: Tensor
    positions_BT: Tensor
    lengths: list[int]  # tokens of each document; their sum is what counts as trained
    padded: bool

    def boundaries(self) -> Tensor:
        """Where the documents of a packed row begin and end, int32 on the GPU."""
        return torch.tensor([0, *self.lengths], dtype=torch.int32, device=self.tokens_BT.device).cumsum(0, dtype=torch.int32)


def parse_arguments(**choices: tuple[str, ...]) -> argparse.Namespace:
    """--workload, --model, --layout, and one flag for each of `choices`, whose first value is the default."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workload", type=Path, required=True)
    parser.add_argument(
        "--model", type=Path, required=True, help="folder with config.json and tokenizer; unsloth reads the weights"
    )
    parser.add_argument("--layout", choices=("packed", "padded"), default="packed")
    for name, values in choices.items():
        parser.add_argument(f"--{name}", choices=values, default=values[0])
    return parser.parse_args()


def load_steps(workload: Path, layout: str, device: str = "cuda") -> list[list[MicroBatch]]:
    """The micro-batches of each step.

    packed: the rows that our command makes, documents one after another. padded: the same samples, longest first, in
    micro-batches of at most ROW_TOKENS positions with padding; sorting wastes least.
    """
    stored = torch.load(workload)
    samples = list(zip(stored["tokens"], stored["labels"], strict=True))
    steps = []
    for rows in stored["steps"]:
        if layout == "packed":
            steps.append([_pack([samples[index] for index in row], device) for row in rows])
        else:
            members = sorted((samples[index] for row in rows for index in row), key=lambda sample: -len(sample[0]))
            steps.append([_pad(group, device) for group in _groups(members)])
    return steps


def measure(
    steps: list[list[MicroBatch]], forward: Callable[[MicroBatch], Tensor], parameters: list[Tensor], **facts: object
) -> None:
    """Trains one optimizer step for each entry of `steps` and prints RESULT and a line of JSON."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    torch.cuda.reset_peak_memory_stats()
    seconds, losses, started_at = [], [], 0.0
    for index, rows in enumerate(steps):
        torch.cuda.synchronize()
        if index == WARM_UP_STEPS:
            started_at = time.time()
        began = time.perf_counter()
        total = torch.zeros((), device="cuda")
        for row in rows:
            loss = forward(row) / len(rows)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    rates = [sum(sum(row.lengths) for row in rows) / t for rows, t in zip(steps, seconds, strict=True)]
    computed = sum(row.tokens_BT.numel() for rows in steps for row in rows)
    real = sum(sum(row.lengths) for rows in steps for row in rows)
    result = {
        "tokens_per_second": round(statistics.median(rates[WARM_UP_STEPS:])),
        "memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
        "fill": round(real / computed, 4),
        "first_step_s": round(seconds[0], 1),
        "loss": [losses[0], losses[-1]],
        "steps": len(steps),
        "window": [started_at, time.time()],
        "trained_parameters": sum(parameter.numel() for parameter in parameters),
        **facts,
    }
    print("RESULT", json.dumps(result), flush=True)


def register_flash_attention_2() -> str:
    """Makes the flash kernel that torch ships known to transformers; its own way to it needs the package flash-attn.

    Returns the name to ask for it by.
    """
    from transformers import AttentionInterface

    AttentionInterface.register("torch_varlen", _transformers_attention)
    return "torch_varlen"


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    *,
    causal: bool = True,
    softmax_scale: float | None = None,
    **ignored: object,
) -> Tensor:
    """flash-attn 2's function of this name, on the same kernel inside torch; causal, no window, no dropout."""
    assert causal and softmax_scale in (None, q.shape[-1] ** -0.5)
    return _FlashAttention.apply(q, k, v, cu_seqlens_q, max_seqlen_q)


def flash_attn_func(q_BTNH: Tensor, k_BTKH: Tensor, v_BTKH: Tensor, **options: object) -> Tensor:
    """flash-attn 2's function of this name, for whole rows."""
    batch, length = q_BTNH.shape[:2]
    boundaries = torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=q_BTNH.device)
    flat = (x.flatten(0, 1) for x in (q_BTNH, k_BTKH, v_BTKH))
    return flash_attn_varlen_func(*flat, boundaries, boundaries, length, length).view_as(q_BTNH)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, boundaries, longest):  # type: ignore[no-untyped-def]
        out, logsumexp, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, boundaries, boundaries, longest, longest, 0.0, True, False
        )
        ctx.save_for_backward(q, k, v, out, logsumexp, boundaries)
        ctx.longest = longest
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        q, k, v, out, logsumexp, boundaries = ctx.saved_tensors
        state = torch.zeros(2, dtype=torch.uint64, device=q.device)
        grads = torch.ops.aten._flash_attention_backward(
            grad.contiguous(),
            q,
            k,
            v,
            out,
            logsumexp,
            boundaries,
            boundaries,
            ctx.longest,
            ctx.longest,
            0.0,
            True,
            state,
            state,
        )
        return *grads, None, None


def _transformers_attention(
    module, query_BNTH, key_BKTH, value_BKTH, attention_mask, *, cu_seq_lens_q, max_length_q, **options
):  # type: ignore[no-untyped-def]
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query_BNTH, key_BKTH, value_BKTH))
    out_TNH = _FlashAttention.apply(q, k, v, cu_seq_lens_q, max_length_q)
    return out_TNH[None], None


def _pack(samples: list[tuple[Tensor, Tensor]], device: str) -> MicroBatch:
    lengths = [len(tokens) for tokens, _ in samples]
    tokens, labels = (torch.cat(parts).long().to(device)[None] for parts in zip(*samples, strict=True))
    positions = torch.cat([torch.arange(length) for length in lengths]).to(device)[None]
    return MicroBatch(tokens, labels, positions, lengths, padded=False)


def _pad(samples: list[tuple[Tensor, Tensor]], device: str) -> MicroBatch:
    lengths = [len(tokens) for tokens, _ in samples]
    tokens_BT = torch.zeros(len(samples), max(lengths), dtype=torch.long)
    labels_BT = torch.full_like(tokens_BT, IGNORED_LABEL)
    for row, (tokens, labels) in enumerate(samples):
        tokens_BT[row, : len(tokens)], labels_BT[row, : len(labels)] = tokens, labels
    positions_BT = torch.arange(max(lengths)).expand_as(tokens_BT)
    return MicroBatch(tokens_BT.to(device), labels_BT.to(device), positions_BT.to(device), lengths, padded=True)


def _groups(samples: list[tuple[Tensor, Tensor]]) -> list[list[tuple[Tensor, Tensor]]]:
    """Consecutive samples whose padded size stays within ROW_TOKENS; the first of a group is its longest."""
    groups: list[list[tuple[Tensor, Tensor]]] = []
    for sample in samples:
        if groups and (len(groups[-1]) + 1) * len(groups[-1][0][0]) <= ROW_TOKENS:
            groups[-1].append(sample)
        else:
            groups.append([sample])
    return groups


def attention_mask(row: MicroBatch) -> Tensor | None:
    """1 for real tokens, None for rows without padding."""
    if not row.padded:
        return None
    ends = torch.tensor(row.lengths, device=row.tokens_BT.device)[:, None]
    return (row.positions_BT < ends).long()
