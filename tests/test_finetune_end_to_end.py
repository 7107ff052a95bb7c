"""The specification's command on two local processes: uninterrupted, interrupted in every way, and run again.

One uninterrupted run is the measure. A second experiment gets the same flags and no peace: asked to stop, killed inside a
save, started by hand, killed by a second Ctrl-C, crashed after its last step. Its losses must be the same to the last bit.
"""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import transformers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetuning.checkpoint.files import find_checkpoints
from finetuning.config.run import read_run
from finetuning.data.batches.ledger import LEDGER_FILE, read_ledger
from finetuning.data.batches.order import samples_of_step
from finetuning.data.tokens.tokenized import open_split
from finetuning.runtime.status import read_status
from finetuning.training.metrics import COLUMNS, read_metrics
from tests.closeness import ROUNDING
from tests.commands import Command, finetune, is_training, steps_done
from tests.references import load_reference, summed_loss, summed_loss_of_text

pytestmark = [pytest.mark.dist, pytest.mark.timeout(1200)]

MAX_STEPS, MORE_STEPS, BATCH = 24, 26, 8
LOSSES = ("step", "train_loss", "val_loss", "learning_rate", "grad_norm", "samples", "tokens", "answer_tokens")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def flags(tiny_model: Path, tiny_dataset: Path) -> list[str]:
    return [
        "--executor",
        "local",
        "--num_nodes",
        "1",
        "--num_gpus",
        "2",
        "--hf_model_id",
        str(tiny_model),
        "--global_batch_size",
        str(BATCH),
        "--tensor_model_parallel_size",
        "1",
        "--pipeline_model_parallel_size",
        "1",
        "--context_parallel_size",
        "1",
        "--dataset_path",
        str(tiny_dataset),
        "--seq_length",
        "256",
        "--lr",
        "3e-3",
        "--val_check_interval",
        "1",
        "--save_every_n_steps",
        "2",
        "--num_sample_answers",
        "1",
        "--max_new_tokens",
        "8",
    ]


@dataclass
class Finished:
    """What an experiment looked like when the command had ended."""

    code: int
    output: str
    folder: Path
    metrics: list[dict[str, str]]
    status: dict[str, object]


def run(folder: Path, name: str, max_steps: int, flags: list[str]) -> Finished:
    code, output = start(folder, name, max_steps, flags).finish()
    experiment = folder / "experiments" / name
    return Finished(code, output, experiment, read_metrics(experiment / "metrics.csv"), read_status(experiment))


def start(folder: Path, name: str, max_steps: int, flags: list[str]) -> Command:
    return finetune(folder, "--experiment", name, "--max_steps", str(max_steps), *flags)


def losses(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """What must not depend on interruptions, as text: equal to the last digit that was written."""
    return [{name: row[name] for name in LOSSES} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(folder: Path, flags: list[str]) -> Finished:
    return run(folder, "uninterrupted", MAX_STEPS, flags)


def test_a_run_finishes_with_code_0_and_says_where_the_result_is(uninterrupted: Finished) -> None:
    assert uninterrupted.code == 0, uninterrupted.output
    assert uninterrupted.status["state"] == "finished"
    assert uninterrupted.status["exit_code"] == 0
    assert uninterrupted.status["step"] == MAX_STEPS
    export = uninterrupted.folder / "export"
    assert uninterrupted.status["export"] == str(export)
    assert f'AutoModelForCausalLM.from_pretrained("{export}")' in uninterrupted.output


def test_metrics_csv_has_one_row_for_each_step_and_falling_losses(uninterrupted: Finished) -> None:
    rows = uninterrupted.metrics
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["step"]) for row in rows] == list(range(1, MAX_STEPS + 1))
    assert [int(row["samples"]) for row in rows] == [BATCH * step for step in range(1, MAX_STEPS + 1)]
    assert all(float(row[name]) > 0 for row in rows for name in COLUMNS)
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) - 0.5
    assert float(rows[-1]["val_loss"]) < float(rows[0]["val_loss"]) - 0.5
    assert float(rows[2]["learning_rate"]) == pytest.approx(3e-3)  # after a tenth of 24 steps of warm-up


def test_tensorboard_shows_the_same_numbers(uninterrupted: Finished) -> None:
    events = EventAccumulator(str(uninterrupted.folder / "tensorboard"))
    events.Reload()
    for name in ("train_loss", "val_loss", "learning_rate", "grad_norm", "tokens_per_second", "memory_gib"):
        shown = {event.step: event.value for event in events.Scalars(name)}
        expected = {int(row["step"]): float(row[name]) for row in uninterrupted.metrics}
        assert shown == pytest.approx(expected, rel=1e-6)  # TensorBoard keeps float32


