"""The commands that an export prints: ranks that vLLM knows, names with blanks, the chat template as a file."""

import json
import shutil
from pathlib import Path

import pytest

from finetuning.cli import export, merge
from finetuning.errors import EXIT_FINISHED
from finetuning.formats.serving import adapter_commands, gguf_commands, whole_model_commands
from tests.references import write_random_adapter

pytestmark = pytest.mark.unit


def test_an_adapter_s_rank_is_rounded_up_to_one_that_vllm_knows() -> None:
    for rank, allowed in ((1, 1), (2, 8), (16, 16), (24, 32), (200, 256), (512, 512), (600, 600)):
        found = adapter_commands(Path("/models/my adapter"), "meta/base", "x", rank, has_template=True)
        assert found["vLLM"] == [
            (
                f"vllm serve meta/base --enable-lora --max-lora-rank {allowed} --lora-modules 'x=/models/my adapter' "
                "--chat-template '/models/my adapter/chat_template.jinja'"
            )
        ]
        assert f"--max-lora-rank {rank} --lora-paths 'x=/models/my adapter'" in found["SGLang"][0]


def test_whole_models_and_files_have_their_commands() -> None:
    assert whole_model_commands(Path("/m"), "x", has_template=False)["vLLM"] == ["vllm serve /m --served-model-name x"]
    assert gguf_commands(Path("/m/a.gguf"), "x", has_modelfile=True) == {
        "llama.cpp": ["llama-server --model /m/a.gguf --alias x --jinja"],
        "Ollama": ["ollama create x --file /m/Modelfile", "ollama run x"],
    }
    assert list(gguf_commands(Path("/m/a.gguf"), "x", has_modelfile=False)) == ["llama.cpp"]


def test_an_export_says_how_it_is_served_and_has_its_template_as_a_file(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a base whose template is inside of tokenizer_config.json, as in older models."""
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    template = (base / "chat_template.jinja").read_text(encoding="utf-8")
    (base / "chat_template.jinja").unlink()
    settings = json.loads((base / "tokenizer_config.json").read_text()) | {"chat_template": template}
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    write_random_adapter(base, tmp_path / "adapter", 2, 6.0, ("q_proj",))
    (tmp_path / "adapter" / "finetuning.json").write_text("{}")
    out = tmp_path / "merged"
    assert export.main([str(tmp_path / "adapter"), str(out), "--merge", "--base", str(base)]) == EXIT_FINISHED
    line = f"vllm serve {out} --served-model-name adapter --chat-template {out / 'chat_template.jinja'}"
    assert line in capsys.readouterr().out and line in (out / "SERVE.md").read_text(encoding="utf-8")
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == template
    data = str(tiny_dataset / "test.jsonl")
    arguments = [str(tmp_path / "adapter"), str(tmp_path / "second"), "--base", str(base), "--data", data]
    assert merge.main([*arguments, "--limit", "1", "--max_new_tokens", "2"]) == EXIT_FINISHED
    assert (tmp_path / "second" / "SERVE.md").is_file()
