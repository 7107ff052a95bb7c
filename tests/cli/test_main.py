"""The command line: the specification's flags, files of settings, and what is refused before anything heavy is loaded."""

import errno
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetuning import __version__
from finetuning.cli.main import build_parser, console, main, resolve_config
from finetuning.config.settings import FLAGS, RunConfig, field_types
from finetuning.errors import EXIT_BAD_INPUT
from finetuning.i18n import set_language

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent.parent
REQUIRED = ["--hf_model_id", "meta-llama/Llama-3.1-8B-Instruct", "--dataset_path", "data/alpaca"]

# The specification's table: long form, short form, default (None where it is required or left out by default).
SPECIFICATION = [
    ("executor", None, "local"),
    ("experiment", "-E", "llama31_pretraining"),
    ("account", "-a", "root"),
    ("partition", "-p", "defq"),
    ("container_image", "-i", "nvcr.io/nvidia/nemo:dev"),
    ("num_nodes", "-N", 1),
    ("num_gpus", "-G", 8),
    ("nemo_model", "-n", None),
    ("max_steps", None, None),
    ("global_batch_size", "-g", 2048),
    ("micro_batch_size", "-m", 1),
    ("tensor_model_parallel_size", "-T", 1),
    ("pipeline_model_parallel_size", "-P", 1),
    ("context_parallel_size", "-C", 1),
]
OTHER_VALUES = {"executor": "slurm", "max_steps": 100}


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LC_ALL", "C")
    yield
    set_language("en")


@pytest.mark.parametrize(("name", "short", "default"), SPECIFICATION, ids=[name for name, _, _ in SPECIFICATION])
def test_a_flag_of_the_specification_has_its_default(name: str, short: str | None, default: object) -> None:
    assert getattr(resolve(*REQUIRED), name) == default


@pytest.mark.parametrize(("name", "short", "default"), SPECIFICATION, ids=[name for name, _, _ in SPECIFICATION])
def test_a_flag_of_the_specification_is_understood_in_each_form(name: str, short: str | None, default: object) -> None:
    value = OTHER_VALUES.get(name, 4 if isinstance(default, int) else "other")
    forms = [["--" + name, str(value)], [f"--{name}={value}"]] + ([[short, str(value)]] if short else [])
    for form in forms:
        assert getattr(resolve(*REQUIRED, *form), name) == value


def test_the_command_of_the_specification_is_understood_as_it_stands() -> None:
    config = resolve(
        "--executor",
        "local",
        "--experiment",
        "llama31_finetuning",
        "--num_nodes",
        "1",
        "--num_gpus",
        "8",
        "--hf_model_id",
        "meta-llama/Llama-3.1-8B-Instruct",
        "--hf_token",
        "hf_abc",
        "--max_steps",
        "100",
        "--global_batch_size",
        "128",
        "--tensor_model_parallel_size",
        "2",
        "--pipeline_model_parallel_size",
        "1",
        "--context_parallel_size",
        "1",
        "--dataset_path",
        "data/alpaca",
    )
    assert config == RunConfig(
        hf_model_id="meta-llama/Llama-3.1-8B-Instruct",
        dataset_path="data/alpaca",
        experiment="llama31_finetuning",
        max_steps=100,
        global_batch_size=128,
        tensor_model_parallel_size=2,
    )


def test_sequences_hold_8192_tokens_unless_another_length_is_given() -> None:
    assert resolve(*REQUIRED).seq_length == 8192
    assert resolve(*REQUIRED, "--seq_length", "1024").seq_length == 1024


def test_without_flags_every_setting_has_the_default_of_the_configuration() -> None:
    assert resolve(*REQUIRED) == RunConfig(hf_model_id=REQUIRED[1], dataset_path=REQUIRED[3])


def test_every_setting_has_a_flag() -> None:
    assert list(FLAGS) == list(field_types())


def test_flags_take_the_types_of_their_settings() -> None:
    config = resolve(*REQUIRED, "--lr", "2e-5", "--peft", "lora", "--lora_targets", "q_proj,v_proj", "--accept_changes")
    assert (config.lr, config.lora_targets, config.accept_changes) == (2e-5, ("q_proj", "v_proj"), True)


