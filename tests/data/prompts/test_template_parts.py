"""Templates of other kinds than Llama 3.1's: what is trained, what is refused, and which date they write."""

from pathlib import Path

import pytest
import transformers

from finetuning.data.prompts.prompt_format import PromptFormat, load_prompt_format
from finetuning.data.prompts.prompt_record import open_prompt_format, prompt_record
from finetuning.data.reading.records import Sample
from finetuning.errors import InputError
from tests.data.prompts.folders import (
    ALWAYS_A_HEADER,
    ASKS_THE_CLOCK,
    DROPS_THOUGHTS,
    PLAIN,
    WITH_HEADER_WHERE_ASKED,
    chatml,
    variant,
)

pytestmark = pytest.mark.unit

LLAMA_2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' ~ m.content | trim ~ ' [/INST]' }}"
    "{% else %}{{ ' ' ~ m.content | trim ~ ' ' ~ eos_token }}{% endif %}{% endfor %}"
)
TWO_TURNS = Sample(1, "第二題？", "九。", history=(("第一題？", "四。"),))


def trained_text(prompt_format: PromptFormat, sample: Sample) -> str:
    tokens, trained = prompt_format.encode(sample)
    return prompt_format.decode(tokens[trained].tolist(), skip_special_tokens=False)


def test_a_begin_token_that_opens_every_turn_is_no_second_begin_of_text(model_path: Path, tmp_path: Path) -> None:
    prompt_format = load_prompt_format(chatml(model_path, tmp_path / "m"), None, None)
    assert prompt_format.opens_turns
    assert trained_text(prompt_format, TWO_TURNS) == "四。<|im_end|>九。<|im_end|>", (
        "the line feed after the end is not trained"
    )
    assert prompt_format.differences([TWO_TURNS]) == [None]
    custom = load_prompt_format(tmp_path / "m", "<|im_start|>Q {input}<|im_end|>\\n<|im_start|>A {output}<|im_end|>", None)
    assert custom.whole_text(TWO_TURNS).count("<|im_start|>Q") == 2


def test_a_doubled_begin_is_refused_also_where_it_opens_turns(model_path: Path, tmp_path: Path) -> None:
    folder = chatml(model_path, tmp_path / "m")
    file = folder / "chat_template.jinja"
    file.write_text("{{ bos_token }}" + file.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError, match=r"must begin with exactly one <\|im_start\|>"):
        load_prompt_format(folder, None, None)


def test_a_header_after_the_last_answer_is_not_trained_and_turns_follow_each_other(model_path: Path, tmp_path: Path) -> None:
    prompt_format = load_prompt_format(variant(model_path, tmp_path / "m", template=ALWAYS_A_HEADER), None, None)
    usual = load_prompt_format(variant(model_path, tmp_path / "n", template=PLAIN), None, None)
    for sample in (Sample(1, "a", "b"), TWO_TURNS):
        assert [x.tolist() for x in prompt_format.encode(sample)] == [x.tolist() for x in usual.encode(sample)]
    assert prompt_format.differences([TWO_TURNS]) == [None]


def test_what_follows_the_first_end_token_of_a_users_template_is_not_trained(model_path: Path) -> None:
    prompt_format = load_prompt_format(model_path, r"Q {input}\nA {output}<|eot_id|>\n", None)
    assert trained_text(prompt_format, TWO_TURNS) == "四。<|eot_id|>九。<|eot_id|>"
    assert prompt_format.whole_text(TWO_TURNS) == "<|begin_of_text|>Q 第一題？\nA 四。<|eot_id|>\nQ 第二題？\nA 九。<|eot_id|>"


def test_thoughts_that_a_template_drops_are_found_in_every_sample(model_path: Path, tmp_path: Path) -> None:
    prompt_format = load_prompt_format(variant(model_path, tmp_path / "m", template=DROPS_THOUGHTS), None, None)
    samples = [
        Sample(1, "a", "b"),
        Sample(2, "a", "<think>x</think>b"),
        Sample(3, "a", "b", history=(("c", "<think>x</think>d"),)),
    ]
    assert [problem and problem.values["where"] for problem in prompt_format.differences(samples)] == [None, "answer", "prompt"]


