"""Every end of a run on this machine is quick and true, and loses nothing: stopped, cancelled, killed, its terminal closed."""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from finetuning.runtime.status import read_status
from tests.commands import Command, finetune, is_training, run_verb, start_verb, steps_done

pytestmark = [pytest.mark.dist, pytest.mark.timeout(900)]

AT_ONCE_S = 25.0  # of a stop with nothing to save: 5 s of grace, and two busy cores


@pytest.fixture
def start(tiny_model: Path, tiny_dataset: Path, tmp_path: Path) -> Callable[..., Command]:
    def start(*flags: str, on_screen: bool = False) -> Command:
        return finetune(
            tmp_path,
            "--hf_model_id",
            str(tiny_model),
            "--dataset_path",
            str(tiny_dataset),
            "--num_gpus",
            "2",
            "--global_batch_size",
            "8",
            "--seq_length",
            "256",
            "--experiment",
            "e",
            "--save_every_n_steps",
            "100000",
            "--val_check_interval",
            "100000",
            "--num_sample_answers",
            "0",
            *flags,
            on_screen=on_screen,
        )

    return start


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    return tmp_path / "experiments" / "e"


def test_only_now_kills_however_often_a_run_is_cancelled(
    start: Callable[..., Command], experiment: Path, tmp_path: Path
) -> None:
    command = start("--max_steps", "100000")
    command.wait_until(lambda: is_training(experiment, after_step=1))
    command.freeze_workers()  # for as long as a save may take
    first = start_verb(tmp_path, "cancel", "e")
    command.wait_until(lambda: "saving; finetune cancel --now e kills it" in command.output())
    second = start_verb(tmp_path, "cancel", "e")
    command.wait_until(lambda: "still in step " in command.output())
    command.process.send_signal(signal.SIGTERM)
    command.process.send_signal(signal.SIGHUP)
    time.sleep(1)
    command.signal_workers(signal.SIGCONT)
    code, output = command.finish()
    assert code == 75, output
    done = steps_done(experiment)
    assert f"saved at step {done} of 100000; run the same command to go on" in output
    for process in (first, second):
        told = process.communicate()[0]
        assert f"e: stopped, newest checkpoint at step {done}; the same command goes on from there" in told
    assert "e was asked to stop " in told
    assert "in step " in told
    assert "; finetune cancel --now e kills it, without saving" in told

    command = start("--max_steps", "100000")
    command.wait_until(lambda: is_training(experiment, after_step=done))
    command.freeze_workers()
    told = run_verb(tmp_path, "cancel", "--now", "e")
    assert f"e: stopped, newest checkpoint at step {done}" in told
    code, output = command.finish()
    assert code == 130, output
    assert f"killed before it could save; the newest checkpoint is of step {done}" in output


def test_ctrl_c_is_answered_at_once_and_the_second_one_kills(start: Callable[..., Command], experiment: Path) -> None:
    command = start("--max_steps", "100000")
    command.wait_until(lambda: is_training(experiment, after_step=1))
    command.freeze_workers()
    pressed = time.monotonic()
    command.ctrl_c()
    command.wait_until(lambda: "saving; press again to kill" in command.output())
    assert time.monotonic() - pressed < 5
    command.ctrl_c()
    code, output = command.finish()
    assert code == 130, output
    assert "killed before it could save; there is no checkpoint yet" in output
    assert read_status(experiment)["state"] == "stopped"


def test_a_stop_before_the_first_step_has_nothing_to_save_and_leaves_at_once(
    start: Callable[..., Command], experiment: Path, tmp_path: Path
) -> None:
    command = start("--max_steps", "5", "--num_sample_answers", "4", "--max_new_tokens", "100000")
    command.wait_until(lambda: read_status(experiment).get("doing") == "generating answers")
    asked = time.monotonic()
    command.process.send_signal(signal.SIGTERM)
    code, output = command.finish()
    assert code == 75, output
    assert time.monotonic() - asked < AT_ONCE_S
    assert "stopping, with nothing to save; finetune cancel --now e kills it" in output
    status = read_status(experiment)
    assert (status["state"], status["step"], status["reason"]) == ("stopped", 0, "asked to stop")
    assert "0/5, no checkpoint yet" in run_verb(tmp_path, "status", "e")
    assert steps_done(experiment) == 0


