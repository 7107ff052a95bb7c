"""However a JSON or YAML document from outside is damaged, its reader takes it or names file and rule; never a traceback.

`FINETUNE_FUZZ=100000 pytest tests/files/test_damaged_documents.py` tries as many; those that a run writes itself are in
tests/checkpoint/test_files.py, headers of weights in tests/formats/test_damaged_headers.py.
"""

import json
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from finetuning.config.llama import read_llama_config
from finetuning.config.read_settings import config_from_dict, read_config_file
from finetuning.data.prompts.tokenizer import read_end_token_ids, read_table_size, read_tokenizer_settings
from finetuning.data.sample_texts import read_samples
from finetuning.data.tokens.tokenized import open_split, write_split
from finetuning.errors import InputError
from finetuning.files.sealed import damage_of, seal
from finetuning.formats.huggingface.companions import special_token_ids
from finetuning.formats.huggingface.files import indexed_bytes, read_index, unreadable_dtypes
from finetuning.formats.nemo.settings import llama_config, read_io_json, read_yaml
from finetuning.formats.peft.files import read_settings
from finetuning.formats.provenance import read_origin
from finetuning.launch.slurm.gpu_memory import MEASURED_FILE, _read_measured
from finetuning.storage.file_parts import FilePart
from tests.files.document_mutator import mutated_bytes

pytestmark = pytest.mark.unit

ROUNDS = int(os.environ.get("FINETUNE_FUZZ", "600"))  # of all kinds together
ADAPTER = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16.0,
    "target_modules": ["q_proj"],
    "base_model_name_or_path": "m",
    "alpha_pattern": {"q_proj": 4.0},
    "rank_pattern": {"v_proj": 2},
    "layers_pattern": "layers",
    "use_dora": False,
}
ORIGIN = {
    "base_model": "m",
    "base_path": "/m",
    "base_fingerprint": "f",
    "prompt": {
        "prompt_template": None,
        "system_prompt": None,
        "template_hash": "h",
        "example": {"input": "i", "output": "o", "text": "t", "tokens": [1, 2]},
        "date": "2026-01-02",
    },
}
SETTINGS = {
    "hf_model_id": "m",
    "dataset_path": "d",
    "num_gpus": 2,
    "learning_rate": 1e-4,
    "lora_targets": ["q_proj"],
    "time": "8:00:00",
    "mounts": ["/a:/b"],
    "fp8": False,
    "peft": "lora",
}
MEGATRON = {
    "num_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "ffn_hidden_size": 96,
    "rotary_base": 500000,
    "share_embeddings_and_output_weights": False,
    "max_position_embeddings": 512,
    "layernorm_epsilon": 1e-5,
}


class Kind(NamedTuple):
    """A document, and what reads it."""

    file: str
    value: Any
    read: Callable[[Path], object]


def io_json() -> dict[str, Any]:
    items = [[f"Attr(name='{name}')", {"type": "leaf", "value": value}] for name, value in MEGATRON.items()]
    return {"objects": {"config": {"items": items, "paths": ["<root>.model.config"]}}}


def part(file: Path) -> FilePart:
    return FilePart(file, 0, file.stat().st_size)


def kinds(tiny_model: Path) -> list[Kind]:
    def own(name: str) -> Any:
        return json.loads((tiny_model / name).read_text(encoding="utf-8"))

    index = {"metadata": {"total_size": 12}, "weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    measured = {"gpus": {"gib": 79.2, "name": "H100", "at": "2026-01-02"}}
    sample = {"line": 1, "input": "i", "output": "o", "system": None, "history": [["a", "b"]]}
    config = own("config.json") | {"quantization_config": {"quant_method": "x"}}
    return [
        Kind("config.json", own("config.json"), lambda file: read_llama_config(file.parent)),
        Kind("config.json", config, lambda file: (unreadable_dtypes(file.parent), read_table_size(file.parent))),
        Kind("tokenizer_config.json", own("tokenizer_config.json"), lambda file: read_tokenizer_settings(file.parent)),
        Kind("generation_config.json", own("generation_config.json"), lambda file: read_end_token_ids(file.parent)),
        Kind("generation_config.json", own("generation_config.json"), lambda file: special_token_ids(file.parent)),
        Kind("adapter_config.json", ADAPTER, lambda file: read_settings(file.parent)),
        Kind("finetuning.json", ORIGIN, lambda file: read_origin(file.parent)),
        Kind("checkpoint.json", {"origin": ORIGIN}, lambda file: read_origin(file.parent)),
        Kind("model.safetensors.index.json", index, lambda file: (read_index(file), indexed_bytes(file))),
        Kind("sample_texts.json", [sample, sample], lambda file: read_samples(file.parent)),
        Kind(MEASURED_FILE, measured, lambda file: _read_measured(file.parent)),
        Kind("io.json", io_json(), lambda file: llama_config(read_io_json(part(file)), 512, "float32", file)),
        Kind("model.yaml", MEGATRON, lambda file: llama_config(read_yaml(part(file)), 512, "float32", file)),
        Kind("settings.yaml", SETTINGS, lambda file: config_from_dict(read_config_file(file), str(file))),
    ]


def sentence_of(read: Callable[[], object]) -> str | None:
    """What the error says, which can be printed; None: it was read."""
    try:
        read()
    except InputError as error:
        return str(error).encode("utf-8").decode()
    return None


def test_a_damaged_document_is_read_or_named(tiny_model: Path, tmp_path: Path) -> None:
    generator = random.Random(19)
    found = kinds(tiny_model)
    refused = dict.fromkeys((kind.file for kind in found), 0)
    for number in range(ROUNDS):
        kind = found[number % len(found)]
        folder = tmp_path / str(number % len(found))
        folder.mkdir(exist_ok=True)
        file = folder / kind.file
        file.write_bytes(mutated_bytes(kind.value, generator))
        said = sentence_of(partial(kind.read, file))
        assert said is None or file.name in said or said.startswith("--"), said
        refused[kind.file] += said is not None
    print(f"{ROUNDS:,} documents; refused: {refused}")
    assert all(count > ROUNDS / len(found) / 10 for count in refused.values())


def test_a_damaged_document_of_tokens_is_read_or_named(tmp_path: Path) -> None:
    generator = random.Random(20)
    folder = tmp_path / "training"
    write_split(folder, [([1, 2, 3], [False, True, True], 1)])
    seal(folder)
    split, contents = folder / "split.json", folder / "contents.json"
    known = json.loads(contents.read_text(encoding="utf-8"))
    refused = damaged = 0
    for _ in range(ROUNDS // 4):
        split.write_bytes(mutated_bytes({"tokens": ".", "megatron": None, "seq_length": 4}, generator))
        said = sentence_of(lambda: open_split(folder))
        assert said is None or said.startswith(f"{folder}: the tokens are damaged ("), said
        refused += said is not None
        split.write_text('{"tokens": "."}')
        contents.write_bytes(mutated_bytes(known, generator))
        damaged += damage_of(folder) is not None
    assert refused > ROUNDS / 20 and damaged > ROUNDS / 20
