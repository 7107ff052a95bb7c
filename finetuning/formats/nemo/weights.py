"""The weights of a Megatron GPT under the names and in the shapes of Hugging Face's Llama, and back.

How Megatron keeps a Llama (checked against megatron-core 0.16): layers either one by one (`decoder.layers.3.…`) or all of a
kind stacked in one tensor (`decoder.layers.…` with the layer as first dimension); query, key and value rows interleaved by
key/value group in `linear_qkv`; gate over up in `linear_fc1`, or the two apart (`weight_w`, `weight_v`); norms named after
the linear layer behind them; the vocabulary padded with rows that no token has.

Rows of a group, with two query heads to a key/value head: q0 q1 k v | q2 q3 k v | …, each of `head_dim` rows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from finetuning.config.llama import LlamaConfig
from finetuning.errors import InputError
from finetuning.formats.weight_source import table_dtype_problems
from finetuning.i18n import t
from finetuning.model.llama import Llama
from finetuning.storage.stored_tensors import TensorTable

TABLE = "embedding.word_embeddings.weight"
LAYERS = "decoder.layers."
OUTER = {
    "model.embed_tokens.weight": TABLE,
    "model.norm.weight": "decoder.final_layernorm.weight",
    "lm_head.weight": "output_layer.weight",
}
QKV, GATE_UP = "self_attention.linear_qkv.weight", "mlp.linear_fc1.weight"
# Our name inside a layer -> Megatron's, the usual one first.
INNER = {
    "self_attn.q_proj.weight": (QKV,),
    "self_attn.k_proj.weight": (QKV,),
    "self_attn.v_proj.weight": (QKV,),
    "self_attn.o_proj.weight": ("self_attention.linear_proj.weight",),
    "mlp.gate_proj.weight": (GATE_UP, f"{GATE_UP}_w"),
    "mlp.up_proj.weight": (GATE_UP, f"{GATE_UP}_v"),
    "mlp.down_proj.weight": ("mlp.linear_fc2.weight",),
    "input_layernorm.weight": ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
    "post_attention_layernorm.weight": ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
}
# Beside the model's weights, and of no use here: optimizer, random and scheduler states, fp8 scales, RoPE tables.
PASSED_OVER = ("optimizer.", "chained_", "rng_state", "rerun_state", "opt_param_scheduler")
PASSED_OVER_ENDINGS = ("._extra_state", ".inv_freq")


@dataclass(frozen=True)
class Place:
    """Where rows of a weight lie: runs of rows of one stored tensor."""

    key: str
    layer: int | None  # index into the first dimension of a stacked tensor
    block: int  # rows that follow each other, of our weight
    stored_block: int  # rows of the stored tensor from the beginning of one block to that of the next
    shift: int  # of the first block

    def runs(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """First stored row and number of rows, for rows [start:stop) of our weight.

        Blocks of 4 rows every 6, rows 2 to 6: (2, 2) and (6, 2).
        """
        while start < stop:
            group, row = divmod(start, self.block)
            count = min(self.block - row, stop - start)
            yield self.shift + group * self.stored_block + row, count
            start += count


@dataclass(frozen=True)
class MegatronSource:
    """A Megatron model as a `WeightSource`."""

    table: TensorTable
    config: LlamaConfig
    prefix: str  # before Megatron's own names: none, `module.`, `model.`

    def shapes(self) -> dict[str, torch.Size]:
        with torch.device("meta"):
            return {name: parameter.shape for name, parameter in Llama(self.config).named_parameters()}

    def dtype(self, name: str) -> torch.dtype:
        return self.table.dtype(self.place(name).key)

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        place, shape = self.place(name), self._shape(name)
        stop = shape[0] if stop is None else min(stop, shape[0])
        found = []
        for first, count in place.runs(start, stop):
            offsets, sizes = (first, *[0] * (len(shape) - 1)), (count, *shape[1:])
            if place.layer is None:
                found.append(self.table.read_block(place.key, offsets, sizes))
            else:
                found.append(self.table.read_block(place.key, (place.layer, *offsets), (1, *sizes))[0])
        if not found:
            return torch.empty((0, *shape[1:]), dtype=self.dtype(name))
        return found[0] if len(found) == 1 else torch.cat(found)

    def place(self, name: str) -> Place:
        """Where the weight of this name lies."""
        rows = self._shape(name)[0]
        if name in OUTER:
            return Place(self.prefix + OUTER[name], None, rows, rows, 0)
        layer, inner = _split(name)
        key, index = self._find(layer, inner)
        if inner.startswith("self_attn.") and not inner.endswith("o_proj.weight"):
            head, heads = self.config.head_dim, self.config.num_attention_heads // self.config.num_key_value_heads
            shift = {"q": 0, "k": heads * head, "v": (heads + 1) * head}[inner.removeprefix("self_attn.")[0]]
            return Place(key, index, heads * head if shift == 0 else head, (heads + 2) * head, shift)
        shift = rows if inner == "mlp.up_proj.weight" and key.endswith(GATE_UP) else 0
        return Place(key, index, rows, rows, shift)

    def check(self) -> None:
        """Compares names and shapes with the configuration; no tensor is read.

        Raises:
            InputError: a weight is missing or has another shape, or there are weights that a Llama does not have.
        """
        wanted = {self.prefix + key: size for key, size in self._wanted().items()}
        stored = self.table.sizes
        wrong = [
            t(
                "{name} should be {wanted}, found {found}",
                name=key,
                wanted=size,
                found=list(stored[key]) if key in stored else t("nothing"),
            )
            for key, size in wanted.items()
            if key not in stored or not _fits(stored[key], size, padded=key.endswith((TABLE, "output_layer.weight")))
        ]
        if wrong:
            shown = "; ".join(wrong[:3]) + (f"; … ({len(wrong)})" if len(wrong) > 3 else "")
            raise InputError(t("{path}: the weights do not fit the model: {shown}", path=self.table.where, shown=shown))
        if problems := table_dtype_problems(self.table, wanted):
            raise InputError(problems)
        unknown = [key for key in model_keys(self.table) if key not in wanted]
        if unknown:
            shown = ", ".join(unknown[:3]) + (f", … ({len(unknown)})" if len(unknown) > 3 else "")
            raise InputError(t("{path}: holds weights that a Llama does not have: {names}", path=self.table.where, names=shown))

    def _shape(self, name: str) -> tuple[int, ...]:
        config = self.config
        head = config.head_dim
        rows = {
            "model.embed_tokens.weight": config.vocab_size,
            "lm_head.weight": config.vocab_size,
            "q_proj": config.num_attention_heads * head,
            "k_proj": config.num_key_value_heads * head,
            "v_proj": config.num_key_value_heads * head,
            "o_proj": config.hidden_size,
            "gate_proj": config.intermediate_size,
            "up_proj": config.intermediate_size,
            "down_proj": config.hidden_size,
        }
        kind = name if name in rows else name.split(".")[-2]
        if kind not in rows:
            return (config.hidden_size,)
        columns = {"o_proj": config.num_attention_heads * head, "down_proj": config.intermediate_size}
        return rows[kind], columns.get(kind, config.hidden_size)

    def _find(self, layer: int, inner: str) -> tuple[str, int | None]:
        """The stored tensor that holds a weight of a layer, and the place of the layer in it."""
        for kind in INNER[inner]:
            for key, index in ((f"{LAYERS}{layer}.{kind}", None), (f"{LAYERS}{kind}", layer)):
                if self.prefix + key in self.table.sizes:
                    return self.prefix + key, index
        return f"{self.prefix}{LAYERS}{layer}.{INNER[inner][0]}", None  # is missing; `check` says so

    def _wanted(self) -> dict[str, list[int]]:
        """Stored name without prefix -> the size it must have."""
        config = self.config
        head = config.head_dim
        tables = [config.vocab_size, config.hidden_size]
        wanted = {TABLE: tables, "decoder.final_layernorm.weight": [config.hidden_size]}
        if not config.tie_word_embeddings:
            wanted["output_layer.weight"] = tables
        joined = {
            QKV: [(config.num_attention_heads + 2 * config.num_key_value_heads) * head, config.hidden_size],
            GATE_UP: [2 * config.intermediate_size, config.hidden_size],
        }
        for layer in range(config.num_hidden_layers):
            for inner in INNER:
                key, index = self._find(layer, inner)
                key = key.removeprefix(self.prefix)
                size = next((s for kind, s in joined.items() if key.endswith(kind)), None)
                size = size or list(self._shape(f"model.layers.{layer}.{inner}"))
                wanted[key] = size if index is None else [config.num_hidden_layers, *size]
        return wanted


def find_prefix(table: TensorTable) -> str:
    """What stands before Megatron's names.

    Raises:
        InputError: there is no embedding, so this is no whole GPT model.
    """
    found = [name.removesuffix(TABLE) for name in table.sizes if name.endswith(TABLE) and not _passed_over(name)]
    if found:
        return min(found, key=len)
    adapters = [name for name in table.sizes if ".adapter." in name and not _passed_over(name)]
    if adapters:
        raise InputError(
            t(
                "{path}: holds LoRA adapters only ({name}, …); merge them with NeMo's or Megatron-Bridge's own script, or give "
                "the checkpoint of the base model",
                path=table.where,
                name=adapters[0],
            )
        )
    names = [name for name in table.sizes if not _passed_over(name)]
    shown = ", ".join(names[:3]) or t("nothing")
    raise InputError(
        t(
            "{path}: holds no {name}, so it is not a GPT model of Megatron; found {found}",
            path=table.where,
            name=TABLE,
            found=shown,
        )
    )


def model_keys(table: TensorTable) -> list[str]:
    """The stored names that belong to the model."""
    return [name for name in table.sizes if not _passed_over(name)]


def _passed_over(name: str) -> bool:
    return name.startswith(PASSED_OVER) or name.endswith(PASSED_OVER_ENDINGS)


def _split(name: str) -> tuple[int, str]:
    """model.layers.3.mlp.up_proj.weight -> 3, mlp.up_proj.weight"""
    layer, _, inner = name.removeprefix("model.layers.").partition(".")
    return int(layer), inner


def _fits(found: torch.Size, wanted: list[int], *, padded: bool) -> bool:
    if padded:
        return len(found) == 2 and found[0] >= wanted[0] and found[1] == wanted[1]
    return list(found) == wanted
