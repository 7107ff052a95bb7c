"""Settings from dictionaries and files, and `run.yaml` there and back."""

import dataclasses
import os
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from finetuning.config.read_settings import config_from_dict, read_config_file
from finetuning.config.run import Run, read_run, write_run
from finetuning.config.settings import CHOICES, LORA_TARGETS, RunConfig, field_types
from finetuning.config.strategy import LINEAR, Strategy
from finetuning.errors import InputError

pytestmark = pytest.mark.unit

REQUIRED = {"hf_model_id": "meta-llama/Llama-3.1-8B-Instruct", "dataset_path": "data/alpaca"}

# Anything a shell can pass: no surrogates, no null character; and not U+0085, a line end of mainframes that PyYAML 6.0 writes
# as if it were a line feed.
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\x85"), max_size=40)
numbers = st.floats(allow_nan=False, allow_infinity=False)


def test_a_run_comes_back_equal_from_its_file(tmp_path: Path) -> None:
    config = RunConfig(
        **REQUIRED,
        peft="lora",
        lora_targets=("q_proj", "v_proj"),
        prompt_template="問題：{input}\n回答：{output}",
        system_prompt="你是個有用的助理。\t'\"#: - ",
        lr=1e-5,
        max_steps=100,
        warmup_steps=0,
        save_every_n_steps=0,
        accept_changes=True,
        lang="zh-TW",
    )
    assert write_and_read(make_run(config), tmp_path) == make_run(config)


def test_a_run_of_defaults_comes_back_equal_from_its_file(tmp_path: Path) -> None:
    run = dataclasses.replace(make_run(RunConfig(**REQUIRED)), initial_weights=None)
    assert write_and_read(run, tmp_path) == run


@settings(max_examples=10, deadline=None, derandomize=True)
@given(values=st.lists(st.tuples(texts, numbers, st.integers()), min_size=1))
def test_any_text_and_number_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory, values: list[tuple[str, float, int]]
) -> None:
    """Many values in a run: most of the time is the rest of its file."""
    text, number, count = values[0]
    config = RunConfig(**REQUIRED, system_prompt=text, lr=number, seed=count)
    identity = {
        "first": text,
        "all": [{"text": text, "number": number, "list": [count, None]} for text, number, count in values],
    }
    run = dataclasses.replace(make_run(config), identity=identity)
    assert write_and_read(run, tmp_path_factory.mktemp("run")) == run


def test_the_file_of_a_run_is_readable_by_people_and_by_any_yaml_reader(tmp_path: Path) -> None:
    write_run(make_run(RunConfig(**REQUIRED, system_prompt="請用中文回答")), tmp_path / "run.yaml")
    text = (tmp_path / "run.yaml").read_text(encoding="utf-8")
    assert "system_prompt: 請用中文回答\n" in text
    assert "!!" not in text  # no tags of Python
    assert yaml.safe_load(text)["config"]["lora_targets"] == list(LORA_TARGETS)


def test_no_setting_holds_the_token() -> None:
    assert not [name for name in field_types() if "token" in name and name != "max_new_tokens"]


def test_every_choice_belongs_to_a_setting_whose_default_is_one_of_them() -> None:
    defaults = RunConfig(**REQUIRED)
    assert all(getattr(defaults, name) in choices for name, choices in CHOICES.items())


