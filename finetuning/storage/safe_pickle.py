"""Opens the pickles of a checkpoint without running anything that is in them.

A pickle names functions and calls them; whoever wrote it decides which. Here a name must be on a list. A few stand for
what they are (shapes, dtypes, tables of contents); all other names of the libraries that write checkpoints stand for an
object that keeps what it is given and does nothing; every other name is refused. No tensor is read: a tensor becomes a
`StoredTensor`, which knows where its numbers lie.
"""

import io
import pickle
import pickletools
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo, _StoragePrefix  # torch 2.11-2.13
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from typing_extensions import override

from finetuning.errors import InputError
from finetuning.i18n import t
from finetuning.storage.file_parts import FilePart, zip_parts
from finetuning.storage.stored_tensors import StoredTensor


class Inert:
    """Stands for an object of another library: what it was made from, and nothing that it could do."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> "Inert":
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


def fields_of(value: Any) -> dict[str, Any]:
    """The attributes that a pickled object had; none when it was not a plain one."""
    state = value.state if isinstance(value, Inert) and "state" in vars(value) else None
    return state if isinstance(state, dict) else {}


def _rebuild_tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> StoredTensor:
    dtype, part = storage
    if tuple(stride) != torch.empty(tuple(size), device="meta").stride():
        raise pickle.UnpicklingError(f"a tensor of shape {tuple(size)} with strides {tuple(stride)}")
    length = torch.Size(size).numel() * dtype.itemsize
    return StoredTensor(part.within(offset * dtype.itemsize, length), dtype, torch.Size(size))


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _size(values: tuple[int, ...]) -> torch.Size:
    return torch.Size(values)


def _ordered(*items: Any) -> dict[Any, Any]:
    return dict(*items)


def _table_with_default(*_: Any) -> dict[Any, Any]:
    return {}


def _get_layout(name: str) -> str:
    return name


def _attribute(owner: Any, name: str) -> Inert:
    """Members of an enumeration are pickled as attributes; the owner is never asked."""
    return Inert(owner, name)


def _bytes(text: str, encoding: str) -> bytes:
    return text.encode("latin1" if encoding == "latin1" else "ascii")


DCP = "torch.distributed.checkpoint"
MEANT: Mapping[tuple[str, str], Callable[..., Any]] = {
    **{
        (f"{DCP}.metadata", kind.__name__): kind
        for kind in (
            Metadata,
            TensorStorageMetadata,
            BytesStorageMetadata,
            ChunkStorageMetadata,
            TensorProperties,
            MetadataIndex,
            StorageMeta,
            _MEM_FORMAT_ENCODING,
        )
    },
    **{(f"{DCP}.filesystem", kind.__name__): kind for kind in (_StorageInfo, _StoragePrefix)},
    ("torch", "Size"): _size,
    ("torch.serialization", "_get_layout"): _get_layout,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): _table_with_default,
    **{(module, name): PurePosixPath for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "PurePosixPath")},
    **{
        (module, name): meant
        for module in ("builtins", "__builtin__")
        for name, meant in (
            ("set", set),
            ("frozenset", frozenset),
            ("getattr", _attribute),
        )
    },
    ("_codecs", "encode"): _bytes,
}
# Libraries whose other names stand for objects that do nothing.
INERT = frozenset(
    {
        "apex",
        "argparse",
        "datetime",
        "enum",
        "fiddle",
        "functools",
        "lightning",
        "megatron",
        "modelopt",
        "nemo",
        "nemo_run",
        "numpy",
        "omegaconf",
        "pytorch_lightning",
        "signal",
        "torch",
        "transformer_engine",
        "transformers",
        "types",
    }
)
STORAGE_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "HalfStorage": torch.float16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Forbidden(pickle.UnpicklingError):
    pass


def read_pickle(part: FilePart) -> Any:
    """The object in a pickle.

    Raises:
        InputError: it is damaged, or names something that no checkpoint consists of; nothing of it was run.
    """
    return _opened(part, lambda: _load(part.read(), {}))


def read_torch_file(part: FilePart) -> Any:
    """The object in a file of torch.save; its tensors are left where they are, as `StoredTensor`.

    Raises:
        InputError: as above, or it was not written by torch 1.6 or newer.
    """
    return _opened(part, lambda: _load_zip(part))


def read_stored(part: FilePart) -> StoredTensor:
    """The one tensor in a file of torch.save.

    Raises:
        InputError: as above, or it holds something else.
    """
    return _opened(part, lambda: _tensor(_load_zip(part)))


def _tensor(found: Any) -> StoredTensor:
    if not isinstance(found, StoredTensor):
        raise ValueError(f"holds a {type(found).__name__}, no tensor")
    return found


def _opened(part: FilePart, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except _Forbidden as error:
        raise InputError(
            t("{file}: wants to use {what}, which no checkpoint needs; it was not opened", file=part.path, what=error)
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        reason = str(error).split("\n", maxsplit=1)[0] or type(error).__name__
        raise InputError(t("{file}: cannot be read: {error}", file=part.path, error=reason)) from None


def _load_zip(part: FilePart) -> Any:
    parts = zip_parts(part)
    folder = next((name.removesuffix("data.pkl") for name in parts if name.endswith("/data.pkl")), None)
    if folder is None:
        raise ValueError("not a file of torch.save")
    order = parts.get(f"{folder}byteorder")
    if order is not None and order.read() != b"little":
        raise ValueError("big-endian numbers")
    storages = {name.removeprefix(f"{folder}data/"): p for name, p in parts.items() if name.startswith(f"{folder}data/")}
    return _load(parts[f"{folder}data.pkl"].read(), storages)


def _load(raw: bytes, storages: Mapping[str, FilePart]) -> Any:
    _check_sizes(raw)
    return _Unpickler(raw, storages).load()


def _check_sizes(raw: bytes) -> None:
    """A few bytes can ask for memory without end; no honest pickle has more notes than bytes."""
    for operation, argument, _ in pickletools.genops(raw):
        if "PUT" in operation.name and argument is not None and argument > len(raw):
            raise pickle.UnpicklingError(f"asks for a memory of {argument} notes in {len(raw)} bytes")


class _Unpickler(pickle.Unpickler):
    def __init__(self, raw: bytes, storages: Mapping[str, FilePart]):
        super().__init__(io.BytesIO(raw))
        self.storages = storages

    @override
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in MEANT:
            return MEANT[module, name]
        if module in ("torch", "torch.storage") and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch" and isinstance(torch.__dict__.get(name), torch.dtype):
            return torch.__dict__[name]
        if module.split(".")[0] in INERT:
            return type(name, (Inert,), {"__module__": module})
        raise _Forbidden(f"{module}.{name}")

    @override
    def persistent_load(self, pid: Any) -> tuple[torch.dtype, FilePart]:
        kind, dtype, key, _, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or key not in self.storages:
            raise pickle.UnpicklingError(f"no storage {key}")
        part = self.storages[key]
        if part.length < numel * dtype.itemsize:
            raise pickle.UnpicklingError(f"storage {key} has {part.length} bytes instead of {numel * dtype.itemsize}")
        return dtype, part
