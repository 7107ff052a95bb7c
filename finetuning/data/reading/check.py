"""Reads a whole data set once: every finding, what each split holds and, if asked, the tokens on disk.

`scan_sources` is behind `finetune data check`, the start of every training and `finetune data prepare`. Its memory is
bounded by some batches and about a kilobyte a sample; what MinHash needs lies in a temporary file.
"""

import dataclasses
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from finetuning.data.reading.chinese_script import only_simplified, only_traditional
from finetuning.data.reading.columns import Columns
from finetuning.data.reading.finding_words import Values
from finetuning.data.reading.findings import ERROR, ERRORS, KEPT_PER_CODE, Finding, Findings, excerpt, findings_from_json
from finetuning.data.reading.leakage import Digests, save_digests
from finetuning.data.reading.near_duplicates import DIGEST_BYTES, NUM_MINIMA, equal_to_earlier, is_comparable, similar_pairs
from finetuning.data.reading.records import Sample
from finetuning.data.reading.scan import Scanned, ScanSettings, add_unknown, make_pool, scan_file
from finetuning.data.reading.sources import SPLITS, Source, read_samples_at
from finetuning.data.tokens.tokenized import TokenWriter, select_samples
from finetuning.files.atomic import tells_no_room, temporary_folder

SPLIT_SEED = 98_1_1  # of the 98/1/1 split of a raw file; fixed, so that it never depends on the run
MIN_MAJORITY = 0.8  # of the characters of one script, before the others are called foreign
HISTOGRAM_EDGES = (0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)

Progress = Callable[[int], None]  # called with the bytes read since the last call


@dataclass(frozen=True)
class FileReport:
    name: str
    formats: dict[str, int]  # format -> records
    records: int
    samples: int  # usable ones
    size: int  # bytes


@dataclass(frozen=True)
class SplitReport:
    file: str
    samples: int
    tokens: int
    answer_tokens: int
    longest: int  # tokens
    median: int
    histogram: list[int]  # samples with a token count up to each of HISTOGRAM_EDGES[1:], above the one before


@dataclass
class Report:
    """What a check found."""

    files: list[FileReport] = field(default_factory=list)
    splits: dict[str, SplitReport] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    was_split: bool = False
    # Not part of the JSON:
    counts: dict[str, np.ndarray] = field(default_factory=dict)  # split -> tokens of each sample
    selection: "Selection | None" = None  # every usable sample
    digests: Digests | None = None  # of the same, to be compared with those of other sources

    @property
    def has_errors(self) -> bool:
        return self.findings.count(ERROR) > 0

    def as_json(self) -> dict[str, Any]:
        return {
            "files": [dataclasses.asdict(file) for file in self.files],
            "splits": {name: dataclasses.asdict(split) for name, split in self.splits.items()},
            "was_split": self.was_split,
            "histogram_edges": HISTOGRAM_EDGES,
            **self.findings.as_json(),
        }


def read_report(path: Path) -> Report:
    value = json.loads(path.read_text(encoding="utf-8"))
    return Report(
        [FileReport(**file) for file in value["files"]],
        {name: SplitReport(**split) for name, split in value["splits"].items()},
        findings_from_json(value),
        value["was_split"],
    )


@dataclass(frozen=True)
class Selection:
    """Every usable sample of the files that were checked."""

    file: np.ndarray  # its number among them
    lines: np.ndarray
    groups: np.ndarray  # the same for texts that are alike
    is_repeated: np.ndarray  # equal to an earlier one


@dataclass
class _Samples:
    """The usable samples of all files, one array entry each, in the order they were read."""

    file: np.ndarray
    lines: np.ndarray
    starts: np.ndarray  # of their tokens in their file
    counts: np.ndarray
    answers: np.ndarray
    digests: np.ndarray
    questions: np.ndarray
    scripts: np.ndarray
    weights: np.ndarray  # of each sample's trained tokens together

    def __len__(self) -> int:
        return len(self.lines)


