"""Ollama's Modelfile: what it says, and, where Go is installed, what Go's own template library makes of its template."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from finetuning.cli import export
from finetuning.data.prompts.prompt_format import PromptFormat, load_prompt_format
from finetuning.data.prompts.template_parts import TemplateParts
from finetuning.data.reading.records import Sample
from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.formats.gguf.ollama import go_template, modelfile
from finetuning.formats.gguf.vocabulary import read_vocabulary
from finetuning.formats.gguf.write import GgufExport

pytestmark = pytest.mark.unit

HERE = Path(__file__).parent
CHATML = (
    "{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)
TURNS = (("在嗎？", "在。"), ("2 + 2 = ?", "4"))


def chatml_model(tiny_model: Path, folder: Path) -> Path:
    """The tiny model with ChatML, whose two tokens take the place of two reserved ones."""
    shutil.copytree(tiny_model, folder)
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    text = text.replace("<|reserved_special_token_0|>", "<|im_start|>").replace("<|reserved_special_token_1|>", "<|im_end|>")
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    settings = json.loads((folder / "tokenizer_config.json").read_text()) | {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(CHATML)
    (folder / "generation_config.json").write_text("{}")
    return folder


def written(folder: Path, prompt_format: PromptFormat) -> str:
    exported = GgufExport(Path("out/model-f16.gguf"), read_vocabulary(folder, 512, None), "")
    return modelfile(exported, prompt_format, folder)


def test_the_modelfile_of_llama_3_has_template_stops_and_sampling(tiny_model: Path, tmp_path: Path) -> None:
    assert export.main([str(tiny_model), str(tmp_path / "out"), "--to", "gguf"]) == EXIT_FINISHED
    text = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    assert text.startswith("# In training, white space at both ends of a message was taken away.")
    assert 'FROM ./model-f32.gguf\nTEMPLATE """{{ if .System }}<|start_header_id|>system<|end_header_id|>\n\nCutting' in text
    assert 'PARAMETER stop "<|eot_id|>"' in text and 'PARAMETER stop "<|eom_id|>"' in text
    assert text.endswith("PARAMETER temperature 0.6\nPARAMETER top_p 0.9\n")
    assert "<|begin_of_text|>" not in text  # which Ollama puts there itself
    serve = (tmp_path / "out" / "SERVE.md").read_text(encoding="utf-8")
    for line in ("ollama create tiny --file", "ollama run tiny", "llama-server --model", "finetune prove"):
        assert line in serve


def test_the_template_of_chatml_is_ollama_s_own(tiny_model: Path, tmp_path: Path) -> None:
    folder = chatml_model(tiny_model, tmp_path / "model")
    text = written(folder, load_prompt_format(folder, None, "Say 好."))
    assert (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n<|im_start|>user\n{{ else }}<|im_start|>system\nSay 好."
        in text
    )
    assert '{{ .Content }}<|im_end|>\n<|im_start|>assistant\n{{ else if eq .Role "assistant" }}{{ .Content }}<|im_end|>' in text
    assert '\nSYSTEM """Say 好."""\nPARAMETER stop "<|im_end|>"\nPARAMETER repeat_penalty 1\n' in text


def test_texts_that_a_modelfile_cannot_hold_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the chat template writes 'a\{\{b', which Ollama would take for its own language"):
        go_template(TemplateParts("a{{b", "", "<|eot_id|>", "", None, False, ""), "")
    with pytest.raises(InputError, match=r"a Modelfile cannot hold '.*say \"\"\"x"):
        written(tiny_model, load_prompt_format(tiny_model, None, 'say """x"""'))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama-3", "llama-3 with a system prompt", "chatml", "own template"])
def test_go_writes_the_prompts_of_the_training(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("this test renders by Go's own text/template; install Go")
    folder = chatml_model(tiny_model, tmp_path / "model") if kind == "chatml" else tiny_model
    template = "Q: {input}\\nA: {output}<|eot_id|>\\n" if kind == "own template" else None
    prompt_format = load_prompt_format(folder, template, "Be kind." if "system" in kind else None)
    text = written(folder, prompt_format)
    found = re.search(r'TEMPLATE """(.*?)"""', text, re.DOTALL)
    assert found is not None
    system = re.search(r'SYSTEM """(.*?)"""', text, re.DOTALL)
    samples = [Sample(1, TURNS[1][0], "", history=TURNS[:1]), Sample(1, TURNS[0][0], "")]
    conversations = [(system[1] if system else "", sample) for sample in samples]
    if prompt_format.parts.own_system is not None:
        conversations.append(("另一個系統訊息", Sample(1, "好", "", system="另一個系統訊息")))
    cases = []
    for message, sample in conversations:
        turns = [
            {"Role": role, "Content": text}
            for pair in sample.turns
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        first = [{"Role": "system", "Content": message}] if message else []
        cases.append({"System": message, "Messages": first + turns[:-1]})
    done = subprocess.run(
        [go, "run", HERE / "ollama_template.go"],
        input=json.dumps({"template": found[1], "cases": cases}),
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(Path(go).parent), "HOME": str(tmp_path), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"},
    )
    assert done.returncode == 0, done.stderr
    begin = "<|begin_of_text|>" if kind != "chatml" else ""
    assert [begin + text for text in json.loads(done.stdout)] == [
        prompt_format.prompt_text(sample) for _, sample in conversations
    ]
