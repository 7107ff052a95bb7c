"""README and manual in both languages: the same commands, which the real checks accept; links that lead somewhere."""

import argparse
import ast
import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import yaml

from finetuning.cli.main import VERBS, build_parser, resolve_config
from finetuning.config.rules import check_layout, check_settings
from finetuning.config.settings import RunConfig

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
READMES = ["README.md", "README.zh-TW.md"]
MANUALS = ["docs/manual.md", "docs/manual.zh-TW.md"]
DOCUMENTS = sorted(
    str(file.relative_to(ROOT))
    for file in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
)
FENCE = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
FLAG_ROW = re.compile(r"^\| (?:`(-\w)`, )?`--(\w+)` \| (.*?) \| .+ \|$", re.MULTILINE)
LONGEST_README = 9 * 1024  # bytes: read in a few minutes
PEOPLE_NEED = {
    "hf_model_id",
    "dataset_path",
    "experiment",
    "num_gpus",
    "max_steps",
    "global_batch_size",
    "peft",
    "lr",
}


@pytest.mark.parametrize("language", ["bash", "python", "json", "yaml"])
@pytest.mark.parametrize("pair", [READMES, MANUALS], ids=["README", "manual"])
def test_both_languages_have_the_same_blocks(pair: list[str], language: str) -> None:
    english, chinese = (blocks(name, language) for name in pair)
    assert english or language in ("json", "yaml")
    assert english == chinese


@pytest.mark.parametrize("name", READMES)
def test_the_readme_is_short(name: str) -> None:
    assert len(read(name).encode()) <= LONGEST_README


@pytest.mark.parametrize("name", READMES + MANUALS)
def test_every_command_that_trains_is_accepted(name: str) -> None:
    commands = training_commands(name)
    assert commands
    for arguments in commands:
        given = vars(build_parser("finetune train").parse_args(arguments))
        for own in ("hf_token", "dryrun"):
            given.pop(own)
        config = resolve_config(given, given.pop("config"))
        assert check_settings(config) + check_layout(config, None) == [], arguments


@pytest.mark.parametrize("name", READMES + MANUALS)
def test_every_other_command_is_a_verb_of_finetune(name: str) -> None:
    verbs = [words[1] for words in map(split, lines(name)) if words[:1] == ["finetune"]]
    assert verbs
    assert set(verbs) <= VERBS.keys()


def test_the_specification_s_command_is_in_the_readme() -> None:
    (arguments,) = (found for found in training_commands("README.md") if "--executor" in found)
    flags = [argument for argument in arguments if argument.startswith("--")]
    assert flags == [
        "--executor",
        "--experiment",
        "--num_nodes",
        "--num_gpus",
        "--hf_model_id",
        "--max_steps",
        "--global_batch_size",
        "--tensor_model_parallel_size",
        "--pipeline_model_parallel_size",
        "--context_parallel_size",
        "--dataset_path",
    ]


@pytest.mark.parametrize("name", READMES)
def test_the_flags_that_people_need_have_their_short_forms_and_defaults(name: str) -> None:
    rows = {flag: (short or None, default) for short, flag, default in FLAG_ROW.findall(read(name))}
    assert rows.keys() == PEOPLE_NEED
    short_forms = short_forms_of(build_parser("finetune train"))
    defaults = {field.name: field.default for field in dataclasses.fields(RunConfig)}
    for flag, (short, shown) in rows.items():
        assert short == short_forms[flag], flag
        default = defaults[flag]
        if default is None or default is dataclasses.MISSING:
            assert shown and "`" not in shown, f"{flag}: {shown} looks like a value, but its default is worked out or none"
        else:
            assert shown == f"`{default}`", flag


@pytest.mark.parametrize("name", MANUALS)
def test_the_manual_s_file_of_settings_is_accepted(name: str, tmp_path: Path) -> None:
    (text,) = blocks(name, "yaml")
    file = tmp_path / "llama.yaml"
    file.write_text(text, encoding="utf-8")
    config = resolve_config({}, file)
    assert {setting: getattr(config, setting) for setting in yaml.safe_load(text)} == yaml.safe_load(text)


@pytest.mark.parametrize("name", [*READMES, *MANUALS, "CONTRIBUTING.md"])
def test_every_make_target_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    named = {
        next(word for word in words[1:] if "=" not in word)
        for words in map(split, [*lines(name), *re.findall(r"`(make [^`]+)`", read(name))])
        if words[:1] == ["make"]
    }
    assert {"test"} <= named <= targets


@pytest.mark.parametrize("name", READMES + MANUALS)
def test_the_examples_of_loading_are_python(name: str) -> None:
    for text in blocks(name, "python"):
        ast.parse(text)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(name))):
        if target.startswith("https://"):
            continue
        path, _, heading = target.partition("#")
        document = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert document.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in map(anchor, headings), target


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(read(name)) if found == language]


def lines(name: str) -> list[str]:
    """The commands of all bash blocks, continued lines joined and the block's own variables put in."""
    commands = []
    for text in blocks(name, "bash"):
        variables = dict(re.findall(r"^(\w+)=(\S+)$", text, re.MULTILINE))
        for variable, value in variables.items():
            text = text.replace(f"${{{variable}}}", value)
        text = text.replace("\\\n", " ")
        commands += [line for line in text.splitlines() if line.strip() and not re.match(r"^(export )?\w+=", line)]
    return commands


def split(command: str) -> list[str]:
    return shlex.split(command, comments=True)


def training_commands(name: str) -> list[list[str]]:
    """Arguments of every command that trains."""
    starts = (["python", "finetune.py"], ["finetune", "train"])
    return [words[2:] for words in map(split, lines(name)) if words[:2] in starts and "--help" not in words]


def short_forms_of(parser: argparse.ArgumentParser) -> dict[str, str | None]:
    """-E of --experiment, by its name; None where there is none."""
    names = re.findall(r"^ +(?:(-\w)(?: \S+)?, )?--(\w+)", parser.format_help(), re.MULTILINE)
    return {name: short or None for short, name in names}


def anchor(heading: str) -> str:
    """GitHub's: lower case, punctuation dropped, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
