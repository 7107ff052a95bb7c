"""Chat templates are rendered as transformers renders them, whatever they use."""

import json
import shutil
from pathlib import Path

import pytest
import transformers

from finetuning.data.prompts.chat_template import DATE, DATE_FORMAT, ChatTemplate, read_chat_template
from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.prompts.tokenizer import read_tokenizer_settings
from finetuning.errors import InputError

pytestmark = pytest.mark.unit

CONVERSATIONS = [
    [{"role": "user", "content": " 你好 <b> \n"}],
    [{"role": "system", "content": "老師"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}, {"role": "user", "content": "3"}],
]
LLAMA_3_2 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("This model only supports single tool-calls at once!") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
TEMPLATES = {
    "Llama 3.2, whose prompt holds a date": LLAMA_3_2,
    "lines and blocks": (
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n  Q: {{ m.content }}\n  {% endif %}\n{% endfor %}\nend\n"
    ),
    "marked answers": (
        "{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}"
    ),
    "JSON": "{{ messages | tojson }}|{{ messages[0] | tojson(indent=2) }}|{{ messages[0] | tojson(ensure_ascii=true) }}",
    "loop controls, namespaces and dictionaries": (
        "{% set ns = namespace(count=0) %}{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{% set ns.count = ns.count + 1 %}{{ m.content }}{% if ns.count > 1 %}{% break %}{% endif %}{% endfor %}"
        "{{ dict(a=ns.count) }}{{ dict.fromkeys(['k'], 1) }}"
    ),
    "what is not there": "{{ tools is none }}{{ documents is none }}{{ pad_token is defined }}{{ eos_token }}{{ unknown }}",
    "the generation prompt": "{{ add_generation_prompt }}{% if add_generation_prompt %}A:{% endif %}",
}


def tokenizer_of(folder: Path, template: str) -> transformers.PreTrainedTokenizerBase:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_is_rendered_as_transformers_does(model_path: Path, name: str) -> None:
    tokenizer = tokenizer_of(model_path, TEMPLATES[name])
    ours = ChatTemplate(TEMPLATES[name], {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token})
    for messages in CONVERSATIONS:
        for asks in (True, False):
            theirs = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=asks, date_string=DATE.strftime(DATE_FORMAT)
            )
            assert ours.render(messages, add_generation_prompt=asks) == theirs


ESCAPES = [
    "{{ raise_exception('no') }}",
    "{{ messages.__class__.__mro__ }}{{ ''.__class__ }}{{ dict.__init__.__globals__ }}",
    "{% set ns = namespace(_hidden=1) %}",
    "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    "{{ messages.append(1) }}",
    "{% if %}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_a_template_that_refuses_or_tries_to_break_out_is_refused_as_by_transformers(
    model_path: Path, tmp_path: Path, template: str
) -> None:
    folder = Path(shutil.copytree(model_path, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors")))
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    with pytest.raises(InputError, match=r"the chat template cannot be used \(.*--prompt_template"):
        load_prompt_format(folder, None, None)
    with pytest.raises(transformers.utils.chat_template_utils.jinja2.TemplateError):
        tokenizer_of(model_path, template).apply_chat_template(CONVERSATIONS[0], tokenize=False)


@pytest.mark.parametrize(
    ("settings", "file"),
    [
        ({"chat_template": "in the settings"}, None),
        ({"chat_template": "in the settings"}, "in a file"),
        ({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "the default"}]}, None),
    ],
)
def test_the_template_is_the_one_that_transformers_takes(
    model_path: Path, tmp_path: Path, settings: dict[str, object], file: str | None
) -> None:
    folder = Path(shutil.copytree(model_path, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors", "*.jinja")))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")) | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    if file:
        (folder / "chat_template.jinja").write_text(file, encoding="utf-8")
    found = read_chat_template(folder, read_tokenizer_settings(folder))
    assert found == transformers.AutoTokenizer.from_pretrained(folder).get_chat_template()


def test_special_tokens_of_an_older_model_are_found(model_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_path, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors")))
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokens = {name: {"content": config.pop(name), "lstrip": False, "rstrip": False} for name in ("bos_token", "eos_token")}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(tokens), encoding="utf-8")
    assert transformers.AutoTokenizer.from_pretrained(folder).bos_token == tokens["bos_token"]["content"]
    older, newer = load_prompt_format(folder, None, None), load_prompt_format(model_path, None, None)
    assert (older.parts, older.end_token_ids) == (newer.parts, newer.end_token_ids)


def test_a_template_that_is_no_text_is_refused(model_path: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_path, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors")))
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe{\0")
    with pytest.raises(InputError, match=r"chat_template\.jinja: not UTF-8"):
        load_prompt_format(folder, None, None)
