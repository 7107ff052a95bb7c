"""What a check finds: every defect of a seeded folder in its line, nothing in the shipped example, in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from finetuning.data.batches.global_batch import make_row
from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.check import Report, read_report, scan_sources
from finetuning.data.reading.findings import KEPT_PER_CODE
from finetuning.data.reading.near_duplicates import SHORTEST_TEXT, equal_to_earlier, is_comparable, minima, similar_pairs
from finetuning.data.reading.scan import MIN_BYTES_FOR_PROCESSES, ScanSettings
from finetuning.data.reading.sources import Source, find_sources
from finetuning.data.tokens.tokenized import TokenizedSplit, open_split
from finetuning.model.cross_entropy import IGNORED_LABEL
from tests.data.conftest import WriteJsonl
from tests.data.defects import STORY, write_defects
from tests.data.samples import pairs

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parent.parent.parent.parent
EXAMPLE = ROOT / "examples" / "data" / "alpaca"


def places(report: Report) -> list[tuple[str, int, str]]:
    return [(finding.file, finding.line, finding.code) for finding in report.findings.sorted()]


def test_a_folder_with_every_defect_yields_exactly_those_findings(tmp_path: Path, prompt_format: PromptFormat) -> None:
    expected = write_defects(tmp_path / "data")
    report = scan_sources(find_sources(tmp_path / "data"), ScanSettings(prompt_format, 512))
    found = places(report)
    assert sorted(found) == sorted(expected)
    assert report.has_errors


def test_every_finding_has_an_excerpt_or_tells_the_value(tmp_path: Path, prompt_format: PromptFormat) -> None:
    write_defects(tmp_path / "data")
    report = scan_sources(find_sources(tmp_path / "data"), ScanSettings(prompt_format, 512))
    silent = {finding.code for finding in report.findings.kept if not finding.excerpt and not finding.values}
    assert silent == {"utf_16", "byte_order_mark"}


@pytest.mark.parametrize("path", [EXAMPLE, EXAMPLE / "gpt4-chinese-zhtw.jsonl"])
def test_there_is_nothing_to_complain_about_in_the_shipped_example(path: Path, prompt_format: PromptFormat) -> None:
    report = scan_sources(find_sources(path), ScanSettings(prompt_format, 1024))
    assert [str(finding) for finding in report.findings.sorted()] == []


def test_traditional_characters_are_foreign_in_simplified_data(write_jsonl: WriteJsonl) -> None:
    path = write_jsonl(
        "zh.jsonl",
        *[{"input": f"这个问题{i}怎么办？", "output": "请先说明。"} for i in range(9)],
        {"input": "這個怎麼辦？", "output": "请先说明。"},
        {"input": "日本語の国会", "output": "です、国会図書館"},
    )
    report = scan_sources({"training": Source(path)}, ScanSettings(None, 0))
    foreign = [finding for finding in report.findings.sorted() if finding.code.endswith("_chinese")]
    assert [str(finding) for finding in foreign] == [
        "zh.jsonl:10: Traditional characters in Simplified Chinese data: 這個麼辦: 這個怎麼辦？"
    ]


def test_what_is_held_out_leaks_and_not_what_is_trained(write_jsonl: WriteJsonl) -> None:
    validation = write_jsonl("validation.jsonl", {"input": STORY, "output": "好。"})
    training = write_jsonl("training.jsonl", {"input": STORY, "output": "好。"})
    report = scan_sources({"training": Source(training), "validation": Source(validation)}, ScanSettings(None, 0))
    assert places(report) == [("validation.jsonl", 1, "leakage")]
    assert report.findings.kept[0].values["other"] == "training.jsonl:1"


@pytest.mark.parametrize("truncation", ["refuse", "cut_input", "drop"])
def test_a_long_sample_is_refused_cut_or_dropped_and_always_listed(
    tmp_path: Path, write_jsonl: WriteJsonl, prompt_format: PromptFormat, truncation: str
) -> None:
    question, answer = "這一題很長。" * 200, "答案在最後。"
    path = write_jsonl("training.jsonl", pairs(1)[0], {"input": question, "output": answer})
    report = scan_sources({"training": Source(path)}, ScanSettings(prompt_format, 256, truncation), tmp_path / "tokens")
    split = open_split(tmp_path / "tokens" / "training")
    code = {"refuse": "too_long", "cut_input": "input_cut", "drop": "dropped_too_long"}[truncation]
    assert places(report) == [("training.jsonl", 2, code)]
    assert len(split) == (2 if truncation == "cut_input" else 1)
    if truncation == "cut_input":
        tokens, trained = split.sample(1)
        decode = prompt_format.decode
        assert decode(tokens[trained].tolist(), skip_special_tokens=False) == answer + "<|eot_id|>"
        assert 200 < len(tokens) <= 256
        kept = decode(tokens[~trained].tolist()).partition("user")[2].partition("assistant")[0].strip()
        assert question.startswith(kept) and len(kept) > 100
        removed = report.findings.kept[0].values["removed"]
        assert removed == report.findings.kept[0].values["tokens"] - len(tokens)


def test_an_answer_that_alone_is_too_long_cannot_be_saved_by_cutting_the_input(
    write_jsonl: WriteJsonl, prompt_format: PromptFormat
) -> None:
    path = write_jsonl("training.jsonl", {"input": "問", "output": "很長的答案。" * 200})
    report = scan_sources({"training": Source(path)}, ScanSettings(prompt_format, 256, "cut_input"))
    assert places(report) == [("training.jsonl", 1, "too_long")]


def test_many_findings_are_counted_but_only_the_first_are_kept(tmp_path: Path, write_jsonl: WriteJsonl) -> None:
    path = write_jsonl("training.jsonl", *[b"{"] * (KEPT_PER_CODE + 50))
    report = scan_sources({"training": Source(path)}, ScanSettings(None, 0), tmp_path / "out")
    assert len(report.findings.kept) == KEPT_PER_CODE
    assert report.findings.by_code() == {"bad_json": KEPT_PER_CODE + 50}
    complete = (tmp_path / "out" / "findings.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [json.loads(line)["line"] for line in complete] == list(range(1, KEPT_PER_CODE + 51))


def test_a_report_survives_its_json(tmp_path: Path, prompt_format: PromptFormat) -> None:
    write_defects(tmp_path / "data")
    report = scan_sources(find_sources(tmp_path / "data"), ScanSettings(prompt_format, 512))
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report.as_json()), encoding="utf-8")
    again = read_report(file)
    assert (again.files, again.splits, again.findings.by_code()) == (report.files, report.splits, report.findings.by_code())
    assert list(map(str, again.findings.sorted())) == list(map(str, report.findings.sorted()))


@pytest.mark.dist  # starts processes
def test_several_processes_find_and_tokenize_the_same(
    tmp_path: Path, write_jsonl: WriteJsonl, prompt_format: PromptFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("finetuning.data.reading.sources.BATCH_BYTES", 1 << 13)
    records = pairs(1_000)
    records[750] = records[17]
    path = write_jsonl(
        "training.jsonl", *records[:500], b"{", *records[500:], *[{"input": "長" * 400, "output": "x" * 500}] * 3
    )
    sources = {"training": Source(path)}
    size = path.stat().st_size
    reports = []
    for limit, folder in ((size + 1, "one"), (size, "several")):
        monkeypatch.setattr("finetuning.data.reading.scan.MIN_BYTES_FOR_PROCESSES", limit)
        reports.append(scan_sources(sources, ScanSettings(prompt_format, 512), tmp_path / folder))
    assert list(map(str, reports[0].findings.sorted())) == list(map(str, reports[1].findings.sorted()))
    assert reports[0].splits == reports[1].splits
    one, several = (open_split(tmp_path / folder / "training") for folder in ("one", "several"))
    assert np.array_equal(one.tokens, several.tokens) and np.array_equal(one.trained, several.trained)
    assert np.array_equal(one.lines, several.lines) and np.array_equal(one.starts, several.starts)


@pytest.mark.dist  # starts processes
def test_a_check_uses_the_same_memory_for_a_small_and_a_large_file(tmp_path: Path) -> None:
    # One line of 2 kB, all different: 4 MB, then 24 MB. What grows is some hundred bytes a sample.
    script = """