def scan_sources(
    sources: dict[str, Source],
    settings: ScanSettings,
    folder: Path | None = None,
    progress: Progress | None = None,
    *,
    is_one_body: bool = False,
) -> Report:
    """Checks all files of `sources`, and writes their tokens and splits to `folder`.

    A raw file is split 98/1/1 by a fixed shuffle of its usable lines. With `is_one_body`, nothing can leak between the files,
    as they are still to be split. With `folder`, `findings.jsonl` there lists all findings.
    """
    paths = list(dict.fromkeys(source.path for source in sources.values()))
    was_split = any(source.is_shared for source in sources.values())
    report = Report(was_split=was_split)
    if folder is None:
        _scan(sources, paths, settings, None, progress, report, is_one_body)
        return report
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "findings.jsonl").open("w", encoding="utf-8") as complete_list:
        report.findings.complete_list = complete_list
        _scan(sources, paths, settings, folder, progress, report, is_one_body)
    report.findings.complete_list = None
    return report


def _scan(
    sources: dict[str, Source],
    paths: list[Path],
    settings: ScanSettings,
    folder: Path | None,
    progress: Progress | None,
    report: Report,
    is_one_body: bool,
) -> None:
    pool = make_pool(paths, settings)
    try:
        with _signatures_file() as signatures_file:
            collected = [
                _read_file(index, path, settings, pool, folder, progress, report, signatures_file)
                for index, path in enumerate(paths)
            ]
            samples = _join(collected)
            part = _assign_splits(samples, sources, paths)
            with tells_no_room(temporary_folder()):
                signatures_file.flush()
            signatures = np.zeros((0, NUM_MINIMA), np.uint16)
            if len(samples):
                signatures = np.memmap(signatures_file, np.uint16, "r", shape=(len(samples), NUM_MINIMA))
            _compare(samples, part * (not is_one_body), paths, signatures, report, settings.columns)
            report.digests = Digests(
                np.array([path.name for path in paths]),
                samples.file,
                samples.lines,
                part == list(sources).index("training") if "training" in sources else np.ones(len(samples), np.bool_),
                samples.digests,
                samples.questions,
            )
            if folder is not None:
                save_digests(folder, report.digests)
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)
    for number, name in enumerate(sources):
        chosen = part == number
        path = sources[name].path
        if settings.prompt_format is not None:
            report.counts[name] = samples.counts[chosen]
            report.splits[name] = split_report(path.name, samples.counts[chosen], samples.answers[chosen])
        if folder is not None:
            select_samples(
                folder / name,
                f"../file_{paths.index(path)}",
                samples.starts[chosen],
                samples.counts[chosen],
                samples.answers[chosen],
                samples.lines[chosen],
                samples.weights[chosen],
            )


def _signatures_file() -> IO[bytes]:
    with tells_no_room(temporary_folder()):
        return tempfile.TemporaryFile()


def _read_file(
    index: int,
    path: Path,
    settings: ScanSettings,
    pool: Any,
    folder: Path | None,
    progress: Progress | None,
    report: Report,
    signatures_file: Any,
) -> _Samples:
    writer = TokenWriter(folder / f"file_{index}") if folder is not None else None
    formats: Counter[str] = Counter()
    unknown: dict[str, tuple[int, int]] = {}
    batches: list[Scanned] = []
    records = position = 0
    try:
        for outcome in scan_file(path, settings, pool):
            if isinstance(outcome, Finding):
                report.findings.add(outcome)
                continue
            report.findings.extend(outcome.findings)
            formats.update(outcome.formats)
            for name, (line, count) in outcome.unknown.items():
                add_unknown(unknown, name, line, count)
            records += outcome.records
            if writer is not None:
                writer.append(outcome.tokens, outcome.trained, outcome.weights)
            with tells_no_room(temporary_folder()):
                signatures_file.write(np.ascontiguousarray(outcome.signatures).tobytes())
            nothing = np.zeros(0)
            batches.append(outcome._replace(tokens=nothing, trained=nothing, weights=None, signatures=nothing, findings=[]))
            if progress is not None:
                progress(outcome.position - position)
            position = outcome.position
    finally:
        if writer is not None:
            writer.close()
    for name, (line, count) in unknown.items():
        report.findings.add(Finding("unknown_field", path.name, line, {"name": name, "count": count}))
    samples = _gather(index, batches)
    report.files.append(FileReport(path.name, dict(formats), records, len(samples), path.stat().st_size))
    return samples


