"""`finetune plan` through its own door: what it answers, what it refuses, in both languages, without torch."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from finetuning.cli.plan import main
from finetuning.config.llama import read_llama_config, write_llama_config
from finetuning.errors import InputError
from finetuning.i18n import set_language
from finetuning.plan.rates import kinds

pytestmark = pytest.mark.unit

LLAMA_8B = ["--hf_model_id", "meta-llama/Llama-3.1-8B-Instruct"]
SHORT = ["--tokens_per_sample", "260", "--max_steps", "100"]


def screen(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    try:
        code = main(arguments)
    finally:
        set_language("en")
    return code, capsys.readouterr().out


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    return json.loads(screen(capsys, *arguments, "--json")[1])


def value_of(label: str, text: str) -> str:
    (line,) = (line for line in text.splitlines() if line.startswith(label))
    return line[12:]


def test_the_specification_s_layout_is_planned_and_a_faster_one_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = screen(capsys, *LLAMA_8B, "--gpu", "h200", "-G", "2", "-T", "2", *SHORT)
    assert code == 0
    assert value_of("GPUs", text) == "2 × NVIDIA H200 SXM, 140 GiB · rates measured on one"
    assert value_of("memory", text).endswith(" · fits")
    assert value_of("layout", text).startswith("TP 2 · fused blocks · sharding full")
    assert value_of("faster", text).startswith("-T 1: ")
    assert "100 steps in " in value_of("job", text)
    assert next(line.split("  ")[1] for line in text.splitlines() if line.startswith("  ")) == "DP 2"


def test_what_does_not_fit_ends_in_1_and_is_told_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = screen(capsys, *LLAMA_8B, "--gpu", "4090", "-G", "1", "-g", "8")
    assert code == 1
    assert "does not fit: 21.6 GiB may be filled" in value_of("memory", text)
    assert value_of("it fits", text) == "with --peft lora --fp8 --least_memory (11 GiB) or --peft lora --least_memory (18 GiB)"


def test_the_parts_of_memory_add_up(capsys: pytest.CaptureFixture[str]) -> None:
    found = answer(capsys, *LLAMA_8B, "--gpu", "h200", "-G", "1", "-g", "64", *SHORT)["chosen"]["memory_gib"]
    parts = sum(found[name] for name in ("states", "gathered", "activations", "work", "rounding", "allowance"))
    assert found["total"] == pytest.approx(parts)
    assert found["tensors"] == pytest.approx(parts - 2)


def test_of_gpus_that_are_not_in_the_table_the_time_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    _, text = screen(capsys, *LLAMA_8B, "--gpu_memory_gib", "141", "-G", "8", "-g", "64", *SHORT)
    assert value_of("speed", text) == value_of("job", text) == "not known"
    found = answer(capsys, *LLAMA_8B, "--gpu", "gb10", "-G", "1", "-g", "8", *SHORT)
    assert found["fits"] and found["chosen"]["step_s"] is None and found["forecast"]["job_s"] is None


def test_several_machines_need_their_network_for_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*LLAMA_8B, "--gpu", "h100", "-N", "2", "-g", "256", *SHORT]
    assert answer(capsys, *flags)["chosen"]["step_s"] is None
    assert answer(capsys, *flags, "--network", "400")["chosen"]["step_s"] > 0


@pytest.mark.parametrize("as_file", [True, False], ids=["config.json", "folder"])
def test_a_bare_config_json_is_model_enough(
    as_file: bool, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_llama_config(read_llama_config(tiny_model), tmp_path)
    given = tmp_path / "config.json" if as_file else tmp_path
    found = answer(capsys, "--hf_model_id", str(given), "--gpu", "h200", "-G", "1", "-g", "8", "--seq_length", "256")
    assert found["fits"]
    assert found["chosen"]["memory_gib"]["total"] < 3


def test_with_data_real_lengths_are_counted(
    tiny_model: Path, tiny_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--hf_model_id", str(tiny_model), "--dataset_path", str(tiny_dataset), "--gpu", "h200", "-G", "1", "-g", "8"]
    found = answer(capsys, *flags, "--seq_length", "256", "--experiments_dir", str(tmp_path))
    assert found["samples"]["count"] == 40 and found["samples"]["measured"]
    assert 1 < found["samples"]["work"]["tokens"] < 256
    assert found["forecast"]["max_steps"] == 5
    assert not list(tmp_path.iterdir())


def test_it_speaks_chinese(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = screen(capsys, *LLAMA_8B, "--gpu", "h200", "-G", "1", "-g", "64", *SHORT, "--lang", "zh-TW")
    assert code == 0
    assert "放得下" in text and "每張 GPU 每秒" in text


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--gpu", "v100"], f"--gpu 'v100': not known; choose from {', '.join(kinds())}, or give --gpu_memory_gib"),
        (["--gpu", "h200", "--tokens_per_sample", "0"], "--tokens_per_sample 0.0: must be greater than 0"),
        (["--gpu", "h200", "--network", "-1"], "--network -1.0: must be greater than 0"),
        (
            ["--gpu", "h200", "-T", "3", "-G", "6"],
            "--tensor_model_parallel_size 3: must divide 32 attention heads and 8 key/value heads; with 6 GPUs use 1, 2",
        ),
        (
            ["--gpu", "h200", "--dataset_path", "somewhere", "--hf_model_id", "CONFIG"],
            "to count tokens, the tokenizer is needed: give the model's folder or its name as --hf_model_id",
        ),
        ([], f"there is no GPU to plan for here; give --gpu, one of {', '.join(kinds())}, or --gpu_memory_gib"),
    ],
    ids=["gpu", "tokens", "network", "layout", "tokenizer", "no gpu"],
)
def test_what_is_wrong_is_said(flags: list[str], problem: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetuning.cli.plan.find_gpu_memory", lambda: None)
    flags = [str(tiny_model / "config.json") if flag == "CONFIG" else flag for flag in flags]
    with pytest.raises(InputError) as error:
        main([*LLAMA_8B, "-g", "48", *flags])
    assert problem in error.value.problems


def test_a_model_is_needed() -> None:
    with pytest.raises(InputError) as error:
        main(["--nemo_model", "/somewhere", "--gpu", "h200"])
    assert "finetune plan reads the shape of a model from its config.json; give it as --hf_model_id" in error.value.problems


def test_the_answer_comes_in_no_time(capsys: pytest.CaptureFixture[str]) -> None:
    began_s = time.process_time()
    screen(capsys, *LLAMA_8B, "--gpu", "h200", "-N", "128", "-G", "8", "--network", "400", *SHORT)
    assert time.process_time() - began_s < 1.5  # of 3 s; imports take half a second


def test_auto_takes_the_plan_s_choice_and_zero_is_no_number_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*LLAMA_8B, "--gpu", "h200", "-G", "8", "-g", "512", *SHORT]
    found = answer(capsys, *flags, "-T", "auto", "-P", "auto", "-C", "auto")
    assert found["chosen"]["layout"] == found["layouts"][0]["layout"] == "DP 8"
    with pytest.raises(InputError) as error:
        main([*flags, "-T", "0"])
    assert error.value.problems == ["--tensor_model_parallel_size 0: must be 1 or more"]