import resource, sys
from pathlib import Path
from finetuning.data.reading.check import scan_sources
from finetuning.data.reading.scan import ScanSettings
from finetuning.data.reading.sources import Source
path = Path(sys.argv[1])
for samples in (2_000, 12_000):
    with path.open("w") as file:
        for i in range(samples):
            file.write('{"input": "%d ' % i + "q%d " % (i * 7919) * 200 + '", "output": "a%d"}\\n' % i)
    scan_sources({"training": Source(path)}, ScanSettings(None, 0))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "big.jsonl")], cwd=ROOT, capture_output=True, text=True, check=True
    )
    small, large = map(int, run.stdout.split())
    assert (tmp_path / "big.jsonl").stat().st_size > 20e6 > MIN_BYTES_FOR_PROCESSES
    assert large - small < 12


def test_minhash_estimates_the_share_of_common_shingles() -> None:
    generator = np.random.default_rng(3)
    base = "".join(chr(0x4E00 + c) for c in generator.integers(0, 3000, 400))
    changed = list(base)
    for place in range(0, 400, 40):
        changed[place] = "一"
    signatures = minima([base, "".join(changed), base.replace(base[0], " " + base[0]), "".join(reversed(base)), "短", ""])
    agreement = (signatures[0] == signatures).mean(axis=1)
    shingles = [{text[i : i + 5] for i in range(396)} for text in (base, "".join(changed))]
    jaccard = len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])
    assert agreement[1] == pytest.approx(jaccard, abs=0.2)  # more than three standard deviations of 64 minima
    assert agreement[2] == 1.0, "white space is ignored"
    assert max(agreement[3:]) < 0.1


