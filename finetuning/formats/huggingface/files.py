"""Which files of a folder in Hugging Face format hold its weights, and what their headers say; no number is read.

The rule is that of transformers 5.23 (`_get_resolved_checkpoint_files`): `model.safetensors`, else the files that
`model.safetensors.index.json` names; another `.safetensors` in the folder is not part of the model. Everything that reads a
folder reads these files, and where two of them contradict each other, nothing is read.

Imports no torch, so that a launch answers soon. Reading tensors is left to `weight_source`.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError, safe_open

from finetuning.config.llama import DTYPES, LlamaConfig
from finetuning.errors import InputError
from finetuning.files.documents import parse_json, read_json
from finetuning.i18n import t

INDEX_FILE = "model.safetensors.index.json"
MAX_INDEX_BYTES = 2**22  # that of 405 billion parameters has a fortieth of it
SINGLE_FILE = "model.safetensors"
EMBEDDED_ADAPTER_FILE = "adapter_config.json"  # of PEFT
MAX_HEADER_BYTES = 2**24  # of one file; Llama 3.1-405B's have 30 KiB
# What safetensors calls the dtypes that are numbers as they stand.
DTYPE_OF_CODE = dict(zip(("F64", "F32", "F16", "BF16"), DTYPES, strict=True))
BYTES_AT_ONCE = 2**24
SAMPLED = 65536  # bytes of a file that a fingerprint looks at, at each of three places
# Of a rotary embedding, which early versions of transformers saved with every layer; later ones compute it.
COMPUTED_SUFFIX = "rotary_emb.inv_freq"
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class TensorHeader:
    """A tensor as the header of its file describes it."""

    file: Path
    dtype: str  # as safetensors calls it
    shape: tuple[int, ...]


class _Index(msgspec.Struct):
    weight_map: dict[str, str]
    metadata: dict[str, Any] | None = None


def weight_files(model_path: Path) -> list[Path]:
    """The safetensors files that hold the weights.

    Raises:
        InputError: there are none, the index is broken, it names a missing one, or two models or an adapter lie here.
    """
    refuse_embedded_adapter(model_path)
    single, index = model_path / SINGLE_FILE, model_path / INDEX_FILE
    names = sorted(set(read_index(index).values())) if index.is_file() else [SINGLE_FILE]
    if single.is_file():
        others = [name for name in names if name != SINGLE_FILE and (model_path / name).is_file()]
        if others:
            raise InputError(
                t(
                    "{path}: holds two models, {single} and {count} file{count:s} that {index} names; transformers reads "
                    "the first. Move the one that is not meant away",
                    path=model_path,
                    single=SINGLE_FILE,
                    count=len(others),
                    index=INDEX_FILE,
                )
            )
        return [single]
    missing = [name for name in names if not (model_path / name).is_file()]
    if missing and index.is_file():
        shown = ", ".join(missing[:3]) + (f", … ({len(missing)})" if len(missing) > 3 else "")
        raise InputError(t("{file}: names {missing}, which is not in the folder; download it again", file=index, missing=shown))
    if missing:
        found = sorted(file.name for pattern in ("*.bin", "*.safetensors") for file in model_path.glob(pattern))
        other = ", ".join(name for name in found if name not in names and not name.startswith(".")) or t("nothing")
        raise InputError(
            t(
                "{path}: weight file {missing} is missing (other weight files: {other}); weights must be in safetensors format",
                path=model_path,
                missing=", ".join(missing),
                other=other,
            )
        )
    return [model_path / name for name in names]


def refuse_embedded_adapter(folder: Path) -> None:
    """
    Raises:
        InputError: a whole model and an adapter lie in one folder: transformers adds the one to the other, PEFT takes the base
            that the adapter names.
    """
    if (folder / EMBEDDED_ADAPTER_FILE).is_file() and any((folder / name).is_file() for name in (SINGLE_FILE, INDEX_FILE)):
        raise InputError(
            t(
                "{path}: holds a whole model and an adapter ({adapter}); move one of them into a folder of its own",
                path=folder,
                adapter=EMBEDDED_ADAPTER_FILE,
            )
        )


def read_index(index: Path) -> dict[str, str]:
    """Name of a weight -> name of the file that holds it.

    Raises:
        InputError: it is broken, or names a file outside its folder, or one that no weights are in.
    """
    try:
        found = read_json(index, _Index, max_bytes=MAX_INDEX_BYTES).weight_map
    except InputError as error:
        raise InputError([t("{problem}; download it again", problem=problem) for problem in error.problems]) from None
    files = sorted(set(found.values()))
    outside = next((name for name in files if Path(name).name != name), None)
    if outside is not None:
        raise InputError(t("{folder}: names a file outside itself ({file})", folder=index, file=outside))
    strange = next((name for name in files if not name.endswith(".safetensors")), None)
    if strange is not None:
        raise InputError(t("{file}: names {name}, which is no safetensors file", file=index, name=strange))
    return found


def indexed_bytes(index: Path) -> int | None:
    """How many bytes the index says that all weights have."""
    total = (read_json(index, _Index, max_bytes=MAX_INDEX_BYTES).metadata or {}).get("total_size")
    return total if isinstance(total, int) else None


def read_headers(model_path: Path) -> dict[str, TensorHeader]:
    """What the weight files hold, by name.

    Raises:
        InputError: a file is missing or unreadable, or two files hold the same weight.
    """
    found: dict[str, TensorHeader] = {}
    for file in weight_files(model_path):
        header = read_header(file)
        if twice := sorted(found.keys() & header.keys()):
            raise InputError(
                t(
                    "{path}: {name} is in {first} and in {second}; move the file that is not meant away",
                    path=model_path,
                    name=twice[0],
                    first=found[twice[0]].file.name,
                    second=file.name,
                )
            )
        found |= header
    return found


def read_header(file: Path) -> dict[str, TensorHeader]:
    """What a safetensors file holds.

    Raises:
        InputError: it is unreadable or damaged.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
        if MAX_HEADER_BYTES < length <= file.stat().st_size:
            raise InputError(
                t(
                    "{file}: cannot read the weights: {error}",
                    file=file,
                    error=t("a header of {size} MiB", size=length // 2**20),
                )
            )
        with safe_open(str(file), framework="numpy") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - no mapping
            return {name: TensorHeader(file, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise InputError(t("{file}: cannot read the weights: {error}", file=file, error=error)) from None


def unreadable_dtypes(model_path: Path) -> list[str]:
    """A message where weights are no numbers as they stand; none for a folder without weights."""
    try:
        headers = read_headers(model_path)
    except InputError:  # `check_weights` says what is wrong
        return []
    return dtype_problems({(header.file, name): header.dtype for name, header in headers.items()})


def dtype_problems(stored: Mapping[tuple[Path, str], str]) -> list[str]:
    """A message about weights that are no numbers as they stand, but codes that need scales, tables or both.

    Args:
        stored: (file, name of the weight) -> dtype, as safetensors, torch or GGUF calls it.
    """
    readable = {*DTYPE_OF_CODE, *DTYPES}
    wrong = {
        place: dtype for place, dtype in stored.items() if dtype not in readable and not place[1].endswith(COMPUTED_SUFFIX)
    }
    if not wrong:
        return []
    (file, name), dtype = min(wrong.items())
    return [
        t(
            "{file}: {name} is stored as {dtype} ({count} of {total} weights are no plain numbers). Quantized weights are not "
            "read; give the model that they were made from, with weights in {known}",
            file=file,
            name=name,
            dtype=dtype,
            count=len(wrong),
            total=len(stored),
            known=", ".join(DTYPES),
        )
    ]


def check_weights(model_path: Path, config: LlamaConfig) -> dict[str, TensorHeader]:
    """Compares what the weight files hold with `config.json`; of the numbers only a head beside a tied table is read.

    Returns:
        The header of every weight that the decoder has.

    Raises:
        InputError: a file is unreadable, a weight is quantized, missing or has another shape, the index does not fit, or
            there are weights that the decoder would not use.
    """
    stored = read_headers(model_path)
    if problems := dtype_problems({(header.file, name): header.dtype for name, header in stored.items()}):
        raise InputError(problems)
    if config.num_hidden_layers > len(stored):  # before a table of all shapes is made
        raise InputError(
            t(
                "{path}: the weights do not fit config.json: {shown}",
                path=model_path,
                shown=t("{layers} layer{layers:s}, and {count} tensors", layers=config.num_hidden_layers, count=len(stored)),
            )
        )
    wanted = config.parameter_shapes()
    wrong = [
        t(
            "{name} should be {wanted}, found {found}",
            name=name,
            wanted=list(shape),
            found=list(stored[name].shape) if name in stored else t("nothing"),
        )
        for name, shape in wanted.items()
        if name not in stored or stored[name].shape != shape
    ]
    if wrong:
        shown = "; ".join(wrong[:3]) + (f"; … ({len(wrong)})" if len(wrong) > 3 else "")
        raise InputError(t("{path}: the weights do not fit config.json: {shown}", path=model_path, shown=shown))
    _check_index(model_path, stored, wanted)
    if config.tie_word_embeddings and HEAD in stored:
        _check_tied(model_path, stored)
    unused = [name for name in stored if name not in wanted and name != HEAD and not name.endswith(COMPUTED_SUFFIX)]
    if unused:
        shown = ", ".join(unused[:3]) + (f", … ({len(unused)})" if len(unused) > 3 else "")
        raise InputError(
            t(
                "{path}: holds weights that a Llama does not have: {names}. What they do would be lost; give the model that "
                "was meant, or save it without them",
                path=model_path,
                names=shown,
            )
        )
    return {name: stored[name] for name in wanted}


def fingerprint(model_path: Path) -> str:
    """Identifies the weights without reading them all, and the configuration."""
    return sampled_digest((model_path / "config.json").read_bytes(), weight_files(model_path))


def sampled_digest(begin: bytes, files: Iterable[Path]) -> str:
    """Of some bytes, and of names, sizes, and SAMPLED bytes at three places of each file."""
    digest = hashlib.sha256(begin)
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            for position in (0, size // 2, max(0, size - SAMPLED)):
                stream.seek(position)
                digest.update(stream.read(SAMPLED))
    return digest.hexdigest()[:16]


def _check_index(model_path: Path, stored: Mapping[str, TensorHeader], wanted: Mapping[str, object]) -> None:
    """
    Raises:
        InputError: the index names another file for a weight than the one that holds it.
    """
    index = model_path / INDEX_FILE
    if (model_path / SINGLE_FILE).is_file() or not index.is_file():
        return
    named = read_index(index)
    wrong = [name for name in wanted if named.get(name) != stored[name].file.name]
    if wrong:
        raise InputError(
            t(
                "{file}: says that {name} is in {named}, but it is in {found}; index and weight files are not of one save",
                file=index,
                name=wrong[0],
                named=named.get(wrong[0]) or t("nothing"),
                found=stored[wrong[0]].file.name,
            )
        )


def _check_tied(model_path: Path, stored: Mapping[str, TensorHeader]) -> None:
    """
    Raises:
        InputError: a head of its own differs from the embedding that it is tied to (transformers keeps both and warns).
    """
    table, head = stored[TABLE], stored[HEAD]
    if (table.dtype, table.shape) != (head.dtype, head.shape) or not _same_bytes(table.file, TABLE, head.file, HEAD):
        raise InputError(
            t(
                "{path}: config.json says tie_word_embeddings, but {head} and {table} are both there and differ. Set "
                "tie_word_embeddings to false, or remove the one that is not meant",
                path=model_path,
                head=HEAD,
                table=TABLE,
            )
        )


def _same_bytes(first_file: Path, first: str, second_file: Path, second: str) -> bool:
    (first_begin, end), (second_begin, _) = _place(first_file, first), _place(second_file, second)
    with first_file.open("rb") as a, second_file.open("rb") as b:
        a.seek(first_begin)
        b.seek(second_begin)
        left = end - first_begin
        while left > 0:
            count = min(left, BYTES_AT_ONCE)
            if a.read(count) != b.read(count):
                return False
            left -= count
    return True


def _place(file: Path, name: str) -> tuple[int, int]:
    """First byte of a tensor and the one behind it; the header has been checked by the safetensors library."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        begin, end = parse_json(stream.read(length).decode("utf-8"), file)[name]["data_offsets"]
    return 8 + length + begin, 8 + length + end