def test_processes_that_do_not_share_a_model_work_data_parallel() -> None:
    config = RunConfig(
        **REQUIRED,
        num_nodes=4,
        num_gpus=8,
        tensor_model_parallel_size=4,
        pipeline_model_parallel_size=2,
        context_parallel_size=2,
    )
    assert (config.world_size, config.model_parallel_size, config.data_parallel_size) == (32, 16, 2)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("max_steps", "100", 100),
        ("max_steps", None, None),
        ("lr", "1e-4", 1e-4),  # YAML reads 1e-4 as text: it wants 1.0e-4
        ("lr", 1, 1.0),
        ("lr", "auto", None),
        ("lora_alpha", "auto", None),
        ("lora_targets", "q_proj, v_proj", ("q_proj", "v_proj")),
        ("lora_targets", ["q_proj", "v_proj"], ("q_proj", "v_proj")),
        ("accept_changes", True, True),
        ("wandb_project", None, None),
    ],
)
def test_values_take_the_type_of_their_setting(name: str, given: Any, expected: Any) -> None:
    value = getattr(config_from_dict({**REQUIRED, name: given}, "settings.yaml"), name)
    assert (value, type(value)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("num_gpus", "two", "a whole number"),
        ("num_gpus", 1.5, "a whole number"),
        ("num_gpus", True, "a whole number"),
        ("num_gpus", None, "a whole number"),
        ("max_steps", [1], "a whole number"),
        ("lr", "fast", "a number"),
        ("weight_decay", None, "a number"),
        ("accept_changes", "yes", "true or false"),
        ("accept_changes", 1, "true or false"),
        ("experiment", 31, "text"),
        ("system_prompt", ["a"], "text"),
        ("lora_targets", 3, "a list of names"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(name: str, value: Any, rule: str) -> None:
    assert problems({**REQUIRED, name: value}) == [f"settings.yaml: {name} is {value!r}, but must be {rule}"]


@pytest.mark.parametrize(("name", "choices"), CHOICES.items())
def test_a_value_that_is_no_choice_is_refused_with_the_choices(name: str, choices: tuple[str, ...]) -> None:
    assert problems({**REQUIRED, name: "other"}) == [
        f"settings.yaml: {name} is 'other', but must be one of {', '.join(choices)}"
    ]


def test_an_unknown_setting_is_refused_with_those_that_exist() -> None:
    (message,) = problems({**REQUIRED, "learning_rate": 1e-4})
    assert message.startswith("settings.yaml: unknown setting 'learning_rate'; known settings: ")
    assert message.partition("known settings: ")[2].split(", ") == list(field_types())


@pytest.mark.parametrize("missing", [{}, {"hf_model_id": "", "dataset_path": ""}], ids=["left out", "empty"])
def test_what_is_required_and_missing_is_listed(missing: dict[str, str]) -> None:
    assert problems(missing) == ["--hf_model_id is required", "--dataset_path is required"]


def test_all_problems_are_listed_at_once() -> None:
    found = problems({"hf_model_id": "model", "num_gpus": "two", "peft": "dora", "speed": "high"})
    assert len(found) == 4
    assert "unknown setting 'speed'" in found[0]
    assert found[1] == "--dataset_path is required"
    assert "num_gpus is 'two'" in found[2]
    assert "peft is 'dora'" in found[3]


def test_an_empty_config_file_sets_nothing(tmp_path: Path) -> None:
    assert read_text(tmp_path, "# nothing yet\n") == {}


def test_a_config_file_is_a_flat_list_of_settings(tmp_path: Path) -> None:
    assert read_text(tmp_path, "num_gpus: 2\nsystem_prompt: 請用中文回答\n") == {"num_gpus": 2, "system_prompt": "請用中文回答"}


def test_a_missing_config_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--config .*/none\.yaml: there is no such file$"):
        read_config_file(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a: [1", "not valid YAML: "),
        (b"\xff\xfe", "not UTF-8 (byte 0)"),
        (b"a: !!timestamp soon", "not valid YAML: "),
        (b"a: !!bool 7", "not valid YAML: "),
        (b"a: " + b"7" * 5000, "not valid YAML: "),
        (b"a: " + b"[\n" * 5000, "nested too deeply"),
        (b"a: &a [*a]", "its aliases stand for more than 1000000 values; write them out"),
        (b"a: x" + b" " * 2**18, "larger than 0.25 MiB"),
    ],
)
def test_a_broken_config_file_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "settings.yaml").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_config_file(tmp_path / "settings.yaml")
    assert str(caught.value).startswith(f"--config {tmp_path}/settings.yaml: {said}")


def test_settings_may_come_from_a_pipe_but_not_from_a_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = Thread(target=(tmp_path / "pipe").write_text, args=["num_gpus: 2\n"])
    writer.start()
    assert read_config_file(tmp_path / "pipe") == {"num_gpus": 2}
    writer.join()
    with pytest.raises(InputError, match="--config /dev/zero: not a regular file"):
        read_config_file(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("8:00:00", "8:00:00"),
        ("08:00:00", "08:00:00"),
        ("4:30", "4:30"),
        ("1-00:00:00", "1-00:00:00"),
        ("30", "30"),
        ("'30:15'", "30:15"),
        ("2-12", "2-12"),
        ("", None),
    ],
)
def test_a_time_limit_needs_no_quotes(tmp_path: Path, text: str, time: str | None) -> None:
    settings = read_text(tmp_path, f"time: {text}\nmem: 64000\n")
    config = config_from_dict({**REQUIRED, **settings}, "settings.yaml")
    assert (config.time, config.mem) == (time, "64000")


def test_a_name_that_looks_like_a_date_is_a_text(tmp_path: Path) -> None:
    assert read_text(tmp_path, "experiment: 2026-01-31\n") == {"experiment": "2026-01-31"}


