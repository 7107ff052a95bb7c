"""The whole command up to the workers' start: wrong input, --dryrun, and runs that need no workers any more."""

import os
import shlex
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import yaml

from finetuning.cli.main import main
from finetuning.config.run import read_run, write_run
from finetuning.config.settings import RunConfig
from finetuning.errors import EXIT_BAD_INPUT, EXIT_FINISHED, EXIT_INTERRUPTED
from finetuning.launch.prepare import prepare
from finetuning.runtime.status import FINISHED, write_status

pytestmark = pytest.mark.unit

TOKEN = "hf_secret0123456789"


def problems(capsys: pytest.CaptureFixture[str]) -> list[str]:
    shown = capsys.readouterr()
    head, *listed = shown.err.splitlines()
    assert head == f"Nothing was started. {len(listed)} to fix:"
    assert "starting" not in shown.out
    return [line.removeprefix("  - ") for line in listed]


def write_data(folder: Path, *lines: str) -> str:
    folder.mkdir()
    (folder / "training.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(folder)


def test_a_missing_and_an_empty_data_folder_are_refused_and_nothing_is_left(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--dataset_path", str(tmp_path / "none")]) == EXIT_BAD_INPUT
    assert problems(capsys) == [f"--dataset_path {tmp_path}/none: there is no such folder"]
    (tmp_path / "empty").mkdir()
    assert main([*arguments, "--dataset_path", str(tmp_path / "empty")]) == EXIT_BAD_INPUT
    (problem,) = problems(capsys)
    assert problem == (
        f"--dataset_path {tmp_path}/empty: needs training.jsonl (and validation.jsonl, test.jsonl), or exactly one other "
        ".jsonl file to be split 98/1/1; found nothing"
    )
    assert not (tmp_path / "experiments").exists()


def test_bad_lines_are_listed_with_file_and_line_number(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(
        tmp_path / "data",
        '{"input": "請說明',
        '{"input": "a", "output": "b"}',
        '["a", "b"]',
        '{"input": "a"}',
        '{"input": "a", "output": 7}',
        '{"input": "a", "output": " "}',
    )
    (tmp_path / "data" / "test.jsonl").write_bytes(b'{"input": "\xff", "output": "b"}\n')
    assert main([*arguments, "--dataset_path", data]) == EXIT_BAD_INPUT
    found = problems(capsys)
    assert found[0].startswith("training.jsonl:1: not valid JSON (")
    assert found[0].endswith(': {"input": "請說明')
    assert found[1:] == [
        "training.jsonl:3: must be a JSON object with 'input' and 'output': [\"a\", \"b\"]",
        "training.jsonl:4: field 'output' is missing; found 'input': {\"input\": \"a\"}",
        "training.jsonl:5: field 'output' must be text, but is 7",
        "training.jsonl:6: the answer ('output') is empty: a",
        'test.jsonl:1: not UTF-8 (byte 12); save the file as UTF-8: {"input": "\ufffd", "output": "b"}',
        "--skip_bad_samples would drop 6 of 7 samples",
    ]


def test_very_many_bad_lines_are_counted_instead(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--dataset_path", write_data(tmp_path / "data", *["x"] * 500)]) == EXIT_BAD_INPUT
    found = problems(capsys)
    assert len(found) == 21
    assert found[-1] == "training.jsonl: and 480 more lines like these"


def test_an_answer_that_would_be_cut_is_refused_with_the_length_it_needs(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", '{"input": "a", "output": "b"}', '{"input": "a", "output": "' + "很長" * 100 + '"}')
    assert main([*arguments, "--dataset_path", data, "--seq_length", "100"]) == EXIT_BAD_INPUT
    problem, advice = problems(capsys)
    assert advice == "--skip_bad_samples would drop 1 of 2 samples"
    needed = problem.split()[1]
    assert problem.startswith(f"training.jsonl:2: {needed} tokens (")
    assert f"do not fit --seq_length 100; the answer would be cut; shorten it, give --seq_length {needed} or more" in problem
    assert main([*arguments, "--dataset_path", data, "--seq_length", needed, "--dryrun"]) == EXIT_FINISHED
    assert main([*arguments, "--dataset_path", data, "--seq_length", str(int(needed) - 1), "--dryrun"]) == EXIT_BAD_INPUT


def test_mistakes_of_every_kind_come_on_one_screen(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data", '{"input": "a", "output": ""}')
    wrong = ["--experiment", "a/b", "--num_gpus", "3", "--global_batch_size", "100", "--dataset_path", data]
    assert main([*arguments, *wrong]) == EXIT_BAD_INPUT
    assert problems(capsys) == [
        "--experiment 'a/b': it names a folder; use letters, digits, '_', '-' and '.', no '.' or '-' first",
        "--global_batch_size 100: must be a multiple of micro_batch_size 1 x data parallel 3 = 3; nearest: 99, 102",
        "training.jsonl:1: the answer ('output') is empty: a",
    ]
    assert not (tmp_path / "experiments").exists()


@pytest.mark.parametrize("name", ["../outside", "/outside", ".."])
def test_an_experiment_name_never_leads_out_of_the_experiments_folder(
    name: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(tmp_path.iterdir())
    assert main([*arguments, "--experiment", name]) == EXIT_BAD_INPUT
    assert problems(capsys)[0].startswith(f"--experiment {name!r}: it names a folder")
    assert set(tmp_path.iterdir()) == before


def test_an_experiments_folder_that_cannot_be_written_is_said(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main([*arguments, "--experiments_dir", str(tmp_path / "file")]) == EXIT_BAD_INPUT
    assert problems(capsys) == [f"cannot write to {tmp_path}/file/tiny: Not a directory"]
    (tmp_path / "experiments" / "tiny" / ".lock").mkdir(parents=True)  # as unwritable as a file of another user
    assert main(arguments) == EXIT_BAD_INPUT
    assert problems(capsys) == [f"cannot write to {tmp_path}/experiments/tiny: Is a directory"]


@pytest.mark.parametrize("way", ["flag", "file"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("mlflow_tracking_uri", "https://me:SESAME@host"),
        ("environment", "NCCL_DEBUG=INFO PGPASSWORD=SESAME"),
        ("environment", "'DB_PASS=SESAME"),
        ("setup", "export https_proxy=http://me:SESAME@proxy:3128"),
        ("sbatch_options", "--export=ALL,NGC_KEY=SESAME"),
        ("sbatch_options", "--comment='OPENAI_KEY=SESAME"),
    ],
)
def test_a_secret_is_refused_first_and_neither_shown_nor_written(
    name: str, text: str, way: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--{name}={text}"]
    if way == "file":
        (tmp_path / "settings.yaml").write_text(yaml.safe_dump({name: text}), encoding="utf-8")
        given = ["--config", str(tmp_path / "settings.yaml")]
    assert main([*arguments, "--num_gpus", "0", *given]) == EXIT_BAD_INPUT
    shown = capsys.readouterr()
    assert f"  - --{name} holds " in shown.err
    assert "SESAME" not in shown.err + shown.out
    assert not (tmp_path / "experiments").exists()


TEXTS_OF_ONE_LINE = ("qos", "nodelist", "mem", "container_image", "python", "mounts", "wandb_project", "dataset_path")


@pytest.mark.parametrize(
    ("name", "mark"),
    [(name, "\n") for name in TEXTS_OF_ONE_LINE] + [("qos", mark) for mark in ("\r", "\x1b", "\0", "\u2028")],
)
def test_a_setting_with_a_line_break_or_a_control_character_is_refused(
    name: str, mark: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    text = f"a{mark}#SBATCH --uid=0"
    assert main([*arguments, "--dryrun", f"--{name}", text]) == EXIT_BAD_INPUT
    assert f"--{name} {text!r}: must be one line, without control characters\n" in capsys.readouterr().err


def test_setup_may_have_lines_and_prompts_anything_but_no_text_what_is_no_text(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--setup", "a\n\tb\r\n", "--system_prompt", "a\x0cb", "--prompt_template", "{input}\ud800{output}"]
    assert main([*arguments, "--dryrun", *given]) == EXIT_BAD_INPUT
    found = problems(capsys)
    assert found[:2] == [
        "--setup 'a\\n\\tb\\r\\n': has control characters",
        "--prompt_template '{input}\\ud800{output}': not UTF-8",
    ]
    assert not any("--system_prompt '" in problem for problem in found)


@pytest.mark.parametrize("umask", [0o022, 0o002, 0o077])
def test_the_settings_of_a_run_are_for_their_owner_alone(
    umask: int, settings: Callable[..., RunConfig], tmp_path: Path
) -> None:
    run = prepare(settings(), None, tmp_path / "experiments" / "tiny", tmp_path / "tokens", with_weights=False).run
    before = os.umask(umask)
    try:
        write_run(run, tmp_path / "run.yaml")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "run.yaml").stat().st_mode) == 0o600


def test_a_home_folder_is_found_where_the_shell_has_left_it_to_us(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x").touch()
    assert main([*arguments, "--experiments_dir", "~/x"]) == EXIT_BAD_INPUT
    assert problems(capsys) == [f"cannot write to {tmp_path}/x/tiny: Not a directory"]
    assert main([*arguments, "--hf_model_id", "~/model", "--dataset_path=~/data"]) == EXIT_BAD_INPUT
    assert problems(capsys) == [
        f"--hf_model_id {tmp_path}/model: there is no such folder",
        f"--dataset_path {tmp_path}/data: there is no such folder",
    ]


def test_a_settings_file_that_cannot_be_read_is_said(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--config", str(tmp_path)]) == EXIT_BAD_INPUT
    assert problems(capsys) == [f"--config {tmp_path}: cannot be read: Is a directory"]


def test_a_dry_run_shows_the_run_and_the_command_and_writes_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main([*arguments, "--dryrun", "--max_steps", "7", "--hf_token", TOKEN]) == EXIT_FINISHED
    shown = capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert TOKEN not in shown

    screen, _, rest = shown.partition("\n# run.yaml\n")
    assert screen.startswith("model  ") and "starts from the weights of" in screen
    text, command = rest.rstrip("\n").rsplit("\n", maxsplit=1)
    file = tmp_path / "run.yaml"
    file.write_text(text, encoding="utf-8")
    run = read_run(file)
    experiment = tmp_path / "experiments" / "tiny"
    assert (run.max_steps, run.experiment_dir) == (7, str(experiment))
    assert Path(run.tokens_dir).parent == tmp_path / "experiments" / ".tokens"
    words = shlex.split(command)
    assert words[0] == "torchrun"
    assert words[-3:] == ["-m", "finetuning.train", str(experiment / "run.yaml")]
    assert words[words.index("--nproc_per_node") + 1] == "2"


def test_names_in_brackets_colons_and_blanks_come_out_as_they_went_in(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "my [red]runs :smile:"
    assert main([*arguments, "--experiments_dir", str(folder), "--dryrun"]) == EXIT_FINISHED
    shown = capsys.readouterr().out
    assert f"folder      {folder}/tiny\n" in shown
    assert shlex.split(shown.splitlines()[-1])[-1] == f"{folder}/tiny/run.yaml"


def test_a_finished_experiment_says_so_and_starts_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = tmp_path / "experiments" / "tiny"
    assert main([*arguments, "--dryrun"]) == EXIT_FINISHED
    (experiment / "export").mkdir(parents=True)
    text = capsys.readouterr().out.partition("\n# run.yaml\n")[2].rstrip("\n").rsplit("\n", maxsplit=1)[0]
    (experiment / "run.yaml").write_text(text, encoding="utf-8")
    write_status(experiment, FINISHED, step=5, max_steps=5)
    said = (
        f"experiment tiny has finished: 5 of 5 steps; its result is in {experiment}/export. To train on, give a larger "
        "--max_steps; to train again, another --experiment name.\n"
    )
    assert main(arguments) == EXIT_FINISHED
    assert capsys.readouterr().out == said
    assert not (experiment / "logs").exists()
    assert main([*arguments, "--dryrun"]) == EXIT_FINISHED
    assert said in capsys.readouterr().out


def test_the_example_is_refused_in_chinese_as_well(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--lang", "zh-TW", "--max_steps", "0"]) == EXIT_BAD_INPUT
    assert "--max_steps 0" in capsys.readouterr().err


def test_ctrl_c_before_the_start_is_no_traceback(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The settings come from a pipe whose writer presses Ctrl-C instead.
    pipe = tmp_path / "settings.yaml"
    os.mkfifo(pipe)

    def press() -> None:
        with pipe.open("w"):  # opens when the command reads from it
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background of a shell ignores Ctrl-C
    writer = Thread(target=press)
    writer.start()
    code = main([*arguments, "--config", str(pipe)])
    writer.join()
    signal.signal(signal.SIGINT, before)
    assert code == EXIT_INTERRUPTED
    assert capsys.readouterr().err == "Stopped. Nothing was started.\n"
