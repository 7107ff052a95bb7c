"""A step of the real code as one rank of any layout, in one CPU process and without memory, for `finetune plan --simulate`.

Tensors are fake (torch's FakeTensorMode: shapes without contents) and so are the other processes (torch's "fake" backend). The
model is built, run forward and backward and stepped by the functions that train; what is counted is every tensor's memory while
it lives, and every collective. Fused blocks run as on a GPU: fake tensors say that they are on one, and Triton's kernels do
nothing, so that the code around them allocates what it does there. Meant for a process of its own, which afterwards can do
nothing else with torch.

Not in it: the allocator's rounding, NCCL's buffers, what `torch.compile` would save (compiled blocks run as plain ones).
"""

import dataclasses
import sys
import types
import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_iter
from typing_extensions import override

import finetuning.model.attention
import finetuning.parallel.context
from finetuning.config.llama import LlamaConfig
from finetuning.config.memory import plan_ranks
from finetuning.config.strategy import COMPILED, LOW_MEMORY, PLAIN, Strategy
from finetuning.data.batches.global_batch import MicroBatch, StepBatch
from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.model.attention import Documents
from finetuning.parallel.collectives import group_named
from finetuning.parallel.mesh import Layout
from finetuning.parallel.parallelize import ParallelLlama, build_model
from finetuning.training.optimizer import build_optimizer

ROWS = 3  # of a step: the first, one between and the last differ in what is gathered and summed
ROWS_IN_PIPELINE = 4  # for each of its processes
NAMES = {
    "_allgather_base_": "all-gather",
    "_reduce_scatter_base_": "reduce-scatter",
    "allreduce_": "all-reduce",
    "alltoall_base_": "all-to-all",
    "send": "send",
    "recv_": "receive",
    "broadcast_": "broadcast",
    # Opaque operators of ours (`finetuning.parallel.collectives`).
    "gather": "all-gather",
    "reduce_scatter": "reduce-scatter",
    "tokens_to_heads": "all-to-all",
    "heads_to_tokens": "all-to-all",
}


@dataclass(frozen=True)
class Collective:
    """All of one kind in one group, of the second step."""

    name: str
    group_size: int
    count: int
    num_bytes: int  # of the whole tensors, those of all ranks of the group together where they are gathered


@dataclass(frozen=True)
class Simulation:
    rank: int
    blocks: str  # that were run: plain where they would be compiled
    peak_bytes: int  # that tensors take at once in a step
    states_bytes: int  # between steps
    collectives: list[Collective]


