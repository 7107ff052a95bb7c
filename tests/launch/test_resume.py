"""Where a run starts: newest complete checkpoint > --restore_config > base weights; and what may not change on the way."""

import dataclasses
import json
import os
import pickle
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from finetuning.checkpoint.files import INFO_FILE, checkpoint_name
from finetuning.checkpoint.store import save_checkpoint
from finetuning.config.degrees import Degrees
from finetuning.config.llama import read_llama_config
from finetuning.config.run import write_run
from finetuning.config.settings import RunConfig
from finetuning.config.strategy import Strategy
from finetuning.errors import InputError
from finetuning.formats.load_sharded import load_base_weights
from finetuning.formats.peft.files import ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS_FILE
from finetuning.formats.peft.sharded import initialize_adapters
from finetuning.formats.peft.write import export_adapters
from finetuning.launch.prepare import Prepared, prepare
from finetuning.launch.resume import Start, decide_start
from finetuning.parallel.mesh import Layout
from finetuning.parallel.parallelize import build_model
from finetuning.runtime.status import FINISHED, STATUS_FILE, STOPPED, write_status
from finetuning.training.optimizer import build_optimizer, optimizer_state
from tests.processes import alone

pytestmark = pytest.mark.unit

Settings = Callable[..., RunConfig]
STEPS, MAX_STEPS = (4, 8), 10


def write_checkpoints(config: RunConfig, folder: Path, identity: dict[str, Any]) -> None:
    """Real checkpoints after STEPS steps of MAX_STEPS, and a LoRA run's adapters in PEFT format."""
    model_path = Path(config.hf_model_id)
    lora = config.peft == "lora"
    strategy = Strategy(
        lora_rank=config.lora_rank if lora else None, lora_alpha=config.standard_alpha, lora_targets=config.lora_targets
    )
    layout = Layout("cpu", Degrees())
    model = build_model(read_llama_config(model_path), layout, torch.device("cpu"), strategy)
    load_base_weights(model_path, model)
    if lora:
        initialize_adapters(model, config.seed)
        export_adapters(model, folder / "export", config, model_path, None)
    optimizer = build_optimizer(model, learning_rate=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.1, fused=False)
    for step in STEPS:
        info = {
            "step": step,
            "max_steps": MAX_STEPS,
            "val_loss": 2.0,
            "identity": identity,
            "lightning": {},
            "layout": {"pp": 1, "dp_replicate": 1, "dp_shard": 2, "cp": 1, "tp": 1},
        }
        save_checkpoint(folder / "checkpoints" / checkpoint_name(step), model, optimizer_state(model, optimizer), info)