def _gather(index: int, batches: list[Scanned]) -> _Samples:
    def column(name: str, width: int | None = None, dtype: Any = np.int64) -> np.ndarray:
        empty = np.zeros((0, width) if width else 0, dtype)
        return np.concatenate([empty, *(getattr(batch, name) for batch in batches)])

    lines = column("lines")
    counts = column("counts") if len(column("counts")) else np.zeros(len(lines), np.int64)
    answers = column("answers") if len(column("answers")) else np.zeros(len(lines), np.int64)
    return _Samples(
        np.full(len(lines), index),
        lines,
        np.cumsum(counts) - counts,
        counts,
        answers,
        column("digests", DIGEST_BYTES, np.uint8),
        column("questions", DIGEST_BYTES, np.uint8),
        column("scripts", 2),
        column("weight_sums", dtype=np.float64) if len(column("weight_sums")) else answers.astype(np.float64),
    )


def _join(files: list[_Samples]) -> _Samples:
    names = [f.name for f in dataclasses.fields(_Samples)]
    return _Samples(*(np.concatenate([getattr(file, name) for file in files]) for name in names))


def _assign_splits(samples: _Samples, sources: dict[str, Source], paths: list[Path]) -> np.ndarray:
    """The number of each sample's split."""
    part = np.zeros(len(samples), np.int64)
    for number, source in enumerate(sources.values()):
        if not source.is_shared:
            part[samples.file == paths.index(source.path)] = number
    if any(source.is_shared for source in sources.values()):
        part[:] = split_98_1_1(len(samples))
    return part


def split_98_1_1(count: int) -> np.ndarray:
    """For each of `count` samples the index in SPLITS, by a fixed shuffle; at least one each for validation and test."""
    held_out = max(1, round(count * 0.01))
    shuffled = np.argsort(np.random.PCG64(SPLIT_SEED).random_raw(count), kind="stable")
    part = np.full(count, SPLITS.index("training"))
    part[shuffled[:held_out]] = SPLITS.index("validation")
    part[shuffled[held_out : 2 * held_out]] = SPLITS.index("test")
    return part


@dataclass(frozen=True)
class _Later:
    """A finding that needs all samples to be known; its excerpt comes from a second look at the file."""

    code: str
    sample: int
    values: Values


def _compare(
    samples: _Samples, part: np.ndarray, paths: list[Path], signatures: np.ndarray, report: Report, columns: Columns
) -> None:
    """Duplicates, leakage and foreign script: what only shows between samples."""
    found = _find_equal(samples, part, paths)
    earlier_equal = equal_to_earlier(samples.digests)
    alone = np.flatnonzero((earlier_equal < 0) & is_comparable(signatures))
    pairs = [(int(alone[later]), int(alone[earlier]), alike) for later, earlier, alike in similar_pairs(signatures[alone])]
    report.selection = Selection(samples.file, samples.lines, _group(samples, pairs), earlier_equal >= 0)
    for later, earlier, alike in pairs:
        found.append(_pair("near", later, earlier, samples, part, paths, round(100 * alike)))
    told = {entry.sample for entry in found}
    found += [entry for entry in _find_equal_questions(samples, part, paths) if entry.sample not in told]
    found += _find_foreign(samples)
    found.sort(key=lambda entry: entry.sample)
    kept: Counter[tuple[int, str]] = Counter()
    wanted: dict[int, set[int]] = {index: set() for index in range(len(paths))}
    for entry in found:
        kept[(int(samples.file[entry.sample]), entry.code)] += 1
        if kept[(int(samples.file[entry.sample]), entry.code)] <= KEPT_PER_CODE:
            wanted[int(samples.file[entry.sample])].add(int(samples.lines[entry.sample]))
    texts = {index: read_samples_at(paths[index], lines, columns) for index, lines in wanted.items() if lines}
    for entry in found:
        file, line = int(samples.file[entry.sample]), int(samples.lines[entry.sample])
        sample = texts.get(file, {}).get(line)
        values = entry.values
        if entry.code.endswith("_chinese"):
            values = {"characters": _foreign_characters(entry.code, sample) if sample else "…"}
        report.findings.add(Finding(entry.code, paths[file].name, line, values, excerpt(sample.input) if sample else ""))


