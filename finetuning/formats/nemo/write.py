"""Writes a model as NeMo 2 keeps it: `weights/` in Megatron's torch_dist format, `context/` with settings and tokenizer.

One process, one part of a layer in memory at a time. Layers are stacked, each in a piece of its own, as megatron-core
(checked: 0.16) writes and reads them in any layout.
"""

import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import yaml
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo  # torch 2.11-2.13
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from finetuning.config.llama import LlamaConfig
from finetuning.formats.huggingface.companions import check_companions, copy_companions, copy_config
from finetuning.formats.huggingface.safetensors_writer import converted
from finetuning.formats.huggingface.write import whole_folder
from finetuning.formats.nemo.weights import GATE_UP, INNER, LAYERS, OUTER, QKV
from finetuning.formats.stored_model import StoredModel
from finetuning.formats.weight_source import WeightSource
from finetuning.storage.dcp_save import raises_what_the_stream_said
from finetuning.storage.signs import METADATA_FILE

PREFIX = "module."  # NeMo 2 has it before Megatron's names
FILE_BYTES = 4 * 2**30  # a new file begins when one has grown beyond
PIECE_BYTES = 2**28  # of a vocabulary table
# Modules of Transformer Engine that ask for a state of their own; without fp8 it is empty.
STATEFUL = (
    "self_attention.linear_qkv",
    "self_attention.linear_proj",
    "self_attention.core_attention",
    "mlp.linear_fc1",
    "mlp.linear_fc2",
)


class TorchDistWriter:
    """A torch_dist folder that is being written; it is complete after the `with` block."""

    def __init__(self, folder: Path, step: int):
        self.folder, self.step = folder, step
        self.entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        self.places: dict[MetadataIndex, _StorageInfo] = {}
        self.number = -1

    def __enter__(self) -> Self:
        self._next_file()
        return self

    def add(self, key: str, size: tuple[int, ...], offsets: tuple[int, ...], piece: Tensor) -> None:
        """Appends the piece of a tensor of this size that begins at `offsets`."""
        whole = piece.detach().cpu().contiguous()
        if whole.untyped_storage().nbytes() != whole.numel() * whole.itemsize:
            whole = whole.clone()  # torch.save writes all that lies behind a tensor
        entry = self.entries.setdefault(key, TensorStorageMetadata(TensorProperties(dtype=whole.dtype), torch.Size(size), []))
        assert isinstance(entry, TensorStorageMetadata)
        chunk = ChunkStorageMetadata(torch.Size(offsets), whole.size())
        self._append(MetadataIndex(key, chunk.offsets, len(entry.chunks)), whole)
        entry.chunks.append(chunk)

    def add_object(self, key: str, value: Any) -> None:
        """Appends what Megatron calls a sharded object."""
        self.entries[key] = BytesStorageMetadata()
        self._append(MetadataIndex(key), [value])

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is not None:
            with suppress(OSError):  # of what could not be written before
                self.file.close()
            return
        self.file.close()
        with (self.folder / "common.pt").open("wb") as stream, raises_what_the_stream_said():
            torch.save({"checkpoint_version": 3.0, "iteration": self.step, "global_step": self.step}, stream)
        backends = {"sharded_backend": "torch_dist", "common_backend": "torch"}
        versions = {"sharded_backend_version": 1, "common_backend_version": 1}
        (self.folder / "metadata.json").write_text(json.dumps(backends | versions), encoding="utf-8")
        with (self.folder / METADATA_FILE).open("wb") as stream:
            pickle.dump(Metadata(self.entries, storage_data=self.places, storage_meta=StorageMeta()), stream)

    def _append(self, index: MetadataIndex, value: Any) -> None:
        begin = self.file.tell()
        with raises_what_the_stream_said():
            torch.save(value, self.file)
        self.places[index] = _StorageInfo(self.path.name, begin, self.file.tell() - begin)
        if self.file.tell() > FILE_BYTES:
            self.file.close()
            self._next_file()

    def _next_file(self) -> None:
        self.number += 1
        self.path = self.folder / f"__0_{self.number}.distcp"
        self.file = self.path.open("wb")


