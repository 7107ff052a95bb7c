"""LoRA out as a GGUF adapter: added to a file of the base as llama.cpp does, it gives the merged file."""

import json
from pathlib import Path

import gguf
import numpy as np
import peft
import pytest

from finetuning.cli import export
from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.formats.stored_model import open_model
from tests.references import load_reference, write_random_adapter

pytestmark = pytest.mark.unit

TARGETS = ("q_proj", "k_proj", "o_proj", "down_proj")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def tensors(file: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data, np.float32) for tensor in gguf.GGUFReader(file).tensors}


def exported(model: Path, out: Path, *flags: str) -> Path:
    assert export.main([str(model), str(out), "--to", "gguf", *flags]) == EXIT_FINISHED
    (file,) = out.glob("*.gguf")
    return file


@pytest.mark.parametrize("scaling", ["standard", "patterns", "rank-stabilized"])
def test_base_and_adapter_are_the_merged_file(tiny_model: Path, tmp_path: Path, scaling: str) -> None:
    adapter = tmp_path / "adapter"
    write_random_adapter(tiny_model, adapter, 2, 6.0, TARGETS)
    changes = {"patterns": {"alpha_pattern": {"down_proj": 10.0}}, "rank-stabilized": {"use_rslora": True}}.get(scaling, {})
    settings = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    (adapter / "adapter_config.json").write_text(json.dumps(settings | changes))
    base, merged = (tensors(exported(at, tmp_path / name)) for at, name in ((tiny_model, "base"), (adapter, "merged")))
    file = exported(adapter, tmp_path / "out", "--adapter")
    assert file.name == "adapter-f32.gguf"
    reader, found = gguf.GGUFReader(file), tensors(file)
    said = {name: reader.fields[name].contents() for name in ("general.type", "general.architecture", "adapter.type")}
    assert said == {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    alpha = reader.fields["adapter.lora.alpha"].contents()
    assert len(found) == 2 * 2 * len(TARGETS)
    for name, whole in merged.items():
        expected = base[name]
        if f"{name}.lora_a" in found:
            a, b = found[f"{name}.lora_a"], found[f"{name}.lora_b"]
            assert not np.allclose(whole, expected, atol=1e-5)
            expected = expected + alpha / b.shape[1] * (b @ a)
        assert np.allclose(whole, expected, atol=2e-6), name


def test_it_says_how_it_is_served_and_is_no_whole_model(tiny_model: Path, tmp_path: Path) -> None:
    write_random_adapter(tiny_model, tmp_path / "adapter", 2, 6.0, TARGETS)
    file = exported(tmp_path / "adapter", tmp_path / "out", "--adapter", "--quantize", "f16")
    assert {tensor.data.dtype for tensor in gguf.GGUFReader(file).tensors} == {np.dtype(np.float16)}
    served = (file.parent / "SERVE.md").read_text("utf-8")
    assert f"finetune export {tiny_model} base --to gguf --quantize f16\n" in served
    assert f"llama-server --model base/model-f16.gguf --lora {file} --alias adapter --jinja\n" in served
    with pytest.raises(InputError, match=r"adapter-f16\.gguf: is an adapter of llama\.cpp, no whole model"):
        open_model(file)


def test_what_an_adapter_cannot_be_is_said(tiny_model: Path, tmp_path: Path) -> None:
    write_random_adapter(tiny_model, tmp_path / "adapter", 2, 6.0, TARGETS)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", use_dora=True)
    peft.get_peft_model(load_reference(tiny_model), settings).save_pretrained(tmp_path / "dora")
    cases = {
        ("adapter", "--to", "hf"): "--adapter is for --to gguf; --to hf leaves an adapter as it is",
        ("adapter", "--to", "gguf", "--merge"): "--adapter and --merge: give one of them",
        ("adapter", "--to", "gguf", "--quantize", "q8_0"): "--quantize q8_0 is for whole models; an adapter is f32 or f16",
        ("adapter", "--to", "gguf", "--prove"): "--prove serves GGUF files and whole models only; serve the result",
        ("dora", "--to", "gguf"): r"dora: DoRA gives rows another length, which llama\.cpp's adapters cannot",
    }
    for (name, *flags), message in cases.items():
        with pytest.raises(InputError, match=message):
            export.main([str(tmp_path / name), str(tmp_path / "out"), "--adapter", *flags])
    with pytest.raises(InputError, match=r"--adapter: .* has no adapter"):
        export.main([str(tiny_model), str(tmp_path / "out"), "--adapter", "--to", "gguf"])