def test_the_newest_two_checkpoints_and_the_best_one_are_kept(uninterrupted: Finished) -> None:
    checkpoints = uninterrupted.folder / "checkpoints"
    complete, broken = find_checkpoints(checkpoints)
    saved = [row for row in uninterrupted.metrics if int(row["step"]) % 2 == 0]
    best = int(min(saved, key=lambda row: float(row["val_loss"]))["step"])
    assert [checkpoint.step for checkpoint in complete] == sorted({MAX_STEPS - 2, MAX_STEPS, best})
    assert not broken
    assert (checkpoints / "latest").resolve() == complete[-1].path
    assert (checkpoints / "best").resolve().name == f"step={best:06d}"


def test_the_first_step_has_the_loss_of_transformers_on_the_lines_that_the_ledger_names(
    uninterrupted: Finished, tiny_model: Path, tiny_dataset: Path
) -> None:
    first = next(iter(read_ledger(uninterrupted.folder / LEDGER_FILE)))
    lines = (tiny_dataset / "training.jsonl").read_text(encoding="utf-8").split("\n")
    records = [json.loads(lines[line - 1]) for line in first.lines]
    assert len(records) == BATCH
    model = load_reference(tiny_model)
    with torch.no_grad():
        found = [summed_loss_of_text(model, tiny_model, record["input"], record["output"]) for record in records]
    assert first.answer_tokens.tolist() == [count for _, count in found]
    mean = sum(loss for loss, _ in found) / sum(count for _, count in found)
    assert float(uninterrupted.metrics[0]["train_loss"]) == pytest.approx(mean, rel=ROUNDING)


def test_the_exported_model_has_the_test_loss_of_results_in_plain_transformers(uninterrupted: Finished) -> None:
    split = open_split(Path(read_run(uninterrupted.folder / "run.yaml").tokens_dir) / "test")
    model = load_reference(uninterrupted.folder / "export")
    with torch.no_grad():
        total = sum(summed_loss(model, split, sample).item() for sample in range(len(split)))
    found = json.loads((uninterrupted.folder / "results" / "test.json").read_text(encoding="utf-8"))
    assert found["loss"] == pytest.approx(total / int(split.answer_tokens.sum()), rel=ROUNDING)
    assert found["samples"] == len(split) == 4
    assert found["step"] == MAX_STEPS


