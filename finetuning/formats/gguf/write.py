"""Models out as a GGUF file, which llama.cpp, Ollama and LM Studio open; with its tokenizer, chat template and end tokens.

An adapter is merged in float32, and rounded once, to the type of the file. Names, order of rows and RoPE scaling are those of
llama.cpp's own converter (finetuning.formats.gguf.weights reads them back). Memory does not grow with the model. The `gguf`
package writes the header and Q8_0; the types of llama.cpp with a K are its own program's (finetuning.formats.gguf.k_quants).
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from finetuning.config.llama import LlamaConfig
from finetuning.data.prompts.chat_template import DATE, DATE_FORMAT, read_chat_template
from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.prompts.tokenizer import read_tokenizer_settings
from finetuning.files.atomic import require_room
from finetuning.formats.gguf.header import TYPES
from finetuning.formats.gguf.k_quants import K_QUANTS, quantize_file, require_quantizer
from finetuning.formats.gguf.vocabulary import Vocabulary, add_vocabulary, read_vocabulary
from finetuning.formats.gguf.weights import ROPE_DIVISORS, gguf_name, rope_divisors
from finetuning.formats.huggingface.companions import ORIGIN_FILE
from finetuning.formats.huggingface.safetensors_writer import converted
from finetuning.formats.huggingface.write import Progress, pieces, whole_folder
from finetuning.formats.stored_model import StoredModel
from finetuning.formats.weight_source import WeightSource
from finetuning.i18n import t
from finetuning.on_demand import needed_for

if TYPE_CHECKING:
    from gguf import GGUFWriter

PLAIN = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
QUANTIZATIONS = (*PLAIN, "q8_0", *K_QUANTS)
# ggml's numbers of types, and those that llama.cpp has for a whole file (llama_ftype).
NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
Q8_0, Q8_0_BLOCK = 8, 32
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
QUANTIZATION_VERSION = 2


@dataclass(frozen=True)
class GgufExport:
    """What has been written."""

    file: Path
    vocabulary: Vocabulary
    chat_template: str | None


def export_gguf(model: StoredModel, target: Path, quantization: str | None, progress: Progress) -> GgufExport:
    """Writes a folder with `model-TYPE.gguf`, the chat template as a file, and where the model comes from.

    Args:
        quantization: of matrices, one of QUANTIZATIONS; None: the dtype of the model. Norms are float32, as in every GGUF file.
        progress: is told how far it is.

    Raises:
        InputError: `gguf` or llama.cpp is not there, the tokenizer cannot be written, a file is damaged, `target` is in the
            way, or a number does not fit the type.
        NoRoom: the disk is too full.
    """
    with needed_for(t("export to GGUF")):
        import gguf
    source = model.weights(rounds=False)
    kind = quantization or {str(dtype): name for name, dtype in PLAIN.items()}.get(f"torch.{source.config.dtype}", "f32")
    if kind in K_QUANTS:
        require_quantizer(kind)
    is_trained = (model.origin or {}).get("prompt") is not None
    prompt_format = model.prompt_format() if is_trained else None
    folder = model.tokenizer_folder
    vocabulary = read_vocabulary(folder, source.config.vocab_size, end_of_answer(prompt_format) if prompt_format else None)
    template = model.chat_template() or read_chat_template(folder, read_tokenizer_settings(folder))
    if template is not None:
        template = with_date(template, prompt_format)
    types = {name: _type_of(source, name, kind) for name in source.shapes()}
    with whole_folder(target) as whole:
        name = f"model-{kind}.gguf"
        first = whole / (f"whole-{name}" if kind in K_QUANTS else name)
        require_room(whole, sum(_bytes(tuple(source.shapes()[weight]), number) for weight, number in types.items()))
        writer = gguf.GGUFWriter(None, "llama")
        _add_settings(writer, source.config, target.name, kind)
        add_vocabulary(writer, vocabulary)
        if template is not None:
            writer.add_chat_template(template)
            (whole / "chat_template.jinja").write_text(template, encoding="utf-8")
        _write(writer, first, source, types, progress)
        if kind in K_QUANTS:
            quantize_file(first, whole / name, kind)
            first.unlink()
        if model.origin is not None:
            text = json.dumps(model.origin, indent=1, ensure_ascii=False) + "\n"
            (whole / ORIGIN_FILE).write_text(text, encoding="utf-8")
    return GgufExport(target / name, vocabulary, template)


def end_of_answer(prompt_format: PromptFormat) -> str | None:
    """The end token after trained answers."""
    after = prompt_format.parts.after
    return max((end for end in prompt_format.source.ends if after.endswith(end)), key=len, default=None)


def with_date(template: str, prompt_format: PromptFormat | None) -> str:
    """The template with the date of the training. llama.cpp tells every template today's, transformers tells none."""
    day = date.fromisoformat(prompt_format.source.day) if prompt_format is not None else DATE
    written = f'{{% set date_string = "{day.strftime(DATE_FORMAT)}" %}}'
    return template if "date_string" not in template or template.startswith(written) else written + template