def test_a_stop_after_the_last_step_says_what_is_missing_and_the_same_command_does_it(
    start: Callable[..., Command], experiment: Path, tmp_path: Path
) -> None:
    command = start("--max_steps", "2")
    code, output = command.finish()
    assert code == 0, output
    (experiment / "results" / "test.json").unlink()
    command = start("--max_steps", "3", "--num_sample_answers", "4", "--max_new_tokens", "100000")
    command.wait_until(lambda: read_status(experiment).get("doing") == "generating answers")
    command.ctrl_c()
    code, output = command.finish()
    assert code == 75, output
    assert "stopped after the last step, 3; run the same command for test loss, answers and export" in output
    status = read_status(experiment)
    reason = "asked to stop after the last step; test loss, answers and export are still to be done"
    assert (status["state"], status["step"], status["reason"]) == ("stopped", 3, reason)
    assert "3/3, newest checkpoint at step 3" in run_verb(tmp_path, "status", "e")
    code, output = start("--max_steps", "3").finish()
    assert code == 0, output
    assert read_status(experiment)["state"] == "finished"


def test_a_run_whose_terminal_is_closed_saves_and_stops(start: Callable[..., Command], experiment: Path) -> None:
    command = start("--max_steps", "100000", on_screen=True)
    command.wait_until(lambda: is_training(experiment, after_step=1))
    command.close_terminal()
    assert command.process.wait(240) == 75
    status = read_status(experiment)
    assert (status["state"], status["exit_code"], status["saved"]) == ("stopped", 75, True)
    assert status["step"] == steps_done(experiment) > 1
    assert (experiment / "checkpoints" / "latest" / "checkpoint.json").is_file()


def test_a_stopped_worker_is_told_about_and_ends_the_run_with_the_stacks_of_all(
    start: Callable[..., Command], experiment: Path, tmp_path: Path
) -> None:
    command = start("--max_steps", "100000", "--stall_timeout_s", "20")
    command.wait_until(lambda: is_training(experiment, after_step=20))
    frozen = command.workers()[1]
    subprocess.run(["kill", "-STOP", str(frozen)], check=True)
    # Of the status: the output may hold an earlier one, of a busy machine.
    command.wait_until(lambda: "SIGSTOP" in (read_status(experiment).get("stall") or ""))
    notice = read_status(experiment)["stall"]
    sentence = rf"No step for \d+ s \(usually [\d.]+ s\); stopped by a signal \(SIGSTOP\): rank 1, process {frozen}"
    assert re.fullmatch(rf"{sentence}; the run is ended after 20 s of it \(--stall_timeout_s\)", notice), notice
    assert notice in command.output()
    assert notice in run_verb(tmp_path, "status", "e")
    assert notice in (experiment / "logs" / "train.log").read_text(encoding="utf-8")
    code, output = command.finish()
    assert code == 1, output
    status = read_status(experiment)
    assert status["state"] == "failed"
    where = re.escape(f"{experiment}/logs/rank_*.log")
    ended = rf"the run hung and was ended\. {sentence}\. Where each rank was is at the end of {where}"
    assert re.fullmatch(ended, status["reason"]), status["reason"]
    assert status["reason"] in output
    for rank in (0, 1):
        log = (experiment / "logs" / f"rank_{rank}.log").read_text(encoding="utf-8", errors="replace")
        assert "(most recent call first):" in log
        assert "in train_step" in log


def test_a_stopped_worker_that_goes_on_is_told_about_and_loses_nothing(start: Callable[..., Command], experiment: Path) -> None:
    command = start("--max_steps", "100000", "--stall_timeout_s", "200")
    command.wait_until(lambda: is_training(experiment, after_step=20))
    command.freeze_workers()
    command.wait_until(lambda: "No step for 10 s (usually " in command.output())
    command.signal_workers(signal.SIGCONT)
    command.wait_until(lambda: "it goes on, after " in command.output())
    command.wait_until(lambda: read_status(experiment)["stall"] is None)
    command.ctrl_c()
    assert command.finish()[0] == 75