def test_the_sample_answer_is_what_transformers_generates_from_the_export(uninterrupted: Finished, tiny_dataset: Path) -> None:
    export = uninterrupted.folder / "export"
    row = json.loads((uninterrupted.folder / "results" / "predictions.jsonl").read_text(encoding="utf-8").split("\n")[0])
    sample = json.loads((tiny_dataset / "test.jsonl").read_text(encoding="utf-8").split("\n")[0])
    assert (row["input"], row["label"]) == (sample["input"], sample["output"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": sample["input"]}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    tokens = load_reference(export).eval().generate(**prompt, do_sample=False, max_new_tokens=8)
    answer = tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert row["prediction"] == answer


@pytest.fixture(scope="module")
def run_again(folder: Path, flags: list[str], uninterrupted: Finished) -> Finished:
    return run(folder, "uninterrupted", MAX_STEPS, flags)


def test_a_finished_run_says_so_and_does_not_train_again(uninterrupted: Finished, run_again: Finished) -> None:
    assert run_again.code == 0
    assert f"has finished: {MAX_STEPS} of {MAX_STEPS} steps" in run_again.output
    assert "starting" not in run_again.output
    assert run_again.metrics == uninterrupted.metrics
    assert run_again.status == uninterrupted.status


@pytest.fixture(scope="module")
def extended(folder: Path, flags: list[str], uninterrupted: Finished) -> Finished:
    shutil.copytree(uninterrupted.folder, folder / "experiments" / "extended", symlinks=True)
    return run(folder, "extended", MORE_STEPS, flags)


def test_more_steps_train_on_from_the_end(uninterrupted: Finished, extended: Finished) -> None:
    assert extended.code == 0, extended.output
    assert f"the schedule changes from {MAX_STEPS} to {MORE_STEPS} steps" in extended.output
    assert extended.metrics[:MAX_STEPS] == uninterrupted.metrics
    assert [int(row["step"]) for row in extended.metrics[MAX_STEPS:]] == [MAX_STEPS + 1, MAX_STEPS + 2]
    assert extended.status["state"] == "finished"
    assert json.loads((extended.folder / "results" / "test.json").read_text(encoding="utf-8"))["step"] == MORE_STEPS


def test_more_steps_take_the_samples_that_come_next(extended: Finished) -> None:
    split = open_split(Path(read_run(extended.folder / "run.yaml").tokens_dir) / "training")
    for row in extended.metrics:
        samples = samples_of_step(int(row["step"]) - 1, BATCH, len(split), seed=1234)
        assert int(row["tokens"]) == split.lengths[samples].sum()
        assert int(row["answer_tokens"]) == split.answer_tokens[samples].sum()


class Interrupted:
    """The experiment without peace: each step of its life once, in order."""

    def __init__(self, folder: Path, flags: list[str]):
        self.folder, self.flags = folder, flags
        self.experiment = folder / "experiments" / "interrupted"
        self.checkpoints = self.experiment / "checkpoints"

    def start(self) -> Command:
        return start(self.folder, "interrupted", MAX_STEPS, self.flags)

    def newest_step(self) -> int:
        return find_checkpoints(self.checkpoints)[0][-1].step


@pytest.fixture(scope="module")
def interrupted(folder: Path, flags: list[str]) -> Interrupted:
    return Interrupted(folder, flags)


def test_interrupted_in_every_way_the_losses_are_bit_identical(uninterrupted: Finished, interrupted: Interrupted) -> None:
    experiment, checkpoints = interrupted.experiment, interrupted.checkpoints

    # 1. Asked to stop.
    command = interrupted.start()
    command.wait_until(lambda: is_training(experiment, after_step=1))
    command.process.send_signal(signal.SIGTERM)
    code, output = command.finish()
    stopped_at = steps_done(experiment)
    assert code == 75, output
    assert 2 <= stopped_at < MAX_STEPS
    assert f"saved at step {stopped_at} of {MAX_STEPS}; run the same command to go on" in output
    assert interrupted.newest_step() == stopped_at
    status = read_status(experiment)
    assert (status["state"], status["exit_code"], status["step"]) == ("stopped", 75, stopped_at)
    assert not (experiment / "export").exists()

    # 2. Goes on by itself; everything is killed inside a save.
    command = interrupted.start()
    unfinished = command.freeze_inside_a_save(checkpoints)
    command.kill_everything()
    assert f"resuming interrupted at step {stopped_at} of {MAX_STEPS}" in command.output()
    assert unfinished.is_dir()
    saved_at = interrupted.newest_step()
    assert stopped_at <= saved_at < int(unfinished.name.rpartition("=")[2])
    assert (checkpoints / "latest").resolve().name == f"step={saved_at:06d}"
    assert read_status(experiment)["state"] == "running"  # nobody was left to say otherwise

    # 3. The worker started by hand goes on from the newest complete checkpoint.
    command = Command(
        interrupted.folder,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        "-m",
        "finetuning.train",
        str(experiment / "run.yaml"),
    )
    command.wait_until(lambda: read_status(experiment).get("pid") in command.workers())
    assert read_status(experiment)["step"] == saved_at
    command.wait_until(lambda: interrupted.newest_step() > saved_at)
    command.kill_everything()
    saved_at = interrupted.newest_step()

    # 4. A second Ctrl-C does not wait for anything.
    command = interrupted.start()
    command.wait_until(lambda: read_status(experiment).get("pid") in command.workers() and interrupted.newest_step() > saved_at)
    command.freeze_workers()  # they cannot obey
    saved_at = interrupted.newest_step()
    command.ctrl_c()
    command.wait_until_pending(signal.SIGTERM)
    command.ctrl_c()
    code, output = command.finish()
    assert code == 130, output
    assert f"killed before it could save; the newest checkpoint is of step {saved_at}" in output
    assert read_status(experiment)["state"] == "stopped"
    assert interrupted.newest_step() == saved_at < MAX_STEPS

    # 5. Crashes after the last step: a folder is in the way of a file.
    obstacle = experiment / "results" / "test.json"
    obstacle.mkdir()
    code, output = interrupted.start().finish()
    assert f"resuming interrupted at step {saved_at}" in output
    assert code == 1, output
    assert "IsADirectoryError" in output
    status = read_status(experiment)
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    assert "IsADirectoryError" in status["reason"]
    assert losses(read_metrics(experiment / "metrics.csv")) == losses(uninterrupted.metrics)
    assert not (experiment / "export").exists()

    # 6. Only evaluates and exports.
    obstacle.rmdir()
    before = (experiment / "metrics.csv").read_bytes()
    code, output = interrupted.start().finish()
    assert code == 0, output
    assert (experiment / "metrics.csv").read_bytes() == before
    assert read_status(experiment)["state"] == "finished"
    names = {path.name for path in checkpoints.iterdir()}
    assert not [name for name in names if name.startswith(".")]
    assert (checkpoints / "latest").resolve().name == f"step={MAX_STEPS:06d}"
    exports = [folder / "export" / "model.safetensors" for folder in (experiment, uninterrupted.folder)]
    assert exports[0].read_bytes() == exports[1].read_bytes()
