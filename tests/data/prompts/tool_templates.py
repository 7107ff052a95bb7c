"""Chat templates with tools, written for these tests after the layout of Llama 3.1's, Llama 3.2's and Hermes' ChatML."""

from pathlib import Path

from tests.data.prompts.folders import chatml, variant

ASK_FOR_JSON = 'Answer with a call in JSON: {"name": …, "parameters": {…}}.\\n\\n'
LLAMA = """\
{%- macro head(role) -%}{{ '<|start_header_id|>' ~ role ~ '<|end_header_id|>\\n\\n' }}{%- endmacro -%}
{%- macro described(tools) -%}{% for tool in tools %}{{ tool | tojson(indent=4) ~ '\\n\\n' }}{% endfor %}{%- endmacro -%}
{%- if tools_in_user_message is not defined %}{% set tools_in_user_message = true %}{% endif -%}
DATES
{%- set has_system = messages[0].role == 'system' -%}
{{- bos_token ~ head('system') -}}
{%- if BUILTIN tools is not none %}{{ 'Environment: ipython\\n' }}{% endif -%}
{{- 'Today Date: ' ~ today ~ '\\n\\n' -}}
{{- (messages[0].content | trim if has_system else '') ~ '<|eot_id|>' -}}
{%- set spoken = messages[1:] if has_system else messages -%}
{%- if tools_in_user_message and tools is not none -%}
{%- if not spoken %}{{ raise_exception('no first question to put tools into') }}{% endif -%}
{{- head('user') ~ 'ASK' ~ described(tools) ~ spoken[0].content | trim ~ '<|eot_id|>' -}}
{%- set spoken = spoken[1:] -%}
{%- endif -%}
{%- for message in spoken -%}
{%- if 'tool_calls' in message -%}
{%- if message.tool_calls | length != 1 %}{{ raise_exception('only single tool calls at once') }}{% endif -%}
{%- set call = message.tool_calls[0].function -%}
{{- head('assistant') ~ '{"name": "' ~ call.name ~ '", "parameters": ' ~ call.arguments | tojson ~ '}' -}}
{{- END -}}
{%- elif message.role in ('tool', 'ipython') -%}
{%- set content = message.content -%}
{{- head('ipython') ~ (content | tojson if content is mapping or content is iterable else content) ~ '<|eot_id|>' -}}
{%- else -%}
{{- head(message.role) ~ message.content | trim ~ '<|eot_id|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ head('assistant') }}{% endif -%}
""".replace("ASK", ASK_FOR_JSON)
FIXED_DATE = (
    "{%- if date_string is not defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{% set today = date_string -%}"
)
CLOCK = (
    "{%- if date_string is defined %}{% set today = date_string %}{% elif strftime_now is defined %}"
    "{% set today = strftime_now('%d %b %Y') %}{% else %}{% set today = '26 Jul 2024' %}{% endif -%}"
)
LLAMA_31 = (
    LLAMA.replace("DATES", FIXED_DATE)
    .replace("BUILTIN", "builtin_tools is defined or")
    .replace("END", "'<|eom_id|>' if builtin_tools is defined else '<|eot_id|>'")
)
LLAMA_32 = LLAMA.replace("DATES", CLOCK).replace("BUILTIN ", "").replace("END", "'<|eot_id|>'")
HERMES = """\
{%- if tools or messages[0].role == 'system' -%}
{{- '<|im_start|>system\\n' ~ (messages[0].content if messages[0].role == 'system' else 'You call functions.') -}}
{%- if tools %}{{ '\\n\\n<tools>' }}{% endif -%}
{%- for tool in tools or [] %}{{ '\\n' ~ tool | tojson }}{% endfor -%}
{%- if tools %}{{ '\\n</tools>' }}{% endif -%}
{{- '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'assistant' -%}
{{- '<|im_start|>assistant\\n' -}}
{%- if message.reasoning_content %}{{ '<think>\\n' ~ message.reasoning_content ~ '\\n</think>\\n\\n' }}{% endif -%}
{{- message.content or '' -}}
{%- for call in message.tool_calls or [] -%}
{{- '\\n' if message.content or not loop.first -}}
{{- '<tool_call>\\n{"name": "' ~ call.function.name ~ '", "arguments": ' -}}
{{- call.function.arguments | tojson ~ '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>\\n' -}}
{%- elif message.role == 'tool' -%}
{{- '<|im_start|>user' if loop.first or messages[loop.index0 - 1].role != 'tool' -}}
{{- '\\n<tool_response>\\n' ~ message.content ~ '\\n</tool_response>' -}}
{{- '<|im_end|>\\n' if loop.last or messages[loop.index0 + 1].role != 'tool' -}}
{%- elif not (message.role == 'system' and loop.first) -%}
{{- '<|im_start|>' ~ message.role ~ (' ' ~ message.name if message.name) ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}
"""
TEMPLATES = {"Llama 3.1": LLAMA_31, "Llama 3.2": LLAMA_32, "ChatML": HERMES}


def with_tools(name: str, model_path: Path, target: Path) -> Path:
    """A model folder with one of TEMPLATES and the tokens that it needs."""
    if name == "ChatML":
        folder = chatml(model_path, target)
        (folder / "chat_template.jinja").write_text(HERMES, encoding="utf-8")
        return folder
    return variant(model_path, target, template=TEMPLATES[name])
