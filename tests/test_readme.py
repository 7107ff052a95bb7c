"""Both READMEs: the same commands, which the real parser and the real checks accept, and every flag with its real default."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from finetuning.cli.main import _resolve_config, build_parser
from finetuning.config.rules import check_layout, check_settings

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent
READMES = ["README.md", "README.zh-TW.md"]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FLAG_ROW = re.compile(r"^\| (?:`(-\w)`, )?`--(\w+)` \| (.*?) \| .+ \|$", re.MULTILINE)
TREE_LINE = re.compile(r"^([\w./-]+) {2,}\S", re.MULTILINE)
OWN_FLAGS = {
    "hf_token": None,
    "config": None,
    "dryrun": None,
    "detach": None,
    "help": "-h",
    "version": None,
}  # name -> short form


@pytest.mark.parametrize("language", ["bash", "python", "json"])
def test_both_readmes_have_the_same_blocks(language: str) -> None:
    english, chinese = (blocks(name, language) for name in READMES)
    assert english
    assert english == chinese


@pytest.mark.parametrize("name", READMES)
def test_every_finetune_command_is_accepted(name: str) -> None:
    commands = finetune_commands(name)
    assert len(commands) >= 2
    for arguments in commands:
        given = vars(build_parser("finetune train").parse_args(arguments))
        for own in ("hf_token", "dryrun"):
            given.pop(own)
        config = _resolve_config(given, given.pop("config"))
        assert check_settings(config) + check_layout(config, None) == [], arguments


def test_the_specification_s_command_is_on_the_first_screen() -> None:
    (arguments,) = (found for found in finetune_commands("README.md") if "--executor" in found)
    flags = [argument for argument in arguments if argument.startswith("--")]
    assert flags == [
        "--executor", "--experiment", "--num_nodes", "--num_gpus", "--hf_model_id", "--max_steps", "--global_batch_size",
        "--tensor_model_parallel_size", "--pipeline_model_parallel_size", "--context_parallel_size", "--dataset_path",
    ]  # fmt: skip


@pytest.mark.parametrize("name", READMES)
def test_every_make_target_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        next(word for word in words[1:] if "=" not in word)
        for words in (shlex.split(code, comments=True) for code in [*lines(name), *re.findall(r"`(make [^`]+)`", read(name))])
        if words[:1] == ["make"]
    }
    assert named >= {"demo", "test", "check"}
    assert named <= targets


@pytest.mark.parametrize("name", READMES)
def test_the_tree_names_every_module_and_nothing_else(name: str) -> None:
    (tree,) = (text for text in blocks(name, "text") if text.startswith("finetune.py"))
    listed = set(TREE_LINE.findall(tree))
    assert {path for path in listed if not (ROOT / path).exists()} == set()
    modules = {str(file.relative_to(ROOT)) for file in (ROOT / "finetuning").rglob("*.py") if file.name != "__init__.py"}
    assert modules - listed == set()


@pytest.mark.parametrize("name", READMES)
def test_the_examples_of_loading_are_python(name: str) -> None:
    for text in blocks(name, "python"):
        ast.parse(text)


@pytest.mark.parametrize("name", READMES)
def test_links_lead_somewhere(name: str) -> None:
    text = read(name)
    headings = {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.removeprefix("#") in headings if target.startswith("#") else (ROOT / target).is_file(), target


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
        commands += [line for line in text.splitlines() if line.strip()]
    return commands


def finetune_commands(name: str) -> list[list[str]]:
    """Arguments of every command that trains."""
    starts = (["python", "finetune.py"], ["finetune", "train"])
    words = [shlex.split(line, comments=True) for line in lines(name) if not re.match(r"^(export )?\w+=", line)]
    return [found[2:] for found in words if found[:2] in starts and "--help" not in found]


def anchor(heading: str) -> str:
    """GitHub's: lower case, punctuation dropped, hyphens for spaces."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