def test_short_texts_are_alike_only_when_they_are_equal(write_jsonl: WriteJsonl) -> None:
    letters = STORY[: SHORTEST_TEXT - 1]
    texts = [letters, letters[:-1] + "！", "請問 3 加 5 是多少？", "請問 3 加 6 是多少？", letters]
    assert not is_comparable(minima(texts)).any()
    assert is_comparable(minima([STORY[:SHORTEST_TEXT], " \n".join(STORY[:SHORTEST_TEXT])])).all(), "white space is not counted"
    path = write_jsonl("training.jsonl", *[{"input": text[:-2], "output": text[-2:]} for text in texts])
    report = scan_sources({"training": Source(path)}, ScanSettings(None, 0))
    assert places(report) == [("training.jsonl", 5, "exact_duplicate")]


def test_texts_of_templates_with_other_numbers_are_not_told_as_near_duplicates(write_jsonl: WriteJsonl) -> None:
    sums = [{"input": f"{a} 加 {b} 等於多少？", "output": f"{a} 加 {b} 等於 {a + b}。"} for a in range(40) for b in range(40)]
    report = scan_sources({"training": Source(write_jsonl("training.jsonl", *sums))}, ScanSettings(None, 0))
    assert places(report) == []


def test_equal_and_similar_texts_point_to_an_earlier_one() -> None:
    texts = [STORY, "完全不同的一句話，跟故事沒有關係。", STORY + "！", STORY + "！！", STORY]
    pairs_found = [(later, earlier) for later, earlier, _ in similar_pairs(minima(texts))]
    assert [later for later, _ in pairs_found] == [2, 3, 4]
    assert all(earlier in (0, 2) for _, earlier in pairs_found)
    digests = np.array([[1] * 16, [2] * 16, [1] * 16], np.uint8)
    assert equal_to_earlier(digests).tolist() == [-1, -1, 0]
    assert equal_to_earlier(np.zeros((0, 16), np.uint8)).tolist() == []


def test_fractions_of_weight_are_kept_for_each_token_of_their_answer(
    prompt_format: PromptFormat, write_jsonl: WriteJsonl, tmp_path: Path
) -> None:
    question = {"role": "user", "content": "q"}
    answers = [{"role": "assistant", "content": "一二三", "weight": weight} for weight in (0.5, 0, 0.25)]
    weighted = {"messages": [part for answer in answers for part in (question, answer)]}
    write_jsonl("data/training.jsonl", {"input": "a", "output": "b"}, weighted, {"input": "c", "output": "d"})
    scan_sources(find_sources(tmp_path / "data"), ScanSettings(prompt_format, 512), tmp_path / "tokens")
    split = open_split(tmp_path / "tokens" / "training")
    assert isinstance(split, TokenizedSplit)
    assert split.is_weighted
    found = [split.pieces(sample)[0] for sample in range(3)]
    assert [sorted(set(weights.tolist())) for _, weights in found] == [[0.0, 1.0], [0.0, 0.25, 0.5], [0.0, 1.0]]
    each = int((found[1][1] == 0.5).sum())
    assert prompt_format.decode(found[1][0][found[1][1] == 0.5].tolist(), skip_special_tokens=False) == "一二三<|eot_id|>"
    assert split.answer_weights.tolist() == [*split.answer_tokens[:1], 0.75 * each, *split.answer_tokens[2:]]
    row = make_row(split, [0, 1, 2], int(split.lengths.sum()))
    assert row.weights is not None
    assert float(row.weights[row.labels != IGNORED_LABEL].sum()) == split.answer_weights.sum()
