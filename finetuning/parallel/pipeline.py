"""Pipeline parallel: consecutive layers form stages, and each process of a pp group holds one or two of them.

Training runs the schedules of torch.distributed.pipelining; evaluation and generation pass one row after another through
the stages, with any row length. Stages keep the global names of their layers. What a stage lacks (embedding, norm, head)
is replaced by a module that hands its input on, so the decoder's own `forward` runs every stage.
"""

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

from finetuning.config.llama import LlamaConfig
from finetuning.config.stages import assign_layers, stage_indices
from finetuning.data.batches.global_batch import MicroBatch
from finetuning.model.cross_entropy import target_places
from finetuning.model.llama import HeadOptions, Llama
from finetuning.parallel.fsdp import FsdpOpaque
from finetuning.parallel.mesh import Layout
from finetuning.parallel.weights import local_part


def build_stage(config: LlamaConfig, layers: range, head: HeadOptions, *, first: bool, last: bool) -> Llama:
    """The decoder (on the current device) reduced to one stage.

    A stage owns the table it uses: with tied weights the head of the last stage has a copy of the embedding's.
    """
    model = Llama(dataclasses.replace(config, tie_word_embeddings=config.tie_word_embeddings and first and last), head)
    for name in list(model.model.layers):
        if int(name) not in layers:
            del model.model.layers[name]
    if not first:
        model.model.embed_tokens = nn.Identity()  # type: ignore[assignment]
    if not last:
        model.model.norm = nn.Identity()  # type: ignore[assignment]
        model.lm_head = NoHead()  # type: ignore[assignment]
    model.register_forward_hook(_as_vector)
    return model


class NoHead(nn.Module):
    def forward(
        self,
        hidden_BTD: Tensor,
        labels_BT: Tensor | None,
        weights_BT: Tensor | None,
        tied_VD: Tensor | None,
        num_targets: int | None,
    ) -> Tensor:
        return hidden_BTD