def simulate_plan(strategy: Strategy, model: LlamaConfig, pack_tokens: int | None = None) -> Simulation:
    """The second of two steps, on the rank of a pipeline that needs most; packs are full, each a document of its own.

    Raises:
        InputError: it cannot be simulated.
    """
    if strategy.blocks == LOW_MEMORY:
        raise InputError(t("--simulate counts what is on GPUs, and --least_memory moves tensors to the host; leave one out"))
    if strategy.blocks == COMPILED:
        strategy = dataclasses.replace(strategy, blocks=PLAIN)
    tokens = pack_tokens or strategy.packs.capacity
    degrees = strategy.degrees
    rank = 0
    if degrees.pp > 1:
        plans = plan_ranks(strategy, model, tokens)
        rank = plans.index(max(plans, key=lambda plan: plan.total_gib)) * (degrees.world_size // degrees.pp)
    _pretend_to_be_a_gpu()
    dist.init_process_group("fake", rank=rank, world_size=degrees.world_size, store=FakeStore())
    layout = Layout("cpu", degrees)
    memory = CountedMode()
    torch.UntypedStorage.resize_ = memory.counting_resize()  # type: ignore[method-assign]
    with memory:
        net = build_model(model, layout, torch.device("cpu"), strategy)
        optimizer = _build_optimizer(net, strategy)
        rows = degrees.pp * ROWS_IN_PIPELINE if degrees.pp > 1 else ROWS
        micro_batches = [_full_row(tokens) for _ in range(rows)]
        batch = StepBatch(0, micro_batches, rows * tokens, rows * tokens, rows * tokens, rows * tokens, 0.0, np.arange(rows))
        states = 0
        for _ in range(2):
            memory.begin()
            net.backward(batch)
            net.squared_gradient_norm()
            optimizer.step()
            optimizer.zero_grad()
            states = memory.now
    collectives = [Collective(name, size, *counted) for (name, size), counted in sorted(memory.collectives().items())]
    return Simulation(rank, strategy.blocks, memory.peak, states, collectives)


class CountedMode(FakeTensorMode):
    """Fake tensors, whose memory is counted from the moment that it is made until nothing holds it any more."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._sent: Counter[tuple[str, int]] = Counter()
        self._counts: Counter[tuple[str, int]] = Counter()

    def begin(self) -> None:
        """Forgets the peak and the collectives so far."""
        self.peak = self.now
        self._sent.clear()
        self._counts.clear()

    def collectives(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Name and size of the group -> how many, and their bytes."""
        return {key: (count, self._sent[key]) for key, count in self._counts.items()}

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 1.0  # a loss, a norm, a factor: any finite number will do
        inputs = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        namespace = func.namespace
        if inputs and namespace != "c10d" and not any(isinstance(value, FakeTensor) for value in inputs):
            with unset_fake_temporarily():  # document boundaries, which have contents
                return func(*args, **kwargs)
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if out is NotImplemented:
            return out
        for value in tree_iter(out):
            if isinstance(value, Tensor):
                self._count(value)
        if namespace in ("c10d", "finetuning"):
            self._count_collective(func, args, [*inputs, *(value for value in tree_iter(out) if isinstance(value, Tensor))])
        self.peak = max(self.peak, self.now + _inside(func, args))
        return out

    def counting_resize(self) -> Any:
        """`UntypedStorage.resize_`, by which FSDP gives memory back and takes it again, with our count of it."""
        original = torch.UntypedStorage.resize_

        def resize(storage: torch.UntypedStorage, size: int) -> Any:
            found = original(storage, size)
            key = storage._cdata
            if key in self._sizes:
                self.now += storage.nbytes() - self._sizes[key]
                self._sizes[key] = storage.nbytes()
                self.peak = max(self.peak, self.now)
            return found

        return resize

    def _count(self, tensor: Tensor) -> None:
        if tensor.device.type == "meta":
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += self._sizes[key]
            weakref.finalize(storage, self._free, key)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)

    def _count_collective(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        name = NAMES.get(func._schema.name.partition("::")[2])
        if name is None:
            return
        group = next((_group(arg) for arg in args if _group(arg) is not None), None)
        assert group is not None, func
        key = name, group.size()
        self._counts[key] += 1
        self._sent[key] += max(value.numel() * value.element_size() for value in tensors)


def _group(argument: Any) -> dist.ProcessGroup | None:
    if isinstance(argument, str):
        return group_named(argument)
    is_group = isinstance(argument, torch.ScriptObject) and "ProcessGroup" in str(argument._type())
    return dist.ProcessGroup.unbox(argument) if is_group else None


def _inside(func: Any, args: Any) -> int:
    """Bytes that a kernel makes for itself: the flash attention's sums of the queries' gradients in float32, and the keys' and
    values' for each query head."""
    if func is not torch.ops.aten._flash_attention_backward.default:
        return 0
    query, key = args[1], args[2]
    expanded = 2 * query.numel() * query.element_size() if key.shape[1] != query.shape[1] else 0
    return 4 * (query.numel() + query.shape[0] * query.shape[1]) + expanded


def _full_row(tokens: int) -> MicroBatch:
    ids = torch.zeros(1, tokens, dtype=torch.int64)
    with unset_fake_temporarily():
        boundaries = torch.zeros(tokens + 1, dtype=torch.int32)
        boundaries[1] = tokens
        documents = Documents(boundaries, torch.tensor([1, tokens]))
    return MicroBatch(ids, ids.clone(), ids.clone(), documents, tokens)


def _build_optimizer(net: ParallelLlama, strategy: Strategy) -> torch.optim.Optimizer:
    return build_optimizer(
        net, learning_rate=1e-5, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, fused=True, states=strategy.optimizer_states
    )


def _pretend_to_be_a_gpu() -> None:
    """Of this process: fake tensors are on a GPU, kernels of Triton do nothing, weights are made anew instead of exchanged."""

    class Kernel:
        def __init__(self, function: Any):
            pass

        def __getitem__(self, grid: Any) -> Any:
            return lambda *inputs, **options: None

    triton, language = types.ModuleType("triton"), types.ModuleType("triton.language")
    vars(triton).update(
        jit=lambda function=None, **options: Kernel if function is None else Kernel(function),
        cdiv=lambda a, b: -(-a // b),
        next_power_of_2=lambda number: 1 << (number - 1).bit_length(),
        language=language,
    )
    vars(language)["constexpr"] = object
    sys.modules |= {"triton": triton, "triton.language": language}
    for kind in (FakeTensor, DTensor):
        kind.is_cuda = property(lambda tensor: True)  # type: ignore[assignment]
    finetuning.model.attention._flash_4 = lambda: None
    finetuning.parallel.context.count_targets = lambda labels: labels.numel()  # labels have no contents
    nn.Module.to_empty = _to_empty  # type: ignore[assignment]


def _to_empty(module: nn.Module, *, device: torch.device, recurse: bool = True) -> nn.Module:
    """torch's own exchanges the contents of tensors, which fake ones refuse."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                made = torch.empty_like(parameter, device=device)
                part._parameters[name] = nn.Parameter(made, requires_grad=parameter.requires_grad)
    return module
