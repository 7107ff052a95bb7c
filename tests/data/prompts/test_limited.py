"""Templates and tokenizers that would never end, or take all memory, end in one sentence within seconds."""

import time
from pathlib import Path

import pytest

from finetuning.data.prompts import limited
from finetuning.data.prompts.prompt_format import load_prompt_format
from finetuning.data.reading import scan
from finetuning.data.reading.findings import Problem
from finetuning.data.reading.records import Sample
from finetuning.errors import InputError
from tests.data.prompts.folders import WITH_HEADER_WHERE_ASKED, change, variant

pytestmark = pytest.mark.dist  # each ends a process

EVIL_TEMPLATES = {
    "loops in loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a power": "{{ 3 ** (10 ** 9) }}",
    "a long text": "{{ 'a' * 10 ** 10 }}",
    "center": "{{ 'a' | center(10 ** 10) }}",
    "a format": "{{ '%10000000000d' % 1 }}",
    "indent": "{{ ('a\n' * 10 ** 6) | indent(10 ** 5) }}",
    "lipsum": "{{ lipsum(n=10 ** 5) }}",
    "some megabytes": "{{ 'a' * 10 ** 7 }}",
    "no number": "{{ 1 / 0 }}",
    "no end": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "another file": "{% include '/etc/passwd' %}",
}


@pytest.fixture(autouse=True)
def _ended_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fifth of the time that is allowed, which is still ten times what a good template takes."""
    monkeypatch.setattr(limited, "TRY_S", 0.4)


@pytest.mark.parametrize("name", EVIL_TEMPLATES)
def test_a_template_without_end_or_measure_is_refused(model_path: Path, tmp_path: Path, name: str) -> None:
    folder = variant(model_path, tmp_path / "m", template=WITH_HEADER_WHERE_ASKED.replace("PRE", EVIL_TEMPLATES[name]))
    began = time.process_time()
    with pytest.raises(InputError, match=r"the chat template (cannot be used|takes too much (time|memory)).*--prompt_template"):
        load_prompt_format(folder, None, None)
    assert time.process_time() - began < 2.0, "of this process"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ 'a' * 10 ** 10 }}", "it takes too much memory"),
        ("{{ strftime_now }}", "it writes another text each time"),
        ("{{ range(99999) | random }}", "it writes another text each time"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
    ],
)
def test_the_true_reason_is_told_of_a_template(model_path: Path, tmp_path: Path, text: str, reason: str) -> None:
    folder = variant(model_path, tmp_path / "m", template=WITH_HEADER_WHERE_ASKED.replace("PRE", text))
    with pytest.raises(InputError) as refused:
        load_prompt_format(folder, None, None)
    assert str(refused.value) == f"{folder}: the chat template cannot be used ({reason}); fix it, or give --prompt_template"


def test_a_template_that_is_evil_for_one_text_only_is_ended_as_well(model_path: Path, tmp_path: Path) -> None:
    evil = "{% if messages[0].content == 'evil' %}{{ 3 ** (10 ** 9 * (messages | length)) }}{% endif %}"
    prompt_format = load_prompt_format(
        variant(model_path, tmp_path / "m", template=WITH_HEADER_WHERE_ASKED.replace("PRE", evil)), None, None
    )
    assert prompt_format.differences([Sample(1, "good", "a")]) == [None]
    with pytest.raises(InputError, match="the chat template takes too much time; give --prompt_template"):
        prompt_format.differences([Sample(1, "evil", "a")])
    assert prompt_format.differences([Sample(1, "good", "a")]) == [None], "the next request has a process of its own"


def test_a_template_that_fails_for_one_text_is_a_finding(model_path: Path, tmp_path: Path) -> None:
    evil = "{% if messages[0].content == 'evil' %}{{ 'a' * 10 ** 10 }}{% endif %}"
    prompt_format = load_prompt_format(
        variant(model_path, tmp_path / "m", template=WITH_HEADER_WHERE_ASKED.replace("PRE", evil)), None, None
    )
    right, wrong = prompt_format.differences([Sample(1, "good", "a"), Sample(2, "evil", "a")])
    assert right is None and wrong is not None and wrong.values["where"] == "error"


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(\w+\s?)*$"])
def test_a_tokenizer_whose_regular_expression_goes_wrong_is_refused(model_path: Path, tmp_path: Path, pattern: str) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    folder = variant(model_path, tmp_path / "m", tokenizer=lambda value: value.update(pre_tokenizer=split))
    with pytest.raises(InputError, match=r"tokenizer\.json: the tokenizer (fails|takes too much (time|memory))"):
        load_prompt_format(folder, None, None)


def test_a_text_on_which_only_the_tokenizer_fails_is_named(model_path: Path, tmp_path: Path) -> None:
    split = {"type": "Split", "pattern": {"Regex": "(Q+)+$"}, "behavior": "Isolated", "invert": False}
    folder = variant(model_path, tmp_path / "m")
    change(folder / "tokenizer.json", lambda value: value["pre_tokenizer"]["pretokenizers"].insert(0, split))
    prompt_format = load_prompt_format(folder, None, None)
    evil = Sample(2, "Q" * 40 + "!", "b")
    right, wrong = prompt_format.encode_each([Sample(1, "a", "b"), evil])
    assert not isinstance(right, Problem) and isinstance(wrong, Problem) and wrong.code == "tokenizer_fails"
    for encode in (prompt_format.encode, prompt_format.encode_prompt):
        with pytest.raises(InputError, match=r"tokenizer\.json: the tokenizer fails: .*retry-limit"):
            encode(evil)


@pytest.mark.parametrize("evil", ["3 ** (10 ** 9 * (messages | length))", "'a' * 10 ** 10"])
def test_the_processes_that_read_large_data_have_limits_too(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evil: str
) -> None:
    monkeypatch.setattr(scan, "MIN_BYTES_FOR_PROCESSES", 0)
    template = WITH_HEADER_WHERE_ASKED.replace("PRE", "{% if messages[0].content == 'evil' %}{{ " + evil + " }}{% endif %}")
    prompt_format = load_prompt_format(variant(model_path, tmp_path / "m", template=template), None, None)
    file = tmp_path / "training.jsonl"
    file.write_text('{"input": "good", "output": "a"}\n{"input": "evil", "output": "a"}\n', encoding="utf-8")
    settings = scan.ScanSettings(prompt_format, 512, batch_s=0.4)
    pool = scan.make_pool([file], settings)
    if pool is None:
        pytest.skip("one core: no other process reads")
    with pool:
        if "**" in evil[:4]:
            with pytest.raises(InputError, match=r"training\.jsonl: a process that read it was ended: the tokenizer"):
                list(scan.scan_file(file, settings, pool))
        else:
            (batch,) = scan.scan_file(file, settings, pool)
            assert isinstance(batch, scan.Scanned) and [finding.code for finding in batch.findings] == ["template_differs"]
            assert batch.lines.tolist() == [1]