class Pipeline:
    """Runs the stages of this process together with the other processes of its pp group."""

    def __init__(
        self, config: LlamaConfig, parts: list[Llama], layout: Layout, schedule: str, device: torch.device, dtype: torch.dtype
    ):
        self.parts, self.layout, self.schedule, self.device, self.dtype = parts, layout, schedule, device, dtype
        self.group = layout.group("pp")
        self.indices = stage_indices(schedule, layout.degrees.pp, layout.pp_rank)
        self.num_stages = layout.degrees.pp * len(self.indices)
        self.holder = {
            index: rank for rank in range(layout.degrees.pp) for index in stage_indices(schedule, layout.degrees.pp, rank)
        }
        self.layers = assign_layers(config, self.num_stages)
        self.prepared: tuple[tuple[int, int], Any] | None = None
        self.divisor = 1.0
        self.losses: list[Tensor] = []
        self.by_source: Tensor | None = None
        for part in parts:
            part.register_forward_pre_hook(_unstack, prepend=True, with_kwargs=True)  # before FSDP's, see FsdpOpaque

    @property
    def has_first(self) -> bool:
        return 0 in self.indices

    @property
    def has_last(self) -> bool:
        return self.num_stages - 1 in self.indices

    def holder_of(self, name: str) -> int:
        """The pp rank that holds the weight of this global name."""
        if ".layers." in name:
            index = int(name.split(".layers.")[1].split(".")[0])
            return self.holder[next(stage for stage, layers in enumerate(self.layers) if index in layers)]
        return self.holder[0 if "embed_tokens" in name else self.num_stages - 1]

    def backward(self, rows: list[MicroBatch], divisor: float, by_source: Tensor | None) -> Tensor:
        """Adds the gradients of these rows, all of one length; returns the summed loss where the last stage is, else 0.

        Every process of the pp group must call it, with the same rows.

        Args:
            by_source: sums of the loss of each source, which it adds to; None: there are no sources.
        """
        self.divisor, self.losses, self.by_source = divisor, [], by_source
        tokens = torch.cat([row.tokens for row in rows])
        positions = torch.cat([row.positions for row in rows])
        labels = torch.cat([row.labels for row in rows])
        weights = [row.weights for row in rows if row.weights is not None]
        sources = [row.sources for row in rows if row.sources is not None]
        # Stacked, because schedules cut along dim 0; `_unstack` undoes it.
        documents = type(rows[0].documents)(*(torch.stack(parts) for parts in zip(*(r.documents for r in rows), strict=True)))
        schedule = self._schedule(len(rows), tokens.shape[1])
        schedule.step(
            *((tokens,) if self.has_first else ()),
            positions_BT=positions,
            documents=documents,
            labels_BT=labels,
            **({"weights_BT": torch.cat(weights)} if weights else {}),
            num_targets=torch.tensor([row.num_targets for row in rows]),
            target=(torch.stack([labels, torch.cat(sources)], 1) if sources else labels) if self.has_last else None,
            return_outputs=False,
        )
        return torch.stack(self.losses).sum() if self.losses else torch.zeros((), device=self.device)

    @torch.no_grad()
    def forward(self, row: MicroBatch, *, with_loss: bool, at_S: Tensor | None = None) -> Tensor | None:
        """Loss or logits of one row where the last stage is, else None; every process of the pp group must call it."""
        output: Tensor = row.tokens
        for index, part in zip(self.indices, self.parts, strict=True):
            last = index == self.num_stages - 1
            if index > 0 and self.holder[index - 1] != self.layout.pp_rank:
                output = torch.empty(self._hidden_shape(row.tokens.shape[1]), dtype=self.dtype, device=self.device)
                dist.recv(output, group=self.group, group_src=self.holder[index - 1])
            output = part(
                output,
                row.positions,
                FsdpOpaque(row.documents),
                labels_BT=row.labels if with_loss and last else None,
                weights_BT=row.weights if with_loss and last else None,
                num_targets=row.num_targets,
                at_S=at_S if last else None,
            )
            if not last and self.holder[index + 1] != self.layout.pp_rank:
                dist.send(output.contiguous(), group=self.group, group_dst=self.holder[index + 1])
        return output if self.has_last else None

    @torch.no_grad()
    def add_table_gradients(self) -> None:
        """Tied tables: moves the gradient of the last stage's copy to the first stage's table."""
        first, last = self.holder[0], self.holder[self.num_stages - 1]
        if self.has_last:
            copy = self.parts[-1].lm_head.weight
            assert copy.grad is not None
            received = local_part(copy.grad)
            copy.grad = None
            dist.send(received.contiguous(), group=self.group, group_dst=first)
        if self.has_first:
            table = self.parts[0].model.embed_tokens.weight
            assert table.grad is not None
            received = torch.empty_like(local_part(table.grad))
            dist.recv(received, group=self.group, group_src=last)
            local_part(table.grad).add_(received)

    @torch.no_grad()
    def refresh_table_copy(self) -> None:
        """Tied tables: gives the last stage's copy the value of the first stage's table."""
        first, last = self.holder[0], self.holder[self.num_stages - 1]
        if self.has_first:
            value = local_part(self.parts[0].model.embed_tokens.weight.data)
            dist.send(value.contiguous(), group=self.group, group_dst=last)
        if self.has_last:
            copy = local_part(self.parts[-1].lm_head.weight.data)
            dist.recv(copy, group=self.group, group_src=first)

    def _schedule(self, num_rows: int, length: int) -> Any:
        """The schedule for so many rows of this length; the last one is kept, with its receive buffers."""
        if self.prepared is None or self.prepared[0] != (num_rows, length):
            stages = [self._stage(index, part, length) for index, part in zip(self.indices, self.parts, strict=True)]
            options: dict[str, Any] = {"n_microbatches": num_rows, "loss_fn": self._loss, "scale_grads": False}
            if self.schedule == "1f1b":
                schedule: Any = Schedule1F1B(stages[0], **options)
            else:
                schedule = ScheduleInterleaved1F1B(stages, **options)  # type: ignore[arg-type]
            self.prepared = ((num_rows, length), schedule)
        return self.prepared[1]

    def _stage(self, index: int, part: Llama, length: int) -> PipelineStage:
        # Shapes are known: given here, they need not be sent around and no trial run is made.
        hidden = torch.empty(self._hidden_shape(length), dtype=self.dtype, device="meta", requires_grad=True)
        tokens = torch.empty((1, length), dtype=torch.int64, device="meta")
        loss = torch.empty((1,), dtype=torch.promote_types(self.dtype, torch.float32), device="meta", requires_grad=True)
        return PipelineStage(
            part,
            index,
            self.num_stages,
            self.device,
            input_args=tokens if index == 0 else hidden,
            output_args=loss if index == self.num_stages - 1 else hidden,
            group=self.group,
        )

    def _hidden_shape(self, length: int) -> tuple[int, int, int]:
        return (1, length // self.layout.degrees.tp, self.parts[0].config.hidden_size)

    def _loss(self, output: Tensor, target: Tensor) -> Tensor:
        self.losses.append(output.detach()[0])
        if self.by_source is not None:
            labels_T, sources_T = target[0]
            add_by_source(self.by_source, self.parts[-1].lm_head.losses_S, labels_T, sources_T)
        return output.sum() / self.divisor


def add_by_source(sums_K: Tensor, losses_S: Tensor, labels_T: Tensor, sources_T: Tensor) -> None:
    """Adds the losses of the targets to the sums of their sources. Not by `index_add_`: on a GPU its order is any."""
    of_source_S = sources_T[target_places(labels_T, len(losses_S))]
    is_of_KS = of_source_S == torch.arange(len(sums_K), device=sums_K.device)[:, None]
    sums_K += (is_of_KS * losses_S.to(sums_K.dtype)).sum(1)


def _unstack(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Takes the row dimension off what was stacked for a schedule and is no tensor of the model."""
    documents = options.get("documents")
    if documents is not None:
        row = type(documents)(*(tensor[0] for tensor in documents))
        options = {**options, "documents": FsdpOpaque(row), "num_targets": int(options["num_targets"])}
    return inputs, options


def _as_vector(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    return torch.stack([output]) if output.ndim == 0 else output  # a copy: FSDP warns of views
