"""Builds the model of this process: one function whose body is the ordered list of techniques."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from typing_extensions import override

from finetuning.config.llama import LlamaConfig
from finetuning.config.stages import assign_layers, stage_indices
from finetuning.config.strategy import COMPILED, FUSED, HEAD_GRADIENT, LINEAR, LOW_MEMORY, Strategy
from finetuning.data.batches.global_batch import MicroBatch, StepBatch
from finetuning.model.attention import Documents
from finetuning.model.blocks.full_block import Accumulation, FullBlock
from finetuning.model.blocks.lora_block import LoraBlock, can_fuse
from finetuning.model.blocks.low_memory_block import CHUNK_TOKENS as LOW_MEMORY_CHUNK_TOKENS
from finetuning.model.cross_entropy import CHUNK_TOKENS
from finetuning.model.llama import Block, HeadOptions, Llama
from finetuning.model.lora import add_lora, freeze_all_but_lora, is_adapter
from finetuning.parallel.activation_checkpointing import RecomputedBlock
from finetuning.parallel.collectives import TokenExchange, all_reduce
from finetuning.parallel.context import apply_context_parallel, cut_row, local_places
from finetuning.parallel.fsdp import FsdpOpaque, prepare_backward, release, shard_parameters, unwrap_documents
from finetuning.parallel.low_memory import build_low_memory, loaded_one_by_one
from finetuning.parallel.mesh import AXES, Layout
from finetuning.parallel.pipeline import Pipeline, add_by_source, build_stage
from finetuning.parallel.tensor import apply_tensor_parallel, tensor_dim
from finetuning.parallel.weights import gather_whole, global_view, local_part

TORCH_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def build_model(config: LlamaConfig, layout: Layout, device: torch.device, strategy: Strategy) -> "ParallelLlama":
    """The parallelized model with uninitialized weights on `device`; every process must call it.

    Trainable weights are held in float32 or wider, unless the optimizer keeps their lower halves, and computed in
    `compute_dtype`; frozen ones are held in `compute_dtype`.
    """
    assert strategy.degrees == layout.degrees
    pp = layout.degrees.pp
    indices = stage_indices(strategy.pipeline_schedule, pp, layout.pp_rank) if pp > 1 else [0]
    stages = assign_layers(config, pp * len(indices))
    accumulation = Accumulation()
    parts = [build_part(config, layout, device, strategy, index, stages, accumulation) for index in indices]
    return ParallelLlama(config, parts, layout, device, strategy, accumulation)


def trainable_dtype(strategy: Strategy) -> torch.dtype:
    """Of trainable weights and their gradients, and of sums over them; with `split_master`, of the sums only."""
    return torch.promote_types(TORCH_DTYPES[strategy.compute_dtype], torch.float32)


def build_part(
    config: LlamaConfig,
    layout: Layout,
    device: torch.device,
    strategy: Strategy,
    index: int,
    stages: Sequence[range],
    accumulation: Accumulation,
) -> Llama:
    """One pipeline stage, with everything that the strategy asks for in its place."""
    compute_dtype = TORCH_DTYPES[strategy.compute_dtype]
    head = _head_options(strategy, is_last=index == len(stages) - 1)
    with torch.device("meta"):
        if len(stages) == 1:
            model = Llama(config, head)
        else:
            model = build_stage(config, stages[index], head, first=index == 0, last=index == len(stages) - 1)
        if strategy.lora_rank is not None:
            add_lora(model, strategy.lora_rank, strategy.lora_alpha, strategy.lora_targets)
    if layout.degrees.tp > 1:
        apply_tensor_parallel(model, layout)
    if strategy.lora_rank is not None:
        freeze_all_but_lora(model)  # whatever was replaced since: only adapters are trainable
    if layout.degrees.cp > 1:
        apply_context_parallel(model, layout, strategy.context)
    for parameter in model.parameters():
        whole = parameter.requires_grad and not strategy.split_master
        parameter.data = parameter.data.to(trainable_dtype(strategy) if whole else compute_dtype)
    if strategy.blocks == LOW_MEMORY:
        build_low_memory(model, device, fp8=LINEAR in strategy.fp8)
        unwrap_documents(model)
        return model
    if not strategy.shards_weights:
        model.to_empty(device=device)  # before the blocks move their weights into joint tensors
    layers = model.model.layers
    for name, block in layers.items():
        assert isinstance(block, Block)
        layers[name] = _choose_block(config, block, layout, strategy, accumulation)
    if strategy.shards_weights:  # the last, so that its hooks are around everything
        shard_parameters(model, layout.sharding_mesh(), compute_dtype, strategy.sharding)
        model.to_empty(device=device)
    else:
        unwrap_documents(model)
    return model


def _head_options(strategy: Strategy, *, is_last: bool) -> HeadOptions:
    # Products over tokens in fp8 take a multiple of 16 of them; tensor parallel has every process's own tokens.
    any_number = not (strategy.fp8 and strategy.trains_all) and strategy.degrees.tp == 1
    return HeadOptions(
        trims_last_block=strategy.blocks == FUSED and is_last and any_number,
        fp8_gradient=HEAD_GRADIENT in strategy.fp8,
        chunk_tokens=LOW_MEMORY_CHUNK_TOKENS if strategy.blocks == LOW_MEMORY else CHUNK_TOKENS,
    )


def _choose_block(config: LlamaConfig, block: Block, layout: Layout, strategy: Strategy, accumulation: Accumulation) -> Block:
    """What takes a block's place: fused, compiled, computed again; or itself."""
    mode, fp8 = strategy.activation_checkpointing, LINEAR in strategy.fp8
    keep_all = mode != "selective"  # fused blocks do `selective` themselves
    if strategy.blocks == FUSED and strategy.trains_all:
        exchange = TokenExchange(layout.group("tp")) if layout.degrees.tp > 1 else None
        gathered = strategy.shards_weights
        block = FullBlock(block, fp8=fp8, keep_all=keep_all, gathered=gathered, exchange=exchange, accumulation=accumulation)
    elif strategy.blocks == FUSED:
        assert layout.degrees.tp == 1 and strategy.sharding == "replicated" and can_fuse(block)
        block = LoraBlock(block, fp8=fp8, keep_all=keep_all)
    if strategy.blocks == FUSED and mode == "selective":
        mode = "none"
    compiled = strategy.blocks == COMPILED
    return block if mode == "none" and not compiled else RecomputedBlock(block, mode, config.hidden_size, compiled=compiled)


