"""The reports on the sources of a mixture as one."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from finetuning.data.reading.check import Report, SplitReport, split_report
from finetuning.data.reading.findings import Finding
from finetuning.data.reading.leakage import leaks_between


def mixed_report(reports: Mapping[str, Report], lengths: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Report:
    """One report of several; `mine/training.jsonl` is that file of the source `mine`.

    Args:
        reports: by the name of the source.
        lengths: split -> tokens and answer tokens of each sample of all sources; none: they were not counted.
    """
    mixed = Report(was_split=any(report.was_split for report in reports.values()))
    for split, (tokens, answers) in lengths.items():
        mixed.splits[split] = split_report(", ".join(reports), tokens, answers)
        mixed.counts[split] = tokens
    for name, report in reports.items():
        mixed.files += [dataclasses.replace(file, name=f"{name}/{file.name}") for file in report.files]
        mixed.splits |= {f"{name}: {split}": _of_source(name, found) for split, found in report.splits.items()}
        mixed.findings.kept += [of_source(name, finding) for finding in report.findings.kept]
        mixed.findings.counts.update({(f"{name}/{file}", code): n for (file, code), n in report.findings.counts.items()})
    known = {name: report.digests for name, report in reports.items() if report.digests is not None}
    if len(known) > 1:
        mixed.findings.extend(leaks_between(known))
    return mixed


def of_source(name: str, finding: Finding) -> Finding:
    return dataclasses.replace(finding, file=f"{name}/{finding.file}")


def _of_source(name: str, split: SplitReport) -> SplitReport:
    return dataclasses.replace(split, file=f"{name}/{split.file}")