def test_aliases_within_a_list_cost_nothing(tmp_path: Path) -> None:
    levels = "".join(f"x{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 6))
    settings = read_text(tmp_path, f"x0: &a0 [lol]\n{levels}mounts: *a5\n")
    found = problems({**REQUIRED, "mounts": settings["mounts"]})
    assert found == ["settings.yaml: mounts is [[...], [...], [...], [...], [...], [...], ...], but must be a list of names"]
    with pytest.raises(InputError, match="its aliases stand for more than 1000000 values"):
        read_text(tmp_path, "x0: &a0 [lol]\n" + "".join(f"x{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40)))


def test_a_config_file_that_is_no_list_of_settings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"settings\.yaml: must hold 'name: value' lines named like the flags$"):
        read_text(tmp_path, "- num_gpus\n")


def make_run(config: RunConfig) -> Run:
    return Run(
        config=config,
        experiment_dir="/data/experiments/微調 1",
        device="cpu",
        model_path="/data/model",
        tokens_dir="/data/experiments/微調 1/data/0123",
        sources={"training": "/data/alpaca/training.jsonl", "test": "/data/alpaca/test.jsonl"},
        strategy=Strategy(sharding="step", optimizer_states="bf16", fp8=(LINEAR,), lora_targets=("q_proj",)),
        max_steps=100,
        warmup_steps=10,
        val_check_interval=10,
        save_every_n_steps=10,
        end_token_ids=(128001, 128008, 128009),
        initial_weights="/data/other",
        identity={"data": "0123 (300 training samples)", "lora_rank": None, "seed": 1234, "lora_targets": ["q_proj"]},
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds null, but must hold a mapping"),
        ("- 1", "holds a list, but must hold a mapping"),
        ("config: [", "not valid YAML: "),
        ("sharding: full", "not the settings of a run: no config"),
        ("config: 3", "not the settings of a run: no config"),
        ("config: {hf_model_id: m, dataset_path: d}", "not the settings of a run: 'model_path'"),
        ("config: {hf_model_id: m, dataset_path: d}\nmodel_path: 3", "not the settings of a run: "),
    ],
)
def test_a_run_file_that_is_damaged_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_run(file)
    assert caught.value.problems[0].startswith(f"{file}: {said}")


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("max_steps", "ten", "max_steps is text, but must be a whole number"),
        ("sources", [1], "sources is a list, but must be a mapping"),
        ("end_token_ids", None, "end_token_ids is null, but must be a list"),
        ("strategy", 5, "strategy is a whole number, but must be a mapping"),
        ("identity", None, "identity is null, but must be a mapping"),
    ],
)
def test_a_value_of_the_wrong_type_in_a_run_file_is_named_with_its_key(
    tmp_path: Path, name: str, value: Any, said: str
) -> None:
    file = tmp_path / "run.yaml"
    write_run(make_run(RunConfig(**REQUIRED)), file)
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    file.write_text(yaml.safe_dump({**values, name: value}), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_run(file)
    assert caught.value.problems == [f"{file}: {said}"]


def test_a_run_of_before_there_were_strategies_is_resolved_when_it_is_read(tmp_path: Path, tiny_model: Path) -> None:
    config = RunConfig(hf_model_id="model", dataset_path="data", micro_batch_size=2, seq_length=1024, num_gpus=2)
    write_run(dataclasses.replace(make_run(config), model_path=str(tiny_model)), tmp_path / "run.yaml")
    values = yaml.safe_load((tmp_path / "run.yaml").read_text(encoding="utf-8"))
    del values["strategy"]
    values["config"] |= {"tensor_overlap": True, "prefetch_blocks": 2, "pipeline_schedule": "zero_bubble"}
    values |= {"device": "cuda", "sharding": "full", "optimizer_states": "bf16", "activation_checkpointing": "selective"}
    for rows, expected in (({}, 2048), ({"row_length": 16384}, 16384)):  # of before rows could be longer, and after
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(values | rows), encoding="utf-8")
        strategy = read_run(tmp_path / "run.yaml").strategy
        assert (strategy.blocks, strategy.compute_dtype, strategy.optimizer_states) == ("fused", "bfloat16", "bf16")
        assert (strategy.packs.capacity, strategy.degrees.dp_shard) == (expected, 2)


def write_and_read(run: Run, folder: Path) -> Run:
    write_run(run, folder / "run.yaml")
    return read_run(folder / "run.yaml")


def read_text(folder: Path, text: str) -> dict[str, Any]:
    (folder / "settings.yaml").write_text(text, encoding="utf-8")
    return read_config_file(folder / "settings.yaml")


def problems(values: dict[str, Any]) -> list[str]:
    with pytest.raises(InputError) as caught:
        config_from_dict(values, "settings.yaml")
    return caught.value.problems