def export_nemo(
    model: StoredModel,
    target: Path,
    dtype_of: Callable[[str], torch.dtype],
    progress: Callable[[int, int], None],
    step: int = 0,
) -> None:
    """Writes all weights, an adapter merged into them, with settings, tokenizer and template.

    Args:
        dtype_of: of each weight, under Hugging Face's name.
        progress: is told how many bytes are written, and how many there are.
        step: optimizer steps done.

    Raises:
        InputError: a file is damaged, `target` is in the way, or a number does not fit the dtype.
    """
    source = model.weights()
    total = sum(shape.numel() * dtype_of(name).itemsize for name, shape in source.shapes().items())
    done = 0
    check_companions(model.base_folder)
    check_companions(model.tokenizer_folder)
    with whole_folder(target) as folder:
        (folder / "weights").mkdir()
        with TorchDistWriter(folder / "weights", step) as writer:
            for key, size, offsets, piece in megatron_pieces(source, dtype_of):
                writer.add(PREFIX + key, size, offsets, piece)
                done += piece.numel() * piece.itemsize
                progress(done, total)
            layers = source.config.num_hidden_layers
            for layer in range(layers):
                for module in STATEFUL:
                    writer.add_object(f"{PREFIX}{LAYERS}{module}._extra_state/shard_{layer}_{layers}", None)
        tokenizer = folder / "context" / "nemo_tokenizer"
        tokenizer.mkdir(parents=True)
        copy_companions(model.tokenizer_folder, tokenizer, model.chat_template(), model.origin)
        dtype = dtype_of("model.embed_tokens.weight")
        name = str(dtype).removeprefix("torch.")
        copy_config(model.base_folder, tokenizer, None if name == source.config.dtype else name)  # what NeMo has no names for
        settings = model_settings(source.config, dtype)
        text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
        (folder / "context" / "model.yaml").write_text(text, encoding="utf-8")


def megatron_pieces(
    source: WeightSource, dtype_of: Callable[[str], torch.dtype]
) -> Iterator[tuple[str, tuple[int, ...], tuple[int, ...], Tensor]]:
    """Megatron's name without prefix, size of the whole tensor, where the piece begins, the piece; layers are stacked."""
    config, shapes = source.config, source.shapes()

    def rows(name: str, start: int = 0, stop: int | None = None) -> Tensor:
        return converted(name, source.read(name, start, stop), dtype_of(name))

    for name, key in OUTER.items():
        if name not in shapes:
            continue
        size = tuple(shapes[name])
        at_once = max(1, PIECE_BYTES // (shapes[name][1:].numel() * dtype_of(name).itemsize))
        for start in range(0, size[0], at_once):
            yield key, size, (start, *[0] * (len(size) - 1)), rows(name, start, min(start + at_once, size[0]))
    stacked = config.num_hidden_layers
    for layer in range(stacked):
        ours = f"model.layers.{layer}."
        q, k, v = (rows(f"{ours}self_attn.{kind}_proj.weight") for kind in "qkv")
        joined = interleave(q, k, v, config)
        yield LAYERS + QKV, (stacked, *joined.shape), (layer, 0, 0), joined[None]
        for half, kind in enumerate(("gate", "up")):
            part = rows(f"{ours}mlp.{kind}_proj.weight")
            size = (stacked, 2 * config.intermediate_size, config.hidden_size)
            yield LAYERS + GATE_UP, size, (layer, half * config.intermediate_size, 0), part[None]
        for inner, (kind, *_) in INNER.items():
            if kind not in (QKV, GATE_UP):
                part = rows(ours + inner)
                yield LAYERS + kind, (stacked, *part.shape), (layer, *[0] * part.ndim), part[None]


def interleave(q: Tensor, k: Tensor, v: Tensor, config: LlamaConfig) -> Tensor:
    """Rows of query, key and value as Megatron keeps them: group by group."""
    groups, columns = config.num_key_value_heads, config.hidden_size
    return torch.cat([part.view(groups, -1, columns) for part in (q, k, v)], 1).view(-1, columns)


def model_settings(config: LlamaConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The model as NeMo 2 describes it in `context/model.yaml`."""
    module = "nemo.collections.llm.gpt.model.llama"
    scaling = config.rope_scaling
    settings: dict[str, Any] = {
        "_target_": f"{module}.{'LlamaConfig' if scaling is None else 'Llama31Config'}",
        "num_layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "ffn_hidden_size": config.intermediate_size,
        "num_attention_heads": config.num_attention_heads,
        "num_query_groups": config.num_key_value_heads,
        "kv_channels": config.head_dim,
        "layernorm_epsilon": config.rms_norm_eps,
        "normalization": "RMSNorm",
        "gated_linear_unit": True,
        "add_bias_linear": False,
        "position_embedding_type": "rope",
        "rotary_base": config.rope_theta,
        "rotary_percent": 1.0,
        "seq_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "share_embeddings_and_output_weights": config.tie_word_embeddings,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
    }
    if scaling is not None:
        settings |= {
            "scale_factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "old_context_len": scaling.original_max_position_embeddings,
        }
    return {"_target_": f"{module}.LlamaModel", "config": settings}
