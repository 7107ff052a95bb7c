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
    """The sum that `linear_cross_entropy` gives, of positions that count alike."""
    return linear_cross_entropy(hidden_TD, weight_VD, labels_T, None, columns, chunk_tokens, num_targets)[0]


def linear_cross_entropy(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    labels_T: Tensor,
    weights_T: Tensor | None,
    columns: tuple[Tensor, Tensor] | None,
    chunk_tokens: int,
    num_targets: int | None,
) -> tuple[Tensor, Tensor]:
    """Cross-entropies of the trained positions: their sum and each of them [S], both weighted, float32 (or float64).

    The sum, a scalar, is differentiable in hidden and weight.

    Args:
        hidden_TD: last hidden states.
        weight_VD: output head.
        labels_T: the token that follows each position, or IGNORED_LABEL where it is not trained.
        weights_T: how much each position counts; None: all alike, as 1.
        columns: a frozen head in fp8, as `quantize_columns` gives it. The gradient of the hidden states is then a product in
            fp8; logits and loss stay as they are.
        chunk_tokens: rows of logits that exist at once, with a frozen head.
        num_targets: see `target_places`.
    """
    trained = target_places(labels_T, num_targets)
    weights_S = None if weights_T is None else weights_T[trained]
    total, losses_S = _LinearCrossEntropy.apply(
        hidden_TD[trained], weight_VD, labels_T[trained], weights_S, columns, chunk_tokens
    )
    return total, losses_S


def weighted(rows_SD: Tensor, weights_S: Tensor | None) -> Tensor:
    """Each row times its weight, in the precision of the rows.

    A gradient is linear in the weight of its loss, so what kernels compute for a weight of 1 is multiplied here: rows of the
    gradient of the hidden states, and rows of the hidden states for the gradient of the head.
    """
    return rows_SD if weights_S is None else (rows_SD * weights_S[:, None]).to(rows_SD.dtype)


def weighted_losses(losses_S: Tensor, weights_S: Tensor | None) -> Tensor:
    return losses_S if weights_S is None else losses_S * weights_S


def target_places(labels_T: Tensor, count: int | None) -> Tensor:
    """Where the trained positions are [S]. Without their number, the CPU waits for the GPU to count them."""
    is_trained = labels_T != IGNORED_LABEL
    return (is_trained.nonzero() if count is None else torch.nonzero_static(is_trained, size=count))[:, 0]


def count_targets(labels: Tensor) -> int:
    """Number of trained positions, on the CPU."""
    return int((labels != IGNORED_LABEL).sum())


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, labels, weights, columns, chunk_tokens):  # type: ignore[no-untyped-def]
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        total = at_least_float32(hidden.new_zeros(()))
        all_losses = torch.empty(len(hidden), dtype=total.dtype, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        chunk = TRAINED_CHUNK_TOKENS if needs_weight else chunk_tokens
        several = len(hidden) > chunk
        # At least float32 if chunks add up in it: the sum must not lose small contributions.
        grad_weight = torch.zeros_like(weight, dtype=total.dtype if several else weight.dtype) if needs_weight else None
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            of_part = None if weights is None else weights[part]
            logits = F.linear(hidden[part], weight)
            if columns is not None and grad_hidden is not None:
                losses, quantized = cross_entropy_and_quantize(logits, labels[part])
                all_losses[part] = losses = weighted_losses(losses, of_part)
                total += losses.sum()
                grad_hidden[part] = weighted(scaled_product(quantized, columns, hidden.dtype, fast_sums=False), of_part)
                del logits, quantized  # before there are those of the next chunk
                continue
            all_losses[part] = losses = weighted_losses(cross_entropy(logits, labels[part]), of_part)
            total += losses.sum()
            grad_logits = logits  # overwritten
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[part])
                if of_part is not None:
                    grad_hidden[part] *= of_part[:, None]
            if grad_weight is not None and several:
                grad_weight += grad_logits.t() @ weighted(hidden[part], of_part)
            elif grad_weight is not None:
                torch.mm(grad_logits.t(), weighted(hidden, of_part), out=grad_weight)
            del logits, grad_logits
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.mark_non_differentiable(all_losses)
        return total, all_losses

    @staticmethod
    def backward(ctx, grad_total, _grad_losses):  # type: ignore[no-untyped-def]
        grad_hidden, grad_weight = ctx.saved_tensors
        if grad_hidden is not None:
            grad_hidden = grad_hidden * grad_total.to(grad_hidden.dtype)
        if grad_weight is not None:
            grad_weight = (grad_weight * grad_total.to(grad_weight.dtype)).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None, None
