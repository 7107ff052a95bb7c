"""Next-token cross-entropy straight from hidden states, without ever holding all logits.

With a vocabulary of 128 256, the logits of one 8192-token row are 4 GB in float32. Here rows of hidden states pass
through the head in chunks; each chunk's gradient is computed at once, in the forward pass, and its logits are dropped.
Positions that are not trained never reach the head.

Shape letters: T tokens, D hidden size, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from finetuning.model.kernels.ops import at_least_float32, cross_entropy, cross_entropy_and_quantize, scaled_product

IGNORED_LABEL = -100
CHUNK_TOKENS = 2048
TRAINED_CHUNK_TOKENS = 8192  # with a trained head: its gradient is then one product for most rows


def linear_cross_entropy_sum(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    labels_T: Tensor,
    columns: tuple[Tensor, Tensor] | None = None,
    chunk_tokens: int = CHUNK_TOKENS,
    num_targets: int | None = None,
) -> Tensor:
    """Sum of the cross-entropies of the trained positions, float32 (or float64) scalar; differentiable in hidden and weight.

    Args:
        hidden_TD: last hidden states.
        weight_VD: output head.
        labels_T: the token that follows each position, or IGNORED_LABEL where it is not trained.
        columns: a frozen head in fp8, as `quantize_columns` gives it. The gradient of the hidden states is then a product in
            fp8; logits and loss stay as they are.
        chunk_tokens: rows of logits that exist at once, with a frozen head.
        num_targets: see `target_places`.
    """
    trained = target_places(labels_T, num_targets)
    return _LinearCrossEntropySum.apply(hidden_TD[trained], weight_VD, labels_T[trained], columns, chunk_tokens)


def target_places(labels_T: Tensor, count: int | None) -> Tensor:
    """Where the trained positions are [S]. Without their number, the CPU waits for the GPU to count them."""
    is_trained = labels_T != IGNORED_LABEL
    return (is_trained.nonzero() if count is None else torch.nonzero_static(is_trained, size=count))[:, 0]


def count_targets(labels: Tensor) -> int:
    """Number of trained positions, on the CPU."""
    return int((labels != IGNORED_LABEL).sum())


class _LinearCrossEntropySum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, columns, chunk_tokens):  # type: ignore[no-untyped-def]
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        total = at_least_float32(hidden.new_zeros(()))
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        chunk = TRAINED_CHUNK_TOKENS if needs_weight else chunk_tokens
        several = len(hidden) > chunk
        # At least float32 if chunks add up in it: the sum must not lose small contributions.
        grad_weight = torch.zeros_like(weight, dtype=total.dtype if several else weight.dtype) if needs_weight else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = F.linear(hidden[part], weight)
            if columns is not None and grad_hidden is not None:
                losses, quantized = cross_entropy_and_quantize(logits, labels[part])
                total += losses.sum()
                grad_hidden[part] = scaled_product(quantized, columns, hidden.dtype, fast_sums=False)
                del logits, quantized  # before there are those of the next chunk
                continue
            total += cross_entropy(logits, labels[part]).sum()
            grad_logits = logits  # overwritten
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[part])
            if grad_weight is not None and several:
                grad_weight += grad_logits.t() @ hidden[part]
            elif grad_weight is not None:
                torch.mm(grad_logits.t(), hidden, out=grad_weight)
            del logits, grad_logits
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx, grad_total):  # type: ignore[no-untyped-def]
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_total.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_total.to(grad_weight.dtype)).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None
