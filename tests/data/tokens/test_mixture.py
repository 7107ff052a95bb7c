"""The data set of a mixture: each source with its own tokens, reports and problems under its name."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetuning.cli.data import main
from finetuning.cli.model_argument import test_file_of as file_to_answer
from finetuning.config.mixture import read_mixture
from finetuning.config.run import write_run
from finetuning.config.settings import RunConfig
from finetuning.data.tokens.configure import Dataset
from finetuning.data.tokens.mixture import configure_mixture
from finetuning.data.tokens.prune import find_unused
from finetuning.data.tokens.tokenized import MixedSplit, TokenizedSplit
from finetuning.errors import InputError
from finetuning.launch.prepare import prepare
from tests.data.conftest import WriteJsonl
from tests.data.samples import pairs

pytestmark = pytest.mark.unit


@pytest.fixture
def mixture(write_jsonl: WriteJsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A YAML file of two sources: six samples with a system message, and a raw file under other names, split 98/1/1."""
    monkeypatch.chdir(tmp_path)
    records = pairs(30)
    write_jsonl("mine/training.jsonl", *records[:6])
    write_jsonl("mine/validation.jsonl", *records[6:8])
    write_jsonl("general.jsonl", *({"q": record["input"], "a": record["output"]} for record in records[8:]))
    Path("mix.yaml").write_text(
        "- {path: mine, weight: 3, system_prompt: Be brief.}\n- {path: general.jsonl, weight: 1, columns: 'input=q,output=a'}\n"
    )
    return "mix.yaml"


def configure(mixture: str, model_path: Path, **settings: Any) -> Dataset:
    return configure_mixture(read_mixture(mixture), model_path, Path("tokens"), **{"seq_length": 512, **settings})


def test_samples_are_numbered_through_and_keep_tokens_lines_and_texts_of_their_source(mixture: str, model_path: Path) -> None:
    dataset = configure(mixture, model_path)
    split = dataset.splits["training"]
    assert isinstance(split, MixedSplit)
    assert (split.names, split.shares) == (("mine", "general"), ((6, 20), (3, 1), 8))
    assert split.lines[:6].tolist() == [1, 2, 3, 4, 5, 6]
    assert split.source_of(np.array([0, 5, 6, 25])).tolist() == [0, 0, 1, 1]
    own = split.sources[1]
    assert isinstance(own, TokenizedSplit)
    assert split.pieces(7)[0][0].tolist() == own.sample(1)[0].tolist()
    texts = [dataset.prompt_format.decode(split.pieces(sample)[0][0].tolist()) for sample in (0, 6)]
    assert ["Be brief." in text for text in texts] == [True, False]
    assert {name: len(each) for name, each in dataset.splits.items()} == {"training": 26, "validation": 3, "test": 1}


def test_tokens_of_a_source_are_used_again_with_other_shares(mixture: str, model_path: Path) -> None:
    first = configure(mixture, model_path)
    made = {folder.name: folder.stat().st_ino for folder in Path("tokens").iterdir()}
    Path(mixture).write_text(Path(mixture).read_text().replace("weight: 3", "weight: 2"))
    second = configure(mixture, model_path)
    assert first.folder != second.folder
    assert [source.dataset.folder for source in first.mixture] == [source.dataset.folder for source in second.mixture]
    assert {name: Path("tokens", name).stat().st_ino for name in made} == made


def test_an_experiment_keeps_the_tokens_of_all_its_sources(mixture: str, model_path: Path) -> None:
    dataset = configure(mixture, model_path)
    experiments = Path("experiments")
    (experiments / "one").mkdir(parents=True)
    Path("tokens").rename(experiments / ".tokens")
    for folder in (experiments / ".tokens").iterdir():
        os.utime(folder, (0, 0))
    (experiments / "one" / "run.yaml").write_text(f"tokens_dir: {dataset.folder}\n")
    assert find_unused(experiments, keep=0) == []
    (experiments / "one" / "run.yaml").unlink()
    assert len(find_unused(experiments, keep=0)) == 3