def test_a_template_that_asks_the_clock_writes_one_date_which_is_recorded_and_exported(
    model_path: Path, tmp_path: Path
) -> None:
    folder = variant(model_path, tmp_path / "m", template=ASKS_THE_CLOCK)
    prompt_format = load_prompt_format(folder, None, None)
    prompt = prompt_format.prompt_text(Sample(1, "q", ""))
    assert prompt.startswith("<|begin_of_text|>Today is 26 Jul 2024 00:00:00.")
    record = prompt_record(prompt_format, None, None)
    assert record["date"] == "2024-07-26"
    assert open_prompt_format(folder, record).fingerprint == prompt_format.fingerprint
    pinned = prompt_format.chat_template()
    assert pinned is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = pinned
    messages = [{"role": "user", "content": "q"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == prompt
    (folder / "chat_template.jinja").write_text(pinned, encoding="utf-8")
    exported = open_prompt_format(folder, record)
    assert exported.chat_template() is None, "it keeps its date by itself"


def test_another_date_of_a_record_is_the_one_that_is_written(model_path: Path, tmp_path: Path) -> None:
    folder = variant(model_path, tmp_path / "m", template=ASKS_THE_CLOCK)
    record = prompt_record(load_prompt_format(folder, None, None), None, None)
    with pytest.raises(InputError, match=r"now: '<\|begin_of_text\|>Today is 03 Feb 2001"):
        open_prompt_format(folder, record | {"date": "2001-02-03"})


CLOCKS = {  # ways to ask, and what stands for "PRE"
    "the time only": "{{ strftime_now('%H:%M') }}",
    "a format put together": "{% set f = '%d ' ~ '%b' %}{{ strftime_now(f) }}",
    "quotes and other characters": "{{ strftime_now('%d \\'%b\\' \\\\ 年 👋') }}",
    "by another name": "{% set now = strftime_now %}{{ now(format='%A, %j') }}",
    "with a system message only": "{% if messages[0].role == 'system' %}{{ strftime_now('%Y') }}{% endif %}",
    "in a later turn only": "{% if messages | length > 2 %}{{ strftime_now('%p') }}{% endif %}",
    "one out of the other": "{{ strftime_now(strftime_now('%H') ~ '%M') }}",
}


@pytest.mark.parametrize("name", CLOCKS)
def test_an_export_renders_as_trained_however_the_clock_is_asked(model_path: Path, tmp_path: Path, name: str) -> None:
    folder = variant(model_path, tmp_path / "m", template=WITH_HEADER_WHERE_ASKED.replace("PRE", CLOCKS[name]))
    prompt_format = load_prompt_format(folder, None, None)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = prompt_format.chat_template()
    assert tokenizer.chat_template is not None
    for sample in (Sample(1, "q", ""), Sample(1, "q", "", system="Be brief."), Sample(1, "q2", "", history=(("q1", "a1"),))):
        if prompt_format.problem_of(sample) is not None:
            continue
        messages = [{"role": "system", "content": sample.system}] if sample.system else []
        for question, answer in sample.turns:
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        theirs = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
        assert theirs == prompt_format.encode_prompt(sample)


def test_a_date_that_no_export_can_keep_is_refused(model_path: Path, tmp_path: Path) -> None:
    template = WITH_HEADER_WHERE_ASKED.replace("PRE", "{{ strftime_now('%d') }}{{ (strftime_now | string)[:3] }}")
    with pytest.raises(InputError, match="asks for the date in a way that cannot be fixed for an export"):
        load_prompt_format(variant(model_path, tmp_path / "m", template=template), None, None)


def test_a_template_that_refuses_a_second_question_trains_single_turns(model_path: Path, tmp_path: Path) -> None:
    refuses = "{% if messages | length > 2 %}{{ raise_exception('one question') }}{% endif %}"
    folder = variant(model_path, tmp_path / "m", template=WITH_HEADER_WHERE_ASKED.replace("PRE", refuses))
    prompt_format = load_prompt_format(folder, None, None)
    assert prompt_format.problem_of(Sample(1, "q", "a")) is None
    problem = prompt_format.problem_of(Sample(1, "q2", "a2", history=(("q1", "a1"),)))
    assert problem is not None and problem.code == "turns_have_no_place"


def test_a_record_whose_example_the_template_writes_otherwise_is_refused(model_path: Path, tmp_path: Path) -> None:
    folder = variant(model_path, tmp_path / "m", template=PLAIN)
    record = prompt_record(load_prompt_format(folder, None, None), None, None)
    file = folder / "chat_template.jinja"
    file.write_text(file.read_text(encoding="utf-8").replace("| trim", "| replace('56', 'x') | trim"), encoding="utf-8")
    with pytest.raises(InputError, match="the chat template depends on the text itself"):
        open_prompt_format(folder, record)


@pytest.mark.parametrize("flag", ["prompt_template", "system_prompt"])
def test_a_text_of_megabytes_is_refused_before_it_is_used(model_path: Path, flag: str) -> None:
    texts = {"prompt_template": None, "system_prompt": None, flag: "{input}{output}" + "x" * 10_000_000}
    with pytest.raises(InputError, match=rf"--{flag}: 10,000,015 characters; at most 100,000 are used"):
        load_prompt_format(model_path, **texts)
    with pytest.raises(InputError) as caught:
        load_prompt_format(model_path, "x" * 99_000, None)
    assert len(str(caught.value)) < 300


def test_a_template_that_puts_the_answer_elsewhere_is_refused(model_path: Path, tmp_path: Path) -> None:
    template = PLAIN.replace("{% if add_generation_prompt %}", "{% if add_generation_prompt %}!")
    with pytest.raises(InputError, match="does not put the answer right after the prompt"):
        load_prompt_format(variant(model_path, tmp_path / "m", template=template), None, None)


def test_a_space_of_the_templates_own_is_not_one_of_the_text(model_path: Path, tmp_path: Path) -> None:
    """Llama 2 writes one before the question, whose own it strips, and one between prompt and answer."""
    folder = variant(model_path, tmp_path / "m", template=LLAMA_2)
    with pytest.raises(InputError, match="does not put the answer right after the prompt"):
        load_prompt_format(folder, None, None)
    answer_first = variant(model_path, tmp_path / "n", template=LLAMA_2.replace("{{ ' ' ~ m", "{{ m"))
    prompt_format = load_prompt_format(answer_first, None, None)
    assert prompt_format.parts.trims
    sample = Sample(1, " q ", " b ", history=((" p ", " a "),))
    assert prompt_format.differences([sample]) == [None]
    assert prompt_format.whole_text(sample) == "<|begin_of_text|>[INST] p [/INST]a <|eot_id|>[INST] q [/INST]b <|eot_id|>"
