"""fp8 out: read back by the rule of compressed-tensors and by transformers, and refused by our own readers."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, safe_open

from finetuning.cli import export
from finetuning.config.settings import RunConfig
from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.formats.stored_model import open_model
from finetuning.inference.loading import load_net
from finetuning.launch.prepare import prepare
from finetuning.model.attention import make_documents
from tests.references import write_random_adapter

pytestmark = pytest.mark.unit

LAYER = "model.layers.0.mlp.down_proj.weight"


def exported(model: Path, out: Path, *flags: str) -> Path:
    assert export.main([str(model), str(out), "--quantize", "fp8", *flags]) == EXIT_FINISHED
    return out


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_linear_layers_are_float8_with_a_scale_for_each_output(tiny_model: Path, tmp_path: Path, dtype: str) -> None:
    base = tmp_path / "base"
    assert export.main([str(tiny_model), str(base), "--dtype", dtype]) == EXIT_FINISHED
    stored, plain = load_file(exported(base, tmp_path / "out") / "model.safetensors"), load_file(base / "model.safetensors")
    layers = {name for name in plain if name.endswith("_proj.weight")}
    assert len(layers) == 14 and stored.keys() == plain.keys() | {f"{name}_scale" for name in layers}
    for name, weight in plain.items():
        if name not in layers:
            assert torch.equal(stored[name], weight)
            continue
        scale, found = stored[f"{name}_scale"], stored[name]
        assert found.dtype == torch.float8_e4m3fn and scale.shape == (len(weight), 1)
        assert scale.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        # Of 4 significant bits a number is off by 1/16 at most; below the normal ones (2 ** -6) by half of 2 ** -9.
        off = (found.float() * scale.float() - weight.float()).abs()
        assert (off <= weight.float().abs() / 16 + scale.float() * 2**-10).all()
        assert (found.float().abs().amax(1) >= 440).all()


def test_an_adapter_is_merged_in_float32_and_rounded_once(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert export.main([str(tiny_model), str(tmp_path / "base"), "--dtype", "bfloat16"]) == EXIT_FINISHED
    write_random_adapter(tmp_path / "base", tmp_path / "adapter", 2, 6.0, ("q_proj", "down_proj"))
    monkeypatch.setattr("finetuning.formats.huggingface.write.PIECE_BYTES", 4 * 96 * 7)  # 7 rows at a time
    out = exported(tmp_path / "adapter", tmp_path / "out", "--base", str(tmp_path / "base"), "--merge")
    whole = open_model(tmp_path / "adapter", tmp_path / "base").weights(rounds=False).read(LAYER)
    assert whole.dtype == torch.float32
    stored = load_file(out / "model.safetensors")
    scale = (whole.abs().amax(1, keepdim=True) / 448).bfloat16()
    assert torch.equal(stored[LAYER + "_scale"], scale)
    expected = (whole / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(stored[LAYER].view(torch.uint8), expected.view(torch.uint8))


def test_transformers_loads_it_and_computes_with_the_numbers_that_it_stands_for(tiny_model: Path, tmp_path: Path) -> None:
    """By the package compressed-tensors: weights dequantized at once, so that only they differ from plain ones."""
    pytest.importorskip("compressed_tensors", reason="reads fp8 folders; pip install compressed-tensors")
    out = exported(tiny_model, tmp_path / "out")
    settings = transformers.CompressedTensorsConfig(dequantize=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, quantization_config=settings)
    net = load_net(open_model(tiny_model).weights(), torch.device("cpu"), torch.float32)
    with safe_open(out / "model.safetensors", framework="pt") as stored:
        for name, parameter in net.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.data = stored.get_tensor(name).float() * stored.get_tensor(f"{name}_scale").float()
    tokens = torch.arange(24)
    with torch.inference_mode():
        theirs = model(input_ids=tokens[None]).logits[0]
        ours = net(tokens[None], tokens[None], make_documents([24]), at_S=tokens)[0]
    assert (theirs - ours).abs().max() < 1e-4 * ours.abs().max()


def test_it_is_no_model_to_train_from(tiny_model: Path, settings: Callable[..., RunConfig], tmp_path: Path) -> None:
    out = exported(tiny_model, tmp_path / "out")
    message = r"is stored as F8_E4M3 \(14 of 35 weights are no plain numbers\)\. Quantized weights are not read"
    with pytest.raises(InputError, match=message):
        open_model(out)
    with pytest.raises(InputError, match=message):
        prepare(settings(hf_model_id=str(out)), None, tmp_path / "experiment", tmp_path / "tokens", with_weights=True)
    written = json.loads((out / "config.json").read_text("utf-8"))
    assert written.pop("quantization_config")["format"] == "float-quantized"
    assert written == json.loads((tiny_model / "config.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--to", "gguf"), "--quantize fp8: GGUF files have no such type; give --to hf, or --quantize q8_0"),
        (("--to", "nemo"), "--quantize fp8 is for whole models in Hugging Face format; give --to hf, and --merge"),
    ],
)
def test_where_fp8_has_no_place_is_said(tiny_model: Path, tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        export.main([str(tiny_model), str(tmp_path / "out"), "--quantize", "fp8", *flags])
    assert not (tmp_path / "out").exists()
