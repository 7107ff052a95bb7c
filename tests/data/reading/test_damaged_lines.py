"""However a line is damaged, it is a sample or a finding with its file and line, and never an exception.

`FUZZ_LINES=1000000 pytest tests/data/reading/test_damaged_lines.py` tries as many lines; `FUZZ_SEED` others.
"""

import json
import os
from collections import Counter
from itertools import islice

import pytest

from finetuning.data.prompts.prompt_format import PromptFormat
from finetuning.data.reading.findings import ERROR
from finetuning.data.reading.scan import CUT_INPUT, ScanSettings, scan_batch
from finetuning.data.reading.sources import RawBatch, parse
from finetuning.data.report.forms import as_shortest
from tests.data.reading.line_mutator import mutated_lines

pytestmark = pytest.mark.unit

LINES, SEED = int(os.environ.get("FUZZ_LINES", "1500")), int(os.environ.get("FUZZ_SEED", "1"))
BATCH = 200


@pytest.mark.timeout(0)
def test_a_damaged_line_is_a_sample_or_a_finding(prompt_format: PromptFormat) -> None:
    lines = mutated_lines(SEED, LINES)
    codes: Counter[str] = Counter()
    usable = read = 0
    while batch := list(enumerate(islice(lines, BATCH), start=read + 1)):
        read += len(batch)
        for settings in (ScanSettings(None, 0), ScanSettings(prompt_format, 512, CUT_INPUT)):
            scanned = scan_batch(RawBatch("x.jsonl", list(batch), read), settings)
            for finding in scanned.findings:
                assert finding.place == f"x.jsonl:{finding.line}" and read - len(batch) < finding.line <= read
                shown = f"{finding} {json.dumps(finding.as_json(), ensure_ascii=False)}"
                shown.encode("utf-8")
                assert len(shown) < 2000 and "\x1b" not in shown and "\n" not in shown
            told = {finding.line for finding in scanned.findings if finding.severity == ERROR}
            assert told.isdisjoint(scanned.lines.tolist())
            assert told | set(scanned.lines.tolist()) == {line for line, _ in batch}, "each is used or told"
        codes.update(finding.code for finding in scanned.findings)
        usable += len(scanned.lines)
        for line, raw in batch:
            sample = parse(raw, line)[0]
            if sample is not None:  # what `finetune data prepare` writes says the same
                again = parse(json.dumps(as_shortest(sample), ensure_ascii=False).encode(), line)[0]
                assert repr(again) == repr(sample)  # NaN is not equal to itself
            parse(raw, line, needs_answer=False)
    print(f"{read:,} lines, seed {SEED}: {usable:,} usable; findings {dict(codes.most_common())}")
    assert read == LINES and usable > read // 20 and len(codes) > 12, "the lines are neither all sound nor all hopeless"