def test_what_is_wrong_in_any_source_is_said_with_its_name(mixture: str, model_path: Path, write_jsonl: WriteJsonl) -> None:
    write_jsonl("mine/validation.jsonl", {"input": "a"})
    write_jsonl("general.jsonl", {"q": "a", "a": ""})
    with pytest.raises(InputError) as refused:
        configure(mixture, model_path)
    said = "\n".join(refused.value.problems)
    assert "mine: validation.jsonl:1: field 'output' is missing" in said
    assert "general: general.jsonl:1: " in said


def test_check_and_preview_show_the_sources_with_their_shares(
    mixture: str, model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--hf_model_id", str(model_path), "--seq_length", "512"]
    assert main(["check", mixture, *model, "--html", "report.html"]) == 0
    said = capsys.readouterr().out
    assert "mine/training.jsonl: 6 usable of 6 records" in said
    assert "an epoch: 75.00% mine: 6 samples drawn from 6, 1.00 epochs of it" in said
    assert "an epoch: 25.00% general: 2 samples drawn from 20, 0.10 epochs of it" in said
    page = Path("report.html").read_text(encoding="utf-8")
    assert "75.00% mine" in page and "general/general.jsonl:" in page
    assert main(["check", "mine:1,general.jsonl:1"]) == 2, "without their columns"
    capsys.readouterr()
    for source, holds in (("mine", True), ("general", False)):
        assert main(["preview", mixture, "--source", source, *model]) == 0
        assert ("Be brief." in capsys.readouterr().out) == holds
    with pytest.raises(InputError, match="--source other: there is no such source; there are: mine, general"):
        main(["preview", mixture, "--source", "other", *model])


def test_what_one_source_holds_out_and_another_trains_is_found(
    mixture: str, model_path: Path, write_jsonl: WriteJsonl, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out, other = pairs(30)[6:8]
    answered = {"q": other["input"], "a": "另一個答案。"}
    rows = [{"q": each["input"], "a": each["output"]} for each in pairs(300)[100:]]
    write_jsonl("general.jsonl", {"q": held_out["input"], "a": held_out["output"]}, answered, *rows)
    report = configure(mixture, model_path).report
    leaks = [(f.place, f.values["kind"], f.values["other"]) for f in report.findings.sorted() if f.code == "leakage"]
    assert leaks == [
        ("mine/validation.jsonl:1", "same", "general/general.jsonl:1"),
        ("mine/validation.jsonl:2", "question", "general/general.jsonl:2"),
    ]
    main(["check", mixture])
    assert "mine/validation.jsonl:1" in capsys.readouterr().out


def test_a_run_knows_the_file_and_the_columns_of_each_source(mixture: str, model_path: Path) -> None:
    config = RunConfig(hf_model_id=str(model_path), dataset_path=mixture, global_batch_size=4, num_gpus=1, seq_length=512)
    run = prepare(config, None, Path("experiments/one"), Path("tokens"), with_weights=True).run
    own = Path("general.jsonl").resolve()
    assert run.files_of("test") == {"general": (str(own), "input=q,output=a")}
    assert list(run.files_of("validation")) == ["mine", "general"] and run.has_text
    assert run.identity["mixture"] == "mine 3, general 1"
    Path("experiments/one").mkdir(parents=True)
    write_run(run, Path("experiments/one/run.yaml"))
    assert file_to_answer(Path("experiments/one/export")) == (own, "input=q,output=a")


def test_data_that_were_fetched_for_an_experiment_stay_with_it(tmp_path: Path) -> None:
    for name in ("data-one", "data-two", "data-three"):
        folder = tmp_path / ".tokens" / name
        folder.mkdir(parents=True)
        os.utime(folder, (0, 0))
    (tmp_path / "run").mkdir()
    files = [f"{{training: {tmp_path}/.tokens/{name}/training.jsonl}}" for name in ("data-one", "data-two")]
    text = f"tokens_dir: x\nsources: {files[0]}\nmixture: [{{sources: {files[0]}}}, {{sources: {files[1]}}}]\n"
    (tmp_path / "run" / "run.yaml").write_text(text)
    assert [unused.folder.name for unused in find_unused(tmp_path, keep=0)] == ["data-three"]