def test_required_flags_that_are_missing_are_all_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--num_gpus", "2"]) == EXIT_BAD_INPUT
    assert capsys.readouterr().err.splitlines() == [
        "Nothing was started. 2 to fix:",
        "  - --hf_model_id is required",
        "  - --dataset_path is required",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_gpus", "two"], "argument -G/--num_gpus: invalid int value: 'two'"),
        (["--num_gpus", "1.5"], "argument -G/--num_gpus: invalid int value: '1.5'"),
        (["--lr", "fast"], "argument --lr: 'fast' is neither a number nor auto"),
        (["--executor", "cloud"], "argument --executor: invalid choice: 'cloud'"),
        (["--max_steps"], "argument --max_steps: expected one argument"),
        (["--learning_rate", "1"], "unrecognized arguments: --learning_rate 1"),
        (["--exp", "a"], "unrecognized arguments: --exp a"),  # no abbreviations: a later flag could make them ambiguous
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_flag_that_is_not_understood_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*REQUIRED, *arguments])
    assert stopped.value.code == EXIT_BAD_INPUT
    assert message in capsys.readouterr().err


def test_flags_override_the_config_file_and_the_file_overrides_defaults(tmp_path: Path) -> None:
    file = write(
        tmp_path, "hf_model_id: models/a\ndataset_path: data/a\nnum_gpus: 2\nlr: 1e-4\npeft: lora\naccept_changes: true\n"
    )
    config = resolve("--config", file, "--num_gpus", "4", "--dataset_path", "data/b")
    assert (config.hf_model_id, config.dataset_path, config.num_gpus) == ("models/a", "data/b", 4)
    assert (config.lr, config.peft, config.accept_changes) == (1e-4, "lora", True)
    assert config.num_nodes == 1


def test_a_flag_with_its_default_value_overrides_the_config_file_too(tmp_path: Path) -> None:
    assert resolve(*REQUIRED, "--config", write(tmp_path, "num_gpus: 2\n"), "--num_gpus", "8").num_gpus == 8


def test_the_problems_of_a_config_file_are_listed_with_its_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, "num_gpus: two\nlearning_rate: 1\npeft: dora\n")
    assert main([*REQUIRED, "--config", file]) == EXIT_BAD_INPUT
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Nothing was started. 3 to fix:"
    assert lines[1].startswith(f"  - {file}: unknown setting 'learning_rate'; known settings: executor, ")
    assert lines[2] == f"  - {file}: num_gpus is 'two', but must be a whole number"
    assert lines[3] == f"  - {file}: peft is 'dora', but must be one of none, lora"


def test_a_token_in_a_config_file_is_refused_and_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path, "hf_token: hf_secret\n")
    assert main([*REQUIRED, "--config", file]) == EXIT_BAD_INPUT
    shown = capsys.readouterr()
    assert f"--config {file}: hf_token does not belong in a file; set HF_TOKEN or run `hf auth login`" in shown.err
    assert "hf_secret" not in shown.out + shown.err


def test_a_missing_config_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*REQUIRED, "--config", str(tmp_path / "none.yaml")]) == EXIT_BAD_INPUT
    assert f"--config {tmp_path}/none.yaml: there is no such file" in capsys.readouterr().err


