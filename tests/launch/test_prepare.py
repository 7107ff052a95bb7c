"""From settings to a run: what is resolved, what is noted, and problems from everywhere in one list."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest

from finetuning.checkpoint.files import Checkpoint
from finetuning.config.llama import read_llama_config
from finetuning.config.resolve import resolve
from finetuning.config.run import read_run, write_run
from finetuning.config.settings import RunConfig
from finetuning.config.strategy import Strategy
from finetuning.errors import InputError
from finetuning.launch.gpus import GpuMemory
from finetuning.launch.prepare import Prepared, _run_before, _with_packs_so_far, prepare
from finetuning.launch.resume import Start
from finetuning.launch.slurm.job_script import JobPlan
from tests.launch.hub_server import COMMIT, PUBLIC, serve
from tests.launch.test_hub import connected

pytestmark = pytest.mark.unit

Settings = Callable[..., RunConfig]
CHECKPOINT = "checkpoints/step=000001"


def prepared(config: RunConfig, tmp_path: Path, *, with_weights: bool = True) -> Prepared:
    return prepare(config, None, tmp_path / "experiment", tmp_path / "tokens", with_weights=with_weights)


def problems_of(config: RunConfig, tmp_path: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        prepared(config, tmp_path)
    return caught.value.problems


def copy_of(model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model, tmp_path / "model"))


def test_without_max_steps_the_run_is_one_epoch(settings: Settings, tmp_path: Path) -> None:
    assert prepared(settings(), tmp_path).run.max_steps == 5  # 40 samples in batches of 8
    assert prepared(settings(global_batch_size=6), tmp_path).run.max_steps == 7  # the last one reaches into the next epoch


def test_intervals_and_warm_up_follow_from_the_number_of_steps(settings: Settings, tmp_path: Path) -> None:
    run = prepared(settings(max_steps=200), tmp_path).run
    assert (run.warmup_steps, run.val_check_interval, run.save_every_n_steps) == (20, 20, None)
    assert prepared(settings(max_steps=10_000), tmp_path).run.warmup_steps == 50


def test_given_intervals_and_warm_up_are_taken(settings: Settings, tmp_path: Path) -> None:
    run = prepared(settings(max_steps=9, warmup_steps=0, val_check_interval=4, save_every_n_steps=3), tmp_path).run
    assert (run.warmup_steps, run.val_check_interval, run.save_every_n_steps) == (0, 4, 3)


def test_a_run_names_absolute_folders_of_this_machine(
    settings: Settings, tiny_model: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    run = prepared(settings(), tmp_path).run
    assert run.model_path == str(tiny_model.resolve())
    assert run.sources == {name: str(tiny_dataset / f"{name}.jsonl") for name in ("training", "validation", "test")}
    assert Path(run.tokens_dir).parent == tmp_path / "tokens"
    assert run.device in ("cpu", "cuda")


def test_a_run_records_the_date_that_chat_templates_are_told(settings: Settings, tmp_path: Path) -> None:
    run = prepared(settings(), tmp_path).run
    write_run(run, tmp_path / "run.yaml")
    assert run.prompt_date == date(2024, 7, 26) and "prompt_date: 2024-07-26" in (tmp_path / "run.yaml").read_text("utf-8")
    assert read_run(tmp_path / "run.yaml") == run


def test_a_fresh_run_starts_from_the_weights_of_the_model(settings: Settings, tmp_path: Path) -> None:
    config = settings()
    start = prepared(config, tmp_path).start
    assert (start.checkpoint, start.initial_weights, start.finished_at) == (None, None, None)
    assert start.messages == [f"starts from the weights of {config.hf_model_id}"]


def test_warm_up_as_long_as_the_run_is_refused(settings: Settings, tmp_path: Path) -> None:
    assert problems_of(settings(warmup_steps=5), tmp_path) == [
        "--warmup_steps 5: must be less than the 5 steps of the run, or the learning rate never reaches its peak"
    ]


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, 192),
        ({"row_length": 256}, 256),  # asked for
        ({"micro_batch_size": 3}, 384),  # this, too
        ({"seq_length": 256}, 256),
    ],
    ids=str,
)
def test_rows_of_an_experiment_that_goes_on_stay_as_long_as_they_were(
    changed: dict[str, int], expected: int, settings: Settings, tiny_model: Path, tmp_path: Path
) -> None:
    config, model = settings(peft="lora", seq_length=128), read_llama_config(tiny_model)
    run = prepared(config, tmp_path).run
    packs = dataclasses.replace(run.strategy.packs, capacity=192)  # as on a GPU with room
    run = dataclasses.replace(run, strategy=dataclasses.replace(run.strategy, packs=packs))
    write_run(run, tmp_path / "run.yaml")
    now = dataclasses.replace(config, **changed)
    strategy = resolve(now, model, None, on_gpu=False)
    before = read_run(tmp_path / "run.yaml")
    found = _with_packs_so_far(strategy, now, model, before, None, on_gpu=False)
    assert found.packs.capacity == expected


def test_rows_that_do_not_fit_any_more_become_as_asked_for(settings: Settings, tiny_model: Path, tmp_path: Path) -> None:
    config, model = settings(peft="lora", seq_length=128), read_llama_config(tiny_model)
    before = prepared(config, tmp_path).run
    packs = dataclasses.replace(before.strategy.packs, capacity=2**24)
    before = dataclasses.replace(before, strategy=dataclasses.replace(before.strategy, packs=packs))
    strategy = resolve(config, model, 4.0, on_gpu=True)
    assert _with_packs_so_far(strategy, config, model, before, 4.0, on_gpu=True) == strategy


@pytest.mark.parametrize("text", [None, "", "config: [", "config: {hf_model_id: m, dataset_path: d, from_the_future: 1}"])
def test_settings_of_before_that_cannot_be_read_change_nothing(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
    checkpoint = Checkpoint(tmp_path / CHECKPOINT, 1, None, {})
    assert _run_before(Start(checkpoint, None, None, [])) is None


def test_longer_samples_than_the_model_has_positions_are_refused(settings: Settings, tmp_path: Path) -> None:
    assert problems_of(settings(seq_length=131073), tmp_path) == [
        "--seq_length 131073: the model was made for at most 131072 positions"
    ]


def test_problems_of_settings_layout_and_data_are_listed_together(settings: Settings, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "training.jsonl").write_text('{"input": "a", "output": ""}\n{"input": \n', encoding="utf-8")
    config = settings(dataset_path=str(data), max_steps=0, tensor_model_parallel_size=4, num_gpus=4)
    assert problems_of(config, tmp_path) == [
        "--max_steps 0: must be 1 or more",
        "--tensor_model_parallel_size 4: must divide 4 attention heads and 2 key/value heads; with 4 GPUs use 1, 2",
        "training.jsonl:1: the answer ('output') is empty: a",
        'training.jsonl:2: not valid JSON (Expecting value at column 11): {"input":',
    ]


def test_problems_of_model_and_data_are_listed_together(settings: Settings, tmp_path: Path) -> None:
    config = settings(hf_model_id="/no/model", dataset_path="/no/data")
    assert problems_of(config, tmp_path) == [
        "--hf_model_id /no/model: there is no such folder",
        "--dataset_path /no/data: there is no such folder",
    ]


def test_a_folder_that_is_no_model_is_one_problem_not_several(settings: Settings, tmp_path: Path) -> None:
    assert problems_of(settings(hf_model_id=str(tmp_path)), tmp_path) == [
        f"--hf_model_id {tmp_path}: holds no config.json, so it is not a model folder in Hugging Face format"
    ]


def test_a_model_of_another_family_is_refused(settings: Settings, tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(raw | {"model_type": "gpt2"}), encoding="utf-8")
    assert problems_of(settings(hf_model_id=str(folder)), tmp_path) == [
        f"{folder}/config.json: model_type is 'gpt2'; only the Llama family (model_type 'llama') is supported"
    ]


def test_a_model_shape_that_cannot_be_is_refused(settings: Settings, tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path)
    file = folder / "config.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps(raw | {"num_attention_heads": 3}), encoding="utf-8")
    assert problems_of(settings(hf_model_id=str(folder)), tmp_path) == [
        f"{file}: 3 attention heads must be a multiple of 2 key/value heads and divide the hidden size 64"
    ]
    del raw["rope_parameters"]["low_freq_factor"]
    file.write_text(json.dumps(raw), encoding="utf-8")
    assert problems_of(settings(hf_model_id=str(folder)), tmp_path) == [
        f"{file}: the llama3 RoPE scaling has no low_freq_factor"
    ]
    file.write_text("{", encoding="utf-8")
    (problem,) = problems_of(settings(hf_model_id=str(folder)), tmp_path)
    assert problem.startswith(f"{file}: not valid JSON: ")


def test_weights_in_another_format_are_refused_and_named(settings: Settings, tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (problem,) = problems_of(settings(hf_model_id=str(folder)), tmp_path)
    assert problem == (
        f"{folder}: weight file model.safetensors is missing (other weight files: pytorch_model.bin); weights must be in "
        "safetensors format"
    )


def test_a_damaged_weight_file_is_refused(settings: Settings, tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path)
    os.truncate(folder / "model.safetensors", 1000)
    (problem,) = problems_of(settings(hf_model_id=str(folder)), tmp_path)
    assert problem.startswith(f"{folder}/model.safetensors: cannot read the weights: ")


def test_a_damaged_weight_index_is_refused(settings: Settings, tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path)
    index = folder / "model.safetensors.index.json"
    for text in ("{", "{}", "[]", '{"weight_map": 1}'):
        index.write_text(text, encoding="utf-8")
        (problem,) = problems_of(settings(hf_model_id=str(folder)), tmp_path)
        assert problem.startswith(f"{index}: ") and problem.endswith("; download it again")


def test_weights_that_do_not_fit_the_configuration_are_refused(settings: Settings, tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(raw | {"num_hidden_layers": 3}), encoding="utf-8")
    (problem,) = problems_of(settings(hf_model_id=str(folder)), tmp_path)
    assert problem.startswith(
        f"{folder}: the weights do not fit config.json: model.layers.2.self_attn.q_proj.weight should be [64, 64], found "
        "nothing; "
    )


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_damaged_tokenizer_settings_are_refused(name: str, settings: Settings, tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path)
    (folder / name).write_text("{", encoding="utf-8")
    (problem,) = problems_of(settings(hf_model_id=str(folder)), tmp_path)
    assert problem.startswith(f"{folder}/{name}: not valid JSON: ")


def test_a_damaged_chat_template_is_refused(settings: Settings, tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path)
    (folder / "chat_template.jinja").write_text("{% if %}", encoding="utf-8")
    (problem,) = problems_of(settings(hf_model_id=str(folder)), tmp_path)
    assert problem.startswith(f"{folder}: the chat template cannot be used (Expected an expression")
    assert problem.endswith("; fix it, or give --prompt_template")


def test_a_tokenizer_that_is_not_there_is_refused(settings: Settings, tiny_model: Path, tmp_path: Path) -> None:
    folder = copy_of(tiny_model, tmp_path)
    (folder / "tokenizer.json").unlink()
    (problem,) = problems_of(settings(hf_model_id=str(folder)), tmp_path)
    assert problem.startswith(f"{folder}/tokenizer.json: cannot read the tokenizer: No such file")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_data_file_that_cannot_be_read_is_refused(settings: Settings, tmp_path: Path) -> None:
    # Reading address 0 fails for everybody, also for root, whom file permissions do not stop.
    data = tmp_path / "data"
    data.mkdir()
    (data / "training.jsonl").symlink_to("/proc/self/mem")
    assert problems_of(settings(dataset_path=str(data)), tmp_path) == [f"{data}: cannot be read or written: Input/output error"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_data_file_without_permission_is_refused_by_name(settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "raw.jsonl"
    file.write_text('{"input": "a", "output": "b"}\n', encoding="utf-8")
    file.chmod(0)
    assert problems_of(settings(dataset_path=str(file)), tmp_path) == [f"{file}: cannot be read or written: Permission denied"]


def test_a_configuration_that_is_a_folder_is_refused(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "model" / "config.json").mkdir(parents=True)
    assert problems_of(settings(hf_model_id=str(tmp_path / "model")), tmp_path) == [
        f"{tmp_path}/model/config.json: cannot be read: Is a directory"
    ]


def test_what_is_worth_knowing_is_noted(settings: Settings, tiny_dataset: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw.jsonl"
    raw.write_bytes((tiny_dataset / "training.jsonl").read_bytes())
    notes = prepared(settings(dataset_path=str(raw), global_batch_size=64, save_every_n_steps=0), tmp_path).notes
    assert "one raw file, split 98/1/1: training 38, validation 1, test 1; the same samples each time" in notes
    assert (
        "--global_batch_size 64 is more than the 38 training samples: one step sees some of them several times; a smaller "
        "batch gives more steps per epoch" in notes
    )
    assert "--save_every_n_steps 0: nothing can be resumed" in notes


def test_the_host_memory_of_the_least_gpu_memory_is_noted(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(peft="lora", least_memory=True, num_gpus=1, seq_length=4096)
    needed = "--least_memory: each process keeps 0.0 GiB in host memory as well"  # the model is tiny
    assert needed not in prepared(config, tmp_path).notes  # a CPU has no other memory
    monkeypatch.setattr("finetuning.launch.prepare.count_gpus", lambda: 1)
    monkeypatch.setattr("finetuning.launch.prepare.find_gpu_memory", lambda: GpuMemory(80.0))
    assert needed in prepared(config, tmp_path).notes


def test_splits_that_are_not_there_are_noted(settings: Settings, tiny_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(tiny_dataset / "training.jsonl", tmp_path / "data")
    notes = prepared(settings(dataset_path=str(tmp_path / "data")), tmp_path).notes
    for name in ("validation", "test"):
        assert f"no {name}.jsonl: there will be no {name} loss" in notes


def test_on_a_machine_without_a_gpu_it_is_said_what_the_processes_are(settings: Settings, tmp_path: Path) -> None:
    found = prepared(settings(), tmp_path)
    assert (found.run.device == "cpu") == ("no CUDA GPU here: --num_gpus 2 means 2 CPU processes, in float32" in found.notes)


def test_more_cpu_processes_than_cores_are_noted_with_what_to_give(settings: Settings, tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    notes = prepared(settings(num_gpus=2 * cores, global_batch_size=4 * cores), tmp_path).notes
    assert any(note.startswith(f"{2 * cores} processes share {cores} core") for note in notes)
    assert any(note.endswith(f"and take turns; give --num_gpus {cores}") for note in notes)
    notes = prepared(settings(num_gpus=cores, global_batch_size=4 * cores), tmp_path).notes
    assert not any("take turns" in note for note in notes)


def test_a_job_is_planned_with_the_memory_of_its_nodes(
    settings: Settings, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetuning.launch.prepare.count_gpus", lambda: pytest.fail("asked the login node"))
    config = settings(executor="slurm", num_gpus=1, seq_length=2048)

    def strategy(gib: float) -> Strategy:
        job = JobPlan(gpus_per_node=8, gpu_memory=GpuMemory(gib, "x"))
        found = prepare(config, None, tmp_path / "experiment", tmp_path / "tokens", with_weights=False, job=job)
        assert found.gpu_memory == GpuMemory(gib, "x")
        return found.run.strategy

    assert strategy(141.0) == resolve(config, read_llama_config(tiny_model), 141.0, on_gpu=True, mean_sample=100.0)
    assert strategy(141.0).packs.capacity > strategy(2.2).packs.capacity


def test_a_memory_that_nobody_knows_is_asked_for(settings: Settings, tmp_path: Path) -> None:
    job = JobPlan(gpus_per_node=8, unknown_memory="give it")
    with pytest.raises(InputError) as caught:
        prepare(settings(executor="slurm"), None, tmp_path / "experiment", tmp_path / "tokens", with_weights=False, job=job)
    assert caught.value.problems == ["give it"]


def test_the_commit_of_fetched_data_stands_in_the_run_and_stays_with_the_experiment(
    settings: Settings, tiny_dataset: Path, tmp_path: Path
) -> None:
    with serve(tiny_dataset) as hub, connected(hub.address, tmp_path / "cache"):
        run = prepared(settings(dataset_path=PUBLIC), tmp_path).run
        assert run.data_origin == f"{PUBLIC}@{COMMIT}" and run.origins == {PUBLIC: run.data_origin}
        assert {Path(file).parent.parent for file in run.sources.values()} == {tmp_path / "tokens"}
        mixed = f"[{{path: {PUBLIC}, weight: 1}}, {{path: {tiny_dataset}, weight: 1}}]"
        run = prepared(settings(dataset_path=mixed), tmp_path).run
        assert [(source.path, source.origin) for source in run.mixture] == [
            (PUBLIC, f"{PUBLIC}@{COMMIT}"),
            (str(tiny_dataset), None),
        ]
        experiment = tmp_path / "experiment"
        experiment.mkdir()
        write_run(run, experiment / "run.yaml")
        assert read_run(experiment / "run.yaml") == run
        hub.requests.clear()
        prepared(settings(dataset_path=mixed), tmp_path)
    assert any(path.endswith(f"/revision/{COMMIT}") for _, path, _ in hub.requests)
