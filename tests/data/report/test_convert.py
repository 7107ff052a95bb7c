"""`finetune data prepare`: any format in, the specification's folder out, without duplicates and without leakage."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetuning.cli.data import main
from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.check import scan_sources
from finetuning.data.reading.scan import ScanSettings
from finetuning.data.reading.sources import SPLITS, find_sources
from finetuning.data.report.convert import split_groups
from finetuning.errors import InputError
from tests.data.conftest import WriteJsonl
from tests.data.defects import STORY
from tests.data.samples import pairs

pytestmark = pytest.mark.unit


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@given(
    groups=st.lists(st.integers(0, 30), min_size=1, max_size=200).map(np.array),
    seed=st.integers(0, 9),
    shares=st.sampled_from([(0.98, 0.01, 0.01), (0.8, 0.1, 0.1), (1.0, 0.0, 0.0), (0.5, 0.5, 0.0)]),
)
def test_a_group_is_never_torn_apart_and_training_is_never_empty(groups: np.ndarray, seed: int, shares: tuple) -> None:
    part = split_groups(groups, shares, seed)
    assert all(len(set(part[groups == group])) == 1 for group in set(groups.tolist()))
    assert (part == 0).any()
    assert all(shares[number] > 0 for number in set(part.tolist()))
    assert part.tolist() == split_groups(groups, shares, seed).tolist()


def test_shares_are_kept_when_samples_differ() -> None:
    part = split_groups(np.arange(1000), (0.8, 0.15, 0.05), 1)
    assert np.bincount(part).tolist() == [800, 150, 50]
    assert part.tolist() != split_groups(np.arange(1000), (0.8, 0.15, 0.05), 2).tolist()


def test_several_files_and_formats_become_one_folder(
    tmp_path: Path, write_jsonl: WriteJsonl, capsys: pytest.CaptureFixture[str]
) -> None:
    alpaca = [
        {"instruction": f"請說明第 {i} 個詞", "input": "", "output": f"第 {i} 個詞的意思是{chr(0x4E00 + i) * 9}。"}
        for i in range(40)
    ]
    chat = {
        "messages": [
            {"role": "user", "content": "一"},
            {"role": "assistant", "content": "1"},
            {"role": "user", "content": "二"},
            {"role": "assistant", "content": "2"},
        ]
    }
    write_jsonl("raw/a.jsonl", *alpaca, alpaca[3], b"{")
    write_jsonl("raw/b.jsonl", chat, alpaca[5])
    (tmp_path / "raw" / "c.json").write_text(json.dumps(pairs(2), ensure_ascii=False), encoding="utf-8")
    out = tmp_path / "out"
    assert main(["prepare", str(tmp_path / "raw"), str(out), "--validation_share", "0.1", "--test_share", "0.1"]) == 0
    written = {name: read(out / f"{name}.jsonl") for name in SPLITS}
    everything = [json.dumps(record, sort_keys=True) for records in written.values() for record in records]
    assert len(everything) == len(set(everything)) == 40 + 1 + 2
    assert [len(records) for records in written.values()] == [35, 4, 4]
    assert chat in [record for records in written.values() for record in records], "several turns stay several turns"
    screen = capsys.readouterr().out
    assert "43 of 46 samples written (training 35, validation 4, test 4)" in screen
    assert "a.jsonl:41: the same as a.jsonl:4" in screen and "b.jsonl:2: the same as a.jsonl:6" in screen
    assert "a.jsonl:42: not valid JSON" in screen


def test_look_alikes_stay_in_one_part_so_a_check_of_the_result_finds_no_leakage(
    tmp_path: Path, write_jsonl: WriteJsonl
) -> None:
    families = [
        {"input": STORY.replace("台灣", name) + mark, "output": f"{name}的故事。" * 3}
        for name in ("山上", "海邊")
        for mark in ("", "！", "！！", "？")
    ]
    texts = [{"input": f"{chr(0x5000 + 31 * i) * 12}是什麼？", "output": f"是{chr(0x6000 + 17 * i) * 20}。"} for i in range(60)]
    source = write_jsonl("raw.jsonl", *families, *texts)
    out = tmp_path / "out"
    main(["prepare", str(source), str(out), "--validation_share", "0.2", "--test_share", "0.2"])
    report = scan_sources(find_sources(out), ScanSettings(None, 0))
    assert "leakage" not in report.findings.by_code()
    assert "near_duplicate" in report.findings.by_code()
    assert sum(file.samples for file in report.files) == 68


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    source = write_jsonl("raw.jsonl", *pairs(50))
    for name in ("one", "two"):
        main(["prepare", str(source), str(tmp_path / name)])
    for split in SPLITS:
        assert (tmp_path / "one" / f"{split}.jsonl").read_bytes() == (tmp_path / "two" / f"{split}.jsonl").read_bytes()


def test_a_filled_folder_is_not_written_into(tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    source = write_jsonl("raw.jsonl", *pairs(5))
    with pytest.raises(InputError, match="exists and is not empty"):
        main(["prepare", str(source), str(tmp_path)])
    with pytest.raises(InputError, match=r"--validation_share 0\.7: must be 0 to 0\.5"):
        main(["prepare", str(source), str(tmp_path / "new"), "--validation_share", "0.7"])
    with pytest.raises(InputError, match="--to megatron writes tokens"):
        main(["prepare", str(source), str(tmp_path / "new"), "--to", "megatron"])
    with pytest.raises(InputError, match="there is no such file"):
        main(["prepare", str(tmp_path / "nowhere"), str(tmp_path / "new")])


def test_megatron_files_hold_the_tokens_of_every_sample(
    tmp_path: Path, write_jsonl: WriteJsonl, model_path: Path, prompt_format: PromptFormat
) -> None:
    from finetuning.data.reading.records import Sample
    from finetuning.data.tokens.megatron import read_megatron

    source = write_jsonl("raw.jsonl", *pairs(30))
    out = tmp_path / "out"
    main(["prepare", str(source), str(out), "--to", "megatron", "--hf_model_id", str(model_path)])
    documents = []
    for name in SPLITS:
        data = read_megatron(out / f"{name}_text_document")
        documents += [data.tokens[start:end].tolist() for start, end in zip(data.starts, data.ends, strict=True)]
    expected = [prompt_format.encode(Sample(1, pair["input"], pair["output"]))[0].tolist() for pair in pairs(30)]
    assert sorted(documents) == sorted(expected)
