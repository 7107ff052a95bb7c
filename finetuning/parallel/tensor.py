"""Tensor parallel with sequence parallel: each process of a tp group holds a part of every layer.

Column-parallel linears (q, k, v, gate, up) hold some of the outputs, row-parallel ones (o, down) the matching inputs, so
a block needs two exchanges forward and two backward (Megatron-LM, Shoeybi et al. 2019). Between the linears — residuals
and norms — each process holds a part of the tokens instead (sequence parallel, Korthikanti et al. 2022): tokens are
gathered before attention and MLP, and their partial outputs are summed and scattered after. Embedding and head hold a
part of the vocabulary.

Weights are ordinary tensors of the local size and the modules compute on them as they always do. Weights that every
process holds whole (norms; A of column-parallel adapters, B of row-parallel ones) get partial gradients, which
`all_reduce` adds up once a step. Which is which follows from the names, see `tensor_dim`.

Shape letters: B rows (1), T tokens, D hidden size, V vocabulary.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from finetuning.model.cross_entropy import CHUNK_TOKENS, target_places, weighted, weighted_losses
from finetuning.model.kernels.ops import at_least_float32, softmax_minus_one_hot
from finetuning.model.llama import Block, Llama
from finetuning.parallel.collectives import gather, name_group, reduce_scatter
from finetuning.parallel.mesh import Layout

COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
ROW = ("o_proj", "down_proj")


def tensor_dim(name: str) -> int | None:
    """The dimension along which the weight of this name (or a state of it) is cut; None: every process holds it whole.

    Examples: `….q_proj.weight` -> 0, `….q_proj.lora_A.weight` -> None, `….o_proj.lora_A.weight` -> 1, norms -> None.
    """
    parts = name.split(".")
    if "embed_tokens" in parts or "lm_head" in parts:
        return 0
    if any(column in parts for column in COLUMN):
        return None if "lora_A" in parts else 0
    if any(row in parts for row in ROW):
        return None if "lora_B" in parts else 1
    return None


def apply_tensor_parallel(model: Llama, layout: Layout) -> None:
    """Cuts the weights (on the meta device) and puts the exchanges around the modules, in place."""
    degree, group = layout.degrees.tp, layout.group("tp")
    for name, parameter in list(model.named_parameters()):
        dim = tensor_dim(name)
        if dim is not None:
            shape = list(parameter.shape)
            assert shape[dim] % degree == 0, f"{name} {shape} cannot be cut into {degree}"
            shape[dim] //= degree
            part = nn.Parameter(parameter.new_empty(shape), requires_grad=parameter.requires_grad)
            model.get_submodule(name.rpartition(".")[0]).register_parameter("weight", part)
    if isinstance(model.model.embed_tokens, nn.Embedding):
        model.model.embed_tokens = VocabParallelEmbedding(model.model.embed_tokens, group)  # type: ignore[assignment]
    exchange = _SequenceExchange(name_group(group))
    for layer in model.model.layers.values():
        assert isinstance(layer, Block)
        for module in (layer.self_attn, layer.mlp):
            module.register_forward_pre_hook(exchange.gather_first)
            module.register_forward_hook(exchange.scatter_output)
    if not isinstance(model.model.norm, nn.Identity):
        model.model.norm.register_forward_hook(exchange.gather_output)
        model.lm_head = VocabParallelHead(model.lm_head, group)  # type: ignore[assignment]


class _SequenceExchange:
    """Hooks between whole rows and this process's part of the tokens, [1, T, D]."""

    def __init__(self, group: str):
        self.group = group

    def gather_first(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (gather(inputs[0], self.group, 1), *inputs[1:])

    def scatter_output(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return reduce_scatter(output, self.group, 1)

    def gather_output(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return gather(output, self.group, 1)


class VocabParallelEmbedding(nn.Module):
    """An embedding of the tokens first … first + V/tp - 1; gives this process's part of the tokens, summed over all."""

    def __init__(self, whole: nn.Embedding, group: dist.ProcessGroup):
        super().__init__()
        self.weight = whole.weight  # already cut
        self.group = name_group(group)
        self.first = group.rank() * self.weight.shape[0]
        self.size = self.weight.shape[0]

    def forward(self, tokens_BT: Tensor) -> Tensor:
        local = tokens_BT - self.first
        elsewhere = (local < 0) | (local >= self.size)
        hidden_BTD = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return reduce_scatter(hidden_BTD.masked_fill(elsewhere[..., None], 0.0), self.group, 1)


class VocabParallelHead(nn.Module):
    """An output head of a part of the vocabulary, for the hidden states of whole rows.

    Without labels it gives all logits on every process; with labels the summed cross-entropy, the same on every process, and so
    is `losses_S`, see `Head`.
    """

    losses_S: Tensor

    def __init__(self, whole: nn.Module, group: dist.ProcessGroup):
        super().__init__()
        self.group = group
        self.weight = dict(whole.named_parameters()).get("weight")  # already cut; none when tied

    def forward(
        self,
        hidden_BTD: Tensor,
        labels_BT: Tensor | None,
        weights_BT: Tensor | None,
        tied_VD: Tensor | None,
        num_targets: int | None,
    ) -> Tensor:
        weight_VD = self.weight if tied_VD is None else tied_VD
        assert weight_VD is not None
        if labels_BT is None:
            logits_VT = gather(F.linear(hidden_BTD[0], weight_VD).t(), name_group(self.group), 0)
            return logits_VT.t()[None].contiguous()
        hidden_TD, labels_T = hidden_BTD.flatten(0, 1), labels_BT.flatten()
        trained = target_places(labels_T, num_targets)
        weights_S = None if weights_BT is None else weights_BT.flatten()[trained]
        total: Tensor
        total, self.losses_S = _CrossEntropy.apply(hidden_TD[trained], weight_VD, labels_T[trained], weights_S, self.group)
        return total


class _CrossEntropy(torch.autograd.Function):
    """`linear_cross_entropy` with the vocabulary spread over a group; the gradient of `hidden` is this part's share."""

    @staticmethod
    def forward(ctx, hidden, weight, labels, weights, group):  # type: ignore[no-untyped-def]
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        total = at_least_float32(hidden.new_zeros(()))
        all_losses = torch.empty(len(hidden), dtype=total.dtype, device=hidden.device)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=total.dtype) if needs_weight else None
        name = name_group(group)
        local = labels - group.rank() * weight.shape[0]
        here = (local >= 0) & (local < weight.shape[0])
        local = local.masked_fill(~here, 0)
        for start in range(0, hidden.shape[0], CHUNK_TOKENS):
            part = slice(start, start + CHUNK_TOKENS)
            logits = at_least_float32(F.linear(hidden[part], weight))
            labeled = logits.gather(1, local[part, None]).masked_fill(~here[part, None], 0.0)
            of_part = torch.cat((torch.logsumexp(logits, -1, keepdim=True), labeled), 1)
            of_all = gather(of_part[None].contiguous(), name, 0)  # [ranks, t, 2]
            logsumexp = torch.logsumexp(of_all[..., :1], 0)
            of_weights = None if weights is None else weights[part]
            all_losses[part] = losses = weighted_losses((logsumexp - of_all[..., 1:].sum(0))[:, 0], of_weights)
            total += losses.sum()
            if needs_hidden or needs_weight:
                softmax_minus_one_hot(logits, logsumexp, local[part], here[part, None].to(logits.dtype))
                grad_logits = logits.to(hidden.dtype)
                if grad_hidden is not None:
                    torch.mm(grad_logits, weight, out=grad_hidden[part])
                    if of_weights is not None:
                        grad_hidden[part] *= of_weights[:, None]
                if grad_weight is not None:
                    grad_weight += grad_logits.t() @ weighted(hidden[part], of_weights)
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
            grad_weight = (grad_weight * grad_total).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, None, None, None