@pytest.fixture(scope="module", params=["none"])
def stored(
    request: pytest.FixtureRequest, tiny_model: Path, tiny_dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The experiment folder of a run that was stopped after step 8 of 10; read only."""
    folder = tmp_path_factory.mktemp("stored")
    config = RunConfig(
        hf_model_id=str(tiny_model),
        dataset_path=str(tiny_dataset),
        num_gpus=2,
        global_batch_size=8,
        seq_length=512,
        experiment="tiny",
        peft=request.param,
    )
    identity = prepare(config, None, folder, folder / "data", with_weights=True).run.identity
    with alone():
        write_checkpoints(config, folder, identity)
    write_status(folder, STOPPED, step=STEPS[-1], max_steps=MAX_STEPS)
    return folder


@pytest.fixture
def experiment(stored: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(stored, tmp_path / "experiment", symlinks=True))


def prepared(config: RunConfig, experiment: Path) -> Prepared:
    return prepare(config, None, experiment, experiment / "data", with_weights=True)


def start_of(config: RunConfig, experiment: Path) -> Start:
    return prepared(config, experiment).start


def problem_of(config: RunConfig, experiment: Path) -> str:
    with pytest.raises(InputError) as caught:
        prepared(config, experiment)
    (problem,) = caught.value.problems
    return problem


def test_a_run_goes_on_from_its_newest_complete_checkpoint(settings: Settings, experiment: Path) -> None:
    start = start_of(settings(max_steps=10), experiment)
    assert start.checkpoint is not None
    assert (start.checkpoint.step, start.checkpoint.path) == (8, experiment / "checkpoints" / "step=000008")
    assert (start.initial_weights, start.finished_at) == (None, None)
    assert start.messages == ["resuming tiny at step 8 of 10 (saved 0 minutes ago)"]


@pytest.mark.parametrize(
    ("age", "text"),
    [
        (timedelta(minutes=12), "12 minutes"),
        (timedelta(hours=5), "5 hours"),
        (timedelta(days=3), "3 days"),
        (timedelta(hours=-1), "0 minutes"),
    ],
)
def test_the_age_of_the_checkpoint_is_told_in_a_fitting_unit(
    age: timedelta, text: str, settings: Settings, experiment: Path
) -> None:
    # In another time zone than this machine's: the file may come from elsewhere.
    change_info(experiment, saved_at=(datetime.now(UTC) - age).strftime("%Y-%m-%dT%H:%M:%S+0000"))
    assert f"(saved {text} ago)" in start_of(settings(max_steps=10), experiment).messages[0]


def test_a_half_written_newest_checkpoint_is_passed_over_and_said(settings: Settings, experiment: Path) -> None:
    broken = experiment / "checkpoints" / "step=000008"
    data = next(broken.glob("*.distcp"))
    os.truncate(data, data.stat().st_size // 2)
    start = start_of(settings(max_steps=10), experiment)
    assert start.checkpoint is not None and start.checkpoint.step == 4
    assert start.messages[0] == f"ignored: {broken}: not a complete checkpoint ({data.name} is missing or has the wrong size)"


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_checkpoint_without_its_last_file_is_passed_over(damage: str, settings: Settings, experiment: Path) -> None:
    info = experiment / "checkpoints" / "step=000008" / INFO_FILE
    if damage == "missing":
        info.unlink()
    else:
        os.truncate(info, 20)
    start = start_of(settings(max_steps=10), experiment)
    assert start.checkpoint is not None and start.checkpoint.step == 4
    assert start.messages[0] == f"ignored: {info.parent}: not a complete checkpoint (no readable checkpoint.json)"


def test_an_interrupted_save_beside_the_checkpoints_is_not_seen(settings: Settings, experiment: Path) -> None:
    folder = experiment / "checkpoints"
    (folder / "step=000008").rename(folder / ".incomplete-step=000009")
    start = start_of(settings(max_steps=10), experiment)
    assert start.checkpoint is not None and start.checkpoint.step == 4
    assert not any(message.startswith("ignored") for message in start.messages)


def test_with_broken_checkpoints_only_the_run_starts_over_and_says_so(settings: Settings, experiment: Path) -> None:
    for info in (experiment / "checkpoints").glob(f"step=*/{INFO_FILE}"):
        info.unlink()
    start = start_of(settings(), experiment)
    assert start.checkpoint is None
    assert [message.split(":")[0] for message in start.messages[:2]] == ["ignored", "ignored"]
    assert start.messages[2].startswith("starts from the weights of ")


def test_the_own_checkpoint_comes_before_restore_config(settings: Settings, experiment: Path, stored: Path) -> None:
    start = start_of(settings(max_steps=10, restore_config=str(stored)), experiment)
    assert start.checkpoint is not None and start.initial_weights is None
    assert start.messages[-1] == "--restore_config is not used: the experiment's own checkpoint comes first"


@pytest.mark.parametrize("given", ["", "checkpoints", "checkpoints/step=000008", "checkpoints/latest"])
def test_restore_config_takes_the_newest_checkpoint_of_what_it_names(
    given: str, settings: Settings, stored: Path, tmp_path: Path
) -> None:
    run = prepared(settings(restore_config=str(stored / given)), tmp_path / "new").run
    assert run.initial_weights == str((stored / "checkpoints" / "step=000008").resolve())


def test_restore_config_takes_an_older_checkpoint_when_it_is_named(settings: Settings, stored: Path, tmp_path: Path) -> None:
    older = stored / "checkpoints" / "step=000004"
    start = start_of(settings(restore_config=str(older)), tmp_path / "new")
    assert start.initial_weights == older.resolve()
    assert start.messages == [f"starts from the weights of {older}"]


def test_restore_config_may_come_from_another_batch_size_and_length_but_not_from_other_trained_weights(
    settings: Settings, stored: Path, tmp_path: Path
) -> None:
    config = settings(global_batch_size=4, seq_length=768, restore_config=str(stored))
    assert start_of(config, tmp_path / "new").initial_weights is not None
    with pytest.raises(InputError) as caught:
        prepared(dataclasses.replace(config, peft="lora"), tmp_path / "other")
    assert caught.value.problems[:2] == [
        f"--restore_config {stored}: peft of the checkpoint is none, of this run lora",
        f"--restore_config {stored}: lora_rank of the checkpoint is None, of this run 16",
    ]


def test_a_folder_without_weights_is_no_restore_config(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert problem_of(settings(restore_config=str(tmp_path / "empty")), tmp_path / "new") == (
        f"--restore_config {tmp_path}/empty: neither a complete checkpoint, nor a folder with one, nor an adapter in PEFT "
        "format"
    )


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_a_whole_model_is_given_as_the_model_instead(peft: str, settings: Settings, tiny_model: Path, tmp_path: Path) -> None:
    assert problem_of(settings(peft=peft, restore_config=str(tiny_model)), tmp_path / "new") == (
        f"--restore_config {tiny_model}: this is a whole model in Hugging Face format; give it as --hf_model_id"
    )


def test_a_finished_run_says_so_instead_of_training_again(settings: Settings, experiment: Path) -> None:
    finish(experiment, step=8)
    start = start_of(settings(max_steps=8), experiment)
    assert start.finished_at == 8
    assert start_of(settings(max_steps=6), experiment).finished_at == 8


def test_a_finished_run_without_checkpoints_is_known_by_its_run_file(settings: Settings, experiment: Path) -> None:
    config = settings(max_steps=8, save_every_n_steps=0)
    shutil.rmtree(experiment / "checkpoints")
    finish(experiment, step=8)
    write_run(prepared(dataclasses.replace(config, max_steps=9), experiment).run, experiment / "run.yaml")
    assert start_of(config, experiment).finished_at == 8
    assert "was started with other settings" in problem_of(dataclasses.replace(config, seed=5), experiment)


def test_a_finished_run_whose_result_was_deleted_makes_it_again(settings: Settings, experiment: Path) -> None:
    finish(experiment, step=8)
    (experiment / "export").rmdir()
    start = start_of(settings(max_steps=8), experiment)
    assert start.finished_at is None
    assert start.checkpoint is not None and start.checkpoint.step == 8


def test_a_finished_run_with_more_steps_trains_on_and_says_what_becomes_of_the_schedule(
    settings: Settings, experiment: Path
) -> None:
    finish(experiment, step=8)
    start = start_of(settings(max_steps=20), experiment)
    assert start.finished_at is None
    assert start.checkpoint is not None and start.checkpoint.step == 8
    assert start.messages == [
        "resuming tiny at step 8 of 20 (saved 0 minutes ago)",
        "the schedule changes from 10 to 20 steps: the learning rate follows the new cosine, the order of the samples stays",
    ]


def test_fewer_steps_than_are_done_are_refused(settings: Settings, experiment: Path) -> None:
    assert problem_of(settings(max_steps=7), experiment) == (
        "experiment tiny has done 8 steps already; give --max_steps 8 or more, or another --experiment name"
    )


def test_another_number_of_ranks_is_accepted_and_said(settings: Settings, experiment: Path) -> None:
    start = start_of(settings(max_steps=10, num_gpus=1), experiment)
    assert start.checkpoint is not None
    assert start.messages[1] == ("saved as DP 2, goes on as DP 1: the losses agree to rounding, not to the last bit")


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"global_batch_size": 4}, "global_batch_size: was 8, is now 4"),
        ({"seq_length": 768}, "seq_length: was 512, is now 768"),
        ({"seed": 7}, "seed: was 1234, is now 7"),
    ],
)
def test_a_changed_batch_length_or_seed_is_refused_with_both_values(
    changed: dict[str, Any], line: str, settings: Settings, experiment: Path
) -> None:
    config = settings(max_steps=10, **changed)
    assert problem_of(config, experiment) == (
        f"experiment tiny was started with other settings:\n      {line}\n    give another --experiment name, or "
        "--accept_changes to go on with the new ones"
    )
    start = start_of(dataclasses.replace(config, accept_changes=True), experiment)
    assert start.checkpoint is not None and start.checkpoint.step == 8


def test_changed_data_are_refused_with_both_fingerprints_and_sizes(
    settings: Settings, experiment: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(tiny_dataset, tmp_path / "data"))
    text = (data / "training.jsonl").read_text(encoding="utf-8")
    (data / "training.jsonl").write_text(text.partition("\n")[2], encoding="utf-8")
    config = settings(max_steps=10, dataset_path=str(data))
    problem = problem_of(config, experiment)
    assert "\n      data: was " in problem
    assert " (40 training samples), is now " in problem and " (39 training samples)\n" in problem
    assert start_of(dataclasses.replace(config, accept_changes=True), experiment).checkpoint is not None


def test_the_same_data_in_another_folder_are_the_same_data(
    settings: Settings, experiment: Path, tiny_dataset: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(tiny_dataset, tmp_path / "elsewhere")
    assert start_of(settings(max_steps=10, dataset_path=str(data)), experiment).checkpoint is not None


def test_a_changed_template_is_refused(settings: Settings, experiment: Path) -> None:
    config = settings(max_steps=10, prompt_template="問：{input}\\n答：{output}")
    assert "\n      template: was " in problem_of(config, experiment)
    assert "\n      template: was " in problem_of(settings(max_steps=10, system_prompt="請簡短回答"), experiment)
    assert start_of(dataclasses.replace(config, accept_changes=True), experiment).checkpoint is not None


def test_other_weights_of_the_same_shape_are_refused(
    settings: Settings, experiment: Path, tiny_model: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(tiny_model, tmp_path / "other"))
    content = bytearray((other / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (other / "model.safetensors").write_bytes(content)
    config = settings(max_steps=10, hf_model_id=str(other))
    assert "\n      base_model: was " in problem_of(config, experiment)
    assert start_of(dataclasses.replace(config, accept_changes=True), experiment).checkpoint is not None


def test_what_cannot_be_taken_over_is_refused_even_with_accept_changes(settings: Settings, experiment: Path) -> None:
    for accept in (False, True):
        problem = problem_of(settings(max_steps=10, peft="lora", accept_changes=accept), experiment)
        assert "\n      peft: was none, is now lora\n" in problem
        assert "\n      lora_rank: was None, is now 16\n" in problem
        assert problem.endswith("\n    these cannot change inside one experiment; give another --experiment name")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_status_is_named(text: str, settings: Settings, experiment: Path) -> None:
    (experiment / STATUS_FILE).write_text(text, encoding="utf-8")
    problem = problem_of(settings(max_steps=10), experiment)
    assert problem.startswith(f"{experiment}/status.json: ")
    assert problem.endswith("; remove the file, it is written anew")


@pytest.mark.parametrize("stored", ["lora"], indirect=True)
class TestAdapters:
    def test_changed_settings_of_the_adapters_are_never_accepted(self, settings: Settings, experiment: Path) -> None:
        for changed, line in (
            ({"lora_rank": 8}, "lora_rank: was 16, is now 8"),
            ({"lora_alpha": 16.0}, "lora_alpha: was 32.0, is now 16.0"),
            (
                {"lora_targets": ("q_proj",)},
                "lora_targets: was down_proj,gate_proj,k_proj,o_proj,q_proj,up_proj,v_proj, is now q_proj",
            ),
        ):
            config = settings(max_steps=10, peft="lora", accept_changes=True, **changed)
            assert problem_of(config, experiment) == (
                f"experiment tiny was started with other settings:\n      {line}\n    these cannot change inside one "
                "experiment; give another --experiment name"
            )

    def test_the_order_of_the_targets_does_not_matter(self, settings: Settings, experiment: Path) -> None:
        config = settings(max_steps=10, peft="lora", lora_targets=tuple(reversed(settings().lora_targets)))
        assert start_of(config, experiment).checkpoint is not None

    def test_an_adapter_in_peft_format_may_be_the_start(self, settings: Settings, stored: Path, tmp_path: Path) -> None:
        start = start_of(settings(peft="lora", restore_config=str(stored / "export")), tmp_path / "new")
        assert start.initial_weights == (stored / "export").resolve()
        assert start.messages == [f"starts from the adapter {stored}/export"]

    def test_an_adapter_is_refused_where_it_does_not_fit(self, settings: Settings, experiment: Path, tmp_path: Path) -> None:
        folder = experiment / "export"
        config = settings(peft="lora", restore_config=str(folder))
        assert problem_of(dataclasses.replace(config, peft="none"), tmp_path / "new") == (
            f"--restore_config {folder}: a LoRA adapter can only be the start of a run with --peft lora"
        )
        assert problem_of(dataclasses.replace(config, lora_rank=8), tmp_path / "new") == (
            f"{folder}: the adapter has --lora_rank 16, but the run asks for 8; give the same, or leave it out"
        )
        change_adapter(folder, use_dora=True)
        assert problem_of(config, tmp_path / "new") == f"{folder}: use_dora is True; only False is supported"

    def test_a_damaged_adapter_is_refused(self, settings: Settings, experiment: Path, tmp_path: Path) -> None:
        folder = experiment / "export"
        config = settings(peft="lora", restore_config=str(folder))
        (folder / ADAPTER_CONFIG_FILE).write_text("{", encoding="utf-8")
        assert problem_of(config, tmp_path / "new").startswith(f"{folder}/adapter_config.json: not valid JSON: ")
        (folder / ADAPTER_WEIGHTS_FILE).unlink()
        assert problem_of(config, tmp_path / "new") == f"--restore_config {folder}: adapter_model.safetensors is missing"


def test_deciding_changes_nothing(settings: Settings, experiment: Path) -> None:
    before = changed_at(experiment)
    run = prepared(settings(max_steps=10), experiment).run
    decide_start(run.config, experiment, run.identity, 10)
    assert changed_at(experiment) == before


def changed_at(experiment: Path) -> dict[Path, int]:
    """Of everything but the folder of the tokens itself, whose time says when they were last used."""
    return {path: path.lstat().st_mtime_ns for path in experiment.rglob("*") if path.parent != experiment / "data"}


def finish(experiment: Path, step: int) -> None:
    """As a worker leaves it that has done all its steps."""
    (experiment / "export").mkdir()
    write_status(experiment, FINISHED, step=step, max_steps=step)


def change_info(experiment: Path, **changed: Any) -> None:
    for file in (experiment / "checkpoints").glob(f"step=*/{INFO_FILE}"):
        file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changed), encoding="utf-8")


def change_adapter(folder: Path, **changed: Any) -> None:
    file = folder / ADAPTER_CONFIG_FILE
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changed), encoding="utf-8")


class MakesFolder:
    """When it is unpickled."""

    def __init__(self, sign: Path):
        self.sign = sign

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sign),)


def test_restore_config_of_a_foreign_checkpoint_is_refused_before_anything_starts(
    settings: Settings, experiment: Path, tmp_path: Path
) -> None:
    path = experiment / "checkpoints" / "step=000008"
    file = path / ".metadata"
    file.write_bytes(pickle.dumps(MakesFolder(tmp_path / "ran")))
    info = json.loads((path / INFO_FILE).read_text(encoding="utf-8"))
    info["files"][file.name] = file.stat().st_size
    (path / INFO_FILE).write_text(json.dumps(info), encoding="utf-8")
    with pytest.raises(InputError, match=r"\.metadata: wants to use posix\.mkdir, which no checkpoint needs"):
        prepared(settings(restore_config=str(path)), tmp_path / "new")
    assert not (tmp_path / "ran").exists()