def permuted(rows: Tensor, head_dim: int) -> Tensor:
    """Rows of whole heads of query or key, as llama.cpp orders them: of a head of 4, 0 1 2 3 -> 0 2 1 3."""
    return rows.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _type_of(source: WeightSource, name: str, kind: str) -> int:
    """The number of the type that a weight gets in the file; before llama.cpp quantizes, that which loses nothing."""
    shape = source.shapes()[name]
    if len(shape) == 1:
        return NUMBERS[torch.float32]
    if kind == "q8_0":  # rows that are no whole blocks get what llama.cpp gives them
        return Q8_0 if shape[-1] % Q8_0_BLOCK == 0 else NUMBERS[torch.float16]
    return NUMBERS[PLAIN[kind]] if kind in PLAIN else NUMBERS.get(source.dtype(name), NUMBERS[torch.float32])


def _bytes(shape: tuple[int, ...], number: int) -> int:
    _, numbers, size = TYPES[number]
    return math.prod(shape) // numbers * size


def _add_settings(writer: "GGUFWriter", config: LlamaConfig, name: str, kind: str) -> None:
    writer.add_type("model")
    writer.add_name(name)
    if kind in FILE_TYPES:
        writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(QUANTIZATION_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)


def _write(
    writer: "GGUFWriter",
    file: Path,
    source: WeightSource,
    types: Mapping[str, int],
    progress: Progress,
) -> None:
    """Header and weights, a piece at a time."""
    from gguf import GGMLQuantizationType

    config, shapes = source.config, source.shapes()
    divisors = None
    if config.rope_scaling is not None:
        divisors = rope_divisors(config.rope_scaling, config.head_dim, config.rope_theta)
        writer.add_tensor_info(ROPE_DIVISORS, tuple(divisors.shape), np.dtype(np.float32), 4 * len(divisors))
    for name, number in types.items():
        shape = tuple(shapes[name])
        size = _bytes(shape, number)
        writer.add_tensor_info(gguf_name(name), shape, np.dtype(np.float32), size, GGMLQuantizationType(number))
    writer.write_header_to_file(file)
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    total, done = sum(_bytes(tuple(shapes[name]), number) for name, number in types.items()), 0
    with file.open("ab") as stream:
        if divisors is not None:
            stream.write(_padding(stream.tell()))
            stream.write(divisors.numpy().tobytes())
        for name, number in types.items():
            stream.write(_padding(stream.tell()))
            for rows in _rows(source, name, number):
                stream.write(rows.data)
                done += rows.nbytes
                progress(done, total)
        stream.write(_padding(stream.tell()))


def _rows(source: WeightSource, name: str, number: int) -> Iterator["np.ndarray[tuple[int], np.dtype[np.uint8]]"]:
    """The bytes of a weight in order."""
    import gguf

    is_rotated = name.endswith(("q_proj.weight", "k_proj.weight"))
    head = source.config.head_dim
    dtype = {number: dtype for dtype, number in NUMBERS.items()}.get(number)
    for rows in pieces(source, name, head if is_rotated else 1):
        ordered = permuted(rows, head) if is_rotated else rows
        if dtype is None:
            found = gguf.quantize(ordered.float().contiguous().numpy(), gguf.GGMLQuantizationType(number))
            yield found.reshape(-1)
        else:
            yield converted(name, ordered, dtype).contiguous().flatten().view(torch.uint8).numpy()


def _padding(at: int) -> bytes:
    return bytes(-at % 32)