def _group(samples: _Samples, pairs: list[tuple[int, int, float]]) -> np.ndarray:
    """The number of each sample's group: the same question, or almost the same text, also by way of a third one."""
    leader = list(range(len(samples)))

    def find(sample: int) -> int:
        while leader[sample] != sample:
            leader[sample] = leader[leader[sample]]
            sample = leader[sample]
        return sample

    for digests in (samples.digests, samples.questions):
        earlier = equal_to_earlier(digests)
        for sample in np.flatnonzero(earlier >= 0).tolist():
            leader[find(sample)] = find(int(earlier[sample]))
    for later, first, _ in pairs:
        leader[find(later)] = find(first)
    return np.array([find(sample) for sample in range(len(leader))], np.int64)


def _find_equal(samples: _Samples, part: np.ndarray, paths: list[Path]) -> list[_Later]:
    earlier = equal_to_earlier(samples.digests)
    return [_pair("same", index, int(earlier[index]), samples, part, paths) for index in np.flatnonzero(earlier >= 0).tolist()]


def _find_equal_questions(samples: _Samples, part: np.ndarray, paths: list[Path]) -> list[_Later]:
    """The same question in two splits, with another answer."""
    earlier = equal_to_earlier(samples.questions)
    leaking = np.flatnonzero((earlier >= 0) & (part != part[earlier]))
    return [_pair("question", index, int(earlier[index]), samples, part, paths) for index in leaking.tolist()]


def _pair(
    kind: str, later: int, earlier: int, samples: _Samples, part: np.ndarray, paths: list[Path], percent: int = 100
) -> _Later:
    if part[later] != part[earlier] and part[later] == 0:
        later, earlier = earlier, later  # told where it is held out, not where it is trained
    other = f"{paths[samples.file[earlier]].name}:{samples.lines[earlier]}"
    if part[later] != part[earlier]:
        return _Later("leakage", later, {"kind": kind, "other": other, "percent": percent})
    if kind == "same":
        return _Later("exact_duplicate", later, {"other": other})
    return _Later("near_duplicate", later, {"other": other, "percent": percent})


def _find_foreign(samples: _Samples) -> list[_Later]:
    """Samples with characters of the script that the data as a whole is not written in."""
    simplified, traditional = samples.scripts.sum(axis=0).tolist()
    if traditional >= MIN_MAJORITY * (simplified + traditional) > 0:
        code, column = "simplified_chinese", 0
    elif simplified >= MIN_MAJORITY * (simplified + traditional) > 0:
        code, column = "traditional_chinese", 1
    else:
        return []
    return [_Later(code, index, {}) for index in np.flatnonzero(samples.scripts[:, column]).tolist()]


def _foreign_characters(code: str, sample: Sample) -> str:
    text = "\n".join(sample.texts())
    return (only_simplified(text) if code == "simplified_chinese" else only_traditional(text))[:10]


def split_report(file: str, counts: np.ndarray, answers: np.ndarray) -> SplitReport:
    histogram = np.histogram(counts, bins=np.array([-0.5, *(edge + 0.5 for edge in HISTOGRAM_EDGES[1:])]))[0]
    return SplitReport(
        file,
        len(counts),
        int(counts.sum()),
        int(answers.sum()),
        int(counts.max(initial=0)),
        int(np.median(counts)) if len(counts) else 0,
        histogram.tolist(),
    )


def bad_lines(findings: Findings) -> list[Finding]:
    """The kept findings that are errors."""
    return [finding for finding in findings.sorted() if finding.code in ERRORS]