class ParallelLlama(nn.Module):
    """This process's part of a model that is spread over all processes.

    Weights have global names, those of Hugging Face. With tied tables in a pipeline, the last stage's copy of the
    embedding is no weight of its own: its gradient goes to the first stage, and the new value comes from there.
    """

    def __init__(
        self,
        config: LlamaConfig,
        parts: list[Llama],
        layout: Layout,
        device: torch.device,
        strategy: Strategy,
        accumulation: Accumulation,
    ):
        super().__init__()
        self.accumulation = accumulation
        self.config, self.layout, self.device, self.strategy = config, layout, device, strategy
        self.parts = nn.ModuleList(parts)
        self.compute_dtype, self.trainable_dtype = TORCH_DTYPES[strategy.compute_dtype], trainable_dtype(strategy)
        self.pipeline = (
            Pipeline(config, parts, layout, strategy.pipeline_schedule, device, self.compute_dtype)
            if layout.degrees.pp > 1
            else None
        )
        # Found once: to walk all modules takes milliseconds. FSDP2 shows other parameters in the modules while weights are
        # gathered; these are the ones that get gradients.
        self.trained = {name: weight for name, weight in self.named_parameters() if weight.requires_grad}
        self.loss_by_source: Tensor | None = None  # this process's share, of the newest `backward` of a mixture; float64

    @override
    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Global names, and this process's parts, of the weights of the stages that it holds."""
        for part in self.parts:
            for name, weight in part.named_parameters(prefix, recurse, remove_duplicate):
                if not (self._copies_table() and name.endswith("lm_head.weight")):
                    yield name, weight

    def weights(self) -> dict[str, nn.Parameter]:
        return dict(self.named_parameters())

    def all_shapes(self) -> dict[str, torch.Size]:
        """Global name -> global shape of every weight of the model, whichever stage holds it; in the model's order."""
        with torch.device("meta"):
            whole = Llama(self.config)
            if self.strategy.lora_rank is not None:
                add_lora(whole, self.strategy.lora_rank, self.strategy.lora_alpha, self.strategy.lora_targets)
        return {name: parameter.shape for name, parameter in whole.named_parameters()}

    def view(self, name: str, tensor: Tensor) -> DTensor:
        return global_view(name, tensor, self.layout)

    def whole(self, name: str, tensor: Tensor | None, shape: torch.Size, dtype: torch.dtype) -> Tensor | None:
        """The whole of `tensor` (see `view`; None on stages without this weight) in `dtype` on rank 0, None on the others.

        Every process must call it.
        """
        found = None if tensor is None else gather_whole(self.view(name, tensor)).to(dtype)
        holder = 0 if self.pipeline is None else self.pipeline.holder_of(name)
        in_first_group = self.layout.data_rank == self.layout.cp_rank == self.layout.tp_rank == 0
        if holder != 0 and in_first_group:
            assert self.pipeline is not None
            if found is not None:
                dist.send(found.contiguous(), group=self.pipeline.group, group_dst=0)
            elif self.layout.pp_rank == 0:
                found = torch.empty(shape, dtype=dtype, device=self.device)
                dist.recv(found, group=self.pipeline.group, group_src=holder)
        return found if dist.get_rank() == 0 else None

    def backward(self, batch: StepBatch, meanwhile: Callable[[], object] = lambda: None) -> Tensor:
        """Adds the gradients of this process's rows and completes them; returns its share of the summed loss.

        The shares of all processes add up to the loss of the whole batch. Every process must call it.

        Args:
            meanwhile: work for the CPU, done when the device has the first row, or all rows of a pipeline, to compute.
        """
        rows = batch.micro_batches
        by_source = None
        if batch.source_divisors is not None:
            by_source = torch.zeros(len(batch.source_divisors), dtype=torch.float64, device=self.device)
        if self.pipeline is not None:
            loss_sum = self.pipeline.backward([self._local(row) for row in rows], batch.divisor, by_source)
            meanwhile()
        else:
            loss_sum = torch.zeros((), device=self.device)
            alone = dist.get_world_size() == 1  # nothing to communicate: reduce at once, so that only shards accumulate
            (part,) = self.parts
            for index, row in enumerate(map(self._local, rows)):
                assert isinstance(part, Llama)
                last = alone or index == len(rows) - 1
                prepare_backward(part, self.strategy.sharding, last=last)
                # In the precision of the gradients, as on one GPU; float32 states get their sums in float32.
                self.accumulation.more_rows = self.strategy.split_master and self.strategy.sharding == "step" and not last
                loss = self._loss_of(part, row)
                if by_source is not None:
                    assert row.sources is not None
                    add_by_source(by_source, part.lm_head.losses_S, row.labels[0], row.sources[0])
                (loss / batch.divisor).backward()
                loss_sum = loss_sum + loss.detach()
                if index == 0:
                    meanwhile()
        self._complete_gradients()
        self.loss_by_source = None if by_source is None else self._counted(by_source)
        return self._counted(loss_sum)

    @torch.no_grad()
    def loss_sum(self, row: MicroBatch) -> Tensor:
        """This process's share of the summed loss of a row; every process must call it, with its data rank's row."""
        row = self._local(row)
        if self.pipeline is not None:
            loss = self.pipeline.forward(row, with_loss=True)
            loss = torch.zeros((), device=self.device) if loss is None else loss.reshape(())
        else:
            (part,) = self.parts
            assert isinstance(part, Llama)
            loss = self._loss_of(part, row)
        return self._counted(loss)

    def _loss_of(self, part: Llama, row: MicroBatch) -> Tensor:
        loss: Tensor = part(
            row.tokens,
            row.positions,
            FsdpOpaque(row.documents),
            labels_BT=row.labels,
            weights_BT=row.weights,
            num_targets=row.num_targets,
        )
        return loss

    @torch.no_grad()
    def logits(self, tokens_T: Tensor, positions_T: Tensor, documents: Documents, at_S: Tensor) -> Tensor:
        """Logits [S, V] at these places of a row, on every process; every process must call it with the same row (CPU).

        The length of the row must be a multiple of `pack_multiple`.
        """
        degrees = self.layout.degrees
        whole = MicroBatch(tokens_T[None], positions_T[None], tokens_T[None], documents, len(tokens_T))
        places, here = at_S, torch.ones_like(at_S, dtype=torch.bool)
        if degrees.cp > 1:
            places, here = local_places(at_S, len(tokens_T), self.strategy.context, self.layout.cp_rank)
        row, places, here = self._local(whole), places.to(self.device), here.to(self.device)
        found: Tensor | None
        if self.pipeline is not None:
            found = self.pipeline.forward(row, with_loss=False, at_S=places)
        else:
            found = self.parts[0](row.tokens, row.positions, FsdpOpaque(row.documents), at_S=places)
        if found is None:
            found = torch.zeros(1, len(at_S), self.config.vocab_size, dtype=self.compute_dtype, device=self.device)
        # One process has each place; the others add zeros.
        logits_SV = found[0].masked_fill(~here[:, None], 0.0)
        for axis, degree in (("cp", degrees.cp), ("pp", degrees.pp)):
            if degree > 1:
                dist.all_reduce(logits_SV, group=self.layout.group(axis))
        return logits_SV

    def release(self) -> None:
        """To be called after a series of `loss_sum` or `logits`, before anything looks at the weights."""
        for part in self.parts:
            assert isinstance(part, Llama)
            release(part)

    @property
    def trains_all(self) -> bool:
        """All weights are trained, not only adapters."""
        return self.strategy.trains_all

    @property
    def pack_multiple(self) -> int:
        """What the length of every pack must be a multiple of."""
        return self.strategy.pack_multiple

    @torch.no_grad()
    def squared_gradient_norm(self) -> Tensor:
        """This process's share of the squared 2-norm of all gradients, float64; the shares of all processes add up to it."""
        gradients = [
            local_part(weight.grad)
            for name, weight in self.trained.items()
            if weight.grad is not None
            and (self.layout.tp_rank == 0 or tensor_dim(name) is not None)
            # Others are whole on every process of these axes.
            and (self.layout.data_rank == self.layout.cp_rank == 0 or isinstance(weight, DTensor))
        ]
        if self.layout.replicate_rank > 0 or not gradients:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        norms = torch._foreach_norm(gradients, dtype=self.trainable_dtype)  # of bfloat16 gradients too
        return torch.stack(norms).double().square().sum()

    def refresh_copies(self) -> None:
        """Gives the last stage's copy of a tied table the first stage's value; after loading and after an update of it."""
        if self._copies_table():
            assert self.pipeline is not None
            self.pipeline.refresh_table_copy()

    def base_loaded(self) -> None:
        """To be called after the weights that are not adapters were filled."""
        self.refresh_copies()

    def _local(self, row: MicroBatch) -> MicroBatch:
        if self.layout.degrees.cp > 1:
            row = cut_row(row, self.strategy.context, self.layout.cp_rank)
        return row.to(self.device)

    def _counted(self, loss_sum: Tensor) -> Tensor:
        """All processes of a tp group have the same loss: one of them counts."""
        return loss_sum if self.layout.tp_rank == 0 else torch.zeros_like(loss_sum)

    @torch.no_grad()
    def _complete_gradients(self) -> None:
        if self.layout.degrees.tp > 1:
            partial = [
                local_part(w.grad) for name, w in self.trained.items() if w.grad is not None and tensor_dim(name) is None
            ]
            all_reduce(partial, self.layout.group("tp"))
        whole = [w.grad for w in self.trained.values() if w.grad is not None and not isinstance(w, DTensor)]
        for axis in ("dp_shard", "dp_replicate", "cp"):
            if self.layout.mesh.size(AXES.index(axis)) > 1:
                all_reduce(whole, self.layout.group(axis))
        if self._copies_table() and self.trains_all:
            assert self.pipeline is not None
            self.pipeline.add_table_gradients()

    def _copies_table(self) -> bool:
        return self.config.tie_word_embeddings and self.pipeline is not None


def adapter_parameters(model: ParallelLlama) -> dict[str, nn.Parameter]:
    """Global name -> this process's part, as in the next."""
    return {name: weight for name, weight in model.weights().items() if is_adapter(name)}


def base_parameters(model: ParallelLlama) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.weights().items() if not is_adapter(name)}


def base_groups(model: ParallelLlama) -> Iterator[dict[str, Tensor]]:
    """`ParallelLlama.view` of all weights that are not adapters, to be filled; those that lie on the host as they are.

    In groups that are asked for one after the other: what of a block is only on its way through the host leaves it before the
    one after the next is filled. Every process gets groups of the same names, where a stage holds them.
    """
    weights = base_parameters(model)
    for part in model.parts:
        assert isinstance(part, Llama)
        for prefix, done in loaded_one_by_one(part):
            of_block = {name: weights.pop(name) for name in list(weights) if name.startswith(prefix)}
            yield {name: _to_be_filled(model, name, weight) for name, weight in of_block.items()}
            done()
    yield {name: _to_be_filled(model, name, weight) for name, weight in weights.items()}


def _to_be_filled(model: ParallelLlama, name: str, weight: nn.Parameter) -> Tensor:
    return model.view(name, weight.data) if weight.device.type == model.device.type else weight.data