@pytest.mark.dist  # starts processes
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("verb", [False, True], ids=["finetune.py", "finetune train"])
def test_the_token_leaves_the_process_list_and_arrives_in_the_environment(tmp_path: Path, verb: bool) -> None:
    # Reading its settings from a pipe, the command waits until this test has looked at it.
    pipe = tmp_path / "settings.yaml"
    os.mkfifo(pipe)
    environment = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    installed = tmp_path / "finetune"  # what pip writes into bin/
    installed.write_text(f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom finetuning.cli.main import console\nconsole()\n")
    command = [sys.executable, *([str(installed), "train"] if verb else ["finetune.py"])]
    command += ["--hf_token", "hf_secret", "--config", str(pipe), "--num_gpus", "2"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    with os.fdopen(open_for_reader(pipe, process), "w", encoding="utf-8") as settings:
        seen = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        given = Path(f"/proc/{process.pid}/environ").read_bytes()
        settings.write("peft: dora\n")
    assert "peft is 'dora'" in process.communicate()[1]
    assert process.returncode == EXIT_BAD_INPUT
    assert b"hf_secret" not in seen
    assert b"--num_gpus\x002\x00" in seen
    assert b"HF_TOKEN=hf_secret" in given.split(b"\0")


@pytest.mark.parametrize("form", [["--hf_token", "hf_secret"], ["--hf_token=hf_secret"]], ids=["two words", "one word"])
def test_the_token_is_not_part_of_the_settings(form: list[str]) -> None:
    assert "hf_secret" not in repr(resolve(*REQUIRED, *form))


def test_a_token_flag_without_a_value_is_reported(tmp_path: Path) -> None:
    result = run_script("--hf_token")
    assert result.returncode == EXIT_BAD_INPUT
    assert "argument --hf_token: expected one argument" in result.stderr


@pytest.mark.parametrize(
    ("locale", "arguments", "expected"),
    [
        ("zh_TW.UTF-8", [], "zh-TW"),
        ("en_US.UTF-8", [], "en"),
        ("en_US.UTF-8", ["--lang", "zh-TW"], "zh-TW"),
        ("zh_TW.UTF-8", ["--lang", "en"], "en"),
    ],
)
def test_messages_follow_the_flag_else_the_locale(
    locale: str, arguments: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    assert resolve(*REQUIRED, *arguments).lang == expected


def test_help_names_every_flag_its_short_form_and_its_default() -> None:
    text = build_parser("finetune train").format_help()
    entries = {" ".join(entry.split()) for entry in re.split(r"^(?=  -|\S)", text, flags=re.MULTILINE)}
    for name, short, default in SPECIFICATION:
        (entry,) = (entry for entry in entries if re.match(rf"(-.*, )?--{name} ", entry))
        if short is not None:
            assert entry.startswith(f"{short} ")
        if default is not None:
            assert entry.endswith(f"(default: {default})")
    assert all(f"--{name}" in text for name in field_types())
    assert all(flag.group in text for flag in FLAGS.values())


@pytest.mark.dist  # starts processes
@pytest.mark.parametrize("script", ["finetune.py", "finetuning/finetuning.py"])
def test_help_loads_neither_torch_nor_transformers_nor_lightning(script: str) -> None:
    result = run_script("--help", script=script, interpreter=["-X", "importtime"])
    assert result.returncode == 0
    assert result.stdout.startswith(f"usage: python {script} ")
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "finetuning" in loaded
    assert not loaded & {"torch", "transformers", "tokenizers", "lightning", "pytorch_lightning", "numpy", "huggingface_hub"}


def test_wrong_input_is_reported_without_loading_torch(tmp_path: Path) -> None:
    result = run_script("--config", str(tmp_path / "none.yaml"), interpreter=["-X", "importtime"])
    assert result.returncode == EXIT_BAD_INPUT
    assert "Nothing was started. 1 to fix:" in result.stderr
    assert not re.search(r"\| +torch$", result.stderr, re.MULTILINE)


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"finetune {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "code", "stream"),
    [(["--help"], 0, "out"), ([], EXIT_BAD_INPUT, "err"), (["fly"], EXIT_BAD_INPUT, "err")],
)
def test_the_installed_command_lists_its_verbs(
    arguments: list[str], code: int, stream: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["finetune", *arguments])
    with pytest.raises(SystemExit) as ended:
        console()
    assert ended.value.code == code
    printed = getattr(capsys.readouterr(), stream)
    assert "usage: finetune VERB …" in printed and "  train   " in printed


def test_the_installed_command_trains_with_the_same_flags() -> None:
    result = run_console("train", "--num_gpus", "2")
    assert result.returncode == EXIT_BAD_INPUT
    assert "--hf_model_id is required" in result.stderr


@pytest.mark.dist  # starts processes
def test_a_verb_speaks_the_language_that_is_asked_for() -> None:
    assert "所有實驗，最新的在前" in run_console("list", "--help", "--lang", "zh-TW").stdout
    assert "the latest first" in run_console("list", "--lang", "en", "--help").stdout


def resolve(*arguments: str) -> RunConfig:
    """The settings that the command would launch with these arguments."""
    given = vars(build_parser("finetune train").parse_args(arguments))
    given.pop("hf_token")
    given.pop("dryrun")
    return resolve_config(given, given.pop("config"))


def write(folder: Path, text: str) -> str:
    (folder / "settings.yaml").write_text(text, encoding="utf-8")
    return str(folder / "settings.yaml")


def open_for_reader(pipe: Path, process: subprocess.Popen[str]) -> int:
    """Opens a named pipe for writing as soon as `process` reads from it."""
    while process.poll() is None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nobody reads yet
                raise
            time.sleep(0.01)
    raise AssertionError(process.communicate()[1])


def run_script(
    *arguments: str, script: str = "finetune.py", interpreter: list[str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(interpreter or []), script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)


def run_console(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the script that pip installs does."""
    code = "import sys; from finetuning.cli.main import console; sys.argv[0] = 'finetune'; sys.exit(console())"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False)


def test_a_verb_given_to_the_training_s_command_is_sent_to_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "models/a"], program="python finetune.py") == EXIT_BAD_INPUT
    assert capsys.readouterr().err == (
        "inspect is a command of its own: finetune inspect …, or python -m finetuning inspect …\n"
    )
